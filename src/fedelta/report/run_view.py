"""Shows a run as it goes: a line for each round, and under them what it is doing now, with the time left."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from fedelta.activity import Board, watched
from fedelta.report.notebook import NotebookCell
from fedelta.report.terminal import Mode, err, has_bar, print_json, screen
from fedelta.report.words import Record, duration, round_line, total_bytes

BAR, LONG_BAR = 10, 30
"""Characters of the bar, in a narrow terminal and in one of `WIDE` columns: the words are worth more."""

WIDE = 110

ENOUGH = 0.005
"""Share of a run that must be done here before it says how long the rest takes."""


class RunView:
    """Shows a run round by round: on the screen or in a notebook, as JSON lines, or not at all.

    Args:
        mode: what is shown.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self.rounds = self._sent = 0
        self._board = Board()
        self._spinner = Spinner("dots")
        self._began: tuple[float, float] | None = None
        self._cell = NotebookCell(self.picture) if mode == "screen" and err.is_jupyter else None

    @contextmanager
    def shown(self) -> Generator[RunView]:
        """Shows what the run is doing, from the reading of its rows to the end."""
        with watched() as self._board:
            if self._cell is not None:
                with self._cell:
                    yield self
            elif self.mode == "screen" and has_bar():
                with Live(console=err, get_renderable=self.picture, transient=True, refresh_per_second=8):
                    yield self
            else:
                yield self

    def begin(self, rounds: int, done: Sequence[Record]) -> None:
        """Takes what is known once the run is built: the rounds of the whole run, and the records of those that are done."""
        self.rounds, self._sent = rounds, total_bytes(done)

    def show(self, record: Record) -> None:
        """Shows one more round."""
        self._sent += total_bytes([record])
        if self.mode == "json":
            print_json(record)
        self.say(Text(round_line(record, self._sent)), soft_wrap=True)

    def say(self, what: RenderableType, *, soft_wrap: bool = False) -> None:
        """Prints something above the bar; nothing where a program reads."""
        if self.mode != "screen":
            return
        if self._cell is not None:
            self._cell.print(what)
        else:
            screen().print(what, soft_wrap=soft_wrap)

    def picture(self) -> Table:
        """Returns the line under all others: what the run is doing, a bar, and the time left."""
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column()
        grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")  # the words give way, not the figures
        grid.add_column()
        grid.add_column(justify="right", no_wrap=True)
        share = self._share()
        bar = ProgressBar(1.0, share, width=LONG_BAR if err.width >= WIDE else BAR)
        grid.add_row(self._spinner, doing(self._board, self.rounds), bar, self._left(share))
        return grid

    def _share(self) -> float:
        """Returns the share of the whole run that is done."""
        t = self._board.t
        return 0.0 if t is None or not self.rounds else min(1.0, (t + self._board.share()) / self.rounds)

    def _left(self, share: float) -> str:
        now = time.monotonic()
        if self._board.t is None:
            return ""
        if self._began is None:
            self._began = now, share  # a run that was taken up has done a part before, in a time that nobody measured
        since, at_first = self._began
        if share - at_first < ENOUGH:
            return duration(now - since)
        return f"{duration((now - since) * (1 - share) / (share - at_first))} left"


def doing(board: Board, rounds: int) -> str:
    """Says in words what a run is doing, such as `round 3 (4/30)  client 7 (3/10)  step 5/8`."""
    parts = [] if board.t is None else [f"round {board.t} ({board.t + 1}/{rounds})"]
    if board.training:
        who = f"{board.training} clients at once" if board.client is None else f"client {board.client}"
        parts.append(f"{who} ({board.trained}/{board.cohort})" if board.cohort > board.training else who)
        parts += [f"step {board.step}/{board.steps}"] if board.steps else []
    elif board.doing:
        parts.append(f"{board.doing} {board.step}/{board.steps}" if board.steps else board.doing)
    return "  ".join(parts)
