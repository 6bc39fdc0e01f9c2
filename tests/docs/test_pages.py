"""What README and documentation show: code that runs and passes a type checker, commands and configs that exist."""

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedelta
from fedelta.runs.config import RunConfig, read_config
from fedelta.runs.config.checks import checked_alone
from fedelta.runs.config.node import Node
from fedelta.runs.config.roster import Roster
from fedelta.runs.suite.cells import plan_of
from fedelta.runs.suite.schema import suite_of

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
GUIDE = REPOSITORY / "docs" / "how-to" / "own-method.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)[^)]*\)")
GROUPS = ("flower",)
"""Commands of fedelta that have commands of their own."""

TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)
ALL = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])
PAGES = [README, *(page for page in ALL if page.is_relative_to(REPOSITORY / "docs"))]


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of the first line of code, from 1
    text: str

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


def blocks(language: str, page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = (match for match in FENCE.finditer(text) if match[1] == language)
    return [Block(page, text.count("\n", 0, match.start(2)) + 1, match[2]) for match in found]


def files_of(page: Path) -> dict[str, str]:
    """The Python of a page as files: one for the page, and one for the module that a guide tells the reader to write."""
    found = blocks("python", page)
    module = {"median_lora.py": found[0].text} if page == GUIDE else {}
    lines = [""] * page.read_text(encoding="utf-8").count("\n")
    for block in found[len(module) :]:
        code = block.text.splitlines()
        lines[block.line - 1 : block.line - 1 + len(code)] = code  # so that a message shows the page's line
    return {**module, f"{page.stem.replace('-', '_')}.py": "\n".join(lines) + "\n"}


WITH_PYTHON = [page for page in PAGES if blocks("python", page)]


def commands() -> list[tuple[str, str]]:
    """Pages and command lines in their bash blocks."""
    lines = [(page, line) for page in PAGES for block in blocks("bash", page) for line in block.text.splitlines()]
    # Blocks of `sh` are run as they stand by `tests/sites/test_deploy_page.py`; what is ours in them is looked at here, too.
    lines += [(page, line) for page in PAGES for block in blocks("sh", page) for line in ours(block)]
    return [(name_of(page), line) for page, line in lines if shlex.split(line, comments=True)]


def ours(block: Block) -> list[str]:
    return [line for line in block.text.splitlines() if line.startswith("fedelta ")]


@functools.cache
def help_of(*command: str) -> str:
    """The help text of a fedelta command; fails if there is none."""
    entry = "import sys; from fedelta.cli import main; sys.argv[0] = 'fedelta'; main()"
    done = subprocess.run(
        [sys.executable, "-c", entry, *command, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
    )
    assert done.returncode == 0, f"fedelta {' '.join(command)} --help failed:\n{done.stdout}{done.stderr}"
    return done.stdout


@functools.cache
def help_of_torchrun() -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assert_options(words: list[str], shown: str) -> None:
    missing = [word for word in words if word.startswith("-") and not re.search(rf"{word}(?![\w-])", shown)]
    assert not missing, f"`{words[0]} --help` does not know {missing}"


@pytest.fixture
def reader(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a reader, with a model of their own, in which Python finds what they wrote."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "my-encoder").symlink_to(minilm, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "median_lora", raising=False)
    return tmp_path


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run_in_order(page: Path, reader: Path, capsys: pytest.CaptureFixture[str]):
    *modules, own = files_of(page).items()
    for name, text in modules:
        (reader / name).write_text(text, encoding="utf-8")
    exec(compile(own[1], str(page), "exec"), {"__name__": page.stem})
    printed = capsys.readouterr().out
    if page == README:
        assert without_fractions(printed) == without_fractions(blocks("text", README)[0].text)


def without_fractions(text: str) -> str:
    """The text without the last digits of its numbers, which depend on the platform."""
    return re.sub(r"(\.\d)\d+", r"\1", text)


def test_python_blocks_pass_a_type_checker_as_a_reader_runs_it(tmp_path: Path):
    for page in WITH_PYTHON:
        folder = tmp_path / name_of(page).removesuffix(".md").replace("/", "_")
        folder.mkdir()
        for name, text in files_of(page).items():
            (folder / name).write_text(text, encoding="utf-8")
    roots = [{"root": folder.name} for folder in tmp_path.iterdir()]  # each page's folder is where its imports begin
    settings = {"typeCheckingMode": "standard", "executionEnvironments": roots}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_shadow_no_builtin(page: Path, tmp_path: Path):
    for name, text in files_of(page).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "A001,A002,F", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def read_alone(values: dict[str, Any]) -> RunConfig:
    """Reads a config as whoever runs none of its code."""
    return checked_alone(read_config(values))


FILES = {
    "config": read_alone,
    "node file": Node.model_validate,
    "roster": Roster.model_validate,
    "suite": lambda values: plan_of(suite_of(values, "page", REPOSITORY), REPOSITORY / "runs"),
}
"""The kinds of YAML files that a page may show, and what reads them."""


@pytest.mark.parametrize("block", [block for page in PAGES for block in blocks("yaml", page)], ids=str)
def test_yaml_blocks_are_valid_files(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sites").mkdir()
    for name in ("north", "south"):  # that a pattern on a page means
        (tmp_path / "sites" / f"{name}.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    values, errors = yaml.safe_load(block.text) or {}, dict[str, ValueError]()
    for kind, read in FILES.items():
        try:
            read(values)
        except ValueError as error:
            errors[kind] = error
    assert len(errors) < len(FILES), errors


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value)
def test_commands_exist(page: str, line: str):
    words = shlex.split(line, comments=True)
    if words[0] in ("make", ".ci/run", ".venv/bin/pre-commit"):
        assert words[0] != "make" or words[1] in TARGET.findall((REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    elif words[0] == "fedelta":
        assert_options(words, help_of(*words[1 : 3 if words[1] in GROUPS else 2]))
    elif words[0] == "torchrun":  # what it starts follows its last own option
        at = words.index("--no-python") + 1
        assert_options(words[:at], help_of_torchrun())
        assert words[at] == "fedelta"
        assert_options(words[at:], help_of(words[at + 1]))
    else:
        assert words[:2] == ["pip", "install"], f"nobody checks `{words[0]}`: add it here"


def test_the_families_hold_every_method_once():
    table = README.read_text(encoding="utf-8").split("| family |")[1].split("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[2] if "|" in row else "")]
    assert sorted(named) == sorted(fedelta.list_methods())


@pytest.mark.parametrize("page", ALL, ids=name_of)
def test_links_lead_to_files(page: Path):
    broken = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not broken, f"{page.name} links to what is not there: {broken}"


def test_the_readme_has_blocks_of_each_kind():
    kinds = ("python", "yaml", "bash", "text")
    assert {kind: bool(blocks(kind, README)) for kind in kinds} == dict.fromkeys(kinds, True), "a block not found is not tested"
