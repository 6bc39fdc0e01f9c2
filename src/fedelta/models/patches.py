"""Changes of a model that can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol


class Patch(Protocol):
    """A change of a model, in effect until `remove`."""

    def remove(self) -> None:
        """Leaves the model as it was."""
        ...


class Undo:
    """A patch that is given as what takes it back."""

    def __init__(self, remove: Callable[[], object]) -> None:
        self._remove = remove

    def remove(self) -> None:
        self._remove()


def remove_all(patches: list[Patch]) -> None:
    """Takes back the patches, the last one first, and empties the list."""
    # a later patch may rest on an earlier one, as a cache on the layers that PEFT put in
    while patches:
        patches.pop().remove()


@contextmanager
def whole_or_undone(patches: list[Patch]) -> Generator[None]:
    """Takes back the patches if the block that makes them fails."""
    try:
        yield
    except BaseException:
        remove_all(patches)
        raise
