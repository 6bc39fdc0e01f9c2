"""Encoded rows on disk: the same examples, and never those of other rows, another tokenizer, task or length."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedelta.runs.encoded import KEPT, encoded, key_of
from fedelta.tasks import Classification

ROWS = [{"text": "the cat tail", "label": "cats"}, {"text": "bark growl", "label": "dogs"}]
TASK = Classification(labels=("cats", "dogs"))


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that rows are encoded."""
    found, encode = list[int](), Classification.encode

    def counting(task: Classification, rows: Any, tokenizer: Any) -> Any:
        found.append(len(rows))
        return encode(task, rows, tokenizer)

    monkeypatch.setattr(Classification, "encode", counting)
    return found


def test_rows_are_encoded_once_and_read_back_the_same(tokenizer: Any, times: list[int], tmp_path: Path) -> None:
    plain = encoded(TASK, ROWS, tokenizer, "train")
    first, second = (encoded(TASK, ROWS, tokenizer, "train", tmp_path / "rows") for _ in range(2))
    assert list(plain) == list(first) == list(second)
    assert times == [2, 2]
    (file,) = (tmp_path / "rows").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_nothing_is_read_for_other_rows_or_another_task_or_tokenizer(tokenizer: Any, tiny_model: Path) -> None:
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.add_tokens(["whiskers"])
    keys = [
        key_of(TASK, ROWS, tokenizer),
        key_of(TASK, ROWS[:1], tokenizer),
        key_of(TASK, ROWS[::-1], tokenizer),
        key_of(replace(TASK, max_length=3), ROWS, tokenizer),
        key_of(replace(TASK, labels=("dogs", "cats")), ROWS, tokenizer),
        key_of(TASK, ROWS, other),
    ]
    assert len(set(keys)) == len(keys)
    tokenizer(["a text"], truncation=True, max_length=2, padding=True)  # leaves its mark in the tokenizer
    assert key_of(TASK, ROWS, tokenizer) == keys[0]
    assert key_of(TASK, ROWS, object()) is None


@pytest.mark.parametrize(
    "damage", [lambda x: x[:-1], lambda x: x.replace(b"0", b"1", 1), lambda x: b"", lambda x: b"\xff" * 80]
)
def test_a_damaged_file_is_refused_and_the_rows_are_encoded_again(
    damage: Any, tokenizer: Any, times: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = encoded(TASK, ROWS, tokenizer, "train", tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert list(encoded(TASK, ROWS, tokenizer, "train", tmp_path)) == list(first)
    assert "is damaged: the rows are encoded again" in caplog.text
    assert times == [2, 2]
    encoded(TASK, ROWS, tokenizer, "train", tmp_path)
    assert times == [2, 2]


def test_only_the_last_files_are_kept(tokenizer: Any, tmp_path: Path) -> None:
    for length in range(1, KEPT + 4):
        encoded(replace(TASK, max_length=length), ROWS, tokenizer, "train", tmp_path)
    assert len(list(tmp_path.iterdir())) == KEPT


def test_a_folder_that_cannot_be_written_is_done_without(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert len(encoded(TASK, ROWS, tokenizer, "train", tmp_path / "file")) == 2
    assert "cannot be kept" in caplog.text
