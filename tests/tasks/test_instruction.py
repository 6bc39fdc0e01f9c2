"""Instruction tuning with a tiny GPT-2: the loss is on the answer, its EOS included, and on nothing else."""

import pytest
import torch
from peft import LoraConfig
from torch.nn import functional as F
from transformers import Gemma2Config, Gemma2ForCausalLM

from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Instruction, predict_all
from fedelta.tasks.task import IGNORED
from fedelta.tasks.text.continuations import continued
from fedelta.tasks.text.logits import logits_at

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


def full_loss(model, batch):
    """The loss from the logits of all positions."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = model(**inputs).logits[:, :-1].flatten(0, 1)
    return F.cross_entropy(logits, batch["token_labels"][:, 1:].flatten(), ignore_index=IGNORED)


def gradients(loss, model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, trained)


@pytest.fixture
def capped(bytes_):
    """A model that bends its logits after the head."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(bytes_),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=24,
        final_logit_softcapping=0.05,
    )
    return Gemma2ForCausalLM(config).double().eval()


def without_labels_in_a_row(batch):
    batch["token_labels"][0] = IGNORED
    return batch


def padded_on_the_left(batch):
    shift = int((batch["attention_mask"][0] == 0).sum())
    assert shift
    return {name: torch.stack([values[0].roll(shift), values[1]]) for name, values in batch.items()}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("language_model", dict),
        ("language_model", without_labels_in_a_row),
        ("language_model", padded_on_the_left),
        ("capped", dict),
    ],
)
def test_loss_and_gradients_are_those_of_all_logits(kind, change, bytes_, request):
    model = request.getfixturevalue(kind)
    batch = change(TASK.collate(TASK.encode(ROWS, bytes_), 0))
    found, expected = TASK.loss(model, batch), full_loss(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(found, model), gradients(expected, model), rtol=1e-10, atol=1e-12)


def rows_of_the_head(model, call):
    """What `call` has the output head compute."""
    seen = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: seen.append(output[..., 0].numel())
    )
    call()
    handle.remove()
    return seen


def test_the_head_computes_answers_only_in_training_and_evaluation(bytes_, language_model):
    examples = TASK.encode(ROWS, bytes_)
    batch = TASK.collate(examples, 0)
    answers = int((batch["token_labels"] != IGNORED).sum())
    assert answers < batch["input_ids"].numel() / 2
    assert rows_of_the_head(language_model, lambda: TASK.loss(language_model, batch)) == [answers]
    assert rows_of_the_head(language_model, lambda: predict_all(TASK, language_model, examples)) == [answers]
    everywhere = batch["input_ids"].numel()
    assert rows_of_the_head(language_model, lambda: language_model(input_ids=batch["input_ids"])) == [everywhere]


@pytest.mark.parametrize("settings", [{"target_modules": ["c_attn", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_a_head_that_is_adapted_or_trained_gives_the_same(settings, bytes_, language_model):
    language_model.config.tie_word_embeddings = False
    language_model.lm_head.weight = torch.nn.Parameter(language_model.lm_head.weight.detach().clone())
    adapted = PeftAdaptedModel(language_model, LoraConfig(**{"target_modules": ["c_attn"], **settings}))
    batch = TASK.collate(TASK.encode(ROWS, bytes_), 0)
    found, expected = TASK.loss(adapted.module, batch), full_loss(adapted.module, batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients(found, adapted.module), gradients(expected, adapted.module), rtol=1e-10, atol=1e-12)


def test_logits_of_another_shape_are_refused(bytes_, language_model):
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match=r"logits have shape \(1, 2, \d+\), but 1 of \(1, 3\) positions are wanted"):
        logits_at(lambda **inputs: language_model(**inputs, logits_to_keep=2), {"input_ids": ids}, ids == 6)


def test_the_head_is_left_alone_after_a_fault(language_model):
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(ValueError, match="specify either input_ids"):
        logits_at(language_model, {}, ids == 6)
    assert language_model(input_ids=ids).logits.shape[:2] == (1, 3)


def test_no_positions_have_no_logits(language_model):
    ids = torch.tensor([[5, 6, 7]])
    assert logits_at(language_model, {"input_ids": ids}, ids < 0).shape == (0, language_model.config.vocab_size)


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
