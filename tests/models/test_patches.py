"""Patches are taken back in reverse, by `unload` and where making them fails half-way."""

import pytest
import torch
from torch import nn

from fedelta.models import passes
from fedelta.models.checkpointing import Recomputed
from fedelta.models.dropout import SeededDropout
from fedelta.models.patches import Undo, remove_all, whole_or_undone
from fedelta.models.peft import PeftAdaptedModel


def test_the_last_patch_is_taken_back_first():
    undone = []
    patches = [Undo(lambda k=k: undone.append(k)) for k in range(3)]
    remove_all(patches)
    assert undone == [2, 1, 0]
    assert patches == []


def test_a_failure_takes_back_what_was_done_and_nothing_else():
    undone, patches = [], [Undo(lambda: undone.append(1))]
    with pytest.raises(ZeroDivisionError), whole_or_undone(patches):
        raise ZeroDivisionError
    with whole_or_undone(kept := []):
        kept.append(Undo(lambda: undone.append(2)))
    assert undone == [1]
    assert len(kept) == 1


def traces(model: nn.Module) -> set[str]:
    """What is left of us or of PEFT in a model."""
    found = set()
    for m in model.modules():
        found |= {name for name in ("_forward_hooks", "_forward_pre_hooks") if vars(m)[name]}
        found |= {"forward"} & vars(m).keys()
        found |= {type(m).__name__} if "lora" in type(m).__module__ or isinstance(m, SeededDropout) else set()
        found |= {"checkpointing"} if isinstance(vars(m).get("_gradient_checkpointing_func"), Recomputed) else set()
    return found


def test_unload_leaves_no_trace(case, ids):
    model = case.model()
    expected = model(input_ids=ids).logits
    adapted = PeftAdaptedModel(model, case.lora(lora_dropout=0.1), gemm="bf16", base_delta="hook")
    assert traces(adapted.module)
    adapted.mode(torch.Generator().manual_seed(0))
    adapted.unload()
    assert traces(model) == set()
    assert adapted.patches == adapted.passes == []
    assert torch.equal(model(input_ids=ids).logits, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_that_cannot_be_installed_leaves_no_trace(dtype, case, ids, monkeypatch):
    def fails(model, settings):
        raise RuntimeError("no room")

    last = passes._modules()[-1]
    monkeypatch.setattr(last, "install", fails)
    model = case.model().to(dtype)
    expected, dtypes = model(input_ids=ids).logits, {p.dtype for p in model.parameters()}
    with pytest.raises(RuntimeError, match="no room"):
        PeftAdaptedModel(model, case.lora(lora_dropout=0.1), gemm="bf16")
    assert traces(model) == set()
    assert {p.dtype for p in model.parameters()} == dtypes == {dtype}
    assert torch.equal(model(input_ids=ids).logits, expected)
