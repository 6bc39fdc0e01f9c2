"""`fedelta site`, as a person starts and ends it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from fedelta.engines.runners.sites.worker import LOG, SOCKET, ask
from fedelta.exchange.parcels import Parcel
from fedelta.methods import get_method
from fedelta.runs.config import read_config
from fedelta.runs.config.terms import terms_of


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="site") as found:
        yield Path(found)


@pytest.fixture
def files(tiny_config: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """The config of the tiny run with its labels, and a node file."""
    config = {**tiny_config, "task": {"name": "classification", "labels": ["cats", "dogs"]}}
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (folder / "node.yaml").write_text("name: north\nclient: 1\nstate: state\nallow: {max_rank: 2}\n", encoding="utf-8")
    return folder / "run.yaml", folder / "node.yaml"


def test_a_site_is_started_asked_and_ended(files: tuple[Path, Path], entry: str, folder: Path) -> None:
    config, node = files
    command = [sys.executable, "-c", entry, "site", str(config), "--node", str(node)]
    worker = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=folder)
    try:
        path = folder / "state" / SOCKET
        while worker.poll() is None and not path.exists():
            threading.Event().wait(0.05)
        own = read_config(config)
        terms = json.loads(json.dumps(terms_of(own, get_method(**own.method))))
        up = ask(path, Parcel("census", {"run": "r", "terms": terms, "want_template": False}), timeout=60)
        assert up.kind == "census", up.header
        assert (up.header["name"], up.header["peer"]["id"], up.header["peer"]["rank"]) == ("north", 1, 2)
        assert ask(path, Parcel("census", {"terms": {**terms, "code": "x"}}), timeout=60).kind == "refusal"
        worker.send_signal(signal.SIGINT)
        _, said = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == 0
    log = (folder / "state" / LOG).read_text(encoding="utf-8")
    for line in ("site north is client 1:", "for trials", "code is this site's own", "ends, as it was told to"):
        assert line in log
    assert "the log is beside it; Ctrl-C ends the site" in said
    assert "Traceback" not in said + log


def test_what_is_amiss_at_a_site_is_said_when_it_is_started(
    files: tuple[Path, Path], call: Callable[..., Result], folder: Path
) -> None:
    config, node = files
    unlabelled = call("site", config, "--node", node, "--set", "task=classification")
    assert unlabelled.exit_code == 2
    assert "task.labels is missing" in unlabelled.output
    node.write_text("name: north\nclient: 1\nstate: state\ndata: none.jsonl\n", encoding="utf-8")
    missing = call("site", config, "--node", node)
    assert missing.exit_code == 2
    assert "none.jsonl" in missing.output
    assert not (folder / "state" / SOCKET).exists()
