"""The schemes by which examples are shared out among clients; they know nothing of rows or fields.

A scheme sees the examples only as groups (their labels, or the values of another field) and gives every example to exactly one
client.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np

from fedelta.data.rounding import proportional
from fedelta.registry import check_name, check_settings


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """A rule that shares out examples; its settings are the dataclass's fields.

    Class attributes:
        redraws: whether another draw may give other client sizes.
        remedy: what to change when clients come out too small.
    """

    redraws: ClassVar[bool] = False
    remedy: ClassVar[str] = "take fewer clients or a lower min_examples"

    @abstractmethod
    def share_out(self, groups: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """Returns the client of each example.

        Args:
            groups: (n,) int, the group of each example, from 0 without gaps.
            clients: how many clients there are.
            random: the source of all randomness.

        Returns:
            (n,) int, from 0 to clients - 1.
        """

    def clients_for(self, clients: int | None, group_count: int) -> int:
        """Returns the number of clients, where it may be left open; checks that the scheme can serve it.

        Raises:
            ValueError: it is missing, below one, or does not go with the groups.
        """
        if clients is None or clients < 1:
            raise ValueError(f"a {type(self).__name__} partition needs a number of clients of at least 1, not {clients}")
        return clients


@dataclass(frozen=True, kw_only=True)
class IID(Scheme):
    """A random share for each client; sizes differ by one at most."""

    def share_out(self, groups: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """Deals examples to the clients in turn, in random order."""
        return random.permutation(np.arange(len(groups)) % clients)


@dataclass(frozen=True, kw_only=True)
class Dirichlet(Scheme):
    """Each group is shared out by its own draw from a symmetric Dirichlet distribution over the clients.

    The usual label skew (Yurochkin et al. 2019, "Bayesian Nonparametric Federated Learning of Neural Networks", section 4;
    Li et al. 2022, "Federated Learning on Non-IID Data Silos", distribution-based label imbalance). Counts are the drawn shares
    of the group's size, rounded by largest remainders, so each group is given out exactly.

    Args:
        concentration: the distribution's parameter; small is skewed (0.1), large is even (100).
    """

    redraws: ClassVar[bool] = True
    remedy: ClassVar[str] = "raise the concentration, take fewer clients, or a lower min_examples"

    concentration: float

    def __post_init__(self) -> None:
        _require_positive("concentration", self.concentration)

    def share_out(self, groups: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """Shares out group by group."""
        owner = np.empty(len(groups), dtype=np.int64)
        for group in range(groups.max() + 1):
            members = np.flatnonzero(groups == group)
            shares = _dirichlet(self.concentration, clients, random)
            owner[random.permutation(members)] = np.repeat(np.arange(clients), proportional(shares, len(members)))
        return owner

    def clients_for(self, clients: int | None, group_count: int) -> int:
        """Returns the number of clients; refuses a single group, which has no skew of labels, only of sizes."""
        if group_count < 2:
            raise ValueError(
                "a Dirichlet partition needs at least two different labels, but all examples have the same: "
                "share out by another field, or use the scheme 'quantity' for clients of unequal size"
            )
        return super().clients_for(clients, group_count)


@dataclass(frozen=True, kw_only=True)
class Shards(Scheme):
    """Examples in order of group are cut into equal shards, and each client is dealt the same number of them at random.

    McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data", section 3, with two
    shards a client: so most clients see about two labels.

    Args:
        shards_per_client: shards dealt to each client.
    """

    shards_per_client: int = 2

    def __post_init__(self) -> None:
        _require_positive("shards_per_client", self.shards_per_client)

    def share_out(self, groups: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """Cuts equal shards (their sizes differ by one at most) in order of group, and deals them at random."""
        # a random second key, so that within a group the order is random too
        order = np.lexsort((random.random(len(groups)), groups))
        count = clients * self.shards_per_client
        shard_of = np.arange(len(groups)) * count // max(len(groups), 1)
        holder = random.permutation(np.arange(count) % clients)
        owner = np.empty(len(groups), dtype=np.int64)
        owner[order] = holder[shard_of]
        return owner


@dataclass(frozen=True, kw_only=True)
class Natural(Scheme):
    """One client for each value of a field (author, language, subject), or several whole values for each client.

    With fewer clients than values, the largest values are dealt first, each to the client with the fewest examples so far.
    """

    remedy: ClassVar[str] = "take fewer clients, so that small groups are put together, or a lower min_examples"

    def share_out(self, groups: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """Gives away whole groups; with one client a group, client i has group i."""
        sizes = np.bincount(groups)
        if clients == len(sizes):
            return groups.copy()
        load = np.zeros(clients, dtype=np.int64)
        holder = np.empty(len(sizes), dtype=np.int64)
        # largest first, equal ones in random order: the usual greedy rule for even loads
        for group in np.lexsort((random.random(len(sizes)), -sizes)):
            holder[group] = load.argmin()
            load[holder[group]] += sizes[group]
        return holder[groups]

    def clients_for(self, clients: int | None, group_count: int) -> int:
        """Returns the number of clients: one for each value where none is given."""
        if clients is not None and clients > group_count:
            raise ValueError(
                f"a Natural partition gives whole values of the field away, but there are {clients} clients and only "
                f"{group_count} values: take at most {group_count} clients"
            )
        return group_count if clients is None else super().clients_for(clients, group_count)


@dataclass(frozen=True, kw_only=True)
class Quantity(Scheme):
    """Clients of unequal size whose examples are alike: sizes are drawn, then filled at random.

    Give exactly one of the two settings.

    Args:
        concentration: sizes are one draw from a symmetric Dirichlet distribution over the clients (Li et al. 2022).
        sigma: sizes are proportional to lognormal draws with this standard deviation of their logarithm.
    """

    redraws: ClassVar[bool] = True
    remedy: ClassVar[str] = "raise the concentration (or lower sigma), take fewer clients, or a lower min_examples"

    concentration: float | None = None
    sigma: float | None = None

    def __post_init__(self) -> None:
        given = {"concentration": self.concentration, "sigma": self.sigma}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) != 1:
            raise ValueError(f"a Quantity partition needs exactly one of concentration and sigma, but has {named or 'none'}")
        for name, value in named.items():
            _require_positive(name, value)

    def share_out(self, groups: np.ndarray, clients: int, random: np.random.Generator) -> np.ndarray:
        """Fills each client with random members; sizes are rounded by largest remainders."""
        if self.concentration is not None:
            shares = _dirichlet(self.concentration, clients, random)
        else:
            shares = np.exp(random.normal(0.0, self.sigma or 0.0, size=clients))
        return random.permutation(np.repeat(np.arange(clients), proportional(shares, len(groups))))


SCHEMES: dict[str, type[Scheme]] = {
    "iid": IID,
    "dirichlet": Dirichlet,
    "shards": Shards,
    "natural": Natural,
    "quantity": Quantity,
}


def get_scheme(name: str, **settings: Any) -> Scheme:
    """Returns a scheme by its name.

    Raises:
        ValueError: the name or a setting is unknown, a setting is missing, or its value does not fit.
    """
    check_name("partition scheme", name, SCHEMES)
    known = [field.name for field in fields(SCHEMES[name])]
    check_settings(f"partition scheme {name!r}", settings, known)
    try:
        return SCHEMES[name](**settings)
    except TypeError as error:
        raise ValueError(f"partition scheme {name!r} needs its settings {', '.join(known)}, but got {settings}") from error


def _dirichlet(concentration: float, clients: int, random: np.random.Generator) -> np.ndarray:
    """Draws shares. For a tiny concentration gamma draws underflow; the limit, all to one client, is taken then."""
    shares = random.dirichlet(np.full(clients, concentration))
    if np.isfinite(shares).all() and shares.sum() > 0:
        return shares
    return np.eye(clients)[random.integers(clients)]


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and np.isfinite(value)):
        raise ValueError(f"{name} must be a positive number, not {value}")
