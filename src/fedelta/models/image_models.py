"""Finds out how a model reads images: how they are prepared for it, and if it takes those that a task gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING

from fedelta.models.adapter_config import read_json
from fedelta.tasks.image_classification import ASKED
from fedelta.tasks.images.processor import ImageProcessor, processor_from
from fedelta.tasks.task import Task, evaluating

PREPARED = "preprocessor_config.json"
"""The file beside a model's weights that says how images are prepared for it."""


def reads_images(task: Task) -> bool:
    """Returns True for a task whose rows have images in place of texts."""
    return task.main_input == "pixel_values"


def side_of(config: Any) -> int | None:
    """Returns the pixels of a side of the images that a model was trained with, as its config says; None if it does not."""
    side = config.get("image_size") if isinstance(config, Mapping) else getattr(config, "image_size", None)
    return max(side) if isinstance(side, list | tuple) else side


def processor_in(folder: Path, config: Any = None) -> ImageProcessor:
    """Returns what prepares images for the model in a folder, as its preprocessor_config.json says; ImageNet's without one.

    Args:
        folder: of the model.
        config: the model's, which says how large its images are where the file does not.

    Raises:
        ValueError: for a file that is no JSON, or has sizes or numbers that no image has.
    """
    file = folder / PREPARED
    settings = read_json(file) if file.is_file() else {}
    try:
        return processor_from(settings, side_of(config))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} cannot be used to prepare images: {error}") from error


def processor_for(model: Any) -> ImageProcessor:
    """Returns ImageNet's numbers and the size that a loaded model's config names."""
    return processor_from({}, side_of(model.config))


def needs_telling(config: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Returns True for a model that reads images of a size only if it is told to find positions between those that it has.

    Args:
        config: the content of its config.json.
        size: height and width of the images.
    """
    side, kind = side_of(config), str(config.get("model_type"))
    if side is None or size == (side, side):
        return False
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING:
        return False
    known: Any = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[CONFIG_MAPPING[kind]]
    model = known[0] if isinstance(known, tuple) else known
    return ASKED in inspect.signature(model.forward).parameters


def check_images(model: Any, task: Task, processor: Any, name: str) -> None:
    """Raises ValueError for a model that cannot answer to the task's images, which one pass on a grey image finds out.

    Some models take one size alone, or one channel; in training each client would fail on that.

    Args:
        model: as loaded.
        task: of images; one of another kind, or of a user's own making that prepares them otherwise, is not tried.
        processor: of the model.
        name: of the model, for the message.
    """
    prepared = getattr(task, "processor", None)
    if not reads_images(task) or prepared is None:
        return
    size = prepared(processor).size
    place = next(model.parameters()).device
    batch = {"pixel_values": torch.zeros(1, 3, *size, device=place), "labels": torch.zeros(1, dtype=torch.int64, device=place)}
    try:
        with torch.no_grad(), evaluating(model):
            task.decisions(model, batch)
    except (RuntimeError, ValueError) as error:
        own = side_of(getattr(model, "config", None))
        hint = "" if own in (None, size[0]) else f", such as its own, {own}"
        sized = f"set task.image_size to a size that it takes{hint}, or choose another model"
        colours = getattr(getattr(model, "config", None), "num_channels", 3)
        remedy = sized if colours == 3 else f"it takes {colours} and images have 3 here, so choose another model"
        raise ValueError(
            f"model {name!r} cannot read images of 3 channels and {size[0]} x {size[1]} pixels ({error}): {remedy}"
        ) from error
