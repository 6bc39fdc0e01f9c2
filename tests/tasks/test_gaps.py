"""Rows with something missing: what is refused, left out, kept, and counted in a warning."""

import json
import logging

import numpy as np
import pytest

import fedelta
from fedelta.data.gaps import is_empty, without_empty
from fedelta.data.sources import load_rows, load_splits
from fedelta.split.partition import partition
from fedelta.tasks import ChoiceByLikelihood, Classification, Instruction, MultipleChoice, labels_from
from fedelta.tasks.text.gaps import warn_of_cut_texts, warn_of_empty_texts

NAN = float("nan")
ROWS = [{"text": "sun", "label": label} for label in ("a", "", "b", None, " \t", NAN)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- labels that are empty --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "empty"), [("", True), (" \n", True), (None, True), (NAN, True), (0, False), (False, False)])
def test_what_is_empty(value, empty):
    assert is_empty(value) == empty


def test_an_empty_label_is_an_error_that_counts_and_names_the_first():
    with pytest.raises(ValueError, match=r"train: 4 of 6 rows have an empty 'label', the first of them row 1: .* data\.empty"):
        without_empty(ROWS, "label", "error", "train")


def test_rows_without_a_label_are_dropped_or_kept_where_that_is_asked_for():
    assert without_empty(ROWS, "label", "drop", "train") == [ROWS[0], ROWS[2]]
    assert without_empty(ROWS, "label", "keep", "train") is ROWS
    assert without_empty(ROWS, None, "error", "train") is ROWS
    assert without_empty(ROWS, "kind", "error", "train") is ROWS  # refused where rows are encoded
    with pytest.raises(ValueError, match="2 of 2 rows have an empty 'label', so that dropping them leaves none"):
        without_empty(ROWS[3:5], "label", "drop", "train")


def test_a_data_set_is_cleared_of_empty_labels_before_it_is_carved_and_limited(tmp_path):
    rows = [{"text": str(i), "label": "" if i % 3 == 0 else "ab"[i % 2]} for i in range(60)]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="train: 20 of 60 rows have an empty 'label'"):
        load_splits(path, label="label")
    found = load_splits(path, label="label", empty="drop", stratify="label", limit={"train": 30})
    assert [len(part) for part in (found.train, found.validation, found.test)] == [30, 4, 4]
    assert found.left_out == {"train": 20}
    kept = load_splits(path, label="label", empty="keep", stratify="label")
    assert labels_from(kept.train) == ("", "a", "b")
    assert kept.left_out == {}


@pytest.mark.parametrize("labels", ["a,\n", "a,b\nc, \n"])
def test_a_run_refuses_empty_labels_by_default(tiny_config, tmp_path, labels):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "purr,cats\n" * 20 + "bark,dogs\n" * 20 + "paw,\n" * 3, encoding="utf-8")
    changes = {"data.source": str(path), "output": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="train: 3 of 43 rows have an empty 'label'"):
        fedelta.run(tiny_config, changes)


def test_a_run_that_drops_rows_says_how_many_and_so_does_a_later_evaluation(tiny_config, tmp_path, caplog):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "purr,cats\n" * 20 + "bark,dogs\n" * 20 + "paw,\n" * 3, encoding="utf-8")
    fedelta.run(tiny_config, {"data.source": str(path), "output": str(tmp_path / "run"), "data.empty": "drop"})
    assert "train: 3 rows without a label are left out" in caplog.text
    from fedelta.runs import export as deployment

    assert deployment.score(deployment.find(tmp_path / "run"), str(path))["examples"] == 40


# --- labels that are no labels, or look alike -------------------------------------------------------------------------


@pytest.mark.parametrize("label", [["a"], {"a": 1}, [], np.zeros(2)])
def test_a_list_or_an_object_is_no_label(label):
    rows = [{"text": "sun", "label": "a"}, {"text": "sun", "label": label}]
    for read in (labels_from, lambda rows: Classification().settled(rows), lambda rows: partition(rows, "iid", 2)):
        with pytest.raises(ValueError, match=r"row 1: field 'label' holds .* but a label is a text or a number"):
            read(rows)
    with pytest.raises(ValueError, match="row 0: field 'kind' holds"):
        Instruction(category="kind").label_of({"kind": label})
    with pytest.raises(ValueError, match=r"labels holds .* but a label is a text or a number"):
        Classification(labels=("a", label))


@pytest.mark.parametrize("labels", ["abc", {"a": 1}])
def test_labels_are_a_list(labels):
    with pytest.raises(ValueError, match="labels must be a list of labels"):
        Classification(labels=labels)


def test_a_number_that_is_not_finite_is_no_label():
    with pytest.raises(ValueError, match="row 0: field 'label' holds nan, but a label that is a number is a finite one"):
        labels_from([{"label": NAN}])


@pytest.mark.parametrize("labels", [(1, 1.0), (1, True), (0.0, False), (2, 0, 1, 1.0)])
def test_labels_that_are_equal_and_written_differently_are_not_one_class_in_silence(labels):
    rows = [{"text": "sun", "label": label} for label in labels]
    for read in (labels_from, lambda rows: partition(rows, "natural", by="label"), lambda rows: partition(labels, "natural")):
        with pytest.raises(ValueError, match="which are equal but written differently: write them alike"):
            read(rows)


def test_labels_of_one_kind_are_as_they_were():
    rows = [{"label": label} for label in (2, 0, np.int64(1), 0, 1.5)]
    assert labels_from(rows) == (0, 1, 1.5, 2)
    assert labels_from([{"label": True}, {"label": False}]) == (False, True)


@pytest.mark.parametrize(("labels", "value"), [((0, 1), True), ((0, 1), 1.0), ((False, True), 1), (("a", "b"), True)])
def test_a_row_is_not_given_a_class_by_a_label_that_is_written_differently(words, labels, value):
    with pytest.raises(ValueError, match=r"row 0: .* is not one of the 2 labels"):
        Classification(labels=labels).encode([{"text": "sun", "label": value}], words)


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "rows", "expected"),
    [
        (
            Classification(text_pair="pair"),
            [{"text": "", "pair": "a"}, {"text": " ", "pair": ""}, {"text": "a", "pair": "a"}],
            ["train: 2 of 3 rows have an empty 'text'", "train: 1 of 3 rows have an empty 'pair'"],
        ),
        (
            MultipleChoice(),
            [{"context": "a", "choices": ["a", " "]}, {"context": "a", "choices": ["a", "b"]}],
            ["train: 1 of 2 rows have an empty 'choices'"],
        ),
        (ChoiceByLikelihood(choices=("one", "two")), [{"context": "", "one": "a", "two": ""}], ["'context'", "'two'"]),
        (
            Instruction(context="about"),
            [{"instruction": "a", "response": "", "about": ""}],
            ["train: 1 of 1 rows have an empty 'response'"],
        ),
    ],
)
def test_empty_texts_are_counted(task, rows, expected, caplog):
    warn_of_empty_texts(task, rows, "train")
    assert len(caplog.messages) == len(expected)
    assert all(part in message for part, message in zip(expected, caplog.messages, strict=True))


def test_cut_texts_are_counted_and_those_that_just_fit_are_not(words, caplog):
    rows = [{"text": " ".join(["sun"] * length), "label": "a"} for length in (1, 3, 4, 9)]  # and two marks each
    task = Classification(labels=("a",), max_length=5)
    warn_of_cut_texts(task, rows, task.encode(rows, words), words, "test")
    assert caplog.messages == ["test: 2 of 4 rows are cut to task.max_length = 5 tokens"]
    task = Classification(labels=("a",), max_length=11)
    warn_of_cut_texts(task, rows, task.encode(rows, words), words, "test")
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("task", [Instruction(max_length=60), ChoiceByLikelihood(max_length=60)], ids=type)
def test_cut_prompts_are_counted(task, bytes_, caplog):
    long, short = "water runs " * 40, "water"
    rows = [
        {"instruction": text, "response": "a", "context": text, "choices": ["hill", "river"], "label": 0}
        for text in (long, short)
    ]
    warn_of_cut_texts(task, rows, task.encode(rows, bytes_), bytes_, "train")
    assert caplog.messages == ["train: 1 of 2 rows are cut to task.max_length = 60 tokens"]


def test_a_run_counts_empty_and_cut_texts_by_part(tiny_config, tmp_path, caplog):
    rows = [{"text": text, "label": "cats"} for text in ("purr mew", "purr mew tail fur paw", "") * 12]
    changes = {"data.source": str(write(tmp_path / "rows.jsonl", rows)), "output": str(tmp_path / "run")}
    model_takes_nothing_empty = {"task": {"name": "classification", "labels": ["cats", "dogs"], "max_length": 4}}
    with pytest.raises(ValueError, match=r"train rows: row .* has no tokens: leave the row out"):
        fedelta.run(tiny_config, changes | model_takes_nothing_empty)
    rows = [row for row in rows if row["text"]]
    write(tmp_path / "rows.jsonl", rows)
    fedelta.run(tiny_config, changes | model_takes_nothing_empty)
    cut = [message for message in caplog.messages if "are cut" in message]
    assert [message.split(":")[0] for message in cut] == ["train", "validation", "test"]
    assert sum(int(message.split()[1]) for message in cut) == 12


# --- what is left to evaluate on --------------------------------------------------------------------------------------


def test_a_split_that_leaves_nothing_to_evaluate_on_is_warned_about(tiny_config, tmp_path, caplog):
    rows = [{"text": "purr", "label": x} for x in ("cats", "dogs")] * 3
    changes = {
        "data.source": str(write(tmp_path / "rows.jsonl", rows)),
        "output": str(tmp_path / "run"),
        "data.validation_fraction": 0.01,
        "data.test_fraction": 0.02,
        "data.client_test_fraction": 0.01,
        "lora.rank": 2,
    }
    fedelta.run(tiny_config, changes)
    assert [m for m in caplog.messages if "leave" in m or "left" in m] == [
        "data.validation_fraction = 0.01 of 6 rows leaves 0 rows of validation",
        "data.test_fraction = 0.02 of 6 rows leaves 0 rows of test",
        "data.client_test_fraction = 0.01 leaves 3 of 3 clients without rows to be tested by",
        "0 of 6 rows are left to evaluate on: the run will have no scores",
    ]


def test_a_run_that_wants_for_nothing_warns_of_nothing(tiny_config, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        fedelta.run(tiny_config, {"output": str(tmp_path / "run")})
    assert caplog.messages == []


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label,text\na,b,c\n", r"a\.csv: the header names 'text' more than once"),
        ("a.tsv", "text\ttext\na\tb\n", r"a\.tsv: the header names 'text' more than once"),
        ("a.csv", "text;label\na;b\n", r"a\.csv: the columns of the header 'text;label' are kept apart by semicolons"),
        ("a.csv", '"text";"label"\na, b;c\n', "kept apart by semicolons"),
        ("a.csv", "text\tlabel\na\tb\n", r"kept apart by tabs, .* with commas, or call the file \.tsv"),
        ("a.tsv", "text,label\na,b\n", "kept apart by commas, where tabs are needed"),
        ("a.jsonl", '{"text": ' + "[" * 100_000 + "\n", r"a\.jsonl, line 1 is nested too deeply"),
        ("a.json", "[" * 100_000, r"a\.json is nested too deeply"),
    ],
)
def test_a_table_that_would_be_misread_is_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_rows(path)


def test_one_column_needs_no_separator(tmp_path):
    (tmp_path / "a.csv").write_text("text\na;b\n", encoding="utf-8")
    assert load_rows(tmp_path / "a.csv") == [{"text": "a;b"}]
