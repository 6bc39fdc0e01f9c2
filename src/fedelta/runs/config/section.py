"""The form that every section of a config has: frozen, strict, and without room for unknown keys."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, WithJsonSchema, field_validator

from fedelta.registry import file_named, is_code, one_spelling


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and the remedy."""


class RefusedByClaim(ConfigError):
    """A config without a fault, but of a kind that its method says of itself not to serve.

    Attributes:
        claim: the claim by which it is refused: "hetero_rank", "coordinates", "population", "needs_validation".
    """

    def __init__(self, claim: str, sentence: str) -> None:
        super().__init__(sentence)
        self.claim = claim


class Section(BaseModel):
    """A part of the config: frozen, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuses true and false where neither is a choice; pydantic would take them as 1 and 0."""
        kinds = set(plain_types(cls.model_fields[str(info.field_name)].annotation))
        section = isinstance(value, Mapping) and any(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds)
        if not section and not kinds & {bool, Any} and any(isinstance(leaf, bool) for leaf in _leaves(value)):
            raise ValueError(f"must not be true or false, but is {value!r}")
        return value


def _demand_finite(settings: dict[str, Any]) -> dict[str, Any]:
    for key, value in settings.items():
        for number in _leaves(value):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{key} should be a finite number, got {number}")
    return settings


Named: TypeAlias = Annotated[
    dict[str, Any],
    AfterValidator(_demand_finite),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "properties": {"name": {"type": "string"}}}]}),
]
"""A choice by name with settings of its own, validated by the registry that knows the name."""


def named(value: Any) -> Any:
    """A name alone as a choice without settings.

    Raises:
        ValueError: for a choice without a name.
    """
    choice = {"name": value} if isinstance(value, str) else value
    if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), str):
        raise ValueError("needs a name: write `name: ...`, or the name alone")
    return choice


def chosen(key: str, value: Any) -> Any:
    """Returns a choice of a method or a task, by its name or by the Python file that defines it, as a mapping with a name.

    Args:
        key: "method" or "task".
        value: a name or a path alone, or a mapping with `name` or `path`, and settings beside it.

    Raises:
        ValueError: for a choice without name and path, or a file that is called as something that came with the library.
    """
    choice = {"name": value} if isinstance(value, str) else value
    if not isinstance(choice, Mapping):
        raise ValueError(f"needs a name: write `{key}: NAME`, or `{{name: NAME}}` with its settings")
    choice = dict(cast("Mapping[str, Any]", choice))
    if choice.get("path") is None and is_code(choice.get("name")):
        choice["path"] = os.path.abspath(choice.pop("name"))
    if choice.get("path") is None:
        choice.pop("path", None)
        named(choice)
        return {**choice, "name": one_spelling(f"fedelta.{key}s", choice["name"])}
    return {**choice, "name": _name_of_file(key, choice)}


def _name_of_file(key: str, choice: Mapping[str, Any]) -> str:
    """Returns what a file's method or task is called: as the choice says, else as the file."""
    path, name = choice["path"], choice.get("name")
    if not is_code(path):
        raise ValueError(f"path is {path!r:.200}, but a Python file is needed, whose name ends in .py")
    if not isinstance(name, str | None):
        raise ValueError(f"name should be a text, got {name!r:.80}")
    if name is not None and file_named(f"fedelta.{key}s", name):
        raise ValueError(f"the name {name!r} is that of a {key} of the library: leave it out, or call the file's own otherwise")
    return name or Path(path).name


def plain_types(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of, such as int, None and the parts of a union or a list."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from map(type, parts)
    elif parts:
        for part in parts:
            yield from plain_types(part)
    else:
        yield annotation


def _leaves(tree: Any) -> Iterator[Any]:
    """All values within lists and mappings."""
    if isinstance(tree, Mapping | list):
        for inner in cast("Iterable[Any]", tree.values() if isinstance(tree, Mapping) else tree):
            yield from _leaves(inner)
    else:
        yield tree
