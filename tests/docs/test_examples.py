"""The scripts of `examples` that say how they are tested, run as a reader runs them.

A script says it in lines of its own, and is then found here by itself:

    # Tested with: ARGUMENTS     where {data} stands for ../shared/data, {minilm} for the folder of the packaged encoder
    # Needs: trl, scipy          packages without which it is skipped

It runs in an empty folder, and fails by an exit status, as of an `assert`.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TESTED = re.compile(r"^# Tested with:(.*)$", re.MULTILINE)
NEEDS = re.compile(r"^# Needs:(.*)$", re.MULTILINE)


def tested() -> list[Path]:
    return sorted(path for path in EXAMPLES.glob("*.py") if TESTED.search(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("script", tested(), ids=lambda path: path.name)
def test_an_example_runs(script: Path, request: pytest.FixtureRequest, tmp_path: Path):
    text = script.read_text(encoding="utf-8")
    for package in (name.strip() for line in NEEDS.findall(text) for name in line.split(",")):
        pytest.importorskip(package)
    for command in TESTED.findall(text):
        arguments = [_filled(word, request) for word in shlex.split(command)]
        done = subprocess.run(
            [sys.executable, str(script), *arguments], cwd=tmp_path, env=_environment(), text=True, capture_output=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def _filled(word: str, request: pytest.FixtureRequest) -> str:
    """A word of the command; the test is skipped where what it stands for is not here."""
    places = {"{data}": "shared_data", "{minilm}": "minilm"}
    for place, fixture in places.items():
        if place in word:
            word = word.replace(place, str(request.getfixturevalue(fixture)))
    if word.startswith(os.sep) and not Path(word).exists():
        pytest.skip(f"{word} is not here")
    return word


def _environment() -> dict[str, str]:
    """This process's, in which a script finds the same fedelta and asks no network."""
    source = Path(importlib.import_module("fedelta").__file__ or "").parents[1]
    paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}


def test_the_example_of_merging_is_found():
    assert "merge_adapters.py" in {path.name for path in tested()}, "the examples are not where they are looked for"
