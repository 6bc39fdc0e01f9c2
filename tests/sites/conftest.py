"""Real sites, in one process and over loopback; what Flower is needed for is skipped where it is not installed."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The toys are too small for a second thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def in_process() -> ModuleType:
    """The module `in_process.py` beside this file: a grid in this process."""
    pytest.importorskip("flwr", reason="Flower is not installed: make sites-deps")
    name = "fedelta_tests_in_process"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("in_process.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for the types that they name
    spec.loader.exec_module(module)
    module.quiet()
    return module
