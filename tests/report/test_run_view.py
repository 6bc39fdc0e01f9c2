"""A run on the screen, in a notebook, and for a program."""

import io
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from fedelta.activity import Board, board
from fedelta.report import run_view, terminal
from fedelta.report.notebook import MOST_LINES, NotebookCell
from fedelta.report.run_view import RunView, doing

Record = Callable[..., dict[str, Any]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> dict[str, io.StringIO]:
    """What goes to stdout and stderr, which are both a terminal of 80 columns."""
    files = {"out": io.StringIO(), "err": io.StringIO()}
    for name, file in files.items():
        console = Console(file=file, force_terminal=True, force_jupyter=False, width=80, _environ={"TERM": "xterm"})
        monkeypatch.setattr(terminal, name, console)
    monkeypatch.setattr(run_view, "err", terminal.err)
    return files


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Board(), "preparing"),
        (Board(doing="loading the model"), "loading the model"),
        (Board(doing="evaluating test", t=2, step=3, steps=7), "round 2 (3/30)  evaluating test 3/7"),
        (
            Board(doing="", t=0, cohort=9, trained=3, training=1, client=7, step=5, steps=8),
            "round 0 (1/30)  client 7 (3/9)  step 5/8",
        ),
        (Board(doing="", t=0, cohort=9, training=9, step=1, steps=8), "round 0 (1/30)  9 clients at once  step 1/8"),
    ],
)
def test_a_board_in_words(state: Board, said: str):
    assert doing(state, 30) == said


def test_lines_and_bar_share_a_console_where_both_are_one_terminal(written: dict[str, io.StringIO], record: Record):
    view = RunView("screen")
    with view.shown():
        view.begin(3, [])
        view.show(record(0))
    assert "round   0" in written["err"].getvalue()
    assert written["out"].getvalue() == ""


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the view's clock shows."""
    seconds = [0.0]
    monkeypatch.setattr(run_view.time, "monotonic", lambda: seconds[0])
    return seconds


@pytest.mark.usefixtures("written")
def test_the_picture_fits_into_80_columns_and_says_what_is_left(now: list[float]):
    view = RunView("screen")
    view.begin(10, [])
    with view.shown():
        board().begin(0, 4)
        drawn(view)
        now[0] = 30.0
        board().begin(2, 4)
        board().count(2)
        text = drawn(view)
    assert text.count("\n") == 1
    assert "round 2 (3/10)" in text
    assert text.rstrip().endswith("1 min 30 s left")  # a quarter took 30 s


@pytest.mark.usefixtures("written")
def test_a_run_that_is_taken_up_counts_the_time_of_this_process_alone(now: list[float]):
    view = RunView("screen")
    view.begin(10, [])
    with view.shown():
        board().begin(8, 4)
        drawn(view)
        now[0] = 10.0
        board().begin(9, 4)
        assert "10 s left" in drawn(view)


def drawn(view: RunView) -> str:
    file = io.StringIO()
    Console(file=file, width=80, color_system=None).print(view.picture())
    return file.getvalue()


def test_without_a_terminal_there_are_lines_alone(capsys: pytest.CaptureFixture[str], record: Record):
    view = RunView("screen")
    with view.shown():
        view.begin(3, [])
        view.show(record(0))
    out, err = capsys.readouterr()
    assert out.startswith("round   0")
    assert "\x1b" not in out
    assert err == ""


class FakeHandle:
    def __init__(self, shown: list[str]) -> None:
        self.shown = shown

    def update(self, what: str) -> None:
        self.shown.append(what)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a notebook has shown in turn."""
    shown: list[str] = []

    def display(what: str, display_id: bool) -> FakeHandle:
        shown.append(what)
        return FakeHandle(shown)

    module = ModuleType("IPython.display")
    vars(module).update(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return shown


def test_a_notebook_shows_lines_and_picture_in_one_output(notebook: list[str], record: Record, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_view.err, "is_jupyter", True)
    view = RunView("screen")
    with view.shown():
        view.begin(3, [])
        board().say("loading <the model>")
        view.show(record(0))
    assert "preparing" in notebook[0]
    assert "round   0" in notebook[-1]
    assert "preparing" not in notebook[-1]
    assert "<the" not in notebook[-1]


def test_a_notebook_keeps_the_last_lines_of_a_long_run_and_escapes_them(notebook: list[str]):
    cell = NotebookCell(lambda: "now <b>")
    with cell:
        assert "now &lt;b&gt;" in notebook[0]
        for k in range(MOST_LINES + 5):
            cell.print(f"line {k}.")
    assert "line 4." not in notebook[-1]
    assert "line 5." in notebook[-1]


def test_a_fault_of_the_run_ends_the_picture(notebook: list[str]):
    cell = NotebookCell(lambda: "now")
    with pytest.raises(ValueError, match="of the run"), cell:
        raise ValueError("of the run")
    assert "now" not in notebook[-1]
