"""Scripts of `benchmarks`, as modules of a test."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Loads a script by its path in `benchmarks`; skips where the benchmarks are missing."""

    def load(path: str) -> ModuleType:
        file = BENCHMARKS / path
        if not file.is_file():
            pytest.skip("the benchmarks are not part of this distribution")
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)  # where dataclasses look for annotations
        spec.loader.exec_module(module)
        return module

    return load
