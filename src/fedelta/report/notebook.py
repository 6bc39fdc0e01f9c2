"""Shows lines, and a picture that changes, in one output of a notebook's cell."""

from __future__ import annotations

import html
import io
from collections import deque
from collections.abc import Callable
from importlib import import_module
from threading import Event, Thread
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType

WIDTH = 100
"""Columns of the text."""

MOST_LINES = 200
"""Lines that stay; of a longer run the last ones, since the whole output is sent anew each time."""

EVERY = 0.5
"""Seconds from one picture to the next."""


class NotebookCell:
    """An output of a cell that is drawn anew as long as the block of a `with` runs.

    Plain HTML by IPython's own display, since rich's live display needs widgets that a notebook may not have.

    Args:
        picture: makes what stands under the lines, until the end.
    """

    def __init__(self, picture: Callable[[], RenderableType]) -> None:
        self._picture = picture
        self._lines = deque[str](maxlen=MOST_LINES)
        self._ended = Event()
        self._thread = Thread(target=self._draw_again, daemon=True)
        self._handle: Any = None
        self._ipython: Any = None

    def __enter__(self) -> NotebookCell:
        self._ipython = import_module("IPython.display")  # there in every notebook, and needed in no other place
        self._handle = self._ipython.display(self._ipython.HTML(self._content()), display_id=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._draw()

    def print(self, what: RenderableType) -> None:
        """Adds lines above the picture."""
        self._lines.extend(text_of(what).splitlines())

    def _draw_again(self) -> None:
        while not self._ended.wait(EVERY):
            self._draw()

    def _draw(self) -> None:
        if self._handle is not None:
            self._handle.update(self._ipython.HTML(self._content()))

    def _content(self) -> str:
        lines = [*self._lines] if self._ended.is_set() else [*self._lines, text_of(self._picture()).rstrip()]
        text = html.escape("\n".join(lines))
        return f"<pre style='line-height: 1.3'>{text}</pre>"


def text_of(what: RenderableType) -> str:
    """Returns something as plain text, as it stands on a screen of `WIDTH` columns."""
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None, force_jupyter=False, highlight=False).print(what)
    return file.getvalue()
