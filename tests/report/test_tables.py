"""Tables and pictures say what the records say."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedelta.report import tables as report


def record(t: int, **changes: Any) -> dict[str, Any]:
    scores = {"accuracy": 0.5 + t / 10, "loss": 1.0 - t / 10}
    return {
        "t": t,
        "train_loss": 1.5 - t / 10,
        "test": scores,
        "validation": scores,
        "clients": {"accuracy": {"mean": 0.6, "worst": 0.25, "worst_client": 2, "spread": 0.1}},
        "bytes": {"down": 3 * 2**20, "up": 2**20},
        "cohort": [0, 1, 2],
        "dropped": {},
        "diagnostics": {"effective_rank": 3.0, "stable_rank": None},
        "seconds": {"round": 60.0, "evaluation": 30.0},
        **changes,
    }


def text_of(table: Any) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - only the recording is read
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3.5 * 2**20, "3.5 MiB"), (2**40, "1.0 TiB")]
)
def test_sizes(count: float, text: str):
    assert report.size(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s")])
def test_durations(seconds: float, text: str):
    assert report.duration(seconds) == text


def test_majority_is_the_share_of_the_commonest_label():
    assert report.majority(["a", "b", "a", "a"]) == 0.75
    assert report.majority([None, None]) is None
    assert report.majority([]) is None


def test_the_best_round_depends_on_what_is_good_for_the_metric():
    records = [record(t, validation={"accuracy": a, "loss": a}) for t, a in enumerate((0.5, 0.7, 0.7, 0.6))]
    records.append({k: v for k, v in record(4).items() if k != "validation"})
    assert report.best_round(records, "accuracy") == 1
    assert report.best_round(records, "loss") == 0
    assert report.best_round([record(0, validation={"loss": None})], "loss") is None


def test_a_round_in_one_line():
    line = report.round_line(record(3, dropped={"2": "NaN"}), 8 * 2**20)
    assert line == "round   3  loss 1.2000  validation accuracy 0.8000  test accuracy 0.8000  3 clients  8.0 MiB  left out: 2"
    bare = {k: v for k, v in record(3, train_loss=None).items() if k not in ("test", "validation")}
    assert report.round_line(bare, 0) == "round   3  loss –  3 clients  0 B"


def test_the_summary_gives_the_last_scores_with_the_majority_line():
    shown = text_of(report.summary([record(0), record(1)], majority=0.22, folder=Path("runs/x"), best=1))
    for part in ("0.6000", "mean 0.6000, worst 0.2500", "0.2200", "8.0 MiB", "3 min 0 s", "runs/x"):
        assert part in shown


def test_the_summary_of_a_run_without_accuracy_has_no_majority_line():
    shown = text_of(report.summary([record(0, test={"loss": 2.0}, validation={}, clients={})], majority=0.22, folder=Path()))
    assert "test loss" in shown
    assert "majority" not in shown


def test_the_split_table_has_a_line_for_each_client():
    rows = [
        {"client": 0, "rank": 4, "examples": 10, "labels": {"a": 2, "b": 8}, "top_share": 0.8, "distance": 0.3},
        {"client": 1, "rank": 2, "examples": 0, "labels": {"a": 0, "b": 0}, "top_share": None, "distance": None},
    ]
    lines = text_of(report.split_table(rows)).splitlines()
    assert next(line.split() for line in lines if line.startswith("0")) == ["0", "4", "10", "0.30", "b", "80%,", "a", "20%"]
    assert next(line.split() for line in lines if line.startswith("1")) == ["1", "2", "0", "–"]


def test_curves_draw_what_the_records_hold(tmp_path: Path):
    pytest.importorskip("matplotlib")
    full = report.curves([record(t) for t in range(3)], tmp_path / "full.png", title="run", majority=0.2)
    bare = [{k: v for k, v in record(t).items() if k not in ("test", "validation", "clients", "diagnostics")} for t in range(2)]
    plain = report.curves(bare, tmp_path / "bare.png")
    assert full is not None
    assert plain is not None
    assert full.read_bytes()[:4] == plain.read_bytes()[:4] == b"\x89PNG"
    assert full.stat().st_size > plain.stat().st_size > 5000


def test_a_rank_is_drawn_under_the_name_of_what_it_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The mean of the clients' deltas is not the server's delta: a server that truncates keeps fewer directions."""
    figure = pytest.importorskip("matplotlib.figure")
    drawn: dict[str, list[float]] = {}

    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        (panel,) = [axis for axis in self.axes if "rank" in axis.get_ylabel()]
        assert "server" not in panel.get_ylabel()
        drawn.update({str(line.get_label()): list(line.get_ydata()) for line in panel.get_lines()})

    monkeypatch.setattr(figure.Figure, "savefig", look)
    ranks = {"effective_rank": 18.6, "server_effective_rank": 9.5, "stable_rank": 4.0, "server_stable_rank": None}
    report.curves([record(0, diagnostics=ranks)], tmp_path / "curves.png")
    assert drawn == {
        "effective rank, mean of the deltas": [18.6],
        "effective rank, server's delta": [9.5],
        "stable rank, mean of the deltas": [4.0],
    }


def test_curves_of_one_round_with_undefined_values(tmp_path: Path):
    pytest.importorskip("matplotlib")
    one = record(0, train_loss=None, test={"accuracy": None, "loss": None}, diagnostics={"effective_rank": None})
    assert report.curves([one], tmp_path / "one.png") is not None


def test_runs_are_compared_by_name(tmp_path: Path):
    pytest.importorskip("matplotlib")
    runs = {"fedavg": [record(t) for t in range(3)], "flexlora": [record(t) for t in range(2)]}
    assert report.comparison(runs, tmp_path / "both.png") is not None


def test_without_matplotlib_a_note_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, logger="fedelta"):
        assert report.curves([record(0)], tmp_path / "curves.png") is None
    assert "pip install 'fedelta[plots]'" in caplog.text
    assert not (tmp_path / "curves.png").exists()
