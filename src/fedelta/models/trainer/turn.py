"""A turn: one client's part of one round, for which a Trainer is made."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import Trainer, set_seed

from fedelta import seeding
from fedelta.peers import Peer


@dataclass(frozen=True, eq=False)
class Turn:
    """One client's part of one round, which `make_trainer` is given.

    Attributes:
        t: the round, from 0; before round 0 a Trainer is made for round 0 once more, to be looked at.
        id: of the client.
        seed: of this turn, for `TrainingArguments(seed=...)`; another one for each round and client, the same in every run.
        rows: the client's own training rows, as the config's `data` names them; empty for a client that is made in Python.
        peer: what the federation knows of the client; None where it is read from the Trainer.
    """

    t: int
    id: int
    seed: int
    rows: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    peer: Peer | None = None


MakeTrainer: TypeAlias = Callable[[Turn], Trainer]
"""Makes the Trainer of a turn: a fresh one, whose model is a PeftModel with a plain LoRA adapter named "default"."""


def seed_of(seed: int, t: int, client: int) -> int:
    """Returns the seed of a turn, of 31 bits, as numpy takes it."""
    return seeding.derive(seed, t, client, "trainer") % 2**31


@contextmanager
def drawing_from(seed: int) -> Generator[None]:
    """Lets the global generators begin at a seed in a `with` block, and go on afterwards as if nothing had been drawn.

    A Trainer draws from them all: the order of examples, dropout, and new parameters.
    """
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that a Trainer seeds
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            set_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002
