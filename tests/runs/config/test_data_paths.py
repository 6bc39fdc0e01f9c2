"""Paths of rows and of a model in a config: from where they count, what is one, and what becomes of them in a run's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import yaml

import fedelta
from fedelta.runs.config import ConfigError, RunConfig, load_config, read_config

ROW = json.dumps({"text": "purr", "label": "cats"}) + "\n"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of rows beside a config; the working directory is another one."""
    folder = tmp_path / "study"
    for name in (
        "rows.jsonl",
        "test.jsonl",
        "sites/north.jsonl",
        "sites/south.jsonl",
        "owner/name/train.csv",
        "bert/config.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(ROW)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def read(study: Path, raw: dict[str, Any], changes: Any = ()) -> RunConfig:
    (study / "config.yaml").write_text(yaml.safe_dump(raw))
    return read_config(study / "config.yaml", changes)


def test_a_path_counts_from_the_file_that_holds_it(study: Path):
    data = read(study, {"data": {"source": "rows.jsonl", "test": "test.jsonl"}, "lora": {"start": "adapter"}})
    assert data.data.source == str(study / "rows.jsonl")
    assert data.data.test == str(study / "test.jsonl")
    assert data.lora.start == str(study / "adapter")
    assert read(Path("../study"), {"data": {"source": "../x.csv"}}).data.source == str(study.parent / "x.csv")


def test_a_path_by_set_counts_from_the_working_directory(study: Path):
    Path("test.jsonl").write_text(ROW)
    found = read(study, {"data": {"source": "rows.jsonl"}}, ["data.source=own.csv", "data.test=test.jsonl"])
    assert (found.data.source, found.data.test) == (str(Path("own.csv").absolute()), str(Path("test.jsonl").absolute()))
    assert read_config({"data": {"source": "own.csv"}}).data.source == str(Path("own.csv").absolute())


@pytest.mark.parametrize(
    ("source", "is_path"),
    [
        ("docstrings", False),
        ("SetFit/sst2", False),
        ("owner/name", True),  # there is such a folder beside the config
        ("missing.parquet", True),
        ("./missing", True),
    ],
)
def test_names_go_before_files_and_files_before_the_hub(source: str, is_path: bool, study: Path):
    (study / "docstrings").mkdir()
    assert (read(study, {"data": {"source": source}}).data.source != source) == is_path


@pytest.mark.parametrize(("model", "is_path"), [("minilm", False), ("owner/other", False), ("bert", True), ("./minilm", True)])
def test_an_alias_goes_before_a_folder_and_a_folder_before_the_hub(model: str, is_path: bool, study: Path):
    (study / "minilm").mkdir()
    found = read(study, {"model": {"name": model}}).model.name
    assert found == (str(study / model) if is_path else model)


def test_parts_of_a_folder_and_of_the_hub_are_no_paths(study: Path):
    for source in ("owner/name", "owner/other"):
        assert read(study, {"data": {"source": source, "train": "train.csv", "test": "test.jsonl"}}).data.test == "test.jsonl"


def test_clients_by_pattern_list_or_name_are_the_same_clients(study: Path):
    files = {name: str(study / f"sites/{name}.jsonl") for name in ("north", "south")}
    for given in ("sites/*.jsonl", ["sites/north.jsonl", "sites/south.jsonl"], {name: f"sites/{name}.jsonl" for name in files}):
        found = read(study, {"data": {"clients": given, "test": "test.jsonl"}})
        assert found.client_files() == files
        assert found.data.test == str(study / "test.jsonl")
    by_set = read(study, {}, ["data.clients=../study/sites/*.jsonl"])
    assert by_set.client_files() == files
    with pytest.raises(ConfigError, match=r"data\.clients: 'sites/\*\.csv' matches no file"):
        read(study, {"data": {"clients": "sites/*.csv"}})
    with pytest.raises(ConfigError, match=r"data\.clients: the name '  ' of a client is blank"):
        read(study, {"data": {"clients": {"  ": "sites/north.jsonl", "b": "sites/south.jsonl"}}})


def test_a_run_goes_on_from_anywhere_and_knows_its_rows_in_another_folder(
    tiny_config: dict[str, Any], rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    study = tmp_path / "study"
    study.mkdir()
    shutil.copy(rows_file, study / "rows.jsonl")
    raw = {**tiny_config, "data": {**tiny_config["data"], "source": "rows.jsonl"}}
    (study / "config.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.chdir(study)
    done = fedelta.run("config.yaml", {"output": str(tmp_path / "run")})
    monkeypatch.chdir(tmp_path)
    assert load_config(done.folder / "config.yaml").data.source == str(study / "rows.jsonl")
    fedelta.run(resume="run", overrides={"federation.rounds": 3})
    study.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="no folder"):
        fedelta.run(resume="run", overrides={"federation.rounds": 4})
    moved = fedelta.run(resume="run", overrides={"federation.rounds": 4, "data.source": "moved/rows.jsonl"})
    assert [record["t"] for record in moved.records] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"data\.source cannot change"):
        fedelta.run(resume="run", overrides={"federation.rounds": 5, "data.source": "docstrings"})


def test_a_run_knows_its_model_in_another_folder(tiny_config: dict[str, Any], tiny_model: Path, tmp_path: Path):
    model = tmp_path / "study" / "model"
    shutil.copytree(tiny_model, model)
    raw = {**tiny_config, "model": {**tiny_config["model"], "name": str(model)}}
    fedelta.run(raw, {"output": str(tmp_path / "run")})
    moved = tmp_path / "moved" / "model"
    shutil.move(model, moved)
    rounds = len(fedelta.run(resume=tmp_path / "run", overrides={"model.name": str(moved), "federation.rounds": 3}).records)
    assert rounds == 3
    weights = moved / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({key: value + 1 for key, value in tensors.items()}, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="has other weights than the model that the run began with"):
        fedelta.run(resume=tmp_path / "run", overrides={"model.name": str(moved), "federation.rounds": 4})
