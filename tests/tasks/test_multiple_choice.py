"""Both ways of choosing an ending, with a tiny BERT and a tiny GPT-2, rows having unlike numbers of choices."""

import pytest
import torch
from torch.nn import functional as F

from fedelta.tasks import ChoiceByLikelihood, MultipleChoice, evaluate, predict_all

ROWS = [
    {"context": "the sun is", "choices": ["warm", "a roof", "blue and the sky is blue"], "label": 0},
    {"context": "a man sits on a", "choices": ["roof", "sea"], "label": 1},
]
HEAD = MultipleChoice()
LIKELIHOOD = ChoiceByLikelihood()


def test_head_scores_each_pair_alone(words, chooser):
    batch = HEAD.collate(HEAD.encode(ROWS, words), words.pad_token_id)
    assert batch["input_ids"].shape[:2] == (2, 3)
    scores = HEAD.decisions(chooser, batch).scores
    assert scores[1, 2] == float("-inf")
    for i, row in enumerate(ROWS):
        for j, choice in enumerate(row["choices"]):
            pair = words([row["context"]], [choice], return_tensors="pt")
            alone = chooser(**{name: values[None] for name, values in pair.items()}).logits
            assert scores[i, j].item() == pytest.approx(alone.item(), rel=1e-9)


def likelihood_by_hand(model, tokenizer, context, ending):
    prefix, tokens = tokenizer(context)["input_ids"], tokenizer(" " + ending)["input_ids"]
    logits = model(input_ids=torch.tensor([prefix + tokens])).logits[0].log_softmax(dim=-1)
    return sum(logits[len(prefix) + i - 1, token] for i, token in enumerate(tokens)) / len(tokens)


def test_likelihood_is_the_mean_log_probability_of_the_endings_tokens(bytes_, language_model):
    batch = LIKELIHOOD.collate(LIKELIHOOD.encode(ROWS, bytes_), 0)
    scores = LIKELIHOOD.decisions(language_model, batch).scores
    assert scores[1, 2] == float("-inf")
    for i, row in enumerate(ROWS):
        for j, choice in enumerate(row["choices"]):
            expected = likelihood_by_hand(language_model, bytes_, row["context"], choice)
            assert scores[i, j].item() == pytest.approx(expected.item(), rel=1e-9)


def test_training_tells_the_right_ending_from_the_others(bytes_, language_model):
    batch = LIKELIHOOD.collate(LIKELIHOOD.encode(ROWS, bytes_), 0)
    scores = [[likelihood_by_hand(language_model, bytes_, r["context"], c) for c in r["choices"]] for r in ROWS]
    expected = sum(F.cross_entropy(torch.stack(row), torch.tensor(r["label"])) for row, r in zip(scores, ROWS, strict=True)) / 2
    loss = LIKELIHOOD.loss(language_model, batch)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in language_model.parameters() if p.grad is not None)


@pytest.mark.parametrize("task", [HEAD, LIKELIHOOD])
def test_companions_in_a_batch_change_nothing(task, request):
    tokenizer, model = (("words", "chooser"), ("bytes_", "language_model"))[task is LIKELIHOOD]
    tokenizer, model = request.getfixturevalue(tokenizer), request.getfixturevalue(model)
    examples = task.encode(ROWS, tokenizer)
    alone, together = (predict_all(task, model, examples, batch_size=n) for n in (1, 2))
    assert together.loss_sum == pytest.approx(alone.loss_sum, rel=1e-9)
    assert together.predicted.tolist() == alone.predicted.tolist()


def test_a_missing_choice_is_never_predicted_nor_trained(words, chooser):
    with torch.no_grad():
        chooser.classifier.weight.zero_()
        chooser.classifier.bias.fill_(-5.0)  # any real score is below the zero that a mask by multiplication would leave
    batch = HEAD.collate(HEAD.encode(ROWS, words), 0)
    assert HEAD.predict(chooser, batch).predicted.max() < 2
    HEAD.loss(chooser, batch).backward()
    assert torch.isfinite(chooser.classifier.weight.grad).all()
    assert HEAD.loss(chooser, batch).item() == pytest.approx((torch.tensor(3.0).log() + torch.tensor(2.0).log()).item() / 2)


def test_choices_may_lie_in_fields_of_their_own(words):
    task = MultipleChoice(context="goal", choices=["sol1", "sol2"])
    row = {"goal": "the sun", "sol1": "is warm", "sol2": "is blue", "label": "1"}
    assert task.choices_of(row) == ["is warm", "is blue"]
    assert task.encode([row], words)[0]["label"] == 1


@pytest.mark.parametrize(("label", "position"), [(1, 1), ("1", 1), ("B", 1), ("a", 0)])
def test_labels_may_be_positions_or_letters(label, position):
    assert HEAD.label_of({**ROWS[0], "label": label}) == position


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": 3}, "row 0: 3 in field 'label' names none of the 3 choices: give a position from 0 to 2"),
        ({"label": "D"}, "names none of the 3 choices"),
        ({"label": ""}, "names none of the 3 choices"),
        ({"label": True}, "names none of the 3 choices"),
        ({"choices": "warm"}, "a list of two or more texts is needed"),
        ({"choices": ["warm"]}, "a list of two or more texts is needed"),
        ({"choices": ["warm", 2]}, "a list of two or more texts is needed"),
        ({"context": None}, "nothing in its field 'context'"),
    ],
)
def test_unusable_rows_are_named(words, change, message):
    with pytest.raises(ValueError, match=message):
        HEAD.encode([{**ROWS[0], **change}], words)


def test_the_context_is_cut_before_the_ending(bytes_):
    task = ChoiceByLikelihood(max_length=12)
    (found,) = task.encode([{"context": "the sun " * 30, "choices": ["is warm", "is blue"], "label": 0}], bytes_)
    assert task.length(found) == 12
    assert [bytes_.decode(ids)[-8:] for ids in found["input_ids"]] == [" is warm", " is blue"]


def test_evaluate_reads_both_tasks(words, chooser, bytes_, language_model):
    assert evaluate(HEAD, chooser, HEAD.encode(ROWS, words)).keys() == {"accuracy", "loss"}
    assert evaluate(LIKELIHOOD, language_model, LIKELIHOOD.encode(ROWS, bytes_)).keys() == {"accuracy", "loss"}
