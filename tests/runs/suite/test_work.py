"""A suite is worked off: nothing is done twice, nothing is lost, and what fails is said."""

import csv
import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from fedelta.client import Session
from fedelta.exchange import files
from fedelta.report.cautions import cautions
from fedelta.report.comparison import Comparison
from fedelta.report.outcome import outcomes
from fedelta.report.results import results_csv
from fedelta.report.verdict import across, verdict
from fedelta.runs import base, experiment, provenance
from fedelta.runs.config import ConfigError, load_config
from fedelta.runs.config.allowed import allowed
from fedelta.runs.folder import RunFolder
from fedelta.runs.open_run import OpenRun
from fedelta.runs.records import without_times
from fedelta.runs.reports import write_report
from fedelta.runs.runner import run
from fedelta.runs.suite import play, workers
from fedelta.runs.suite.estimate import rows_of
from fedelta.runs.suite.gather import comparison_of, write
from fedelta.runs.suite.lines import line_of, seconds_of
from fedelta.runs.suite.play import Event
from fedelta.runs.suite.preflight import rehearsed
from fedelta.runs.suite.start import Wanted, ready
from fedelta.runs.suite.store import Store
from fedelta.runs.suite.work import TUNING, Options, Work

from .conftest import Bench, snapshot

Trained = Callable[[list[Event]], list[str]]

CELLS = ["flexlora seed 0", "zeropad seed 0", "flexlora seed 1", "zeropad seed 1"]


def states(found: Comparison) -> list[str]:
    return [cell.state for cell in found.cells]


def shown(found: Comparison) -> str:
    """All that tables and pages can be made of, but for the dates."""
    cells = [(c.setting, c.label, c.seed, c.state, c.reason, c.digest, c.commit) for c in found.cells]
    runs = [(r.name, r.records, r.config, r.facts, r.split, r.clients) for c in found.cells if (r := c.run) is not None]
    tuned = {f"{k}": (dict(t.values), dict(t.tried), t.at_edge) for k, t in found.tuned.items()}
    return json.dumps([cells, runs, tuned, found.untrained], sort_keys=True)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets nothing be trained from here on."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("a cell was run that is finished")

    monkeypatch.setattr(play, "opened", opened)


def lose(monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    """Lets every loss of a round become infinite."""
    mean_loss = Session._mean_loss

    def losing(session: Session) -> float:
        if session.request.t == lost:
            session.losses[-1] = session.losses[-1] * float("inf")
        return mean_loss(session)

    monkeypatch.setattr(Session, "_mean_loss", losing)


def test_nothing_of_a_finished_cell_stays_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Any]] = []

    def load_adapted(*args: Any, **kwargs: Any) -> Any:
        assert [of() for of in made] == [None] * len(made), "a model is loaded while that of an earlier cell is in memory"
        model, tokenizer = base.load_adapted(*args, **kwargs)
        made.extend(map(weakref.ref, (model, *model.module.modules(), *model.passes)))
        return model, tokenizer

    monkeypatch.setattr(experiment, "load_adapted", load_adapted)
    # Adapters in the last layer alone, so that there is a cache of what lies below; and products by a fast pass.
    lower = {"model.cache_activations": 1, "model.gemm": "bf16", "lora.target_modules": [r"layer.1.attention.self.query"]}
    gc.collect()
    gc.disable()  # a model in a circle would die at some time, but only after several cells
    try:
        found, _ = bench.run(changes=lower)
    finally:
        gc.enable()
    assert states(found) == ["done"] * 4
    assert len(made) > 4
    assert {of() for of in made} == {None}


def test_seeds_are_the_outer_loop_and_nothing_is_done_twice(bench: Bench, trained: Trained, monkeypatch: pytest.MonkeyPatch):
    found, events = bench.run()
    assert trained(events) == CELLS
    assert states(found) == ["done"] * 4
    assert [cell.seed for cell in found.cells] == [0, 1, 0, 1]
    assert {cell.commit for cell in found.cells} == {provenance.commit()}
    before = snapshot(bench.path / "runs" / "cells")
    poison(monkeypatch)
    again, events = bench.run()
    assert events == []
    assert shown(again) == shown(found)
    assert snapshot(bench.path / "runs" / "cells") == before


def test_a_cell_is_an_ordinary_run_with_the_bits_of_one(bench: Bench, tmp_path: Path):
    bench.run()
    folder = bench.path / "runs" / "cells" / "all" / "zeropad" / "seed-1"
    config = load_config(bench.base, {"method": "zeropad", "output": str(tmp_path / "alone")})
    seeds = {"data": 0, "partition": 1, "schedule": 1, "start": 1}
    alone = run(config.model_dump(mode="json"), {"seed": seeds})
    assert [*map(without_times, RunFolder(folder).records())] == [*map(without_times, alone.records)]
    adapters = [path / "adapters" / "last" / "adapter_model.safetensors" for path in (folder, alone.folder)]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    longer = run(resume=folder, overrides={"federation.rounds": 2})
    assert len(longer.records) == 2


def test_all_is_made_again_from_the_store_with_nothing_trained(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    keys: Mapping[str, Any] = {"store": str(bench.path / "cells.jsonl.gz"), "tune": {"training.learning_rate": [0.01, 0.1]}}
    found, _ = bench.run(seeds=1, **keys)
    shutil.rmtree(bench.path / "runs")
    poison(monkeypatch)
    again, events = bench.run(seeds=1, **keys)
    assert events == []
    assert shown(again) == shown(found)
    assert set(found.tuned) == {("", "flexlora"), ("", "zeropad")}
    assert found.untrained[""].keys() == {"validation", "test"}
    assert all("layers" not in r["diagnostics"] for cell in again.cells if cell.run for r in cell.run.records)
    assert bench.path.name not in shown(again)


def test_a_killed_cell_is_taken_up_and_finished_ones_are_not_touched(bench: Bench, entry_command: list[str]):
    keys: Mapping[str, Any] = {"base": {**bench.base, "federation": {"rounds": 20}}, "seeds": 1}
    done, dying = (bench.path / "runs" / "cells" / "all" / name / "seed-0" for name in ("flexlora", "zeropad"))
    command = [*entry_command, "compare", str(bench.write(**keys)), "--output", str(bench.path / "runs"), "--jobs", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: len(RunFolder(dying).survey()[0]) >= 3)
        running = comparison_of(bench.work(**keys), "")
    finally:
        process.kill()
        process.wait()
    assert states(running) == ["done", "running"]
    finished, before = RunFolder(dying).survey()[0][:-1], snapshot(done)
    found, events = bench.run(**keys)
    assert states(found) == ["done", "done"]
    played = [event.record["t"] for event in events if event.record is not None]
    assert played == list(range(played[0], 20))
    assert played[0] >= len(finished), "rounds that were on disk were played again"
    assert RunFolder(dying).records()[: len(finished)] == finished
    assert snapshot(done) == before


def _until(there: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.02)


def test_a_cell_of_another_config_moves_to_stale(bench: Bench, trained: Trained):
    bench.run(seeds=1, methods=["zeropad"])
    cells = bench.path / "runs" / "cells" / "all" / "zeropad"
    old = (cells / "seed-0" / "rounds.jsonl").read_bytes()
    _, events = bench.run(seeds=1, methods=["zeropad"], changes={"training.learning_rate": 0.5})
    assert trained(events) == ["zeropad seed 0"]
    stale = bench.path / "runs" / "stale" / "cells" / "all" / "zeropad"
    assert (stale / "seed-0.1" / "rounds.jsonl").read_bytes() == old
    bench.run(seeds=1, methods=["zeropad"])
    assert {path.name for path in stale.iterdir()} == {"seed-0.1", "seed-0.2"}


def test_more_rounds_extend_a_finished_cell(bench: Bench):
    bench.run(seeds=1, methods=["zeropad"])
    _, events = bench.run(seeds=1, methods=["zeropad"], changes={"federation.rounds": 3})
    assert [event.record["t"] for event in events if event.record is not None] == [1, 2]
    assert not (bench.path / "runs" / "stale").exists()


def test_a_cell_that_cannot_be_taken_up_is_begun_anew(bench: Bench):
    cell = bench.path / "runs" / "cells" / "all" / "zeropad" / "seed-0"
    stale = bench.path / "runs" / "stale" / "cells" / "all" / "zeropad"
    three = {"seeds": 1, "methods": ["zeropad"], "changes": {"federation.rounds": 3}}
    bench.run(Options(prune=True), **three)

    def once_more(rounds: int, number: int) -> None:
        found, events = bench.run(**{**three, "changes": {"federation.rounds": rounds}})
        assert [event.record["t"] for event in events if event.record is not None] == list(range(rounds))
        assert states(found) == ["done"]
        assert (stale / f"seed-0.{number}").is_dir()

    once_more(4, 1)  # its checkpoint was pruned
    log = cell / "rounds.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(lines[0] + b"broken\n" + b"".join(lines[2:]))
    once_more(4, 2)  # a record is gone, and no round is left that could bring it back
    (cell / "config.yaml").write_text("lost: [", encoding="utf-8")
    once_more(4, 3)


def test_a_failed_cell_is_said_and_tried_again_only_when_asked(bench: Bench, trained: Trained, monkeypatch: pytest.MonkeyPatch):
    whole = play.opened

    def failing(config: Any, **keys: Any):
        if config.method["name"] == "zeropad" and config.seeds().start == 0:
            raise RuntimeError("the disk is full\nsecond line")
        return whole(config, **keys)

    monkeypatch.setattr(play, "opened", failing)
    found, events = bench.run()
    assert trained(events) == ["flexlora seed 0", "flexlora seed 1", "zeropad seed 1"]
    lost = next(cell for cell in found.cells if cell.state == "failed")
    assert (lost.label, lost.seed, lost.reason) == ("zeropad", 0, "the disk is full")
    kept = json.loads((bench.path / "runs/cells/all/zeropad/seed-0/failed.json").read_bytes())
    assert kept["error"].startswith("the disk is full")
    assert "RuntimeError" in kept["trace"]
    monkeypatch.setattr(play, "opened", whole)
    assert bench.run()[1] == []
    found, events = bench.run(Options(retry=True))
    assert trained(events) == ["zeropad seed 0"]
    assert states(found) == ["done"] * 4
    assert not (bench.path / "runs/cells/all/zeropad/seed-0/failed.json").exists()


@pytest.mark.parametrize("lost", [0, 2])
def test_a_cell_whose_updates_are_no_numbers_counts_as_the_commonest_label(
    bench: Bench, trained: Trained, monkeypatch: pytest.MonkeyPatch, lost: int
):
    """In the first round, of which nothing is on disk, or in a later one."""
    keys: Mapping[str, Any] = {
        "base": {**bench.base, "federation": {"rounds": 4}},
        "seeds": 1,
        "store": str(bench.path / "cells.jsonl.gz"),
    }
    lose(monkeypatch, lost)
    found, events = bench.run(**keys)
    assert trained(events) == ["flexlora seed 0", "zeropad seed 0"]
    assert states(found) == ["done", "done"], "a diverged cell is neither missing nor failed"
    ended = events[-1]
    assert ended.reason.startswith(f"round {lost}: 0 of 3 updates can be used")
    for cell in found.cells:
        assert cell.run is not None
        assert cell.run.diverged
        assert [record["t"] for record in cell.run.records] == list(range(lost + 1))
        assert cell.run.records[-1]["dropped"].keys() == {"0", "1", "2"}
    assert {row["state"] for row in csv.DictReader(io.StringIO(results_csv(found))) if row["seed"]} == {"diverged"}
    poison(monkeypatch)
    assert bench.run(**keys)[1] == [], "it was tried again"
    shutil.rmtree(bench.path / "runs")
    again, events = bench.run(**keys)
    assert (shown(again), events) == (shown(found), [])


@pytest.mark.parametrize("lost", [0, 1])
def test_a_report_on_a_suites_folder_knows_its_diverged_cells(bench: Bench, monkeypatch: pytest.MonkeyPatch, lost: int):
    base = {**bench.base, "federation": {"rounds": 2}}
    with monkeypatch.context() as lossy:
        lose(lossy, lost)
        found, _ = bench.run(Options(only={"method": ["zeropad"]}), seeds=1, base=base)
    finding, remedy = verdict(outcomes(found)[""])
    assert (finding, "first round" in remedy) == ("The run diverged.", lost == 0)
    bench.run(seeds=1, base=base)
    text = re.sub(r"<[^>]+>", " ", write_report([bench.path / "runs"], bench.path / "page.html").read_text(encoding="utf-8"))
    assert "2 methods, 1 seed" in text
    assert "diverged" in text
    assert "different questions" not in text, "paths of this machine are no difference"
    assert ("check the method, or the learning rate" in text) == (lost == 0)


def test_where_every_run_diverged_the_page_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    lose(monkeypatch, 0)
    found, _ = bench.run(seeds=2)
    remedy = "In the first round: check the method, if it is your own, or lower the learning rate."
    assert verdict(outcomes(found)[""]) == ("Every run diverged.", remedy)
    assert across(outcomes(found)) == "Every run diverged."
    text = re.sub(r"<[^>]+>", " ", write_report([bench.path / "runs"], bench.path / "page.html").read_text(encoding="utf-8"))
    assert "No scores yet" not in text
    assert "Every run diverged." in text


def test_a_diverged_cell_is_a_constant_answer_beside_whole_ones(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as lossy:
        lose(lossy, 0)
        bench.run(Options(only={"method": ["zeropad"]}), seeds=1)
    found, _ = bench.run(seeds=1)
    run = found.cells[1].run
    assert run is not None
    study = outcomes(found)[""].study
    assert run.diverged
    assert study.score(run) == run.facts["majority"]
    assert "diverged" in {mark.head for mark in cautions(outcomes(found)[""])}


def test_a_cell_that_failed_half_way_goes_on_after_its_last_round(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    keys: Mapping[str, Any] = {"base": {**bench.base, "federation": {"rounds": 3}}, "methods": ["zeropad"], "seeds": 1}
    write = OpenRun.write

    def failing(going: OpenRun, done: Any):
        if done.t == 1:
            raise OSError("no space left")
        return write(going, done)

    monkeypatch.setattr(OpenRun, "write", failing)
    found, _ = bench.run(**keys)
    assert (found.cells[0].state, found.cells[0].reason) == ("failed", "no space left")
    monkeypatch.setattr(OpenRun, "write", write)
    found, events = bench.run(Options(retry=True), **keys)
    assert [event.record["t"] for event in events if event.record is not None] == [1, 2]
    assert states(found) == ["done"]
    assert not (bench.path / "runs/cells/all/zeropad/seed-0/failed.json").exists()


def test_a_method_that_cannot_serve_a_setting_is_not_applicable_there(bench: Bench, trained: Trained):
    found, events = bench.run(methods=["fedavg", "zeropad"], seeds=1, sweep={"lora.rank": [[1, 2, 4], 2]})
    assert states(found) == ["not applicable", "done", "done", "done"]
    assert "needs equal ranks" in found.cells[0].reason
    assert trained(events) == ["rank=[1, 2, 4] zeropad seed 0", "rank=2 fedavg seed 0", "rank=2 zeropad seed 0"]
    assert list(found.untrained) == ["rank=[1, 2, 4]", "rank=2"]


def test_a_tuned_value_comes_from_seeds_of_its_own_and_is_used_for_all_others(bench: Bench, trained: Trained):
    tune = {"training.learning_rate": [0.01, 0.1], "seeds": [9]}
    found, events = bench.run(methods=["zeropad", {"name": "flexlora", "tune": None}], tune=tune)
    tuning = [title for title in trained(events) if title.endswith("seed 9")]
    assert tuning[:2] == ["zeropad 0.01 seed 9", "zeropad 0.1 seed 9"]
    assert len(tuning) == len(found.tuned["", "zeropad"].tried) <= 4
    chosen = found.tuned["", "zeropad"].values["training.learning_rate"]
    rates = [cell.run.config["training"]["learning_rate"] for cell in found.cells if cell.run]
    assert rates == [chosen, chosen, 0.01, 0.01]
    assert ("", "flexlora") not in found.tuned


def test_only_what_is_named_is_run(bench: Bench, trained: Trained):
    found, events = bench.run(Options(only={"method": ["zeropad"], "seed": ["1"]}))
    assert trained(events) == ["zeropad seed 1"]
    assert states(found) == ["missing", "missing", "missing", "done"]


def test_no_seed_is_begun_that_cannot_be_finished_in_time(bench: Bench, trained: Trained):
    work, events = bench.work(), []
    work.run(lambda: len(trained(events)) == 2, events.append)
    late = Work(work.plan, work.book, Options(deadline=time.monotonic() - 1))
    late.run(lambda: False, events.append)
    assert trained(events) == CELLS[:2]
    assert {stage: len(tasks) for stage, tasks in late.left().items()} == {"1": 2}
    begun = Work(work.plan, work.book, Options(deadline=time.monotonic() - 1))
    begun.begun.add("1")  # a seed that was begun is finished, however long it takes
    begun.run(lambda: False, events.append)
    assert trained(events) == CELLS


def test_the_time_that_is_left_is_reckoned_from_finished_cells(bench: Bench, trained: Trained):
    work, events = bench.work(), []
    assert work.progress().seconds == 0.0
    work.run(lambda: len(trained(events)) == 2, events.append)
    took = work.seconds["", "flexlora"][0] + work.seconds["", "zeropad"][0]
    progress = work.progress()
    assert (progress.done, progress.total, progress.failed) == (2, 4, 0)
    assert progress.seconds == pytest.approx(took)


def test_what_is_left_costs_what_cells_of_its_own_setting_took_whoever_ran_them(bench: Bench):
    keys: Mapping[str, Any] = {
        "methods": ["zeropad"],
        "sweep": [{"name": "short", "seeds": 1}, {"name": "long", "training.local_steps": 3}],
        "store": str(bench.path / "cells.jsonl.gz"),
    }
    bench.run(Options(only={"seed": ["0"]}), **keys)
    later = bench.work(**keys)
    finished = {cell.setting: cell.run for cell in comparison_of(bench.work(**keys)).cells if cell.run is not None}
    assert later.progress().seconds == pytest.approx(seconds_of(finished["long"].records)), "the mean of both settings"


def test_a_setting_has_seeds_of_its_own_and_whole_ones(bench: Bench, trained: Trained):
    keys: Mapping[str, Any] = {
        "methods": ["zeropad", "flexlora"],
        "seeds": 3,
        "sweep": [{"name": "cheap"}, {"name": "dear", "seeds": [4, 0], "training.local_steps": 3}],
    }
    work = bench.work(**keys)
    assert {stage: len(tasks) for stage, tasks in work.left().items()} == {"0": 4, "1": 2, "2": 2, "4": 2}
    rows = {(row.setting, row.label): row.cells for row in rows_of(work, rehearsed(work, to_reckon=True))}
    assert rows["cheap", "zeropad"] == 3
    assert rows["dear", "zeropad"] == 2
    found, events = bench.run(**keys)
    assert trained(events)[:5] == [
        "cheap zeropad seed 0",
        "cheap flexlora seed 0",
        "dear zeropad seed 0",
        "dear flexlora seed 0",
        "cheap zeropad seed 1",
    ]
    assert states(found) == ["done"] * 10
    assert found.untrained.keys() == {"cheap", "dear"}
    assert {name: c.seeds for name, c in outcomes(found).items()} == {"cheap": 3, "dear": 2}
    again = ready(str(bench.path / "runs" / "suite.yaml"), Wanted(output=bench.path / "runs")).plan
    assert {name: again.seeds_of(name) for name in again.settings} == {"cheap": [0, 1, 2], "dear": [4, 0]}


def test_a_stopped_suite_ends_after_the_round_and_goes_on(bench: Bench, trained: Trained):
    work, events = bench.work(changes={"federation.rounds": 3}, seeds=1), []
    work.run(lambda: any(event.what == "round" for event in events), events.append)
    assert [event.what for event in events] == ["begun", "round", "stopped"]
    _, events = bench.run(changes={"federation.rounds": 3}, seeds=1)
    assert [e.record["t"] for e in events if e.record is not None] == [1, 2, 0, 1, 2]


def test_a_cell_that_another_process_stored_first_counts_as_it_was_stored(bench: Bench):
    store = str(bench.path / "cells.jsonl.gz")
    asked = {"seeds": 1, "methods": ["zeropad"], "store": store}
    work = bench.work(**asked)
    ours = next(iter(work.left()["0"]))
    bench.run(seeds=1, methods=["zeropad"])  # of a process that saw the store while the cell was not there
    theirs = {**line_of(RunFolder(ours.folder), ours.digest), "code": {"fedelta": "0.1.0", "commit": "theirs"}}
    Store(Path(store)).add(theirs)
    assert comparison_of(work, "").cells[0].commit == "theirs"


def test_damaged_scores_before_training_hold_nothing_up(bench: Bench, caplog: pytest.LogCaptureFixture):
    bench.run(seeds=1, methods=["zeropad"])
    file = next((bench.path / "runs" / "untrained").iterdir())
    for content in ('{"test": {"accuracy": "high"}}', "{", "[]"):
        file.write_text(content, encoding="utf-8")
        found, _ = bench.run(seeds=1, methods=["zeropad"])
        assert (states(found), found.untrained) == (["done"], {})
        assert f"{file} is damaged" in caplog.text
        caplog.clear()


def test_pruning_leaves_the_records_and_no_adapter(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    found, _ = bench.run(Options(prune=True), seeds=1)
    cell = bench.path / "runs/cells/all/zeropad/seed-0"
    assert {"rounds.jsonl", "config.yaml"} <= {path.name for path in cell.iterdir()}
    assert not (cell / "adapters").exists()
    assert not (cell / "checkpoint").exists()
    poison(monkeypatch)
    assert shown(bench.run(seeds=1)[0]) == shown(found)


def test_pruning_takes_cells_that_were_finished_before(bench: Bench):
    bench.run(seeds=1)
    cell = bench.path / "runs/cells/all/zeropad/seed-0"
    assert (cell / "adapters").exists()
    bench.run(Options(prune=True), seeds=1)
    assert not (cell / "adapters").exists()
    assert (cell / "rounds.jsonl").exists()


def test_two_processes_share_a_folder_and_a_store(bench: Bench, entry_command: list[str]):
    rounds = {**bench.base, "federation": {"rounds": 6}}
    file = bench.write(base=rounds, store="cells.jsonl.gz")
    command = [*entry_command, "compare", str(file), "--output", str(bench.path / "runs"), "--jobs", "1", "--json"]
    logs = [bench.path / f"{name}.jsonl" for name in "ab"]
    both = [subprocess.Popen(command, stdout=log.open("wb")) for log in logs]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    said = [json.loads(line) for log in logs for line in log.read_text(encoding="utf-8").splitlines()]
    played = [(event["method"], event["seed"], event["record"]["t"]) for event in said if "record" in event]
    assert len(played) == len(set(played)) == 4 * 6, "a round was played twice"
    found, events = bench.run(base=rounds, store=str(bench.path / "cells.jsonl.gz"))
    assert (states(found), events) == (["done"] * 4, [])


@pytest.fixture
def entry_command() -> list[str]:
    """The command line in a process of its own."""
    return [sys.executable, "-c", "import sys; from fedelta.cli import main; sys.argv[0] = 'fedelta'; main()"]


def test_jobs_run_side_by_side_with_the_same_bits(bench: Bench, trained: Trained, monkeypatch: pytest.MonkeyPatch):
    alone, _ = bench.run(seeds=1)
    shutil.rmtree(bench.path / "runs")
    found, events = bench.run(Options(jobs=2), seeds=1)
    assert sorted(trained(events)) == sorted(CELLS[:2])
    assert [e.what for e in events][:2] == ["begun", "begun"], "the second cell waited for the first"
    for one, other in zip(alone.cells, found.cells, strict=True):
        assert one.run is not None
        assert other.run is not None
        assert [*map(without_times, one.run.records)] == [*map(without_times, other.run.records)]


def test_a_worker_that_dies_is_a_failed_cell(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    long = {**bench.base, "federation": {"rounds": 5000}, "evaluation": {"every": 5000, "diagnostics": False}}
    work, events = bench.work(Options(jobs=2), base=long, seeds=1, methods=["zeropad"]), []

    def show(event: Event) -> None:
        events.append(event)
        if event.what == "round" and len(events) == 3:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            os.kill(int(children[-1]), signal.SIGKILL)

    work.run(lambda: False, show)
    cell = comparison_of(work, "").cells[0]
    assert cell.state == "failed"
    assert "signal 9" in cell.reason
    assert TUNING not in work.begun


MINE = '''
from dataclasses import dataclass

from fedelta.methods.zeropad import ZeroPad


@dataclass(frozen=True, kw_only=True)
class Mine(ZeroPad):
    """Does what zeropad does."""

    half: float = 0.5
'''


def test_a_file_of_ones_own_is_a_method_where_a_person_named_it(bench: Bench, trained: Trained):
    file = bench.path / "own" / "mine.py"
    file.parent.mkdir()
    file.write_text(MINE, encoding="utf-8")
    methods = ["zeropad", {"path": "own/mine.py", "half": 0.25}]
    with pytest.raises(ConfigError, match="name it yourself by --allow-file"):
        bench.work(methods=methods, seeds=1)
    keys: Mapping[str, Any] = {"methods": methods, "seeds": 1, "store": str(bench.path / "cells.jsonl.gz")}
    found, events = bench.run(allowed=allowed([file]), **keys)
    assert trained(events) == ["zeropad seed 0", "mine seed 0"]
    assert found.methods == {"zeropad": "zeropad", "mine": "mine"}
    shutil.rmtree(bench.path / "runs")
    shutil.move(file.parent, bench.path / "moved")
    methods[1] = {"path": "moved/mine.py", "half": 0.25}
    again, events = bench.run(allowed=allowed([bench.path / "moved" / "mine.py"]), **keys)
    assert (states(again), events) == (["done", "done"], []), "another place of the file made it another cell"
    (bench.path / "moved" / "mine.py").write_text(MINE + "\n# edited\n", encoding="utf-8")
    _, events = bench.run(allowed=allowed([bench.path / "moved" / "mine.py"]), **keys)
    assert trained(events) == ["mine seed 0"]


def test_a_worker_that_dies_at_rest_gets_no_further_cell(monkeypatch: pytest.MonkeyPatch):
    made: list[Any] = []

    class Fragile:
        """Has a first cell that goes on while others come and go; the process of the second dies once it is done."""

        def __init__(self, place: play.Place, news: Any) -> None:
            self.news, self.dead = news, False
            made.append(self)

        def give(self, task: Any) -> None:
            if task == "short" and not self.dead:
                self.dead = True
                self.news.put((self, {"what": "done"}))
                self.news.put((self, None))
            elif task == "later" and not self.dead:
                for worker in (self, made[0]):
                    self.news.put((worker, {"what": "done"}))

        def let_end(self) -> None: ...

        def kill(self) -> None: ...

    monkeypatch.setattr(workers, "_Worker", Fragile)
    monkeypatch.setattr(workers, "GLANCE", 0.01)
    tasks: list[Any] = ["long", "short", None, "later"]
    looks = count()

    def next_task() -> Any:
        return tasks.pop(0) if tasks else None

    def stopping() -> bool:
        assert next(looks) < 50, "a dead worker was given a cell, and is waited for"
        return False

    found = list(workers.side_by_side(next_task, play.Place(Path()), stopping, 2))
    assert [event.task for event in found if event.what == "done"] == ["short", "later", "long"]


def test_workers_run_a_file_of_ones_own_too(bench: Bench, trained: Trained):
    (bench.path / "mine.py").write_text(MINE, encoding="utf-8")
    found, _ = bench.run(Options(jobs=2), methods=["mine.py"], seeds=1, allowed=allowed([bench.path / "mine.py"]))
    assert states(found) == ["done"], found.cells[0].reason


def test_tables_are_made_from_the_store_where_the_rows_are_missing(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    folder = bench.path / "rows"
    folder.mkdir()
    shutil.copy(bench.base["data"]["source"], folder / "train.jsonl")
    data = {**bench.base["data"], "source": "rows", "train": "train.jsonl"}
    keys: Mapping[str, Any] = {"base": {**bench.base, "data": data}, "store": str(bench.path / "cells.jsonl.gz"), "seeds": 1}
    found, _ = bench.run(**keys)
    shutil.rmtree(folder)
    shutil.rmtree(bench.path / "runs")
    poison(monkeypatch)
    again, events = bench.run(**keys)
    assert (shown(again), events) == (shown(found), [])
    work = bench.work(**keys)
    reckoned = rows_of(work, rehearsed(work, to_reckon=True))
    assert [(row.cells, row.done, row.memory) for row in reckoned] == [(1, 1, 0), (1, 1, 0)]
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "purr", "label": "cats"}\n', encoding="utf-8")
    assert states(comparison_of(bench.work(**keys))) == ["missing", "missing"], "other rows are another cell"


def test_rows_that_were_edited_make_another_cell_of_a_finished_one(bench: Bench, trained: Trained):
    rows = bench.path / "rows.jsonl"
    shutil.copy(bench.base["data"]["source"], rows)
    data = {**bench.base["data"], "source": "rows.jsonl"}
    keys: Mapping[str, Any] = {"base": {**bench.base, "data": data}, "seeds": 1, "methods": ["zeropad"]}
    before, _ = bench.run(**keys)
    lines = rows.read_text(encoding="utf-8").splitlines()
    rows.write_text("\n".join(lines[::-1]) + "\n", encoding="utf-8")
    found, events = bench.run(**keys)
    assert trained(events) == ["zeropad seed 0"], "the old scores counted as those of the new rows"
    assert found.cells[0].digest != before.cells[0].digest
    assert (bench.path / "runs/stale/cells/all/zeropad/seed-0.1/rounds.jsonl").is_file()
    assert bench.run(**keys)[1] == []


def test_a_name_that_stood_for_several_files_is_not_guessed(bench: Bench):
    for name in ("north", "south"):
        (bench.path / name).mkdir()
    rows = Path(bench.base["data"]["source"]).read_text(encoding="utf-8").splitlines(keepends=True)
    (bench.path / "north/rows.jsonl").write_text("".join(rows), encoding="utf-8")
    (bench.path / "south/rows.jsonl").write_text("".join(rows[::-1]), encoding="utf-8")
    sweep = [{"name": name, "data.source": f"{name}/rows.jsonl"} for name in ("north", "south")]
    keys: Mapping[str, Any] = {"sweep": sweep, "seeds": 1, "methods": ["zeropad"], "store": str(bench.path / "cells.jsonl.gz")}
    bench.run(**keys)
    shutil.rmtree(bench.path / "runs")
    shutil.rmtree(bench.path / "south")
    found = comparison_of(bench.work(**keys))
    assert states(found) == ["done", "missing"], "the cell of one file was shown as that of another"


def test_a_suite_file_in_its_own_folder_stays_as_a_person_wrote_it(bench: Bench):
    written = bench.write(seeds=1).rename(bench.path / "suite.yaml")
    written.write_text("# for the paper\n" + written.read_text(encoding="utf-8"), encoding="utf-8")
    before = written.read_bytes()
    ready(str(written), Wanted(output=bench.path))
    assert written.read_bytes() == before


def test_the_suite_file_in_its_folder_finds_the_runs_beside_it(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    bench.run(seeds=1)
    monkeypatch.chdir(bench.path / "runs")
    made = ready("suite.yaml", Wanted())
    assert states(comparison_of(Work(made.plan, made.book, Options()))) == ["done", "done"]
    assert not (bench.path / "runs" / "runs").exists()


def test_of_two_calls_that_end_together_the_later_writes_all_that_is_there(bench: Bench):
    early = bench.work(seeds=1)
    with files.locked(early.plan.folder / play.CLAIMS / "results"):
        waiting = threading.Thread(target=write, args=(early,))
        waiting.start()
        assert states(bench.run(seeds=1)[0]) == ["done", "done"]
    waiting.join(timeout=60)
    with (early.plan.folder / "results.csv").open(encoding="utf-8") as table:
        found = {(row["label"], row["state"]) for row in csv.DictReader(table) if row["state"]}
    assert found == {("flexlora", "done"), ("zeropad", "done")}
