"""Reads PEFT folders that are to be merged, and refuses those that do not belong together, by the names of their folders."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from fedelta import tree
from fedelta.models.adapter_config import read_json
from fedelta.models.adapter_files import Layout, load_adapter, read_layout
from fedelta.models.aliases import portable_name
from fedelta.tree import Adapter

TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class _Folder:
    """One input: its name for messages, its adapter, what its config says, and the tokens of its tokenizer, if it has one."""

    name: str
    adapter: Adapter
    layout: Layout
    tokens: tuple[Any, Any] | None

    @property
    def base(self) -> str | None:
        """Returns the name of the base model, with its revision; None where the folder does not tell."""
        told = self.layout.config.get("base_model_name_or_path")
        revision = self.layout.config.get("revision")
        if not told:
            return None
        return f"{_one_name(told)}{f' at revision {revision}' if revision else ''}"


def read_alike(folders: Sequence[str | os.PathLike[str]], *, same_base: bool = False) -> list[Adapter]:
    """Loads adapters that are to be merged.

    Args:
        folders: that PEFT wrote.
        same_base: takes bases of different names for one. Where fingerprints are known, they count in any case.

    Raises:
        FileNotFoundError, MalformedError: for a folder that holds no adapter.
        ValueError: for a kind of adapter that has no delta B A, such as DoRA; for adapters of different bases, labels,
            tokenizers, layers or heads; and for values that are not finite. The message names the folders.
    """
    found = [_read(Path(folder)) for folder in folders]
    for x, y in combinations(found, 2):
        _demand_one_base(x, y, same_base)
        _demand_one_head(x, y)
        if x.tokens is not None and y.tokens is not None and x.tokens != y.tokens:
            raise ValueError(
                f"{x.name} and {y.name} hold tokenizers of different tokens: what they learned belongs to other inputs, so "
                "they cannot be merged"
            )
    for folder in found:
        tree.check_finite(folder.adapter, folder.name, "leave this adapter out")
    adapters = [folder.adapter for folder in found]
    tree.check_alike(adapters, [folder.name for folder in found])
    return adapters


def _read(folder: Path) -> _Folder:
    layout = read_layout(folder)  # first, since it tells by name what cannot be merged
    return _Folder(str(folder), load_adapter(folder), layout, _tokens(folder / TOKENIZER))


def _one_name(base: str) -> str:
    """Returns one name for a base that can be written in several ways: an alias, a Hub id, a path to a folder."""
    return str(Path(base).resolve()) if Path(base).is_dir() and portable_name(base) == base else portable_name(base)


def _demand_one_base(x: _Folder, y: _Folder, same_base: bool) -> None:
    if x.adapter.base is not None and y.adapter.base is not None:
        if x.adapter.base != y.adapter.base:
            raise ValueError(
                f"{x.name} was trained on base {x.adapter.base} ({x.base}), {y.name} on {y.adapter.base} ({y.base}): "
                "adapters of different base models cannot be merged"
            )
        return  # one base, whatever it is called
    if not same_base and x.base is not None and y.base is not None and x.base != y.base:
        raise ValueError(
            f"{x.name} was trained on base model {x.base!r}, {y.name} on {y.base!r}: adapters of different base models "
            "cannot be merged. If these are names of one model, say so by --same-base (in Python: same_base=True)"
        )


def _demand_one_head(x: _Folder, y: _Folder) -> None:
    first, second = x.layout.labels, y.layout.labels
    if first and second and list(first) != list(second):
        raise ValueError(
            f"{x.name} has the labels {_shown(first)}, {y.name} has {_shown(second)}: the outputs of their heads mean "
            "different things, so they cannot be merged"
        )


def _shown(labels: Sequence[Any], count: int = 8) -> str:
    return f"[{', '.join(map(repr, labels[:count]))}{', ...' if len(labels) > count else ''}]"


def _tokens(path: Path) -> tuple[Any, Any] | None:
    """Returns the vocabulary in a tokenizer.json and the tokens added to it; None where there is no such file."""
    if not path.is_file():
        return None
    content = read_json(path)
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, Mapping) else None
    listed = [token for token in added if isinstance(token, Mapping)] if isinstance(added, list) else []
    return vocabulary, [(token.get("id"), token.get("content")) for token in listed]
