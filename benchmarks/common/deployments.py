"""A deployment of Flower on this machine, as the tests of real sites start it, with an app of one's own."""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

TESTS = Path(__file__).resolve().parents[2] / "tests/sites"

PROGRAMS = ("flower-super", "flwr-", "fedelta", "flower_large")
"""What the names of programs begin with that are watched."""

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["{name}"]

[tool.flwr.app]
publisher = "{name}"

[tool.flwr.app.components]
serverapp = "{name}.server:app"
clientapp = "{name}.client:app"

[tool.flwr.app.config]
{settings}
"""


def module(name: str) -> ModuleType:
    """Returns a module of the tests of real sites: `deployment`, or `in_process`."""
    spec = importlib.util.spec_from_file_location(f"fedelta_tests_{name}", TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


def write_app(folder: Path, name: str, server: str, client: str, settings: Mapping[str, str]) -> None:
    """Writes an app of two modules, with settings of its runs."""
    package = folder / name
    package.mkdir(parents=True)
    lines = "\n".join(f'{key} = "{value}"' for key, value in settings.items())
    (folder / "pyproject.toml").write_text(PROJECT.format(name=name, settings=lines), encoding="utf-8")
    (package / "__init__.py").write_text(f'"""{name}"""\n', encoding="utf-8")
    (package / "server.py").write_text(server, encoding="utf-8")
    (package / "client.py").write_text(client, encoding="utf-8")


@contextmanager
def peaks(going: Any, every: float = 0.2) -> Generator[dict[str, float]]:
    """Gives a mapping that has, after the block, the largest resident MiB of each kind of process of a deployment."""
    found: dict[str, float] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(going, found, over, every), daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def _watch(going: Any, found: dict[str, float], over: threading.Event, every: float) -> None:
    while not over.is_set():
        for process, words in going.family():
            name = next((Path(word).name for word in words[:3] if Path(word).name.startswith(PROGRAMS)), None)
            try:
                status = Path(f"/proc/{process}/status").read_text()
                peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
            except (OSError, IndexError):  # it has ended
                continue
            if name is not None:
                found[name] = max(found.get(name, 0.0), peak)
        time.sleep(every)
