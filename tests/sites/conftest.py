"""Real sites, in one process and over loopback; what Flower is needed for is skipped where it is not installed."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The toys are too small for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def beside(name: str) -> ModuleType:
    """Returns a module of a file beside this one, which needs Flower."""
    pytest.importorskip("flwr", reason="Flower is not installed: make sites-deps")
    spec = importlib.util.spec_from_file_location(f"fedelta_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types that they name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def in_process() -> ModuleType:
    """The module `in_process.py`: a grid in this process."""
    module = beside("in_process")
    module.quiet()
    return module


@pytest.fixture(scope="session")
def deployment() -> ModuleType:
    """The module `deployment.py`: all processes of a federation, in a folder."""
    return beside("deployment")


@pytest.fixture(scope="session")
def two_sites(tiny_config: dict[str, Any]) -> Callable[..., Path]:
    """(folder, changes by section) -> the file of a run of two sites in a folder, beside which the run is to lie."""

    def write(folder: Path, **changes: Any) -> Path:
        raw = {
            **tiny_config,
            "output": str(folder / "run"),
            "lora": {"rank": [1, 4], "target_modules": ["query", "value"]},
            "task": {"name": "classification", "labels": ["cats", "dogs"]},
            "data": {**tiny_config["data"], "client_test_fraction": 0.0},
            "partition": {"scheme": "iid", "clients": 2},
            "method": "flora",
            "federation": {"rounds": 3, "deadline": 120, "engine": "sequential"},
        }
        path = folder / "config.yaml"
        path.write_text(yaml.safe_dump({**raw, **changes}), encoding="utf-8")
        return path

    return write
