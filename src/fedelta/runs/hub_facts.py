"""Knows the shapes of some models of the Hub and the sizes of some of its data sets, to reckon with where they are not here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fedelta.runs.config import Data, Model


def shape_of(model: Model) -> Mapping[str, Any] | None:
    """Returns the entries of a model's config that differ from those of its kind; None for one that is not known."""
    return None if model.quantization is not None else _facts("models").get(model.name)


def size_of(data: Data) -> Mapping[str, int] | None:
    """Returns how many training rows a data set has, and how many labels, if any; None for one that is not known."""
    return _facts("rows").get(data.source if data.subset is None else f"{data.source}/{data.subset}")


@lru_cache(maxsize=2)
def _facts(of: str) -> Mapping[str, Mapping[str, Any]]:
    return json.loads((files("fedelta.runs") / "hub_facts.json").read_text(encoding="utf-8"))[of]
