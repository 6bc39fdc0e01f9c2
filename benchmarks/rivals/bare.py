"""Federated averaging of a LoRA adapter in a loop written by hand with PEFT and torch.optim, as without a framework.

The step of a client is also what the programs of the other rivals run, so that all do the same work. No fedelta here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from rivals.work import Batch, Work
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

State = dict[str, Tensor]


def load_model(folder: Path) -> PeftModel:
    """The model and the adapter of a folder of work."""
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    return PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)


def state_of(model: Any) -> State:
    """A copy of all that trains, by PEFT's names."""
    return {k: v.detach().clone() for k, v in get_peft_model_state_dict(model).items()}


def train(model: Any, start: Mapping[str, Tensor], batches: Iterable[Batch], learning_rate: float) -> State:
    """A client's local training; returns the trained state dict. Dropout is off, as in fedelta's default."""
    set_peft_model_state_dict(model, dict(start))
    model.eval()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.0)
    for batch in batches:
        labels = batch.pop("labels")
        loss = F.cross_entropy(model(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return state_of(model)


def mean(states: Iterable[State]) -> State:
    """The mean of state dicts."""
    states = list(states)
    return {k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]}


def one_round(model: Any, work: Work, start: Mapping[str, Tensor], t: int = 0) -> State:
    """One client after another, then the mean."""
    return mean(train(model, start, work.batches(t, k), work.learning_rate) for k in range(work.clients))


def disagreement(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], start: Mapping[str, Tensor]) -> float:
    """The distance of what was found from what was wanted, by how far that moved from the start; all tensors together.

    Raises:
        ValueError: for state dicts of different tensors.
    """
    if found.keys() != wanted.keys():
        raise ValueError(f"the programs trained different tensors: {sorted(found.keys() ^ wanted.keys())[:4]} ...")
    return distance(found, wanted) / distance(wanted, start)


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The norm of the difference."""
    return float(torch.stack([(a[k] - b[k]).norm() for k in a]).norm())
