"""Makes a folder for transformers of the DINOv2 backbone in an ONNX file; what lies behind the backbone is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from fedelta.models.fetched.onnx_weights import OnnxWeights, read_onnx

BACKBONE = "backbone."

POSITIONS = ("onnx::Concat_1957", "onnx::Reshape_1962")
"""The names that the export gave to the positions of the first token and of the patches."""

PREPARED = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "do_convert_rgb": True,
}
"""The sizes and the normalisation of ImageNet, with which the model was trained."""


def write_dinov2(source: Path, folder: Path) -> None:
    """Writes config.json, preprocessor_config.json and model.safetensors in float32.

    Args:
        source: the ONNX file.
        folder: that exists.
    """
    weights = backbone(read_onnx(memoryview(source.read_bytes())))
    save_file(
        {name: torch.from_numpy(np.array(value, order="C")) for name, value in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    for name, written in (("config.json", config(weights)), ("preprocessor_config.json", PREPARED)):
        (folder / name).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def backbone(onnx: OnnxWeights) -> dict[str, NDArray[np.float32]]:
    """Returns the weights by the names of the Hub's checkpoints.

    Matrices of linear layers are known by the product that uses them, /backbone/encoder/layer.0/mlp/fc1/MatMul_output_0, and
    lie transposed: the graph multiplies from the right.
    """
    found = {name.removeprefix(BACKBONE): value for name, value in onnx.named.items() if name.startswith(BACKBONE)}
    for output, weight in onnx.factors.items():
        place = output.strip("/").split("/")
        if place[0] == BACKBONE.rstrip("."):
            found[f"{'.'.join(place[1:-1])}.weight"] = onnx.named[weight].T
    first, patches = (onnx.named[name] for name in POSITIONS)
    found["embeddings.position_embeddings"] = np.concatenate([first, patches], axis=1)
    found["embeddings.mask_token"] = np.zeros((1, first.shape[-1]), dtype=np.float32)  # of the pretraining alone
    return found


def config(weights: dict[str, NDArray[np.float32]]) -> dict[str, object]:
    """Returns config.json, with the sizes of the weights; a head has 64 columns, as in every DINOv2."""
    patches = weights["embeddings.patch_embeddings.projection.weight"]
    places = weights["embeddings.position_embeddings"].shape[1] - 1
    inner = weights["encoder.layer.0.mlp.fc1.weight"].shape[0]
    width = patches.shape[0]
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": sum(name.endswith(".norm1.weight") for name in weights),
        "num_attention_heads": width // 64,
        "mlp_ratio": inner // width,
        "patch_size": patches.shape[-1],
        "image_size": round(places**0.5) * patches.shape[-1],
        "num_channels": patches.shape[1],
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "layerscale_value": 1.0,
        "use_swiglu_ffn": False,
        "dtype": "float32",
    }
