"""What all tasks share: padding, evaluation in any order, modes, errors, names."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedelta import tasks
from fedelta.tasks import Classification, evaluate, get_task, labels_from, list_tasks, predict_all, task_class
from fedelta.tasks.task import evaluating, pad_examples, pad_rows


class CountsTokens(nn.Module):
    """Logits from the attended tokens alone: the sum of their ids, modulo 3, is the preferred label."""

    def forward(self, input_ids, attention_mask):
        total = (input_ids * attention_mask).sum(dim=1)
        return SimpleNamespace(logits=nn.functional.one_hot(total % 3, 3).double())


def example(ids, label):
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "label": label}


TASK = Classification(labels=("a", "b", "c"))
EXAMPLES = [example([1], 1), example([2, 2, 2, 2], 2), example([1, 2], 1), example([3, 1, 1], 2), example([5], 2)]


def test_pad_rows_pads_to_the_longest_only():
    assert pad_rows([[1, 2, 3], [4]], 9).tolist() == [[1, 2, 3], [4, 9, 9]]
    assert pad_rows([[1, 2, 3], [4]], 9, multiple=4).shape == (2, 4)


def test_pad_examples_fills_each_field_in_its_way():
    batch = pad_examples([example([7, 7], 0), example([7], 2)], pad_token_id=5)
    assert batch["input_ids"].tolist() == [[7, 7], [7, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert batch["labels"].tolist() == [0, 2]


def test_an_empty_batch_is_refused():
    with pytest.raises(ValueError, match="no examples"):
        TASK.collate([], 0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 64])
def test_predictions_come_back_in_the_order_of_the_examples(batch_size):
    found = predict_all(TASK, CountsTokens(), EXAMPLES, batch_size=batch_size)
    assert found.predicted.tolist() == [1, 2, 0, 2, 2]
    assert found.target.tolist() == [1, 2, 1, 2, 2]


def test_evaluate_gives_the_tasks_metrics():
    scores = evaluate(TASK, CountsTokens(), EXAMPLES, batch_size=2)
    assert set(scores) == {"accuracy", "macro_f1", "loss"}
    assert scores["accuracy"] == pytest.approx(0.8)
    right, wrong = np.log(np.e + 2) - 1, np.log(np.e + 2)
    assert scores["loss"] == pytest.approx((4 * right + wrong) / 5)


def test_evaluation_on_nothing_is_refused():
    with pytest.raises(ValueError, match="zero examples"):
        evaluate(TASK, CountsTokens(), [])


def test_each_module_returns_to_its_own_mode():
    model = nn.Sequential(nn.Dropout(), nn.Dropout())
    model[1].eval()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]


def test_loss_of_half_precision_scores_is_computed_in_float32():
    class Half(CountsTokens):
        def forward(self, **inputs):
            return SimpleNamespace(logits=super().forward(**inputs).logits.to(torch.bfloat16))

    assert TASK.loss(Half(), TASK.collate(EXAMPLES, 0)).dtype == torch.float32
    assert TASK.loss(CountsTokens(), TASK.collate(EXAMPLES, 0)).dtype == torch.float64


def test_labels_are_sorted_numbers_first():
    rows = [{"label": value} for value in ("b", 10, "a", 9, 10)]
    assert labels_from(rows) == labels_from(rows[::-1]) == (9, 10, "a", "b")


def test_labels_of_no_rows_or_of_an_absent_field_are_refused():
    with pytest.raises(ValueError, match="empty"):
        labels_from([])
    with pytest.raises(ValueError, match="row 1 has no field 'label'; it has 'kind'"):
        labels_from([{"label": 1}, {"kind": 1}])


def test_every_task_is_built_by_its_name_and_frozen():
    for name in list_tasks():
        task = get_task(name)
        assert getattr(tasks, type(task).__name__) is task_class(name)
        assert type(task).__name__ in dir(tasks)
        with pytest.raises(dataclasses.FrozenInstanceError):
            task.max_length = 3


def test_lists_of_a_config_become_tuples():
    assert get_task("classification", labels=["x", "y"]).labels == ("x", "y")


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="'classificaton'; did you mean 'classification'"):
        get_task("classificaton")
    with pytest.raises(ValueError, match="no setting 'max_len'; did you mean 'max_length'"):
        get_task("instruction", max_len=3)
