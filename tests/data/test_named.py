"""Sources by name: found by their files, and before files and data sets of the Hub."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from fedelta.data import named, sources
from fedelta.data.named._template import Parity
from fedelta.data.sources import load_rows, load_splits, pinned_revision


def test_a_source_is_known_by_its_file():
    assert named.list_sources() == ["docstrings", "fashion_mnist"]
    assert type(named.get_source("docstrings")).__name__ == "Docstrings"
    with pytest.raises(ValueError, match="no source is called 'docstring'; did you mean 'docstrings'"):
        named.get_source("docstring")


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template under the name `parity`, as if its file had that name."""
    monkeypatch.setattr(sources, "is_named", lambda source: source == "parity")  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(sources, "get_source", lambda name, folder: Parity())  # pyright: ignore[reportUnknownLambdaType]


@pytest.mark.usefixtures("parity")
def test_what_a_source_lacks_is_carved_from_its_training_rows():
    splits = load_splits("parity", validation_fraction=0.1)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [180, 20, 50]
    assert splits.test[0] == {"text": "the number 200", "label": "even"}
    with pytest.raises(ValueError, match="parity has no split 'dev'; it has train, test"):
        load_splits("parity", validation="dev")
    with pytest.raises(ValueError, match="parity has no split 'dev'"):
        load_rows("parity", split="dev")


def test_a_name_goes_before_a_folder_that_is_called_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "docstrings").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_rows("docstrings", limit=2)[0].keys() == {"text", "label", "package", "module"}
    assert pinned_revision("docstrings") is None
    with pytest.raises(ValueError, match="is a folder: name the file"):
        load_splits("./docstrings")


# --- Fashion-MNIST ------------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    """The four files, with 20 and 10 images of four pixels."""
    folder = tmp_path / "clothes"
    folder.mkdir()
    for name, count in (("train", 20), ("t10k", 10)):
        images = np.arange(count * 4, dtype=np.uint8).reshape(count, 2, 2)
        (folder / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8) % 10)))
    return folder


@pytest.mark.parametrize("name", ["fashion-mnist", "fashion_mnist"])
def test_fashion_mnist_is_read_from_any_folder(name: str, clothes: Path):
    splits = load_splits(name, path=clothes, validation_fraction=0.25)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [15, 5, 10]
    first = splits.test[0]
    assert (first["image"].tolist(), first["label"]) == ([[0, 1], [2, 3]], "T-shirt/top")
    assert splits.test[9]["label"] == "Ankle boot"


def test_files_may_be_unpacked(clothes: Path):
    for file in clothes.iterdir():
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
        file.unlink()
    assert len(load_rows("fashion-mnist", path=clothes, split="test")) == 10


def test_without_the_package_its_name_is_said(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"sudo apt install dataset-fashion-mnist.*data\.path"):
        load_rows("fashion-mnist", path=tmp_path)


def test_a_path_belongs_to_a_source_with_files(tmp_path: Path):
    with pytest.raises(ValueError, match="Docstrings reads no files of its own"):
        load_rows("docstrings", path=tmp_path)
    with pytest.raises(ValueError, match=r"data\.path = .* has no meaning for the source 'owner/name'"):
        load_rows("owner/name", path=tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no gzip", "is a cut-off or damaged gzip file"),
        (gzip.compress(idx(np.zeros((20, 2, 2), np.uint8)))[:-9], "is a cut-off or damaged gzip file"),
        (gzip.compress(b"\0\0\x0d\x01" + bytes(8)), "is no idx file of whole numbers from 0 to 255"),
        (gzip.compress(b"\0\0"), "is no idx file"),
        (gzip.compress(idx(np.zeros((20, 2, 2), np.uint8))[:-1]), "does not hold the 20 x 2 x 2 numbers"),
        (gzip.compress(idx(np.zeros((19, 2, 2), np.uint8))), r"shape \(19, 2, 2\) and labels of shape \(20,\) that are not Fa"),
        (gzip.compress(b"\0\0\x08\0\5"), r"images of shape \(\) and labels of shape \(20,\) that are not Fashion-MNIST's"),
    ],
    # Named, since gzip writes the time into its bytes: workers that begin in different seconds would know different tests.
    ids=["no gzip", "cut off", "another kind", "no header", "too short", "too few", "no axis"],
)
def test_a_damaged_file_is_named(content: bytes, reason: str, clothes: Path):
    (clothes / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        load_rows("fashion-mnist", path=clothes)
