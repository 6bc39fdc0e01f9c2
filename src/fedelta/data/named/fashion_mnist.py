"""`fashion-mnist`: 70,000 grey images of clothes, 28 x 28, in ten classes, from the package of Debian and its relatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedelta.data.idx import read_idx
from fedelta.data.named import NamedSource
from fedelta.data.rows import Row

NAMES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""The names of the classes 0 to 9, as the data set's authors have them (Xiao, Rasul and Vollgraf, 2017)."""

FILES = {"train": "train", "test": "t10k"}
"""The beginnings of the files' names, by split."""


@dataclass(frozen=True)
class FashionMnist(NamedSource):
    """Reads Fashion-MNIST from the files of Debian's package `dataset-fashion-mnist`, or of any other copy.

    Args:
        folder: that holds the four files, as they are published or unpacked.
    """

    folder: Path = Path("/usr/share/datasets/fashion-mnist")

    def at(self, folder: Path) -> NamedSource:
        """Returns the same data set in another folder."""
        return replace(self, folder=folder)

    def load(self) -> Mapping[str, Sequence[Row]]:
        """Returns 60,000 rows to train on and 10,000 to test by, each with `image`, a (28, 28) array, and `label`, a name."""
        return {split: self._rows(name) for split, name in FILES.items()}

    def _rows(self, name: str) -> list[Row]:
        images, labels = (read_idx(self._file(f"{name}-{kind}-ubyte")) for kind in ("images-idx3", "labels-idx1"))
        fits = images.ndim == 3 and labels.shape == images.shape[:1] and labels.max(initial=0) < len(NAMES)
        if not fits:
            raise ValueError(
                f"{self.folder} holds images of shape {images.shape} and labels of shape {labels.shape} that are not "
                "Fashion-MNIST's: fetch its four files again"
            )
        return [{"image": image, "label": NAMES[label]} for image, label in zip(images, labels, strict=True)]

    def _file(self, name: str) -> Path:
        """Returns one of the files, packed or not.

        Raises:
            FileNotFoundError: naming the package that has it.
        """
        places = [self.folder / f"{name}.gz", self.folder / name]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise FileNotFoundError(
                f"Fashion-MNIST is not on this machine ({places[0]} is missing): `sudo apt install dataset-fashion-mnist` on "
                "Debian and Ubuntu brings it, or name the folder of its four files by data.path"
            )
        return found
