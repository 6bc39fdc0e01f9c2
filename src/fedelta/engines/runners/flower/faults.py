"""Flower's errors in words that say what happened and what to look at."""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from flwr.app import Error

MEANINGS = {
    1: "its ClientApp cannot be loaded: look at the SuperNode's log, and whether fedelta is installed there",
    2: "its ClientApp raised an error",
    3: "the message to it is gone from the SuperLink",
    4: "its answer is gone from the SuperLink, or was not sent in whole",
    5: "its SuperNode has not been heard of for a while: it was stopped, or its network is down",
    6: "a mod of its ClientApp refused the message",
    7: "its SuperNode does not take the app: look at the SuperNode's log",
    8: "the process of its ClientApp died, perhaps for want of memory: look at the SuperNode's log",
}
"""By Flower's code of an error."""

PASSING = frozenset({3, 4, 5, 8})
"""Codes of what may be over when the site is asked again."""


class FlowerError(ConnectionError):
    """An answer that did not come; the message says why.

    Attributes:
        passing: whether asking again makes sense.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


def fault(error: Error) -> FlowerError:
    """Returns an error of Flower's as one that can be read."""
    meaning = MEANINGS.get(error.code, f"Flower reports an error of code {error.code}")
    lines = (error.reason or "").strip().splitlines()
    said = f" ({lines[-1].strip()})" if lines else ""  # the last line of a traceback is the error itself
    return FlowerError(f"{meaning}{said}", passing=error.code in PASSING)
