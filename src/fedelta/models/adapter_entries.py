"""Makes the entries of adapter_config.json for an adapter: its own layers, ranks and scales among the settings of a layout."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from fedelta.tree import Adapter


def entries_of(adapter: Adapter, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of adapter_config.json: the settings, with this adapter's own layers, ranks and scales."""
    rslora = bool(settings.get("use_rslora"))
    ranks = {n: x.rank for n, x in adapter.layers.items()}
    alphas = {n: _lora_alpha(x.scale, x.rank, rslora) for n, x in adapter.layers.items()}
    r, rank_pattern = _common(ranks)
    lora_alpha, alpha_pattern = _common(alphas)
    saved = settings.get("modules_to_save") or sorted({n.rpartition(".")[0] for n in adapter.dense}) or None
    own = {
        "r": r,
        "lora_alpha": lora_alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
        "modules_to_save": saved,
        "inference_mode": True,
        "peft_type": "LORA",
        "bias": "none",
        "use_rslora": rslora,
    }
    config = {**settings, **_targets(adapter, settings), **own}
    return {k: getattr(v, "value", v) for k, v in config.items()}


def _lora_alpha(scale: float, rank: int, rslora: bool) -> float:
    """Returns the lora_alpha that gives a scale, as a whole number if one does."""
    divisor = math.sqrt(rank) if rslora else rank
    whole = round(scale * divisor)
    return whole if whole / divisor == scale else scale * divisor


def _common(values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Returns the commonest value, and the others by a pattern that matches one layer's whole name."""
    if not values:
        return 8, {}
    common = Counter(values.values()).most_common(1)[0][0]
    return common, {f"^{re.escape(n)}": v for n, v in values.items() if v != common}


def _targets(adapter: Adapter, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings' target modules if they match every layer, else the layers' full names."""
    wanted = settings.get("target_modules")
    if wanted and not isinstance(wanted, str) and all(_is_target(n, wanted) for n in adapter.layers):
        return {"target_modules": sorted(wanted)}
    unused = dict.fromkeys(("layers_to_transform", "layers_pattern", "exclude_modules"))
    return {"target_modules": sorted(adapter.layers), **unused}


def _is_target(name: str, wanted: Collection[str]) -> bool:
    return any(name == w or name.endswith(f".{w}") for w in wanted)
