"""A small DINOv2, written as an export to ONNX has it and made into a folder, is the one that transformers had."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification, Dinov2Config, Dinov2Model

from fedelta.models.fetched.dinov2 import POSITIONS, write_dinov2
from fedelta.models.fetched.onnx_weights import read_onnx

LINEAR = ("query", "key", "value", "dense", "fc1", "fc2")
HUB_NAMES = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}


def number(value: int) -> bytes:
    low, value = value & 127, value >> 7
    return bytes([low | 128]) + number(value) if value else bytes([low])


def message(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return number(field << 3 | 2) + number(len(content)) + content


def tensor(name: str, value: np.ndarray, *, packed: bool) -> bytes:
    sizes = [number(size) for size in value.shape]
    shape = message(1, b"".join(sizes)) if packed else b"".join(number(1 << 3) + size for size in sizes)
    return message(5, shape + number(2 << 3) + number(1) + message(8, name) + message(9, value.astype("<f4").tobytes()))


def product(output: str, weight: str) -> bytes:
    return message(1, message(1, "before") + message(1, weight) + message(2, output) + message(4, "MatMul"))


@pytest.fixture
def original(tmp_path: Path) -> Dinov2Model:
    """A backbone of two layers, with its ONNX file at x.onnx and something behind it."""
    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, "image_size": 28, "patch_size": 14}
    model = Dinov2Model(Dinov2Config(**sizes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
        model.embeddings.mask_token.zero_()
    graph = tensor("decoder.weight", np.ones((3, 3)), packed=True) + message(1, message(4, "Add"))
    for k, (name, value) in enumerate((n, v.numpy()) for n, v in model.state_dict().items()):
        for theirs, hub in HUB_NAMES.items():
            name = name.replace(f"attention.{theirs}", f"attention.{hub}")
        place = name.split(".")
        if name == "embeddings.position_embeddings":
            parts = zip(POSITIONS, (value[:, :1], value[:, 1:]), strict=True)
            graph += b"".join(tensor(part, content, packed=True) for part, content in parts)
        elif name.endswith(".weight") and place[-2] in LINEAR:
            graph += tensor(f"onnx::MatMul_{k}", value.T, packed=k % 2 == 0)
            output = f"/backbone/encoder/layer.{place[2]}/{'/'.join(place[3:-1])}/MatMul_output_0"
            graph += product(output, f"onnx::MatMul_{k}")
        elif name != "embeddings.mask_token":
            graph += tensor(f"backbone.{name}", value, packed=False)
    (tmp_path / "x.onnx").write_bytes(number(1 << 3) + number(8) + message(7, graph))
    return model


def test_the_folder_gives_the_features_of_the_original(original: Dinov2Model, tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_dinov2(tmp_path / "x.onnx", folder)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(2, 3, 42, 28)
    with torch.no_grad():
        assert torch.equal(model.eval()(images).last_hidden_state, original(images).last_hidden_state)


def test_a_head_is_all_that_a_classifier_lacks(original: Dinov2Model, tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_dinov2(tmp_path / "x.onnx", folder)
    _, info = AutoModelForImageClassification.from_pretrained(folder, num_labels=3, output_loading_info=True)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}


def test_a_damaged_file_is_called_so():
    with pytest.raises(ValueError, match="damaged: a number stands where a message belongs"):
        read_onnx(memoryview(number(7 << 3) + number(3)))
