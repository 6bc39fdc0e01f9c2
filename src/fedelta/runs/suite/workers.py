"""Runs cells one after another in this process, or several at a time in processes of one thread each.

A worker is given cells as lines of JSON on its standard input, and answers with lines on its output. It ends after its round
when the input ends, so that none goes on for long without the process that started it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from fedelta.runs.config import RunConfig
from fedelta.runs.suite.cells import Task
from fedelta.runs.suite.play import Event, Place, Stopping, events, note_failure

NextTask: TypeAlias = Callable[[], Task | None]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables by which a worker gets one thread."""

GLANCE = 0.2
"""Seconds between two looks at whether somebody wants to stop."""


def here(next_task: NextTask, place: Place, stopping: Stopping, jobs: int) -> Iterator[Event]:
    """Runs cells one after another in this process; yields what happens."""
    while not stopping() and (task := next_task()) is not None:
        yield from events(task, place, stopping)


def side_by_side(next_task: NextTask, place: Place, stopping: Stopping, jobs: int) -> Iterator[Event]:
    """Runs cells in worker processes; yields what happens."""
    news: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    idle: list[_Worker] = []
    going: dict[_Worker, Task] = {}
    look = True
    try:
        while True:
            while look and len(going) < jobs and not stopping():
                task = next_task()
                if task is None:
                    break
                worker = idle.pop() if idle else _Worker(place, news)
                going[worker] = task
                worker.give(task)
                yield Event("begun", task)
            look = False
            if not going:
                return
            if stopping():
                for worker in going:
                    worker.let_end()
            with suppress(queue.Empty):
                worker, message = news.get(timeout=GLANCE)
                look = message is None or message["what"] != "round"
                if worker in going:
                    yield _event(going[worker], worker, message)
                    if look:
                        del going[worker]
                        idle += [worker] if message is not None else []
                elif message is None and worker in idle:  # it died while it had nothing to do, and would never answer
                    idle.remove(worker)
    finally:
        for worker in going:  # somebody wants an end at once
            worker.kill()
        for worker in idle:
            worker.let_end()


def _event(task: Task, worker: _Worker, message: dict[str, Any] | None) -> Event:
    if message is None:
        return Event("failed", task, reason=note_failure(task, ChildProcessError(worker.epitaph())))
    return Event(message["what"], task, message.get("record"), message.get("reason", ""))


class _Worker:
    """A process that runs cells.

    Args:
        place: of the suite's runs.
        news: takes what it says, and None when it has ended.
    """

    def __init__(self, place: Place, news: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        self._place = place
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **dict.fromkeys(THREADS, "1")},
        )
        threading.Thread(target=self._listen, args=(news,), daemon=True).start()

    def _listen(self, news: queue.Queue[tuple[_Worker, dict[str, Any] | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            news.put((self, json.loads(line)))
        news.put((self, None))

    def give(self, task: Task) -> None:
        """Hands a cell over."""
        assert self._process.stdin is not None
        place = {"folder": str(self._place.folder), "allowed": sorted(self._place.allowed)}
        with suppress(BrokenPipeError):  # that it is dead comes as news
            self._process.stdin.write(json.dumps({"place": place, "task": _plain(task)}).encode() + b"\n")
            self._process.stdin.flush()

    def let_end(self) -> None:
        """Lets the process end after its round."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def kill(self) -> None:
        """Ends the process by force; its round is lost."""
        self._process.kill()
        self._process.wait()

    def epitaph(self) -> str:
        """Returns how the process ended."""
        code = self._process.wait()
        how = f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"
        return f"the process of the run ended with {how}, perhaps for want of memory: try fewer jobs"


def _plain(task: Task) -> dict[str, Any]:
    return {
        "setting": task.setting,
        "label": task.label,
        "seed": task.seed,
        "config": task.config.model_dump(mode="json"),
        "folder": str(task.folder),
        "digest": task.digest,
        "tuning": task.tuning,
        "scores_start": task.scores_start,
    }


def _task(plain: dict[str, Any]) -> Task:
    known = {**plain, "config": RunConfig.model_validate(plain["config"]), "folder": Path(plain["folder"])}
    return Task(**cast("dict[str, Any]", known))


# --- within a worker -------------------------------------------------------------------------------------------------


def serve() -> None:
    """Runs the cells that come on standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes: the one that gives the cells decides
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    given: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    ended = threading.Event()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, given, ended), daemon=True).start()
    _quieten()
    while (line := given.get()) is not None:
        order = json.loads(line)
        place = Place(Path(order["place"]["folder"]), frozenset(order["place"]["allowed"]))
        for event in events(_task(order["task"]), place, ended.is_set):
            if event.what != "begun":
                _answer(answers, {"what": event.what, "record": event.record, "reason": event.reason})


def _receive(source: IO[bytes], given: queue.SimpleQueue[bytes | None], ended: threading.Event) -> None:
    for line in source:
        given.put(line)
    ended.set()
    given.put(None)


def _answer(answers: IO[bytes], message: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):  # whoever gave the cell is gone: it is finished all the same, up to this round
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()


def _quieten() -> None:
    from fedelta.report.terminal import quieten_libraries, show_warnings

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    show_warnings("quiet")
    quieten_libraries()


if __name__ == "__main__":
    serve()
