"""The layout of adapters as it crosses from a site to its server: what PEFT needs to know of them, and no place on a disk.

The name of the base model is not sent: each end has its own, which may be a folder on its machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from fedelta.models.adapter_config import is_number, is_text, is_texts
from fedelta.models.adapter_files import Layout
from fedelta.models.aliases import portable_name

ENTRIES: Mapping[str, Callable[[object], bool]] = {
    "target_modules": is_texts,
    "modules_to_save": is_texts,
    "task_type": is_text,
    "lora_dropout": is_number,
}
"""The entries of adapter_config.json that a site tells, and a test of each; none of them names code or a file."""


def to_send(layout: Layout) -> dict[str, Any]:
    """Returns what a site tells of its model's layout, as plain JSON."""
    config = json.loads(json.dumps({key: layout.config.get(key) for key in ENTRIES}, default=sorted))
    return {"config": config, "embeddings": sorted(layout.embeddings)}


def received(given: object, base_model: str) -> Layout:
    """Returns the layout that a server takes from what a site told, which may be anything; what does not fit is left out.

    Args:
        given: what `to_send` returned, as it arrived.
        base_model: its name in the server's config.
    """
    found = _mapping(given)
    config, embeddings = _mapping(found.get("config")), found.get("embeddings")
    entries = {key: config[key] for key, fits in ENTRIES.items() if fits(config.get(key))}
    names = cast("list[str]", embeddings) if is_texts(embeddings) else []
    return Layout({"base_model_name_or_path": portable_name(base_model), **entries}, frozenset(names))


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
