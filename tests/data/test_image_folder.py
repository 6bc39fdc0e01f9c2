"""A folder of images: a subfolder for each label, perhaps in folders of the parts; and rows of files that name images."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fedelta.data.image_folder import holds_images, image_parts, image_rows
from fedelta.data.images import levels_of
from fedelta.data.sources import load_rows, load_splits


def place(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2)).save(folder / name)
    return folder


def test_a_subfolder_is_a_label(tmp_path: Path):
    folder = place(tmp_path, "dog/b.PNG", "cat/2.png", "cat/deep/1.jpg", "cat/.hidden.png", ".git/x.png")
    (folder / "cat" / "notes.txt").write_text("no image")
    rows = image_rows(folder)
    assert [(row["image"].name, row["label"]) for row in rows] == [("2.png", "cat"), ("1.jpg", "cat"), ("b.PNG", "dog")]
    assert all(row["image"].is_absolute() for row in rows)


def test_a_link_to_a_folder_that_it_lies_in_adds_no_images(tmp_path: Path):
    folder = place(tmp_path / "photos", "cat/1.png", "dog/2.png", "dog/deep/3.png")
    place(tmp_path, "elsewhere/4.png")
    links = {"cat/up": "..", "cat/self": ".", "dog/deep/up": "../..", "dog/more": "../../elsewhere"}
    for name, goal in links.items():
        (folder / name).symlink_to(goal, target_is_directory=True)
    found = [(str(row["image"].relative_to(folder)), row["label"]) for row in image_rows(folder)]
    assert found == [("cat/1.png", "cat"), ("dog/2.png", "dog"), ("dog/deep/3.png", "dog"), ("dog/more/4.png", "dog")]


def test_two_links_to_each_other_have_an_end(tmp_path: Path):
    folder = place(tmp_path / "photos", "cat/1.png")
    for one, other in (("left", "right"), ("right", "left")):
        place(tmp_path, f"{one}/{one}.png")
        (tmp_path / one / other).symlink_to(tmp_path / other, target_is_directory=True)
    (folder / "cat" / "more").symlink_to(tmp_path / "left", target_is_directory=True)
    assert [row["image"].name for row in image_rows(folder)] == ["1.png", "left.png", "right.png"]


def test_parts_are_folders_with_labels_in_them(photos: Path):
    assert {part: len(rows) for part, rows in image_parts(photos).items()} == {"train": 24, "test": 8}
    splits = load_splits(photos, validation_fraction=0.25, stratify="label", label="label")
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [18, 6, 8]
    assert {row["label"] for row in splits.train} == {"dark", "light"}
    assert len(load_rows(photos)) == 24
    assert len(load_rows(photos, split="test")) == 8
    with pytest.raises(ValueError, match="has no split 'dev'; it has train, test"):
        load_rows(photos, split="dev")


def test_parts_may_be_named(photos: Path):
    splits = load_splits(photos, train="test", test="train", validation_fraction=0)
    assert [len(part) for part in (splits.train, splits.test)] == [8, 24]


def test_a_label_may_be_called_like_a_part(tmp_path: Path):
    folder = place(tmp_path, "train/1.png", "car/2.png")
    assert {row["label"] for row in image_parts(folder)["train"]} == {"train", "car"}


def test_what_is_no_folder_of_images_is_named(tmp_path: Path):
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    assert not holds_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"empty has no subfolders with images \(\.png"):
        image_rows(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"loose\.png lies in no subfolder, which is an image's label: move it"):
        image_rows(place(tmp_path / "mixed", "cat/1.png", "loose.png"))
    with pytest.raises(ValueError, match="both look like one part of the images"):
        image_parts(place(tmp_path / "twice", "train/cat/1.png", "val/cat/1.png", "dev/cat/1.png"))
    with pytest.raises(ValueError, match=r"is a folder: name the file .* or give each label of images a subfolder"):
        load_splits(tmp_path / "empty")


def test_a_path_in_a_file_of_rows_counts_from_that_file(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(photos, tmp_path / "photos")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"image": "photos/train/dark/00.png", "label": "dark"}\n{"image": 5, "label": "dark"}\n')
    monkeypatch.chdir("/")
    first, second = load_rows(file, in_files=["image"])
    assert first["image"] == tmp_path / "photos/train/dark/00.png"
    assert second["image"] == 5
    assert load_rows(file)[0]["image"] == "photos/train/dark/00.png"


def test_images_of_a_hub_data_set_stay_the_bytes_of_their_files(photos: Path, monkeypatch: pytest.MonkeyPatch):
    """Decoded, a data set of photographs would take some fifty times the memory, and an image no digest."""
    datasets = pytest.importorskip("datasets")
    files = sorted((photos / "test").rglob("*.png"))
    columns = {"image": [str(file) for file in files], "label": [file.parent.name for file in files]}
    found = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: found)
    rows = load_rows("owner/name")
    assert set(rows[0]["image"]) == {"bytes", "path"}
    assert [levels_of(row["image"]).tolist() for row in rows] == [levels_of(file).tolist() for file in files]
