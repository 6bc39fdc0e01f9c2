"""Cohorts: who takes part in a round.

A cohort rule is any function (t, peers, seed) -> ids. It is asked anew in every round, so that it may depend on `t`, and must
depend on nothing else, so that a run can be resumed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Protocol, TypeAlias

import torch
from torch import Generator

from fedelta import seeding


class HasId(Protocol):
    """The part of a peer that a cohort rule reads."""

    @property
    def id(self) -> int: ...


class Numbered(ABC):
    """Peers in the order of their ids, of whom the ids can be read without a peer being made."""

    @property
    @abstractmethod
    def ids(self) -> Sequence[int]:
        """Returns the ids, ascending."""


CohortRule: TypeAlias = Callable[[int, Sequence[HasId], int], Sequence[int]]
"""(t, peers, seed) -> the ids that take part in round t."""


def everyone(t: int, peers: Sequence[HasId], seed: int) -> list[int]:
    """All peers in every round."""
    return list(ids_of(peers))


def ids_of(peers: Sequence[HasId]) -> Sequence[int]:
    """Returns the ids of peers, ascending; those of a large population are not listed for it."""
    return peers.ids if isinstance(peers, Numbered) else sorted(p.id for p in peers)


def uniform(participation: float) -> CohortRule:
    """A cohort drawn without replacement, all of equal chance, anew in each round.

    Args:
        participation: a fraction of the peers in (0, 1], or, given as an int, their number.

    Raises:
        ValueError: for a participation outside its range, or, in a round, a number above that of the peers.
    """
    share(participation, 1 if isinstance(participation, float) else participation, "participation")

    def draw(t: int, peers: Sequence[HasId], seed: int) -> list[int]:
        ids = ids_of(peers)
        count = share(participation, len(ids), "participation")
        places = first_of_permutation(len(ids), count, seeding.generator(seed, t, seeding.SERVER, "cohort"))
        return sorted(ids[k] for k in places)

    return draw


def round_robin(count: int) -> CohortRule:
    """The next `count` peers in the order of their ids, around and around: no randomness."""

    def draw(t: int, peers: Sequence[HasId], seed: int) -> list[int]:
        ids = ids_of(peers)
        size = share(count, len(ids), "count")
        return sorted(ids[(t * size + k) % len(ids)] for k in range(size))

    return draw


def first_of_permutation(size: int, count: int, generator: Generator) -> list[int]:
    """Returns `torch.randperm(size, generator=generator)[:count]`, number for number, at the cost of `count`.

    Torch shuffles 0, ..., size - 1 from the front: place i changes with place i + (a random word modulo what is left). After
    `count` changes the first `count` numbers stay, and of all others only those that were moved need a note.

    Args:
        size: of the permutation, below 2**32; from there on torch draws words of 64 bits.
        count: how many of its numbers.
        generator: fresh, on the CPU.
    """
    pairs = torch.empty((count + 1) // 2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
    words: list[int] = (
        torch.stack([(pairs >> 32) & 0xFFFFFFFF, pairs & 0xFFFFFFFF], dim=1).flatten().tolist()
    )  # the upper word came first
    moved: dict[int, int] = {}
    first: list[int] = []
    for place, word in zip(range(count), words, strict=False):
        other = place + word % (size - place)
        first.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return first


def share(part: float, count: int, name: str, *, up: bool = False) -> int:
    """`part` of `count`: a fraction in (0, 1] of it, at least 1, or, given as an int, that very number.

    A fraction is taken at its decimal value, so that 0.07 of 100 is 7; halves round up. `up` rounds every remainder up.

    Raises:
        ValueError: naming `name`, for a part outside its range.
    """
    if isinstance(part, int):
        if part < 1:
            raise ValueError(f"{name} = {part} must be 1 or more; a fraction is written 0.5 or 1.0")
        if part > count:
            raise ValueError(f"{name} = {part} must be between 1 and the {count} there are; a fraction is written 0.5 or 1.0")
        return part
    if not 0 < part <= 1:
        raise ValueError(f"{name} = {part} must be a fraction in (0, 1], or an int to give a number")
    exact = Fraction(str(part)) * count
    return max(1, math.ceil(exact) if up else math.floor(exact + Fraction(1, 2)))
