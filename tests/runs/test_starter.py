"""A first config from data files: what the rows are taken for, which file is what, and that the config runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import fedelta
from fedelta.data.columns import columns_of
from fedelta.runs.config import load_config
from fedelta.runs.starter.guess import guess
from fedelta.runs.starter.layout import lay_out
from fedelta.runs.starter.start import start_from

CLASSES = [{"text": f"a text about thing {k}", "label": ["cats", "dogs"][k % 2]} for k in range(60)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(count: int = 60, **columns: Any) -> list[dict[str, Any]]:
    """Makes rows; a column is a list to go round in, or a function of the row's number."""
    return [{n: c(k) if callable(c) else c[k % len(c)] for n, c in columns.items()} for k in range(count)]


def long(k: int) -> str:
    return f"some longer text with the number {k}"


SEEN = [
    (rows_of(text=long, label=["a", "b"]), {"name": "classification", "text": "text", "label": "label"}),
    (rows_of(body=long, id=int, mood=["glad", "sad", "so"]), {"name": "classification", "text": "body", "label": "mood"}),
    (rows_of(title=["x y"], text=long, category=[0, 1]), {"name": "classification", "text": "text", "label": "category"}),
    (
        rows_of(premise=long, hypothesis=long, label=[0, 1, 2]),
        {"name": "classification", "text": "premise", "text_pair": "hypothesis", "label": "label"},
    ),
    (
        rows_of(question=long, passage=long, answer=[True, False]),
        {"name": "classification", "text": "question", "text_pair": "passage", "label": "answer"},
    ),
    (
        rows_of(ctx=long, endings=[["a", "b", "c"]], label=[0, 2], kind=["x", "y"]),
        {"name": "multiple_choice", "context": "ctx", "choices": "endings", "label": "label"},
    ),
    (
        rows_of(goal=long, sol1=long, sol2=long, label=[0, 1]),
        {"name": "multiple_choice", "context": "goal", "choices": ["sol1", "sol2"], "label": "label"},
    ),
    (rows_of(prompt=long, response=long), {"name": "instruction", "instruction": "prompt", "answer": "response"}),
    (rows_of(article=long, summary=long), {"name": "instruction", "instruction": "article", "answer": "summary"}),
    (
        rows_of(instruction=long, context=["", "c d"], response=long, category=["x", "y"]),
        {"name": "instruction", "instruction": "instruction", "answer": "response", "context": "context"},
    ),
]


@pytest.mark.parametrize(("rows", "task"), SEEN)
def test_a_task_is_seen(rows: list[dict[str, Any]], task: dict[str, Any]):
    assert guess(columns_of(rows), len(rows)).task == task


NOT_SEEN = [
    (rows_of(text=long), "no column holds labels"),
    (rows_of(text=long, score=lambda k: k / 7), "'score' holds numbers, and a class is no number"),
    (rows_of(2, text=long, label=["a", "b"]), "so few rows"),
    (rows_of(text=lambda k: long(k) if k else None, label=["a", "b"]), "'text' has none in 1: fill them"),
    (rows_of(messages=[[{"role": "user", "content": "hi"}]]), "'messages' holds chats, .*by `training: {trainer: "),
]


@pytest.mark.parametrize(("rows", "reason"), NOT_SEEN)
def test_where_no_task_is_seen_the_message_says_why(rows: list[dict[str, Any]], reason: str):
    with pytest.raises(ValueError, match=reason):
        guess(columns_of(rows), len(rows))


def test_a_person_may_name_the_columns():
    rows = rows_of(text=long, note=long, label=["a", "b"], grade=["x", "y", "z"])
    found = guess(columns_of(rows), len(rows), text="note", label="grade")
    assert found.task == {"name": "classification", "text": "note", "label": "grade"}
    with pytest.raises(ValueError, match="no column 'grades'; did you mean 'grade'"):
        guess(columns_of(rows), len(rows), label="grades")


def test_the_column_that_says_whose_a_row_is_makes_the_clients(tmp_path: Path):
    rows = rows_of(80, text=long, label=["a", "b"], hospital=["north", "south", "west", "east", "far"])
    start = start_from([write(tmp_path / "rows.jsonl", rows)], tmp_path / "config.yaml")
    assert (start.config.partition.scheme, start.config.partition.by) == ("natural", "hospital")


def test_files_are_told_apart_by_their_names(tmp_path: Path):
    names = ("north.jsonl", "south.jsonl", "my-test.jsonl", "dev.jsonl", ".hidden.jsonl", "notes.txt")
    for name in names:
        write(tmp_path / name, CLASSES)
    found = lay_out([tmp_path])
    assert found.train == {"north": tmp_path / "north.jsonl", "south": tmp_path / "south.jsonl"}
    assert found.parts == {"validation": tmp_path / "dev.jsonl", "test": tmp_path / "my-test.jsonl"}
    assert found.alone is None
    assert lay_out([tmp_path / "my-test.jsonl"]).alone == tmp_path / "my-test.jsonl"
    write(tmp_path / "test.jsonl", CLASSES)
    with pytest.raises(ValueError, match="both look like rows of test"):
        lay_out([tmp_path])
    with pytest.raises(ValueError, match="is given twice"):
        lay_out([tmp_path / "north.jsonl", tmp_path / "../" / tmp_path.name / "north.jsonl"])


def test_a_config_of_several_files_gives_each_client_its_own_and_runs(tiny_model: Path, tmp_path: Path):
    for name, rows in {"north": CLASSES[:30], "süd": CLASSES[30:], "test": CLASSES[:10]}.items():
        write(tmp_path / f"data/{name}.jsonl", rows)
    output = tmp_path / "configs/own.yaml"
    output.parent.mkdir()
    start = start_from([tmp_path / "data"], output, model=str(tiny_model))
    output.write_text(start.text, encoding="utf-8")
    assert load_config(output) == start.config
    assert "    süd: ../data/süd.jsonl # 30 rows\n" in start.text
    assert list(start.config.client_files()) == ["north", "süd"]
    changes = {"output": str(tmp_path / "run"), "federation.rounds": 1, "training.local_steps": 1}
    done = fedelta.run(output, changes)
    line = json.loads((done.folder / "clients.jsonl").read_text())
    assert [entry["name"] for entry in line["clients"].values()] == ["north", "süd"]
    split = json.loads((done.folder / "split.json").read_text())
    assert split["clients"]["1"]["name"] == "süd"
    assert "süd · r 8" in (done.folder / "report.html").read_text()


def test_names_that_yaml_would_read_as_something_else_survive(tmp_path: Path):
    path = tmp_path / "no # [1].csv"
    with path.open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["te: xt", "yes"])
        table.writerows([[long(k), "no" if k % 2 else "yes"] for k in range(40)])
    start = start_from([path], tmp_path / "config.yaml")
    assert start.config.task["text"] == "te: xt"
    assert start.config.task["label"] == "yes"
    assert start.config.data.source == str(path)


WRONG: dict[str, tuple[bytes, str]] = {
    "empty.csv": (b"", "empty.csv has no rows"),
    "header.csv": (b"text,label\n", "header.csv has no rows"),
    "binary.csv": (bytes(range(256)), "save it as UTF-8"),
    "binary.parquet": (bytes(range(256)), "is not a readable parquet file"),
    "double.csv": (b"text,label,text\na,b,c\n", "the header names 'text' more than once"),
    "rows.txt": (b"text", "does not end in .jsonl"),
    "lines.csv": (b'{"text": "x", "label": "a"}\n{"text": "y", "label": "b"}\n', "call it lines.jsonl"),
    "headless.csv": (
        b"".join(b"the cat sat down %d times,%d\n" % (k, k % 2) for k in range(18)),
        "headless.csv has no names of columns: 'the cat sat down 0 times' and '0'",
    ),
    "table.jsonl": (b"text,label\na,b\n", "line 1 is not JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_used_is_named(name: str, tmp_path: Path):
    content, reason = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        start_from([tmp_path / name], tmp_path / "config.yaml")


def test_names_of_columns_that_look_like_a_row_may_be_given(tmp_path: Path):
    file = tmp_path / "asked.csv"
    file.write_text("how happy are you,1\n" + "".join(f"as happy as {k},{k % 2}\n" for k in range(30)), encoding="utf-8")
    with pytest.raises(ValueError, match="give --text and --label"):
        start_from([file], tmp_path / "config.yaml")
    assert start_from([file], tmp_path / "config.yaml", text="how happy are you", label="1").config.task["label"] == "1"


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_the_rows(tmp_path: Path):
    lines = "".join(f"{row['text']},{row['label']}\r\n" for row in CLASSES)
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbftext,label\r\n" + lines.encode())
    start = start_from([tmp_path / "rows.csv"], tmp_path / "config.yaml")
    assert start.guess.label is not None
    assert dict(start.guess.label.counts) == {"cats": 30, "dogs": 30}


def test_gaps_in_labels_are_left_out_and_a_label_of_the_test_rows_alone_is_refused(tmp_path: Path):
    rows = [{**row, "label": None if k < 6 else row["label"]} for k, row in enumerate(CLASSES)]
    start = start_from([write(tmp_path / "rows.jsonl", rows)], tmp_path / "config.yaml")
    assert start.config.data.empty == "drop"
    assert "# 6 rows have no label" in start.text
    write(tmp_path / "test.jsonl", [{"text": "x", "label": "birds"}])
    with pytest.raises(ValueError, match="'birds' in field 'label' is not one of the 2 labels"):
        start_from([tmp_path / "rows.jsonl", tmp_path / "test.jsonl"], tmp_path / "config.yaml")


def test_a_file_without_the_columns_of_the_others_is_named(tmp_path: Path):
    write(tmp_path / "a.jsonl", CLASSES)
    write(tmp_path / "b.jsonl", [{"text": "x", "class": "cats"}])
    with pytest.raises(ValueError, match=r"b\.jsonl has no column 'label', as the other files have; it has 'text', 'class'"):
        start_from([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "config.yaml")


@pytest.mark.parametrize("end", ["\n", "\u2028", "\x85"])
def test_the_name_of_a_column_writes_no_key_of_the_config(end: str, tmp_path: Path) -> None:
    forged = f"other{end}output: stolen{end}#"
    file = write(tmp_path / "rows.jsonl", rows_of(text=long, label=["a", "b"], **{forged: ["x", "y", "z"]}))
    start = start_from([file], tmp_path / "config.yaml")
    assert start.guess.others == [forged]
    assert start.config.output is None


# --- images ------------------------------------------------------------------------------------------------------------


def test_a_folder_of_images_is_taken_for_images(photos: Path, tmp_path: Path):
    start = start_from([photos], tmp_path / "config.yaml")
    assert start.guess.task == {"name": "image_classification", "image": "image", "label": "label"}
    assert start.sizes == {"photos": 24, "test": 8}
    assert "model: {name: dinov2-small}" in start.text
    assert "target_modules: [q_proj, v_proj]" in start.text
    assert "# test: 8 rows of its subfolder test" in start.text
    assert "test_fraction" not in start.text
    assert start.config.data.source == str(photos)
    assert start.config.task["image_size"] == 112


def test_several_folders_of_images_are_a_client_each(photos: Path, tmp_path: Path):
    start = start_from([photos / "train", photos / "test"], tmp_path / "config.yaml", model="./mine")
    assert start.config.client_files() == {"train": str(photos / "train"), "test": str(photos / "test")}
    with pytest.raises(ValueError, match="is no folder of images, as others here are"):
        start_from([photos, write(tmp_path / "rows.jsonl", CLASSES)], tmp_path / "config.yaml")


def test_a_column_of_paths_is_taken_for_images(tmp_path: Path):
    rows = rows_of(scan=lambda k: f"scans/{k}.PNG", text=long, finding=["none", "some"])
    found = guess(columns_of(rows), len(rows))
    assert found.task == {"name": "image_classification", "image": "scan", "label": "finding"}
    assert guess(columns_of(rows), len(rows), text="text").task["name"] == "classification"
    assert guess(columns_of(rows_of(scan=["a.png", "no path"], text=long, label=[0, 1])), 60).task["name"] == "classification"
