"""The command line, called in this process; and a finished run to call it on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from fedelta.cli import app


@pytest.fixture(scope="session")
def entry() -> str:
    """The program of the command, for a process of its own."""
    return "import sys; from fedelta.cli import main; sys.argv[0] = 'fedelta'; main()"


@pytest.fixture(scope="session")
def call() -> Callable[..., Result]:
    """Calls the command with these arguments."""
    return lambda *arguments: CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="session")
def succeed(call: Callable[..., Result]) -> Callable[..., Result]:
    """Calls the command, which must end well."""

    def run(*arguments: object) -> Result:
        result = call(*arguments)
        assert result.exit_code == 0, result.output
        return result

    return run


@pytest.fixture(scope="session")
def json_lines() -> Callable[[Result], list[Any]]:
    """Reads what a command wrote to stdout."""
    return lambda result: [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="session")
def config_file(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a file."""
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished(config_file: Path, succeed: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    succeed("run", config_file, "--output", folder, "--quiet")
    return folder
