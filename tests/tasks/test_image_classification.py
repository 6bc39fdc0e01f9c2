"""Images and their labels: sizes, channels, normalisation, synthetic shifts, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedelta.tasks import ImageClassification, get_task
from fedelta.tasks.images.processor import MEAN, STD, ImageProcessor, as_processor, processor_from
from fedelta.tasks.images.shifts import FIELD, SHIFTS, shift_of
from fedelta.testing import check_task

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 255, (9, 12), dtype=np.uint8)
COLOURED = RANDOM.integers(0, 255, (9, 12, 3), dtype=np.uint8)
ROWS = [{"image": GREY, "label": "a"}, {"image": COLOURED, "label": "b"}, {"image": COLOURED.tolist(), "label": 1}]

TASK = ImageClassification(labels=("a", "b"), image_size=6)


def test_the_laws_hold():
    assert check_task(ImageClassification).ok
    assert check_task(TASK, ROWS).ok


def test_images_of_any_size_and_number_of_channels_make_one_batch():
    batch = TASK.collate(TASK.encode(ROWS, None), 0)
    assert batch["pixel_values"].shape == (3, 3, 6, 6)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["labels"].tolist() == [0, 1, 1]
    grey = batch["pixel_values"][0] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(grey[0], grey[1], atol=1e-6), "grey is the same in all three channels"


@pytest.mark.parametrize(
    ("resample", "filter_"), [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)]
)
@pytest.mark.parametrize("size", [(5, 5), (9, 12), (20, 31)])
def test_images_are_resized_as_pillow_does_to_a_level(resample: Any, filter_: Any, size: tuple[int, int]):
    image = COLOURED // 2 + 60  # so that nothing leaves 0 to 255, which Pillow cuts between its two passes
    ours = ImageProcessor(size=size, resample=resample).resized(image.transpose(2, 0, 1))
    pillows = np.asarray(Image.fromarray(image).resize(size[::-1], filter_)).transpose(2, 0, 1)
    assert np.abs(ours.astype(int) - pillows).max() <= 1


def test_pixels_are_normalised_by_channel_in_float32():
    image = np.full((1, 2, 2), 51, np.uint8)
    found = ImageProcessor(size=(2, 2), mean=(0.2, 0.1, 0.0), std=(1.0, 0.5, 0.1)).pixel_values(image)
    assert found[:, 0, 0].tolist() == pytest.approx([0.0, 0.2, 2.0], abs=1e-7)
    assert found.dtype == torch.float32


def test_an_example_is_kept_at_8_bits():
    example = TASK.encode(ROWS, None)[1]
    assert example["pixel_values"].levels.nbytes == 3 * 6 * 6


# --- how a model wants its images ------------------------------------------------------------------------------------

OF_DINO = {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3}


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (30, 30)),
        (OF_DINO, (224, 224)),
        ({**OF_DINO, "do_center_crop": False}, (256, 256)),
        ({"size": {"height": 64, "width": 96}}, (64, 96)),
        ({"size": 48}, (48, 48)),
        ({"size": [48, 64]}, (48, 64)),
    ],
)
def test_the_size_is_what_the_model_was_trained_with(settings: dict[str, Any], size: tuple[int, int]):
    assert processor_from(settings, side=30).size == size


def test_mean_and_spread_are_the_models_own_and_else_those_of_imagenet():
    own = processor_from({"image_mean": [0.5, 0.4, 0.3], "image_std": 0.25, "resample": 2})
    assert (own.mean, own.std, own.resample) == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.25), "bilinear")
    assert (processor_from({}).mean, processor_from({}).std) == (MEAN, STD)
    assert processor_from({"do_normalize": False}).std == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"do_normalize": False}, [0.0, 0.4, 1.0]),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5}, [0.0, 0.8, 2.0]),
        ({"do_normalize": False, "do_rescale": False, "rescale_offset": True}, [0.0, 102.0, 255.0]),
        ({"rescale_factor": 1 / 127.5, "rescale_offset": True, "image_mean": 0.5, "image_std": 2.0}, [-0.75, -0.35, 0.25]),
        ({"do_rescale": False, "image_mean": 100.0, "image_std": 50.0}, [-2.0, 0.04, 3.1]),
    ],
)
def test_levels_are_brought_to_the_range_that_the_model_was_trained_with(settings: dict[str, Any], expected: list[float]):
    """As EfficientNet has it, a rescale factor and an offset go before mean and spread."""
    image = np.array([0, 102, 255], dtype=np.uint8).reshape(1, 1, 3)
    found = processor_from({**settings, "size": [1, 3]}).pixel_values(image)
    torch.testing.assert_close(found, torch.tensor(expected).expand(3, 1, 3), rtol=1e-6, atol=1e-6)


def test_a_factor_of_one_in_255_leaves_the_numbers_as_they_are():
    own = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}
    for factor in (1 / 255, 0.00392156862745098, 0.003921569):
        assert processor_from({**own, "rescale_factor": factor}) == processor_from(own)


def test_the_task_goes_before_the_model():
    of_model = ImageProcessor(size=(32, 32), mean=(0.1, 0.1, 0.1), resample="bilinear")
    assert ImageClassification().processor(of_model) == of_model
    found = ImageClassification(image_size=70, std=(1.0, 1.0, 1.0)).processor(of_model)
    assert (found.size, found.mean, found.std, found.resample) == ((70, 70), (0.1, 0.1, 0.1), (1.0, 1.0, 1.0), "bilinear")


def test_a_processor_of_transformers_is_read():
    given = SimpleNamespace(image_mean=[0.5], to_dict=lambda: {"size": {"height": 8, "width": 8}, "image_mean": [0.5]})
    assert as_processor(given) == ImageProcessor(size=(8, 8), mean=(0.5, 0.5, 0.5))


class Patches(nn.Module):
    """A model with a position for each of four patches, which says if it is told of others."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=4)
        self.head = nn.Linear(3, 2, dtype=dtype)
        self.told: list[bool] = []

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> Any:
        self.told.append(interpolate_pos_encoding)
        return SimpleNamespace(logits=self.head(pixel_values.mean((2, 3))))


@pytest.mark.parametrize(("side", "told"), [(4, False), (6, True)])
def test_a_model_is_told_of_images_that_it_has_no_positions_for(side: int, told: bool):
    task, model = ImageClassification(labels=("a", "b"), image_size=side), Patches()
    task.loss(model, task.collate(task.encode(ROWS, None), 0))
    assert model.told == [told]


def test_pixels_come_in_the_precision_of_the_weights():
    loss = TASK.loss(Patches(torch.bfloat16), TASK.collate(TASK.encode(ROWS, None), 0))
    assert loss.dtype == torch.float32, "the loss is taken in float32"


# --- synthetic shifts ------------------------------------------------------------------------------------------------


def test_a_shift_changes_all_images_of_a_row_that_names_it():
    plain, turned, negative = (
        TASK.encode([{**ROWS[1], **({FIELD: name} if name else {})}], None)[0]["pixel_values"].levels
        for name in ("", "rotation", "inversion")
    )
    assert np.array_equal(turned, np.rot90(plain, axes=(1, 2)))
    assert np.array_equal(negative, 255 - plain)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shifted_image_has_the_models_size_where_that_is_not_square(name):
    image = RANDOM.integers(0, 255, (40, 40, 3), dtype=np.uint8)
    size, task = ImageProcessor(size=(8, 12)), ImageClassification(labels=("a", "b"))
    plain, shifted = (
        task.encode([{**ROWS[0], "image": image, FIELD: shift}], size)[0]["pixel_values"].levels for shift in ("none", name)
    )
    assert shifted.shape == plain.shape == (3, 8, 12)
    if name == "rotation":
        expected = task.encode([{**ROWS[0], "image": np.ascontiguousarray(np.rot90(image))}], size)[0]["pixel_values"].levels
        assert np.array_equal(shifted, expected), "turned, and then squeezed"


def test_a_blur_keeps_the_light_and_takes_the_details():
    image = RANDOM.integers(0, 255, (3, 56, 56), dtype=np.uint8)
    found = shift_of("blur")(image)
    assert found.shape == image.shape
    assert abs(found.mean() - image.mean()) < 1
    assert found.std() < image.std() / 3
    even = np.full((1, 28, 28), 77, np.uint8)
    assert np.array_equal(shift_of("blur")(even), even), "edges are no darker"
    assert shift_of("blur")(np.full((1, 1, 1), 9, np.uint8)).tolist() == [[[9]]]


def test_an_unknown_shift_is_named():
    assert list(SHIFTS) == ["none", "rotation", "blur", "inversion"]
    with pytest.raises(ValueError, match="no feature shift is called 'rotations'; did you mean 'rotation'"):
        TASK.encode([{**ROWS[0], FIELD: "rotations"}], None)


# --- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": True}, "image_size"),
        ({"image_size": 5000}, "image_size"),
        ({"mean": [0.5]}, r"mean has one number for each of 3 channels, got \(0.5,\)"),
        ({"std": [0.5, 0.5, 0.0]}, "std should be above 0|std must be above 0|std"),
        ({"mean": ["a", "b", "c"]}, "mean should be a number|mean"),
        ({"labels": "ab"}, "labels must be a list"),
        ({"pixels": 3}, "has no setting 'pixels'"),
    ],
)
def test_settings_that_no_image_has_are_refused(settings: dict[str, Any], reason: str):
    with pytest.raises(ValueError, match=reason):
        get_task("image_classification", **settings)


def test_a_row_that_does_not_fit_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="row 1: 'c' in field 'label' is not one of the 2 labels"):
        TASK.encode([ROWS[0], {"image": GREY, "label": "c"}], None)
    with pytest.raises(ValueError, match=r"row 0: field 'image' holds the path '.*gone\.png', where there is no file"):
        TASK.encode([{"image": tmp_path / "gone.png", "label": "a"}], None)
    with pytest.raises(ValueError, match="row 0 has no field 'image'; it has 'label'"):
        TASK.encode([{"label": "a"}], None)
    with pytest.raises(ValueError, match="no rows to encode"):
        TASK.encode([], None)
    with pytest.raises(ValueError, match="no examples"):
        TASK.collate([], 0)
