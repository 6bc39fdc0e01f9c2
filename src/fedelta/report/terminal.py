"""Prints what commands say, results on stdout and all else on stderr; catches Ctrl-C."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import sys
import warnings
from types import FrameType, TracebackType
from typing import Literal, TextIO, TypeAlias

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

Mode: TypeAlias = Literal["screen", "json", "quiet"]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def note(message: str) -> None:
    """Prints a remark that is no part of the result."""
    err.print(Text(message, style="dim"), soft_wrap=True)


def is_watched() -> bool:
    """Returns whether somebody may be looking: in a terminal or a notebook."""
    return err.is_terminal or err.is_jupyter


def screen() -> Console:
    """Returns the console for lines beside a bar: stdout, or the bar's own where both are one terminal.

    Two consoles that write to one terminal know nothing of each other: a line would stand in the middle of a bar.
    """
    return err if out.is_terminal and err.is_terminal else out


def has_bar() -> bool:
    """Returns whether a bar may be shown: in a terminal, unless a pipe may bring the lines there, too, as `tee` does."""
    return err.is_terminal and not _is_pipe(sys.stdout)


def _is_pipe(file: TextIO) -> bool:
    try:
        return stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False  # no file of the system, as under a test


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


Stage: TypeAlias = Literal["importing", "building", "rounds"]

HELD = {
    "importing": "ending once the libraries are loaded",
    "rounds": "ending after this round; Ctrl-C again stops at once and loses the round",
}
"""What a Ctrl-C that does not act at once is answered with."""


class CtrlC:
    """Turns the first Ctrl-C of the rounds in its block into a wish, `asked`, and lets the second one act at once.

    So a run ends after the round that is going on, with all of it on disk. Before the first round it acts at once, but for
    the imports: an exception in the middle of that of torch ends the process with a trace of C++.
    """

    def __init__(self, stage: Stage = "rounds") -> None:
        self.asked = False
        self._stage: Stage = stage

    def enter(self, stage: Stage) -> None:
        """Says what comes now; raises KeyboardInterrupt for one that was held back until now."""
        self._stage = stage
        if self.asked and stage == "building":
            raise KeyboardInterrupt

    def __enter__(self) -> CtrlC:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stage == "building" or (self._stage == "rounds" and self.asked):
            raise KeyboardInterrupt
        self.asked = True
        note(HELD[self._stage])
