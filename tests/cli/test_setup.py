"""`fedelta doctor` and `fedelta schema`, and what a shell completes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from fedelta.cli import completion
from fedelta.runs import doctor

Call = Callable[..., Result]
Lines = Callable[[Result], list[Any]]


def test_doctor_says_what_is_here(succeed: Call, json_lines: Lines):
    found = json_lines(succeed("doctor", "--json"))[0]
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["devices"][0] == "cpu"
    assert found["cache"]["writable"] is True
    text = succeed("doctor").stdout
    assert metadata.version("peft") in text
    assert "threads" in text


def test_an_extra_that_is_not_whole_is_named_with_its_remedy(succeed: Call, monkeypatch: pytest.MonkeyPatch):
    requires = [
        "torch>=2.6",
        "no-such-package>=1 ; extra == 'certs'",
        "fedelta[certs] ; extra == 'flower'",
        "numpy<9,>=1.41 ; extra == 'flower'",
        "numpy ; extra == 'plots'",
        "pytest ; extra == 'dev'",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda package: requires)  # pyright: ignore[reportUnknownLambdaType]
    assert doctor.extras() == {"plots": [], "certs": ["no-such-package"], "flower": ["no-such-package"]}
    assert "pip install 'fedelta[flower]' (no no-such-package)" in " ".join(succeed("doctor").stdout.split())


def test_schema_prints_the_schema_of_the_reference(succeed: Call):
    assert json.loads(succeed("schema").stdout)["properties"].keys() >= {"data", "method"}


def test_a_shell_completes_methods_configs_and_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("own.yaml", "other.txt", "quick/a.yml", ".hidden.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert completion.method_names("flex") == ["flexlora"]
    assert completion.configs("") == ["quickstart", "own.yaml", "quick/"]
    assert completion.configs("quick") == ["quickstart", "quick/"]
    assert completion.configs("quick/") == ["quick/a.yml"]
    assert completion.configs("nowhere/x") == []
    assert completion.keys("lora.ra") == ["lora.rank="]
    assert completion.keys("meth") == ["method="]
    assert completion.keys("lora.rank=4") == []


COMPLETED = {"run quick": "quickstart", "aggregate --method flex": "flexlora", "run --set lora.ra": "lora.rank="}


@pytest.mark.parametrize("words", COMPLETED)
def test_a_shell_is_answered_without_waiting_for_torch(words: str, entry: str):
    asked = {"_FEDELTA_COMPLETE": "complete_bash", "COMP_WORDS": f"fedelta {words}", "COMP_CWORD": str(len(words.split()))}
    code = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {entry}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **asked})
    assert done.stdout.split() == [COMPLETED[words], "False"]
