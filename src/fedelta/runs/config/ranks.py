"""The forms of `lora.rank`: one for all, one for each client, or drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from fedelta.runs.config.section import Section


class RankChoice(Section):
    """Ranks drawn for each client."""

    choices: list[int] = Field(min_length=1, description="the ranks to draw from")
    shares: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="how often each choice is drawn; equally by default"
    )

    @model_validator(mode="after")
    def _one_share_each(self) -> RankChoice:
        if self.shares is not None and (len(self.shares) != len(self.choices) or sum(self.shares) <= 0):
            raise ValueError(f"shares {self.shares} must be one number for each of the choices {self.choices}, not all zero")
        return self


def _rank_form(value: Any) -> str:
    """Tells which of the forms of `lora.rank` is meant, so that an error speaks of that form alone."""
    if isinstance(value, Mapping | RankChoice):
        return "<drawn>"
    return "<listed>" if isinstance(value, list) else "<one>"


Ranks: TypeAlias = Annotated[
    Annotated[int, Tag("<one>")] | Annotated[list[int], Tag("<listed>")] | Annotated[RankChoice, Tag("<drawn>")],
    Discriminator(_rank_form),
]


def rank_values(rank: int | list[int] | RankChoice) -> list[int]:
    """The ranks that may occur."""
    if isinstance(rank, RankChoice):
        return rank.choices
    return rank if isinstance(rank, list) else [rank]
