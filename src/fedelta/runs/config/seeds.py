"""The seeds of a run: one number for all that is drawn, or one for each kind of draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Discriminator, Field, Tag

from fedelta.runs.config.section import Section


class Seeds(Section):
    """One seed for each kind of draw, so that runs can share one and differ in another; four equal ones are a plain number."""

    data: int = Field(
        default=0,
        ge=0,
        description="the rows carved for validation and test, kept out to test clients by, or left by `data.limit`",
    )
    partition: int = Field(default=0, ge=0, description="the rows, and the rank, that each client gets")
    schedule: int = Field(
        default=0, ge=0, description="cohorts, batches, dropout, graphs, lost messages, and what a method draws in a round"
    )
    start: int = Field(default=0, ge=0, description="the initial adapter, and new heads")


def seeds_of(seed: int | Seeds) -> Seeds:
    """Returns the seed of each kind of draw; a plain number is all four."""
    return seed if isinstance(seed, Seeds) else Seeds(data=seed, partition=seed, schedule=seed, start=seed)


def _shortest(seed: int | Seeds) -> int | Seeds:
    """Returns four equal seeds as the plain number that means the same, so that one run is spelled in one way."""
    return seed.data if isinstance(seed, Seeds) and seed == seeds_of(seed.data) else seed


def _form(value: Any) -> str:
    """Tells which of the two forms is meant, so that an error speaks of that form alone."""
    return "<each>" if isinstance(value, Mapping | Seeds) else "<one>"


Seed: TypeAlias = Annotated[
    Annotated[int, Field(ge=0), Tag("<one>")] | Annotated[Seeds, Tag("<each>")],
    Discriminator(_form),
    AfterValidator(_shortest),
]
