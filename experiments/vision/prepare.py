"""Puts into data/ what `small.yaml` reads: the files of Fashion-MNIST, and a model like DINOv2-small with random weights.

fedelta fetch dinov2-small
python experiments/vision/prepare.py                     # of Debian's dataset-fashion-mnist
python experiments/vision/prepare.py FOLDER              # of the four files anywhere else
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from fedelta.data.named.fashion_mnist import FashionMnist
from fedelta.models.aliases import folder_of
from fedelta.models.image_models import PREPARED

OUTPUT = Path(__file__).parent / "data"
NAMES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=FashionMnist().folder, help="of the four files")
    folder: Path = parser.parse_args().folder
    rows = FashionMnist(folder=folder).load()
    (OUTPUT / "fashion-mnist").mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        shutil.copyfile(folder / name, OUTPUT / "fashion-mnist" / name)
    print({split: len(part) for split, part in rows.items()})
    write_random(OUTPUT / "random-weights")


def write_random(folder: Path) -> None:
    """Writes a model of the same sizes whose weights are drawn, by transformers' own rule, from the seed 0."""
    pretrained = folder_of("dinov2-small")
    if pretrained is None:
        raise SystemExit("dinov2-small is not on this machine: fedelta fetch dinov2-small")
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(pretrained)).save_pretrained(folder)
    shutil.copyfile(pretrained / PREPARED, folder / PREPARED)


if __name__ == "__main__":
    main()
