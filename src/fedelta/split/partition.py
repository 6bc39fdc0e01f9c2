"""Shares out examples among clients, and gives each client a rank.

The schemes are in `fedelta.split.schemes`; this is their common part: fields, seeds, the smallest client, errors.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fedelta.data.rounding import proportional
from fedelta.data.rows import Row, distinct, label_in
from fedelta.registry import check_name
from fedelta.seeding import SERVER, numpy_generator
from fedelta.split.schemes import SCHEMES, Scheme, get_scheme
from fedelta.split.view import Part, partition_table, plot_partition

__all__ = ["SCHEMES", "Part", "Scheme", "assign_ranks", "get_scheme", "partition", "partition_table", "plot_partition"]

REDRAWS = 1000


def partition(
    labels_or_rows: Sequence[Hashable] | Sequence[Row],
    scheme: str | Scheme,
    clients: int | None = None,
    *,
    by: str | Callable[[Row], Hashable] | None = None,
    seed: int = 0,
    min_examples: int = 1,
    **settings: Any,
) -> list[Part]:
    """Gives every example to exactly one client.

    Args:
        labels_or_rows: n labels, or n rows with fields by name.
        scheme: a name in `SCHEMES` with its settings as further keywords, or a `Scheme`.
        clients: how many clients; only "natural" can do without.
        by: for rows, the field (or a function of the row, such as `task.label_of`) that the scheme goes by; "label" by default.
        seed: the same arguments and seed give the same parts, on every platform.
        min_examples: the fewest examples of a client. A random draw is repeated until it holds, `REDRAWS` times at most, so the
            result is a draw from the scheme given that it holds; 0 allows empty clients.

    Returns:
        For each client the increasing positions of its examples.

    Raises:
        ValueError: there are no examples, too few for the clients, an unknown or missing setting, or no draw held
            `min_examples`; the message names the remedy.
    """
    rule = get_scheme(scheme, **settings) if isinstance(scheme, str) else scheme
    if not isinstance(scheme, str) and settings:
        raise ValueError(f"settings {sorted(settings)} go with a scheme's name, but a {type(scheme).__name__} was given")
    groups = group_indices(labels_or_rows, by)
    count = rule.clients_for(clients, int(groups.max()) + 1)
    if len(groups) < count * min_examples:
        raise ValueError(
            f"{len(groups)} examples are too few for {count} clients with at least {min_examples} each: "
            "take fewer clients or a lower min_examples"
        )
    owner = _draw(rule, groups, count, min_examples, seed)
    return [np.flatnonzero(owner == client) for client in range(count)]


def _draw(rule: Scheme, groups: np.ndarray, clients: int, min_examples: int, seed: int) -> np.ndarray:
    random = numpy_generator(seed, 0, SERVER, "partition")
    best = -1  # the largest smallest client of all draws, for the message
    tries = REDRAWS if rule.redraws else 1
    for _ in range(tries):
        owner = rule.share_out(groups, clients, random)
        smallest = int(np.bincount(owner, minlength=clients).min())
        if smallest >= min_examples:
            return owner
        best = max(best, smallest)
    raise ValueError(
        f"{rule} over {clients} clients left a client with {best} examples, fewer than min_examples={min_examples}, "
        f"in the best of {tries} {'draws' if tries > 1 else 'draw'}: {rule.remedy}"
    )


def group_indices(labels_or_rows: Sequence[Hashable] | Sequence[Row], by: str | Callable[[Row], Hashable] | None) -> np.ndarray:
    """Returns the position (n,) of each example's label among the sorted labels, so that the order of rows does not matter.

    Raises:
        ValueError: there are no examples, a row lacks the field, a label is none, or `by` was given for bare labels.
    """
    if not len(labels_or_rows):
        raise ValueError("no examples to share out: the data set is empty")
    labels = _labels(labels_or_rows, by)
    where = f"field {by!r}" if isinstance(by, str) else "the data"
    order = {label: i for i, label in enumerate(distinct(labels, where))}
    return np.array([order[label] for label in labels], dtype=np.int64)


def _labels(labels_or_rows: Sequence[Any], by: str | Callable[[Row], Hashable] | None) -> list[Hashable]:
    if not isinstance(labels_or_rows[0], Mapping):
        if by is not None:
            raise ValueError(f"by={by!r} names a field of rows, but bare labels were given: leave it out, or give rows")
        return list(labels_or_rows)
    if callable(by):
        return [by(row) for row in labels_or_rows]
    return [label_in(row, index, by or "label") for index, row in enumerate(labels_or_rows)]


def assign_ranks(
    ranks: int | Sequence[int],
    clients: int,
    *,
    how: str = "draw",
    weights: Sequence[float] | None = None,
    seed: int = 0,
) -> list[int]:
    """Returns a rank for each client.

    Args:
        ranks: one rank for all; or the ranks to choose from; or, with `how="list"`, each client's rank in order.
        clients: how many clients.
        how: "draw": each client draws for itself, so a rank may be missing. "balanced": each rank to its share of the clients,
            rounded by largest remainders, in random order. "list": as given.
        weights: the share of each rank for "draw" and "balanced"; equal if not given.
        seed: the seed of the draw.

    Raises:
        ValueError: a rank is below one, `how` is unknown, or lengths do not fit.
    """
    choices = [ranks] * (clients if how == "list" else 1) if isinstance(ranks, int) else list(ranks)
    if not choices or min(choices) < 1:
        raise ValueError(f"ranks must be whole numbers of at least 1, not {ranks}")
    check_name("way to assign ranks", how, RANK_RULES)
    if weights is not None and (how == "list" or len(weights) != len(choices)):
        raise ValueError(f"{len(weights)} weights do not go with how={how!r} and the ranks {choices}: give one for each choice")
    shares = np.ones(len(choices)) if weights is None else np.asarray(weights, dtype=np.float64)
    if (shares < 0).any() or not shares.sum() > 0:
        raise ValueError(f"weights {list(shares)} must not be negative and must not all be zero")
    return RANK_RULES[how](choices, clients, shares / shares.sum(), numpy_generator(seed, 0, SERVER, "ranks"))


def _drawn(choices: list[int], clients: int, shares: np.ndarray, random: np.random.Generator) -> list[int]:
    return [choices[i] for i in random.choice(len(choices), size=clients, p=shares)]


def _balanced(choices: list[int], clients: int, shares: np.ndarray, random: np.random.Generator) -> list[int]:
    dealt = np.repeat(choices, proportional(shares, clients))
    return [int(rank) for rank in random.permutation(dealt)]


def _listed(choices: list[int], clients: int, shares: np.ndarray, random: np.random.Generator) -> list[int]:
    if len(choices) != clients:
        raise ValueError(f"{len(choices)} ranks are listed for {clients} clients: list one for each client, or use how='draw'")
    return choices


RANK_RULES: dict[str, Callable[[list[int], int, np.ndarray, np.random.Generator], list[int]]] = {
    "draw": _drawn,
    "balanced": _balanced,
    "list": _listed,
}
