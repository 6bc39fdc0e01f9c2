"""Benchmarks of what an extra brings say that they did not run where it is not installed."""

from __future__ import annotations

import json
from importlib.util import find_spec


def missing(module: str, extra: str, *, as_json: bool) -> bool:
    """Returns whether a module is not installed, and prints that nothing was run without it, and how to install it."""
    if find_spec(module) is not None:
        return False
    print(json.dumps({"unrun": f"{module} is not installed"}) if as_json else f'unrun: pip install "fedelta[{extra}]"')
    return True
