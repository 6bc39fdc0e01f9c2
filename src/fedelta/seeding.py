"""One random generator per (seed, round, peer, purpose, layer), so that results do not depend on the order of work.

Two draws share a stream only if all five parts are equal. The parts are hashed, never added: with `seed + t`, seed 43 at
round t would repeat seed 42 at round t + 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import numpy as np
import torch

SERVER = -1
"""The peer id under which a server draws."""


def derive(seed: int, t: int, peer: int, purpose: str, layer: str | None = None) -> int:
    """A 63-bit seed for one purpose of one peer in one round, the same on every platform."""
    key = json.dumps([int(seed), int(t), int(peer), purpose, layer]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def generator(seed: int, t: int, peer: int, purpose: str, layer: str | None = None) -> torch.Generator:
    """A CPU torch generator for one purpose; draw on the CPU and move, so that devices agree.

    Args:
        seed: the run's seed.
        t: the round, from 0.
        peer: a client's id, or `SERVER`.
        purpose: what the numbers are for, such as "batches" or "template".
        layer: the layer, where each layer draws its own.
    """
    return torch.Generator().manual_seed(derive(seed, t, peer, purpose, layer))


def numpy_generator(seed: int, t: int, peer: int, purpose: str) -> np.random.Generator:
    """The same as `generator`, for numpy."""
    return np.random.default_rng(derive(seed, t, peer, purpose))


def repeatable(generators: Sequence[torch.Generator]) -> Callable[[], AbstractContextManager[None]]:
    """Notes where generators are, and returns what opens a block in which they draw again what they draw from here on.

    After the block they go on from where they were when it began.
    """
    return partial(_drawing_again, generators, [g.get_state() for g in generators])


@contextmanager
def _drawing_again(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> Generator[None]:
    now = [g.get_state() for g in generators]
    _set(generators, states)
    try:
        yield
    finally:
        _set(generators, now)


def _set(generators: Sequence[torch.Generator], states: Sequence[torch.Tensor]) -> None:
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state)
