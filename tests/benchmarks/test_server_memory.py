"""A server with large adapters holds few of them at a time, however many clients there are."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "server_memory.py"
MOST = {"flower": 10, "sequential": 8}
"""Adapters: half as many again as were measured, and less than twice what must be held."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says what memory a process has")
@pytest.mark.parametrize("engine", MOST)
def test_eng_12_a_server_holds_less_than_three_times_what_it_must(engine: str) -> None:
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks are not part of this distribution")
    if engine == "flower" and importlib.util.find_spec("flwr") is None:
        pytest.skip("Flower is not installed: make sites-deps")
    options = ["--json", "--mib", "32", "--engines", engine, "--layouts", "head", "--clients", "2", "6", "--rounds", "2"]
    said = subprocess.run([sys.executable, SCRIPT, *options], check=True, stdout=subprocess.PIPE, text=True).stdout
    few, many = (row["adapters"] for row in json.loads(said)["rows"])
    assert max(few, many) < MOST[engine]
    assert many - few < 1.5, "it grows with the clients"
