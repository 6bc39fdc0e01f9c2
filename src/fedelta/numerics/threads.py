"""Threads where they help: many layers at once, and one thread for each.

A factorisation of a thin matrix gains little from a second thread but meets at thousands of barriers, and where another process
wants a core each barrier waits for it: fifty times slower was seen. Whole layers need no barriers. And since every layer is
computed by one thread, the bits of a result do not depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

T = TypeVar("T")


def ordered(fn: Callable[[str], T], names: Sequence[str], at_once: int | None = None) -> dict[str, T]:
    """`fn` of every name, by name; the first error in the order of names is raised.

    `at_once` names at a time, by default as many as torch has threads; if 1, one after another, each with all threads.
    """
    threads = torch.get_num_threads()
    workers = min(threads if at_once is None else at_once, len(names))
    if workers <= 1:
        return {n: fn(n) for n in names}
    try:
        with ThreadPoolExecutor(workers, "layers", partial(torch.set_num_threads, 1)) as pool:
            return dict(zip(names, pool.map(fn, names), strict=True))
    finally:
        torch.set_num_threads(threads)  # what a thread asks for also becomes the default of threads to come


@contextmanager
def one_thread() -> Generator[None]:
    """One thread for what is done inside."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
