"""Shares of a cohort: which rank answers which letters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from fedelta.client import LocalClient
from fedelta.method import Client

LOOKED_AT = 32
"""Examples of a client whose lengths stand for all of its own."""


def shared_out(work: Mapping[int, float], ranks: int) -> dict[int, int]:
    """Returns the rank of each client: the longest first, each to the rank that has the least so far.

    The longest rank then has at most 4/3 of what the best split gives it (Graham, 1969). Equal work is dealt by id, so that a
    cohort is always dealt alike.

    Args:
        work: of each client, by id.
        ranks: how many there are.
    """
    loads = [0.0] * ranks
    owner: dict[int, int] = {}
    for k in sorted(work, key=lambda k: (-work[k], k)):
        rank = loads.index(min(loads))
        owner[k] = rank
        loads[rank] += work[k]
    return owner


def work_of(client: Client) -> float:
    """Returns about how much a client computes in a round: its steps, times the tokens of a batch, or the examples where it has
    no tokens."""
    steps = float(client.num_steps)
    if not isinstance(client, LocalClient) or not client.examples:
        return steps
    batch = min(client.training.batch_size, len(client.examples))
    seen = [client.examples[i] for i in range(min(LOOKED_AT, len(client.examples)))]
    return steps * batch * _mean(len(example["input_ids"]) if "input_ids" in example else 1 for example in seen)


def _mean(values: Iterable[int]) -> float:
    found: Collection[int] = list(values)
    return sum(found) / len(found)
