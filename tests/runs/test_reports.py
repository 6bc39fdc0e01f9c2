"""A folder becomes a page: what a run writes down once, what a reader takes of a damaged folder, and the end of every run."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import fedelta
from fedelta.runs import open_run, reports
from fedelta.runs.folder import RunFolder


@pytest.fixture(scope="module")
def done(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two methods, and of two seeds of the first."""
    folder = tmp_path_factory.mktemp("runs")
    for method, seed in (("flexlora", 0), ("flexlora", 1), ("zeropad", 0)):
        fedelta.run(tiny_config, {"output": str(folder / f"{method}-{seed}"), "method": method, "seed": seed})
    return folder


@pytest.fixture
def copy(done: Path, tmp_path: Path) -> Path:
    """A run of the first method, to break."""
    return Path(shutil.copytree(done / "flexlora-0", tmp_path / "copy"))


def text_of(page: Path) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_every_run_ends_with_a_page(done: Path):
    text = text_of(done / "flexlora-0" / "report.html")
    final = json.loads((done / "flexlora-0/rounds.jsonl").read_text().splitlines()[-1])
    assert f"{100 * final['test']['accuracy']:.1f}" in text
    assert "after round 2" in text
    assert not (done / "flexlora-0/.report.html.tmp").exists()


def test_a_fault_in_the_page_does_not_end_a_run(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def fails(*_: object) -> str:
        raise RuntimeError("no page")

    monkeypatch.setattr(open_run, "page", fails)
    result = fedelta.run(tiny_config, {"output": str(tmp_path / "run")})
    assert len(result.records) == 2
    assert "report.html is not written: no page" in caplog.text


def test_what_a_run_is_made_of_is_written_once(done: Path, copy: Path):
    facts = json.loads((copy / "run.json").read_text())
    assert facts["rows"] == {"train": 54, "validation": 18, "test": 18}
    assert 0.5 < facts["majority"] < 0.8
    assert facts["personal"] is False
    assert {"torch", "fedelta", "threads", "device"} <= facts["platform"].keys()
    assert {"python", "torch", "transformers", "peft", "numpy", "fedelta"} == facts["versions"].keys()
    assert facts["data"].keys() == {"train", "validation", "test"}
    assert len(facts["base"]) > 8
    assert facts["cores"] >= 1
    assert facts["start"].endswith("Z")
    split = json.loads((copy / "split.json").read_text())
    assert split["labels"] == ["cats", "dogs"]
    assert 0 < split["distance"] < 1
    clients = split["clients"]
    assert [client["rank"] for client in clients.values()] == [1, 2, 4]
    assert sum(client["rows"] + client["test_rows"] for client in clients.values()) == 54
    assert all(sum(client["labels"].values()) == client["rows"] for client in clients.values())
    before = (copy / "run.json").read_bytes()
    fedelta.run(overrides={"federation.rounds": 3}, resume=copy)
    assert (copy / "run.json").read_bytes() == before


def test_one_folder_several_and_a_folder_of_folders(done: Path, tmp_path: Path):
    one = reports.write_report([done / "flexlora-0"], tmp_path / "one.html")
    assert "Who wins" not in text_of(one)
    both = reports.write_report([done / "flexlora-0", done / "zeropad-0"], tmp_path / "new" / "both.html")
    assert "2 methods, 1 seed" in text_of(both)
    everything = reports.write_report([done, done / "flexlora-0"], tmp_path / "all.html", title="Three runs")
    assert "Three runs" in text_of(everything)
    assert "zeropad lacks seed 1" in text_of(everything)
    assert everything.read_bytes() == reports.write_report([done], everything, title="Three runs").read_bytes()


def test_a_page_that_cannot_be_written_is_named(done: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    for output in (tmp_path / "file" / "page.html", tmp_path):
        with pytest.raises(OSError, match=f"{output} cannot be written .*: give another file by --output"):
            reports.write_report([done / "flexlora-0"], output)


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no run"):
        reports.write_report([tmp_path], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_run_that_was_replaced_is_not_taken_up_with_a_folder_of_runs(done: Path, tmp_path: Path):
    shutil.copytree(done / "flexlora-0", tmp_path / "runs/a")
    shutil.copytree(done / "flexlora-0", tmp_path / "runs/a.old")
    shutil.copytree(done / "flexlora-0", tmp_path / "runs/.a.new")
    assert reports.runs_in(tmp_path) == [tmp_path / "runs/a"]
    assert reports.runs_in(tmp_path / "runs/a.old") == [tmp_path / "runs/a.old"]


@pytest.mark.parametrize("name", ["run.json", "split.json", "clients.jsonl"])
@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[3]\n", b"\xff\n", b'{"clients": {"0": 3}, "rows": 3, "majority": ""}\n']
)
def test_a_file_that_is_gone_or_damaged_leaves_the_rest_of_the_page(
    name: str, content: bytes | None, copy: Path, tmp_path: Path
):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    assert "flexlora ends at" in text_of(reports.write_report([copy], tmp_path / "page.html"))


def test_damaged_records_are_left_out(copy: Path, tmp_path: Path):
    records = RunFolder(copy).records_file
    records.write_bytes(b"{\n" + records.read_bytes() + b'{"t": 3')
    assert "after round 2" in text_of(reports.write_report([copy], tmp_path / "page.html"))


def test_nothing_of_a_folder_is_run(copy: Path, tmp_path: Path):
    """A config may name a file of code, or leave to run a model's: a page is made of plain values."""
    (copy / "evil.py").write_text("raise SystemExit('it was run')")
    config = RunFolder(copy).config_file
    config.write_text(config.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    (copy / "sitecustomize.py").write_text("raise SystemExit('it was run')")
    assert reports.write_report([copy], tmp_path / "page.html").is_file()


def test_what_run_json_says_of_code_and_machine_is_taken_where_it_is_of_its_kind():
    facts = {"commit": "abc1234+", "cores": 2, "versions": {"torch": "2.9"}, "data": {"train": "d" * 64}, "start": "2026-11-30"}
    found = reports.known_facts(facts)
    assert {key: found[key] for key in facts} == facts
    wrong = {"commit": 3, "cores": True, "versions": [], "data": "x", "start": None, "device": {}}
    assert not set(reports.known_facts(wrong)) & set(wrong)


def test_known_lines_of_run_json_are_taken_without_scores_that_are_none():
    scores = {
        "local_only": {"test": {"accuracy": 0.5, "loss": float("nan"), "x": "0.5", "y": True}, "validation": 3},
        "wrong": [],
    }
    found = reports.known_facts({"lines": {"command": "c", "scores": scores}})["lines"]
    kept = {"local_only": {"test": {"accuracy": 0.5}, "validation": {}}, "wrong": {}}
    assert found == {"command": "c", "commit": "", "scores": kept}
    assert "lines" not in reports.known_facts({"lines": [1]})
