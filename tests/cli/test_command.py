"""The command itself: its options, what it imports, how errors end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import Result

from fedelta.cli import app

Call = Callable[..., Result]

OPTIONS = {
    "": ["--debug", "--install-completion", "--show-completion", "--version"],
    "allow": [],
    "aggregate": ["--json", "--method", "--output", "--ranks", "--same-base", "--set", "--weights", "-o"],
    "certs": ["--host", "--site"],
    "check": ["--all", "--json"],
    "compare": [
        "--allow-file",
        "--baseline",
        "--dry-run",
        "--hours",
        "--jobs",
        "--json",
        "--methods",
        "--only",
        "--output",
        "--prune",
        "--quiet",
        "--retry",
        "--rounds",
        "--seeds",
        "--set",
        "--store",
        "--trust-remote-code",
        "-o",
        "-q",
    ],
    "doctor": ["--json"],
    "evaluate": [
        "--allow-file",
        "--client",
        "--json",
        "--limit",
        "--rank",
        "--round",
        "--set",
        "--split",
        "--trust-remote-code",
    ],
    "export": ["--allow-file", "--client", "--merged", "--output", "--rank", "--round", "--set", "--trust-remote-code", "-o"],
    "fetch": [],
    "flower": [],
    "gossip": [
        "--allow-file",
        "--certs",
        "--endpoint",
        "--json",
        "--local",
        "--node",
        "--output",
        "--relayed",
        "--roster",
        "--set",
        "--trust-remote-code",
    ],
    "init": ["--force", "--label", "--model", "--output", "--schema", "--text", "-o"],
    "inspect": ["--json", "--plot"],
    "methods": ["--bibtex", "--json"],
    "partition": ["--allow-file", "--json", "--plot", "--set"],
    "relay": ["--certs", "--roster"],
    "report": ["--baseline", "--metric", "--output", "--title", "-o"],
    "run": [
        "--allow-file",
        "--dry-run",
        "--force",
        "--json",
        "--output",
        "--quiet",
        "--resume",
        "--set",
        "--trust-remote-code",
        "-q",
    ],
    "schema": [],
    "site": ["--allow-file", "--node", "--set", "--trust-remote-code"],
}
"""Every option there is. Scripts rely on them: change this table only with a line in CHANGELOG.md."""


def test_the_options_are_those_of_the_table():
    group = get_command(app)
    commands: dict[str, Any] = {"": group, **group.commands}  # pyright: ignore[reportAttributeAccessIssue]
    found = {
        name: sorted(o for p in command.params for o in p.opts if o.startswith("-") and p.name != "help")
        for name, command in commands.items()
    }
    assert found == OPTIONS


LIGHT = {
    "--help": "aggregate",
    "--version": "fedelta ",
    "run --help": "--resume",
    "fetch": "smollm2-135m: HuggingFaceTB/SmolLM2-135M-Instruct (4-bit release, dequantised), apache-2.0; ",
    "fetch smolm2": "did you mean 'smollm2-135m'?",
    "methods": "flexlora",
    "methods --json": "flexlora",
    "methods fedavg": "zhang2024fedit",
    "run nope.yaml": "no config file at nope.yaml",
    "schema": "json-schema.org",
    "site quickstart --node nope.yaml": "no node file at nope.yaml",
    "run quickstart --set lora.rnk=3": "did you mean 'lora.rank'?",
    "partition quickstart --set partition.clients=0": "partition.clients: Input should be greater than or equal to 1",
}
"""Commands that need no model, with a part of what they say."""


@pytest.mark.parametrize("command", LIGHT)
def test_a_command_that_needs_no_model_does_not_wait_for_torch(command: str, entry: str, tmp_path: Path):
    loaded = "print('loaded', [x for x in ('torch', 'transformers', 'peft', 'numpy', 'datasets') if x in sys.modules])"
    code = f"import atexit, sys; atexit.register(lambda: {loaded}); {entry}"
    done = subprocess.run([sys.executable, "-c", code, *command.split()], capture_output=True, text=True, cwd=tmp_path)
    assert LIGHT[command] in done.stdout + done.stderr
    assert done.stdout.endswith("loaded []\n")


def test_version(succeed: Call):
    from fedelta import __version__

    assert succeed("--version").stdout == f"fedelta {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "give a config to run, or --resume"),
        (["run", "missing.yaml"], "no config file at missing.yaml"),
        (["run", "quickstart", "--set", "lora.rnk=3"], "unknown key 'lora.rnk'; did you mean 'lora.rank'?"),
        (["run", "--resume", "nowhere"], "nowhere is not the folder of a run"),
        (["run", "--resume", "nowhere", "--force"], "leave --output and --force out"),
        (["partition", "quickstart", "--set", "data.source=missing.csv"], "missing.csv (looked in"),
        (["inspect", "nowhere"], "no adapter folder nowhere"),
        (["evaluate", "nowhere", "rows.jsonl"], "no folder nowhere"),
        (["evaluate", "nowhere", "rows.jsonl", "--rank", "2"], "is not the folder of a run"),
    ],
    ids=" ".join,
)
def test_an_error_is_one_message_with_exit_code_2(
    call: Call, arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stdout == ""


def test_debug_shows_where_an_error_came_from(entry: str):
    command = [sys.executable, "-c", entry, "--debug", "run", "missing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyError("b"), 1, ("unexpected KeyError at ", "test_command.py:", "'b'", "fedelta --debug COMMAND")),
        (RuntimeError("mat1 and mat2"), 1, ("unexpected RuntimeError at ", "mat1 and mat2")),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, ("out of memory", "training.batch_size")),
        (MemoryError(), 1, ("out of memory", "--resume")),
        (ValueError("lower it"), 2, ("error: lower it",)),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else "",
)
def test_an_error_is_one_message_and_debug_shows_its_place(
    error: Exception, code: int, said: tuple[str, ...], call: Call, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("fedelta.runs.config.read_config", fail)
    result = call("partition", "quickstart")
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert all(part in result.stderr for part in said), result.stderr
    with pytest.raises(type(error)):
        call("--debug", "partition", "quickstart")


def test_whoever_reads_no_more_gets_no_word_of_it(entry: str):
    first = subprocess.Popen([sys.executable, "-c", entry, "compare", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stderr is not None
    first.stdout.close()  # before it has written anything
    assert first.stderr.read() == b""
    first.stderr.close()
    assert first.wait() == 1
