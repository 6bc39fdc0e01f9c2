"""Models of images: ViT, DINOv2, DeiT and Swin train alike in every engine, and what does not fit is refused before a round."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

import fedelta
from fedelta import tree
from fedelta.methods import FlexLoRA
from fedelta.models.image_models import check_images, needs_telling, processor_in
from fedelta.models.loading import load_model
from fedelta.tasks import ImageClassification
from fedelta.tasks.images.processor import MEAN, ImageProcessor

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
}

MODELS: dict[str, Callable[[], Any]] = {
    "vit": lambda: ViTForImageClassification(ViTConfig(intermediate_size=24, **SIZES)),
    "deit": lambda: DeiTForImageClassification(DeiTConfig(intermediate_size=24, **SIZES)),
    "dinov2": lambda: Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **SIZES)),
    "swin": lambda: SwinForImageClassification(
        SwinConfig(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3)
    ),
}
OTHER_SIZES = [("vit", 12), ("deit", 20), ("dinov2", 12)]

RANDOM = np.random.default_rng(0)
DATA = [
    [{"image": RANDOM.integers(0, 255, (10 + k, 12), dtype=np.uint8), "label": "abc"[i % 3]} for i in range(6 + k)]
    for k in range(3)
]


def clients(kind: str, side: int = 16, **settings: Any) -> list[Any]:
    torch.manual_seed(0)
    task = ImageClassification(image_size=side)
    lora = LoraConfig(target_modules=["q_proj", "v_proj"])
    training = {"local_steps": 3, "batch_size": 4, "learning_rate": 0.05}
    return fedelta.hf_clients(MODELS[kind](), None, DATA, lora, [2, 4, 3], task=task, **training, **settings)


def trained(kind: str, side: int, engine: str) -> Sequence[dict[str, torch.Tensor]]:
    *_, last = fedelta.federate(FlexLoRA(), clients(kind, side), rounds=2, engine=engine)
    return [dict(tree.parameters(update.content["adapter"])) for update in last.updates]


@pytest.mark.parametrize(("kind", "side"), [*((kind, 16) for kind in MODELS), *OTHER_SIZES])
def test_clients_in_one_pass_train_as_alone(kind: str, side: int):
    """To rounding, with two rounds, unequal ranks and rows; images of another size than a model's own, too."""
    assert clients(kind, side)[0].model.joint_refusal() is None
    alone, together = trained(kind, side, "sequential"), trained(kind, side, "batched")
    for one, other in zip(alone, together, strict=True):
        for name in one:
            torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-4, msg=f"{kind} {name}")
    moved = alone[0]["classifier.weight"] - alone[0]["classifier.weight"].mean()
    assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("kind", MODELS)
def test_passes_for_text_leave_images_alone_and_a_cache_says_so(kind: str, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "fedelta.models"):
        model = clients(kind, cache_activations=1)[0].model
    assert [type(fast).__name__ for fast in model.passes] == []
    assert "cache_activations has no effect on this" in caplog.text


@pytest.mark.parametrize("gemm", ["onednn", "bf16"])
def test_frozen_products_of_other_backends_serve_images(gemm: Any):
    plain, other = (clients("vit", gemm=backend)[0] for backend in ("default", gemm))
    assert other.model.gemm == gemm
    losses = [client.train(0, client.template).loss for client in (plain, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_client_counts_its_images_by_patches():
    client = clients("vit", side=20)[0]
    batch = next(client.batches(0))
    assert client.model.tokens(batch) == 4 * (5 * 5 + 1)


def test_trained_parts_are_the_adapter_and_the_head():
    template = clients("dinov2")[0].template
    assert set(template.dense) == {"classifier.weight", "classifier.bias"}
    assert all(name.endswith(("q_proj", "v_proj")) for name in template.layers)


# --- from a folder ---------------------------------------------------------------------------------------------------


def test_a_model_is_loaded_with_what_prepares_its_images(tiny_vision: Path):
    task = ImageClassification(labels=("a", "b", "c", "d", "e"))
    model, processor = load_model(str(tiny_vision), task, device="cpu")
    assert processor == ImageProcessor(size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, resample="bilinear")
    assert model.config.id2label[4] == "e"
    again, _ = load_model(str(tiny_vision), task, device="cpu")
    assert torch.equal(model.classifier.weight, again.classifier.weight), "a new head is drawn from the seed"


def test_without_a_file_the_size_is_the_configs_and_the_numbers_are_imagenets(tmp_path: Path):
    assert processor_in(tmp_path, ViTConfig(image_size=32)) == ImageProcessor(size=(32, 32))
    assert processor_in(tmp_path).mean == MEAN


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "preprocessor_config.json is not JSON"),
        ("[]", "holds a list"),
        ('{"size": {"height": "a", "width": 3}}', "cannot be used to prepare images"),
        ('{"image_mean": [1, 2]}', "cannot be used to prepare images: mean has one number for each of 3"),
        ('{"image_std": [1, 2, 0]}', "cannot be used to prepare images"),
        ('{"size": -3}', "cannot be used to prepare images"),
        ('{"size": 99999}', "cannot be used to prepare images"),
        ('{"rescale_factor": 0}', "cannot be used to prepare images: rescale_factor must be above 0, got 0"),
        ('{"do_flip_channel_order": true}', "cannot be used to prepare images: it wants blue before green and red"),
    ],
)
def test_a_damaged_file_is_named(content: str, reason: str, tmp_path: Path):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        processor_in(tmp_path)


def test_a_size_that_a_model_cannot_read_is_refused_before_a_round(tmp_path: Path):
    with pytest.raises(ValueError, match="'SwinForImageClassification' cannot read images of 3 channels and 12 x 12 pixels"):
        clients("swin", side=12)
    ViTForImageClassification(ViTConfig(intermediate_size=24, num_channels=1, **SIZES)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"cannot read images of 3 channels .*: it takes 1 and images have 3 here, so choose another model"
    ):
        load_model(str(tmp_path), ImageClassification(labels=("a", "b", "c")), device="cpu")


def test_the_trial_leaves_a_model_as_it_was():
    model = MODELS["vit"]().train()
    before = torch.get_rng_state()
    check_images(model, ImageClassification(labels=("a", "b", "c"), image_size=16), None, "m")
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_text_and_images_do_not_go_together(tiny_model: Path, tiny_vision: Path):
    with pytest.raises(
        ValueError, match=r"gives images, but model .* takes text: choose a model of images, such as dinov2-small"
    ):
        load_model(str(tiny_model), ImageClassification(labels=("a", "b")), device="cpu")
    with pytest.raises(ValueError, match=r"gives text, but model .* takes images: choose a model of text"):
        fedelta.hf_clients(str(tiny_vision), None, [[{"text": "a", "label": 0}]] * 2, LoraConfig(), 2)


@pytest.mark.parametrize(
    ("config", "size", "told"),
    [
        (ViTConfig(image_size=16), (16, 16), False),
        (ViTConfig(image_size=16), (12, 12), True),
        (DeiTConfig(image_size=16), (12, 12), True),
        (Dinov2Config(image_size=16), (12, 12), False),
    ],
)
def test_a_card_tells_when_positions_are_to_be_found(config: Any, size: tuple[int, int], told: bool):
    assert needs_telling(json.loads(config.to_json_string(use_diff=False)), size) is told
    assert not needs_telling({"model_type": "nobody", "image_size": 5}, size)


def test_the_released_dinov2_is_of_this_kind():
    """Its alias gives a backbone; the head for a task is new."""
    model = Dinov2ForImageClassification(Dinov2Config(mlp_ratio=2, **{**SIZES, "image_size": 518, "patch_size": 14}))
    task = ImageClassification(labels=("a", "b", "c"), image_size=70)
    loss = task.loss(model, task.collate(task.encode(DATA[0], None), 0))
    assert torch.isfinite(loss)
    assert isinstance(model.classifier, nn.Linear)
