"""Makes the imports of large libraries cheaper, in a process that is the command's own."""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Generator[None]:
    """Holds the garbage collector back in a `with` block of imports, and has it leave alone for good what they made.

    They make a million objects and hardly any garbage. Else it goes through all of them again and again: a fifth of the time in
    which torch, transformers and PEFT are imported.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
