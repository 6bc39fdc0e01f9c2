"""The tokens of a batch, as an engine plans passes by them."""

from types import SimpleNamespace

import pytest
import torch

from fedelta.models.pass_sizes import longest, pass_tokens, patch_of, tokens
from fedelta.models.peft import PeftAdaptedModel

TEXT = {"input_ids": torch.zeros(2, 5, dtype=torch.long), "attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])}


@pytest.mark.parametrize(("skips_padding", "expected"), [(True, 7), (False, 10)])
def test_padding_counts_unless_it_is_left_out(skips_padding, expected):
    assert tokens(TEXT, skips_padding=skips_padding) == expected
    assert longest(TEXT) == 5


def test_without_a_mask_all_places_count():
    assert tokens({"input_ids": TEXT["input_ids"]}, skips_padding=True) == 10


def test_images_count_as_their_patches():
    batch = {"pixel_values": torch.zeros(3, 3, 70, 56)}
    assert longest(batch, 14) == 5 * 4 + 1
    assert tokens(batch, skips_padding=True, patch=14) == 3 * 21
    assert longest(batch) == 5 * 4 + 1, "patches at the edges are whole ones"


def test_inputs_of_a_task_of_ones_own_count_by_their_second_dimension():
    batch = {"inputs_embeds": torch.zeros(3, 7, 16), "labels": torch.zeros(3)}
    assert longest(batch) == 7
    assert tokens(batch, skips_padding=True) == 3 * 7
    assert longest({"labels": torch.zeros(3)}) == 1


def test_a_patch_is_what_the_config_says():
    assert [patch_of(SimpleNamespace(patch_size=size)) for size in (14, (4, 8), None)] == [14, 4, 16]
    assert patch_of(SimpleNamespace()) == 16


def test_a_pass_on_a_cpu_is_small_whatever_the_model():
    assert pass_tokens(None, torch.device("cpu"), torch.float32) == 2048


@pytest.mark.parametrize(("compact", "expected"), [(True, 7), (False, 10)])
def test_a_model_counts_by_what_its_passes_leave_out(compact, expected, linear):
    model = PeftAdaptedModel(linear.model(), linear.lora(), compact=compact)
    assert model.tokens(TEXT) == expected
    assert (model.longest(TEXT), model.pass_tokens()) == (5, 2048)
