"""Prints what commands say, results on stdout and all else on stderr; shows a run as it goes; catches Ctrl-C."""

from __future__ import annotations

import json
import logging
import signal
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Literal, TypeAlias

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fedelta.report.words import Record, main_metric, number, round_line, size, total_bytes

Mode: TypeAlias = Literal["screen", "json", "quiet"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def note(message: str) -> None:
    """Prints a remark that is no part of the result."""
    err.print(Text(message, style="dim"), soft_wrap=True)


def is_watched() -> bool:
    """Returns whether somebody may be looking: in a terminal or a notebook."""
    return err.is_terminal or err.is_jupyter


def show_code(text: str) -> None:
    """Prints lines that are to be copied, on stdout, as they are."""
    out.print(Text(text), soft_wrap=True)


def print_json(value: object) -> None:
    """Prints one line of JSON on stdout."""
    out.print(Text(json.dumps(value, allow_nan=False, ensure_ascii=False)), soft_wrap=True)


def show_warnings(mode: Mode) -> None:
    """Sends fedelta's log to stderr: warnings, or in the quiet mode errors and the warnings about a resumed run.

    Nobody must miss that a resumed run may end with other bytes, or that a part of it was damaged.
    """
    handler = RichHandler(console=err, show_time=False, show_path=False, markup=False, rich_tracebacks=False)
    log = logging.getLogger("fedelta")
    log.handlers[:] = [handler]
    log.setLevel(logging.ERROR if mode == "quiet" else logging.WARNING)
    logging.getLogger("fedelta.resume").setLevel(logging.WARNING)


def show_lines(name: str, *also: logging.Handler) -> None:
    """Sends a logger's lines to stderr with the time, for a program that runs on; and to other handlers."""
    screen = RichHandler(console=err, show_path=False, markup=False, rich_tracebacks=False, log_time_format="[%X]")
    log = logging.getLogger(name)
    log.handlers[:] = [screen, *also]
    log.setLevel(logging.INFO)


def quieten_libraries() -> None:
    """Silences the progress bars and remarks of the model libraries, which are not meant for our users."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for library in ("peft", "transformers"):
        warnings.filterwarnings("ignore", module=library)


class CtrlC:
    """Turns the first Ctrl-C in its block into a wish, `asked`, and lets the second one act at once.

    So a run ends after the round that is going on, with all of it on disk.
    """

    asked = False

    def __enter__(self) -> CtrlC:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        note("ending after this round; Ctrl-C again stops at once and loses the round")


class RunView:
    """Shows a run round by round: a line for each and a progress bar, JSON lines, or nothing.

    Args:
        mode: what is shown.
        rounds: of the whole run.
        done: the records that a resumed run has already.
    """

    def __init__(self, mode: Mode, rounds: int, done: Sequence[Record]) -> None:
        self.mode, self.rounds, self.done = mode, rounds, done
        self._sent = total_bytes(done)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=mode != "screen" or not err.is_terminal,  # in a file or a pipe it would only leave a blank line
        )

    @contextmanager
    def shown(self) -> Generator[RunView]:
        """Shows the progress bar, from the loading of data and model to the end."""
        with self._progress:
            self._bar = self._progress.add_task("preparing", total=self.rounds, completed=len(self.done))
            yield self

    def show(self, record: Record) -> None:
        """Shows one more round."""
        self._sent += total_bytes([record])
        if self.mode == "json":
            print_json(record)
        elif self.mode == "screen":
            out.print(round_line(record, self._sent), soft_wrap=True)
            self._progress.update(self._bar, description=self._headline(record), completed=record["t"] + 1)

    def _headline(self, record: Record) -> str:
        metric = main_metric([record])
        scored = next((record[part] for part in ("test", "validation") if record.get(part)), {})
        shown = [f"loss {number(record['train_loss'])}"]
        return "  ".join([*shown, *([f"{metric} {number(scored[metric])}"] if metric in scored else []), size(self._sent)])
