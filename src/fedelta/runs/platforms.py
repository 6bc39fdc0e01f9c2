"""Names the platform, on which the bits of a result depend beside the config; warns if a resumed run has another one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

logger = logging.getLogger("fedelta.resume")


def here(device: torch.device, shares: int = 1) -> dict[str, Any]:
    """Returns the platform that a run on a device has here.

    Args:
        device: of the model.
        shares: the parts into which a cohort is split where that changes who trains together.
    """
    return {
        "device": device.type,
        "shares": shares,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fedelta": version("fedelta"),
    }


def compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warns if a resumed run began on another platform."""
    if changed := [f"{k} {before[k]} -> {v}" for k, v in now.items() if k in before and before[k] != v]:
        logger.warning(
            "the run began on another platform (%s): its bytes may differ from an uninterrupted run's", ", ".join(changed)
        )
