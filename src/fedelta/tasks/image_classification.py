"""Classification of an image into a fixed list of labels."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from fedelta.data.images import Levels, image_of
from fedelta.data.rows import Row, require_rows
from fedelta.demands import demand_all, optional, whole
from fedelta.tasks.images.processor import LARGEST, ImageProcessor, Picture, as_processor
from fedelta.tasks.images.shifts import FIELD, shift_of
from fedelta.tasks.task import Batch, Decisions, Example, Labelled, model_inputs

ASKED = "interpolate_pos_encoding"
"""The argument by which a model is told to find positions between those that it has."""

_PLAIN = np.zeros((12, 8), dtype=np.uint8)
_LIT = np.eye(16, dtype=np.uint8)[..., None].repeat(3, axis=2) * 200


@dataclass(frozen=True, kw_only=True)
class ImageClassification(Labelled):
    """Gives each image a label, by a model with a classification head.

    An image is a path, the bytes of a file, an array (height, width) or with 1, 3 or 4 channels, or an image of Pillow. It is
    brought to one size as a whole, to three channels, and normalised in float32.

    Args:
        image: the field with the image; a path in a file of rows counts from that file's folder.
        image_size: pixels of a side; where it is left out, those that the model was trained with.
        mean: of each of three channels, on a scale from 0 to 1; where it is left out, the model's own, or ImageNet's.
        std: the same for what each channel is divided by.
    """

    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    peft_task_type: ClassVar[str | None] = None
    modules_to_save: ClassVar[tuple[str, ...]] = ("classifier",)
    main_input: ClassVar[str] = "pixel_values"
    sample: ClassVar[tuple[Row, ...]] = (
        {"image": _PLAIN, "label": "dark"},
        {"image": 255 - _PLAIN, "label": "light"},
        {"image": _LIT, "label": "light"},
    )

    image: str = "image"
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        demand_all(self, {"image_size": optional(whole(least=1, most=LARGEST))})
        self.processor(None)  # refuses a mean and a std that no image has

    def path_fields(self) -> tuple[str, ...]:
        """Returns the field of the image, which may hold a path."""
        return (self.image,)

    def processor(self, given: Any) -> ImageProcessor:
        """Returns what prepares images, of what the model brought and what this task says.

        Args:
            given: from the model: an `ImageProcessor`, one of transformers, or None.
        """
        of_task = {
            "size": None if self.image_size is None else (self.image_size,) * 2,
            "mean": self.mean,
            "std": self.std,
        }
        said: dict[str, Any] = {name: value for name, value in of_task.items() if value is not None}
        return replace(as_processor(given), **said)

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        """Returns one example per row: `pixel_values`, a `Picture`, and `label`, a position in `labels`.

        Args:
            rows: at least one; a field `feature_shift` names a synthetic shift of the row's image.
            tokenizer: what the model brought for images; see `processor`.
        """
        require_rows(rows)
        labels = [self.position_of(row, i) for i, row in enumerate(rows)]
        processor = self.processor(tokenizer)
        pictures = [Picture(self._prepared(row, i, processor), processor) for i, row in enumerate(rows)]
        return [{"pixel_values": picture, "label": label} for picture, label in zip(pictures, labels, strict=True)]

    def _prepared(self, row: Row, index: int, processor: ImageProcessor) -> Levels:
        image = image_of(row, index, self.image)
        if FIELD not in row:
            return processor.resized(image)
        shift = shift_of(str(row[FIELD]))
        levels = shift(processor.resized(image))
        # A quarter turn swaps height and width: where they differ, the image is turned before it is brought to the size.
        return levels if levels.shape[1:] == processor.size else processor.resized(shift(image))

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        """Returns `labels` (n,) and `pixel_values` (n, 3, height, width)."""
        if not examples:
            raise ValueError("no examples to make a batch of")
        pictures = [cast("Picture", example["pixel_values"]).pixel_values() for example in examples]
        return {"pixel_values": torch.stack(pictures), "labels": torch.tensor([example["label"] for example in examples])}

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        """Returns one decision per example among the labels."""
        inputs = model_inputs(batch) | {"pixel_values": _in_the_type_of(model, batch["pixel_values"])}
        return Decisions(model(**inputs, **_of_another_size(model, batch)).logits, batch["labels"])


def _in_the_type_of(model: Any, pixels: Tensor) -> Tensor:
    """Returns pixels in the precision of a model's weights, which not every model brings them to by itself."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), pixels.dtype)
    return pixels.to(dtype)


def _of_another_size(model: Any, batch: Batch) -> dict[str, Any]:
    """Returns what a model has to be told to read images of another size than it was trained with; empty for most.

    A vision transformer has one position for each patch of that size, and refuses images of another, unless it is to find the
    positions between them. DINOv2 does so unasked.
    """
    trained = getattr(getattr(model, "config", None), "image_size", None)
    height, width = batch["pixel_values"].shape[-2:]
    if trained is None or (height, width) == (tuple(trained) if isinstance(trained, list | tuple) else (trained, trained)):
        return {}
    return {ASKED: True} if ASKED in inspect.signature(model.forward).parameters else {}
