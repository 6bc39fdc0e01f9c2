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


WORD, TWO_WORDS = 1 << 32, 1 << 64
"""The values of one random word of torch's generator, and of two."""

LARGE = (WORD - 1) // 20
"""The size of a permutation from which two words are drawn for a place: one alone would favour some places by 5 % and more."""


def first_of_permutation(size: int, count: int, generator: Generator) -> list[int]:
    """Returns the first `count` numbers of a random permutation of 0, ..., size - 1, at the cost of `count`.

    Below `LARGE` they are those of `torch.randperm(size, generator=generator)`, number for number: it shuffles from the front,
    place i changes with place i + (a random number modulo what is left). After `count` changes the first `count` numbers stay,
    and of all others only those that were moved need a note. Larger permutations are shuffled likewise here, while torch takes
    another order for them, in which the first numbers are settled last. Should it come to shuffle small ones otherwise, too,
    this does not change with it, and a test says so.

    Args:
        size: of the permutation.
        count: how many of its numbers.
        generator: fresh, on the CPU.
    """
    moved: dict[int, int] = {}
    first: list[int] = []
    for place, number in enumerate(_random_numbers(size, count, generator)):
        other = place + number % (size - place)
        first.append(moved.get(other, other))
        moved[other] = moved.get(place, place)
    return first


def _random_numbers(size: int, count: int, generator: Generator) -> list[int]:
    """Returns the numbers that shuffle the first `count` places of a permutation: of one word each, or of two."""
    words_each = 1 if size < LARGE else 2
    pairs = torch.empty(-(-count * words_each // 2), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    numbers = [pair % TWO_WORDS for pair in pairs.tolist()]
    if words_each == 2:
        return numbers
    return [word for number in numbers for word in (number // WORD, number % WORD)][:count]  # the upper word is drawn first


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
