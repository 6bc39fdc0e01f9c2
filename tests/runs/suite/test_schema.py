"""A suite file is read strictly: what is wrong is named, with the nearest key and the remedy."""

import os
from pathlib import Path
from typing import Any

import pytest

from fedelta.runs.config import ConfigError
from fedelta.runs.suite.names import slug
from fedelta.runs.suite.schema import read_suite, suite_of


def read(**keys: Any):
    return suite_of({"base": "quickstart", "methods": ["flexlora"], **keys}, "mine", Path())


def test_an_unknown_key_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="unknown key 'baselin'; did you mean 'baseline'"):
        read(baselin="flexlora")


def test_methods_are_names_files_or_mappings_with_reserved_words():
    file = read(
        methods=[
            "flexlora",
            "own/mine.py",
            {"name": "hetlora", "label": "Het 0.9", "gamma": 0.9, "set": {"lora.rank": 4}, "tune": None},
        ],
        tune={"training.learning_rate": [0.01, 0.1]},
    )
    assert [entry.label for entry in file.entries] == ["flexlora", "mine", "Het 0.9"]
    assert [entry.name for entry in file.entries] == ["flexlora", "mine", "hetlora"]
    assert file.entries[1].choice == {"path": os.path.abspath("own/mine.py")}
    assert file.entries[2].choice == {"name": "hetlora", "gamma": 0.9}
    assert file.entries[2].changes == {"lora.rank": 4}
    assert file.entries[0].tune is not None
    assert file.entries[2].tune is None
    assert file.baseline == "flexlora"


def test_a_methods_own_grid_takes_seeds_and_setting_of_the_suite():
    file = read(
        methods=["flexlora", {"name": "hetlora", "tune": {"method.gamma": [0.9, 0.99]}}],
        tune={"training.learning_rate": [0.01, 0.1], "seeds": [7, 8, 9], "setting": "first"},
    )
    own = file.entries[1].tune
    assert own is not None
    assert (own.grid, own.seeds, own.setting) == ({"method.gamma": [0.9, 0.99]}, [7, 8, 9], "first")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seeds": [99, 100], "tune": {"lora.rank": [1, 2]}}, "100 are among the compared seeds"),
        ({"methods": ["flexlora", "flexlora"]}, "'flexlora' occurs twice: give each of them a `label`"),
        (
            {"methods": ["flexlora", {"name": "zeropad", "label": "flex/lora"}, {"name": "rbla", "label": "flex lora"}]},
            "folder",
        ),
        ({"tune": {"method.gamma": [0.1234567, 0.12345671]}}, "two values that look alike"),
        ({"methods": [{"gamma": 1}]}, "needs a name or a path"),
        ({"methods": [{"name": "flexlora", "set": {"seed": 5}}]}, "has seed, but methods are compared within a seed"),
        ({"methods": [{"name": "flexlora", "set": {"seed.data": 5}}]}, "has seed, but methods are compared within a seed"),
        ({"methods": [{"name": "flexlora", "set": {"method.name": "fedavg"}}]}, "has method.name, but which method runs"),
        ({"methods": [{"name": "flexlora", "set": {"method": "fedavg"}}]}, "has method, but which method runs"),
        ({"methods": [{"name": "flexlora", "set": {"output": "x"}}]}, "has output, but runs lie in the suite's folder"),
        ({"sweep": {"method": ["flexlora", "fedavg"]}}, "sweep has method, but which method runs"),
        ({"sweep": [{"name": "a", "method.name": "fedavg"}]}, "sweep: a has method.name, but which method runs"),
        ({"tune": {"method.path": ["a.py", "b.py"]}}, "tune has method.path, but which method runs"),
        ({"tune": {"seed": [1, 2]}}, "tune has seed, but methods are compared within a seed"),
        ({"methods": [{"name": "flexlora", "label": None}]}, "a `label` should be a text, got None"),
        ({"methods": [{"name": "flexlora", "label": " "}]}, "a `label` should be a text, got ' '"),
        ({"methods": [{"name": "flexlora", "label": [1]}]}, "a `label` should be a text"),
        ({"methods": [{"name": "flexlora", "label": "a\nb"}]}, "should be of one line, without control characters"),
        ({"methods": [{"name": "flexlora", "label": "\x1b[31m"}]}, "should be of one line, without control characters"),
        ({"methods": [{"name": "flexlora", "label": "A"}, {"name": "rbla", "label": "a"}]}, "the folder 'a' occurs twice"),
        ({"sweep": [{"name": "x\x1b", "lora.rank": 2}]}, "the `name` of a setting should be of one line"),
        ({"sweep": [{"name": "A", "lora.rank": 2}, {"name": "a", "lora.rank": 4}]}, "two settings have the same name"),
        ({"methods": []}, "methods"),
        ({"baseline": "fedavg"}, "no method has the label 'fedavg'; there are flexlora"),
        ({"seeds": 0}, "must be a number of seeds"),
        ({"seeds": [1, 1]}, "must be a number of seeds"),
        ({"store": "cells.json"}, "a store is a .jsonl.gz"),
        ({"tune": {"seeds": [5]}}, "must name a key and the values to try"),
        ({"tune": {"lora.rank": [1], "setting": "all"}}, "must be each or first"),
        ({"jobs": 0}, "jobs"),
        ({"seeds": 99999999999999}, "must be at most 1,000 seeds, but are 99,999,999,999,999"),
        ({"sweep": {"seeds": [3, 5]}}, "sweep.seeds is no key to sweep: .* where the sweep is a list"),
        ({"sweep": {"name": ["a", "b"]}}, "sweep.name is no key to sweep"),
        ({"sweep": [{"name": "a", "seeds": 0}]}, "sweep: a: seeds must be a number of seeds"),
        ({"sweep": [{"name": "a", "seeds": "three"}]}, "sweep: a: seeds must be a number of seeds"),
        ({"sweep": [{"name": "a", "seeds": None}]}, "sweep: a: seeds must be a number of seeds"),
        ({"sweep": [{"name": "a", "seeds": [1, True]}]}, "sweep: a: seeds must be a number of seeds"),
        ({"sweep": [{"name": "a", "seeds": 10**9}]}, "sweep: a: seeds must be at most 1,000 seeds"),
        ({"sweep": [{"name": ["a"]}]}, "the `name` of a setting should be a text"),
        ({"sweep": [{"name": "a", "seeds": [100]}], "tune": {"lora.rank": [1, 2]}}, "100 are among the compared seeds"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        read(**keys)


def test_a_suite_is_called_after_its_file_or_after_its_folder(tmp_path: Path):
    (tmp_path / "ranks").mkdir()
    for name, called in (("trec.yaml", "trec"), ("suite.yaml", "ranks"), ("study.yaml", "ranks")):
        file = tmp_path / "ranks" / name
        file.write_text("base: quickstart\nmethods: [flexlora]\n", encoding="utf-8")
        assert read_suite(file).name == called


def test_a_slug_is_a_name_of_a_folder():
    assert slug("Het/Lora 0.9") == "Het-Lora-0.9"
    assert slug("../..") == "-"


def test_a_value_and_its_negative_have_folders_of_their_own():
    assert [slug(text) for text in ("-1", "1", "../up", "..", "my method!", "a/b")] == [
        "-1",
        "1",
        "-up",
        "-",
        "my-method",
        "a-b",
    ]
