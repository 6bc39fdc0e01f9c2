"""Refuses what a method claims of itself that it cannot serve: unequal ranks, or nodes without a server.

Such a refusal is a finding about the method, not a fault of the config: a comparison shows it beside other results.
"""

from __future__ import annotations

from typing import Any

from fedelta.method import ASKED, TRAINER_TAKES, Method
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.ranks import rank_values
from fedelta.runs.config.schema import RunConfig
from fedelta.runs.config.section import RefusedByClaim


def check_claims(config: RunConfig, chosen: Choices) -> None:
    """Raises RefusedByClaim for ranks or a graph that the method's claims exclude."""
    name, method = config.method["name"], chosen.method
    ranks = sorted(set(rank_values(config.lora.rank)))
    if len(ranks) > 1 and not method.hetero_rank:
        raise RefusedByClaim(
            "hetero_rank",
            f"method {name!r} needs equal ranks, but lora.rank gives {ranks}: set one rank, or use a method for unequal ranks "
            "such as flexlora or zeropad (`fedelta methods` lists them)",
        )
    if chosen.trainer is not None and (lacking := sorted(method.asks - TRAINER_TAKES)):
        raise RefusedByClaim(
            "asks",
            f"method {name!r} asks clients for {' and '.join(ASKED[key] for key in lacking)}, which a Trainer of one's own "
            "(training.trainer) cannot do: leave it out, or choose a method that does without, such as fedavg or flexlora",
        )
    if chosen.trainer is not None and pools(method):
        raise RefusedByClaim(
            "population",
            f"method {name!r} trains on the data of all clients together, which a Trainer of one's own (training.trainer) does "
            "not give away: leave it out, or choose another method",
        )
    if chosen.topology is None:
        return
    if method.coordinates == "base":
        raise RefusedByClaim(
            "coordinates",
            f"method {name!r} moves the base model, which nodes without a server would move apart: set federation.topology to "
            "null, or choose another method",
        )
    if pools(method):
        raise RefusedByClaim(
            "population",
            f"method {name!r} trains on the data of all clients together, of which a graph of nodes has no place: set "
            "federation.topology to null, or choose another method",
        )


def pools(method: Method) -> bool:
    """Returns whether a method puts other clients, with the data of several, in the place of those that it is given."""
    given: Any = [_Unpooled()]
    try:
        return method.population(given) is not given
    except TypeError:  # says that these cannot be pooled
        return True


class _Unpooled:
    """A client of which nothing is known but that it gives its data to nobody."""
