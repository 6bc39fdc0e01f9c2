"""Three sites, each with another camera, train one vision transformer to tell striped cloth from plain cloth.

    pip install 'fedelta[images]'
    python examples/images.py
    python examples/images.py --side 32 --rounds 12

The images are drawn here, in a folder for each site with a subfolder for each label, as a site would have them. The second
site's images are turned by a quarter and the third's are negatives: a synthetic shift of the features at equal labels. The
model is a small one with random weights; with `fedelta fetch dinov2-small` the config would name that, and 70 pixels.
"""

# Tested with: --rounds 2 --count 12

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification

import fedelta

SITES = ("north", "east", "south")
LABELS = ("plain", "striped")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--count", type=int, default=60, help="images of a label at each site")
    parser.add_argument("--side", type=int, default=24, help="pixels that the model sees")
    arguments = parser.parse_args()
    for site, name in enumerate((*SITES, "test")):
        draw_images(Path("images") / name, arguments.count, site)
    save_model(Path("vision"))
    result = fedelta.run(config(arguments.side, arguments.rounds))
    print(f"adapters and report.html: {result.folder}")


def config(side: int, rounds: int) -> dict[str, Any]:
    """Returns the run: sites of unequal ranks, who average what their adapters mean."""
    return {
        "name": "images",
        "model": "./vision",
        "lora": {"rank": [2, 4, 8], "target_modules": ["q_proj", "v_proj"]},
        "task": {"name": "image_classification", "image_size": side},
        "data": {"clients": {name: f"images/{name}" for name in SITES}, "test": "images/test", "client_test_fraction": 0.2},
        "method": "flexlora",
        "training": {"batch_size": 8, "local_steps": 6, "learning_rate": 5.0e-3},
        "federation": {"rounds": rounds},
    }


def draw_images(folder: Path, count: int, site: int) -> None:
    """Writes images of both labels, shifted as the site's camera does; other places and noise at each site."""
    random = np.random.default_rng(site)
    for label in LABELS:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.fromarray(shifted(drawn(label, random), site)).save(folder / label / f"{k:03}.png")


def drawn(label: str, random: np.random.Generator) -> NDArray[np.uint8]:
    """Returns an image (32, 32) of cloth of some brightness, with or without upright stripes, in noise."""
    across = np.arange(32)[None, :] + random.integers(0, 8)
    stripes = 35 * np.sign(np.sin(across * np.pi / 4)) if label == "striped" else 0
    levels = random.integers(90, 165) + stripes + random.normal(0, 20, (32, 32))
    return np.clip(levels, 0, 255).astype(np.uint8)


def shifted(image: NDArray[np.uint8], site: int) -> NDArray[np.uint8]:
    """Returns the image as the site's camera gives it."""
    return np.rot90(image) if site == 1 else 255 - image if site == 2 else image


def save_model(folder: Path) -> None:
    """Writes a small vision transformer, the same in every call; its weights are large enough to carry what it sees."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(image_size=24, patch_size=4, initializer_range=0.1, **sizes)).save_pretrained(folder)


if __name__ == "__main__":
    main()
