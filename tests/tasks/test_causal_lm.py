"""Instruction tuning with a tiny GPT-2: the loss is on the answer, its EOS included, and on nothing else."""

import pytest
import torch

from fedelta.tasks import Instruction, predict_all
from fedelta.tasks.causal_lm import continued
from fedelta.tasks.task import IGNORED

TASK = Instruction(prompt="Question: {instruction} Answer: ")
ROWS = [
    {"instruction": "why?", "response": "it is heavy."},
    {"instruction": "why does water run down the hill?", "response": "rain falls on the plain"},
]


def by_hand(model, tokenizer, row):
    """Summed loss, number of answer tokens and right guesses, from log-softmax and a plain loop."""
    prompt = tokenizer(TASK.prompt_of(row))["input_ids"]
    answer = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
    logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(dim=-1)
    steps = [(logits[len(prompt) + i - 1], token) for i, token in enumerate(answer)]
    return -sum(line[token].item() for line, token in steps), len(steps), sum(line.argmax() == token for line, token in steps)


def test_labels_are_the_answer_and_its_end(bytes_):
    (found,) = TASK.encode(ROWS[:1], bytes_)
    labelled = [token for token in found["token_labels"] if token != IGNORED]
    assert bytes_.decode(labelled) == "it is heavy.<end>"
    hidden = [i for i, label in zip(found["input_ids"], found["token_labels"], strict=True) if label == IGNORED]
    assert bytes_.decode(hidden) == "Question: why? Answer: "


def test_the_loss_is_the_mean_over_all_answer_tokens_of_the_batch(bytes_, language_model):
    batch = TASK.collate(TASK.encode(ROWS, bytes_), bytes_.eos_token_id)
    losses, counts, _ = zip(*(by_hand(language_model, bytes_, row) for row in ROWS), strict=True)
    assert counts[0] != counts[1]
    assert TASK.loss(language_model, batch).item() == pytest.approx(sum(losses) / sum(counts), rel=1e-9)


def test_predictions_hold_each_examples_own_sums(bytes_, language_model):
    found = predict_all(TASK, language_model, TASK.encode(ROWS, bytes_), batch_size=2)
    for i, row in enumerate(ROWS):
        loss, count, right = by_hand(language_model, bytes_, row)
        assert found.loss_sum[i] == pytest.approx(loss, rel=1e-9)
        assert (found.count[i], found.correct[i]) == (count, right)
    assert set(TASK.score(found)) == {"loss", "perplexity", "accuracy"}


def test_padding_changes_nothing(bytes_, language_model):
    wide = Instruction(prompt=TASK.prompt, pad_to_multiple=64)
    examples = TASK.encode(ROWS, bytes_)
    narrow, padded = TASK.collate(examples, 0), wide.collate(examples, 0)
    assert padded["input_ids"].shape[1] == 64
    torch.testing.assert_close(TASK.loss(language_model, narrow), wide.loss(language_model, padded), rtol=1e-10, atol=1e-12)


def test_no_logit_of_the_prompt_is_trained(bytes_, language_model):
    """Positions that predict answer tokens get gradients; those within the prompt or after the answer get none."""
    batch = TASK.collate(TASK.encode(ROWS, bytes_), 0)
    kept = {}

    def model(**inputs):
        kept["out"] = language_model(**inputs)
        kept["out"].logits.retain_grad()
        return kept["out"]

    TASK.loss(model, batch).backward()
    trained = kept["out"].logits.grad.abs().sum(dim=-1)[:, :-1] > 0
    assert torch.equal(trained, batch["token_labels"][:, 1:] != IGNORED)


def test_a_long_prompt_loses_its_start_and_the_answer_stays(bytes_):
    task = Instruction(prompt=TASK.prompt, max_length=16)
    row = {"instruction": "why? " * 50, "response": "it is"}
    (found,) = task.encode([row], bytes_)
    assert len(found["input_ids"]) == 16
    assert bytes_.decode(found["input_ids"]).endswith("Answer: it is<end>")


def test_only_an_answer_too_long_alone_is_cut_and_then_has_no_end(bytes_):
    task = Instruction(prompt=TASK.prompt, max_length=8)
    (found,) = task.encode([{"instruction": "why?", "response": "rain " * 40}], bytes_)
    assert [label == IGNORED for label in found["token_labels"]] == [True] + [False] * 7
    assert bytes_.eos_token_id not in found["input_ids"]


def test_a_leading_bos_survives_the_cut(bytes_):
    bos = bytes_.bos_token_id
    found = continued([bos, 11, 12, 13, 14], [21, 22], 5, bytes_, "row 0")
    assert found["input_ids"] == [bos, 13, 14, 21, 22]
    assert found["token_labels"] == [IGNORED] * 3 + [21, 22]


def test_an_empty_prefix_is_replaced_by_bos(bytes_):
    assert continued([], [21], 5, bytes_, "row 0")["input_ids"] == [bytes_.bos_token_id, 21]


def test_rows_with_and_without_context_have_their_own_prompts():
    task = Instruction(context="context", prompt="{instruction}!", prompt_with_context="{context}|{instruction}!")
    assert task.prompt_of({"instruction": "do", "context": ""}) == "do!"
    assert task.prompt_of({"instruction": "do {context}", "context": "it {instruction}"}) == "it {instruction}|do {context}!"


def test_a_prompt_without_its_place_is_refused():
    with pytest.raises(ValueError, match=r"lacks the place \{instruction\}"):
        Instruction(prompt="say something")


def test_the_category_is_the_label_for_splits():
    assert Instruction(category="kind").label_of({"kind": "summary"}) == "summary"
    assert Instruction().label_of({"kind": "summary"}) is None


def test_unusable_rows_are_named(bytes_):
    with pytest.raises(ValueError, match="row 1 has no field 'response'; it has 'instruction', 'output'"):
        TASK.encode([ROWS[0], {"instruction": "why?", "output": "so"}], bytes_)
    with pytest.raises(ValueError, match="data set is empty"):
        TASK.encode([], bytes_)
    with pytest.raises(ValueError, match="max_length 1 leaves no place"):
        Instruction(max_length=1).encode(ROWS, bytes_)
