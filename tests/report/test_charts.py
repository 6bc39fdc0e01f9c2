"""Pictures show what the records say."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedelta.report import charts

Record = Callable[..., dict[str, Any]]


def test_curves_draw_what_the_records_hold(record: Record, tmp_path: Path):
    pytest.importorskip("matplotlib")
    full = charts.curves([record(t) for t in range(3)], tmp_path / "full.png", title="run", majority=0.2)
    bare = [{k: v for k, v in record(t).items() if k not in ("test", "validation", "clients", "diagnostics")} for t in range(2)]
    plain = charts.curves(bare, tmp_path / "bare.png")
    assert full is not None
    assert plain is not None
    assert full.read_bytes()[:4] == plain.read_bytes()[:4] == b"\x89PNG"
    assert full.stat().st_size > plain.stat().st_size > 5000


def test_a_rank_is_drawn_under_the_name_of_what_it_measures(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The mean of the clients' deltas is not the server's delta: a server that truncates keeps fewer directions."""
    figure = pytest.importorskip("matplotlib.figure")
    drawn: dict[str, list[float]] = {}

    def look(self: Any, *args: Any, **kwargs: Any) -> None:
        (panel,) = [axis for axis in self.axes if "rank" in axis.get_ylabel()]
        assert "server" not in panel.get_ylabel()
        drawn.update({str(line.get_label()): list(line.get_ydata()) for line in panel.get_lines()})

    monkeypatch.setattr(figure.Figure, "savefig", look)
    ranks = {"effective_rank": 18.6, "server_effective_rank": 9.5, "stable_rank": 4.0, "server_stable_rank": None}
    charts.curves([record(0, diagnostics=ranks)], tmp_path / "curves.png")
    assert drawn == {
        "effective rank, mean of the deltas": [18.6],
        "effective rank, server's delta": [9.5],
        "stable rank, mean of the deltas": [4.0],
    }


def test_curves_of_one_round_with_undefined_values(record: Record, tmp_path: Path):
    pytest.importorskip("matplotlib")
    one = record(0, train_loss=None, test={"accuracy": None, "loss": None}, diagnostics={"effective_rank": None})
    assert charts.curves([one], tmp_path / "one.png") is not None


def test_without_matplotlib_a_note_says_what_to_install(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level(logging.WARNING, logger="fedelta"):
        assert charts.curves([record(0)], tmp_path / "curves.png") is None
    assert "pip install 'fedelta[plots]'" in caplog.text
    assert not (tmp_path / "curves.png").exists()
