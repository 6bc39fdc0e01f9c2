"""Classification with a tiny BERT: padding changes nothing, and each unusable row is named."""

import pytest
import torch
from torch.nn import functional as F

from fedelta.tasks import Classification

ROWS = [
    {"text": "the sun is warm", "label": "b"},
    {"text": "rain", "label": "a"},
    {"text": "a man sits on a roof and starts to work", "label": "c"},
]
TASK = Classification(labels=("a", "b", "c"))


def test_padding_changes_neither_logits_nor_loss(words, classifier):
    examples = TASK.encode(ROWS, words)
    batch = TASK.collate(examples, words.pad_token_id)
    together = TASK.decisions(classifier, batch).scores
    alone = torch.cat([TASK.decisions(classifier, TASK.collate([e], words.pad_token_id)).scores for e in examples])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    expected = F.cross_entropy(alone, torch.tensor([1, 0, 2]))
    torch.testing.assert_close(TASK.loss(classifier, batch), expected, rtol=1e-10, atol=1e-12)


def test_the_loss_has_gradients_and_predictions_have_none(words, classifier):
    batch = TASK.collate(TASK.encode(ROWS, words), 0)
    TASK.loss(classifier, batch).backward()
    assert classifier.classifier.weight.grad.abs().sum() > 0
    found = TASK.predict(classifier, batch)
    assert found.count.tolist() == [1, 1, 1]
    assert found.loss_sum.mean() == pytest.approx(TASK.loss(classifier, batch).item())


def test_pairs_are_encoded_with_token_types(words):
    task = Classification(labels=(0, 1), text="premise", text_pair="hypothesis")
    (found,) = task.encode([{"premise": "the sun", "hypothesis": "is warm", "label": 1}], words)
    assert found["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert found["label"] == 1


def test_long_texts_are_cut(words):
    task = Classification(labels=("a", "b", "c"), max_length=5)
    assert [len(e["input_ids"]) for e in task.encode(ROWS, words)] == [5, 3, 5]


def test_labels_may_be_positions_where_all_labels_are_names(words):
    assert TASK.encode([{"text": "sun", "label": 2}], words)[0]["label"] == 2
    assert TASK.label_of({"text": "sun", "label": 2}) == "c"


def test_labels_left_open_are_read_from_the_rows():
    settled = Classification().settled(ROWS)
    assert settled.labels == ("a", "b", "c")
    assert settled.model_kwargs()["id2label"] == {0: "a", 1: "b", 2: "c"}
    assert settled.settled(ROWS[:1]) is settled


def test_labels_left_open_are_asked_for():
    with pytest.raises(ValueError, match="labels are not known yet"):
        Classification().model_kwargs()


def test_labels_given_twice_are_refused():
    with pytest.raises(ValueError, match="twice"):
        Classification(labels=("a", "a"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sentence": "sun", "label": "a"}, "row 1 has no field 'text'; it has 'sentence', 'label'"),
        ({"text": "sun"}, "row 1 has no field 'label'; it has 'text'"),
        ({"text": None, "label": "a"}, "row 1 has nothing in its field 'text'"),
        ({"text": 5, "label": "a"}, r"row 1: field 'text' holds 5 \(int\), but text is needed"),
        ({"text": "sun", "label": "d"}, "row 1: 'd' in field 'label' is not one of the 3 labels"),
        ({"text": "sun", "label": 3}, "row 1: 3 in field 'label' is not one of the 3 labels"),
        ({"text": "sun", "label": -1}, "row 1: -1 in field 'label' is not one of the 3 labels"),
        ({"text": "sun", "label": ["a"]}, "row 1: .'a'. in field 'label' is not one of the 3 labels"),
    ],
)
def test_unusable_rows_are_named(words, row, message):
    with pytest.raises(ValueError, match=message):
        TASK.encode([ROWS[0], row], words)


def test_no_rows_are_refused(words):
    with pytest.raises(ValueError, match="data set is empty"):
        TASK.encode([], words)


def test_a_text_without_tokens_is_refused(bytes_):
    with pytest.raises(ValueError, match="row 0: its field 'text' has no tokens"):
        TASK.encode([{"text": "", "label": "a"}], bytes_)
