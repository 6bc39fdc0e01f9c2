"""Reads a folder of images in which each label has a subfolder: `photos/cat/1.png`, or `photos/train/cat/1.png`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from fedelta.data.rows import Row

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
"""The endings of files that are taken for images; others in the folder are left out."""

PARTS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""The names that the folder of a part may have."""

IMAGE, LABEL = "image", "label"
"""The fields of a row: a path, and the name of the subfolder that it lies in."""


def holds_images(folder: Path) -> bool:
    """Returns True for a folder whose subfolders hold images, at any depth."""
    return folder.is_dir() and any(next(images_in(inner), None) is not None for inner in _folders(folder))


def images_in(folder: Path, above: Set[Path] = frozenset()) -> Iterator[Path]:
    """Yields the images of a folder and of those in it, in the order of their paths; hidden files are left out.

    So is a link to a folder that it lies in: below it there would be that folder again, with the images of other labels.

    Args:
        folder: to look in.
        above: the folders, as the disk has them, that the way to this one went through.
    """
    here = folder.resolve()
    above = {*above, here, *here.parents}
    for place in sorted(folder.iterdir()):
        if place.name.startswith("."):
            continue
        if place.is_dir():
            if place.resolve() not in above:
                yield from images_in(place, above)
        elif place.suffix.lower() in ENDINGS:
            yield place


def image_rows(folder: Path) -> list[Row]:
    """Returns a row for each image: its path, and the name of the subfolder as its label.

    Raises:
        ValueError: for a folder without such, or with images that lie in no subfolder.
    """
    loose = next((place for place in sorted(folder.iterdir()) if place.suffix.lower() in ENDINGS), None)
    labels = [inner for inner in _folders(folder) if next(images_in(inner), None) is not None]
    if loose is not None and labels:
        raise ValueError(f"{loose} lies in no subfolder, which is an image's label: move it into one, or out of {folder}")
    if not labels:
        raise ValueError(
            f"{folder} has no subfolders with images ({', '.join(ENDINGS)}): a folder of images has one for each label"
        )
    return [{IMAGE: path.absolute(), LABEL: label.name} for label in labels for path in images_in(label)]


def image_parts(folder: Path) -> dict[str, list[Row]]:
    """Returns the rows of each part that has a folder of its own; all rows as `train` where none has.

    Raises:
        ValueError: as `image_rows`; for two folders of one part, or one beside labels.
    """
    return {part: image_rows(place) for part, place in part_folders(folder).items()}


def part_folders(folder: Path) -> dict[str, Path]:
    """Returns the folder of each part; the folder itself as `train` where none has its own. Raises as `image_parts`."""
    found = {part: [inner for inner in _folders(folder) if inner.name.lower() in names] for part, names in PARTS.items()}
    if not found["train"] or not holds_images(found["train"][0]):  # a label may be called like a part
        return {"train": folder}
    if twice := next((places for places in found.values() if len(places) > 1), None):
        raise ValueError(f"{twice[0]} and {twice[1]} both look like one part of the images: leave one of them out")
    return {part: places[0] for part, places in found.items() if places}


def _folders(folder: Path) -> list[Path]:
    return [place for place in sorted(folder.iterdir()) if place.is_dir() and not place.name.startswith(".")]
