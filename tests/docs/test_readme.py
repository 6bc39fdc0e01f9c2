"""The README's code blocks run, its commands exist, its table lists the methods there are, its links lead somewhere."""

import functools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import fedelta
from fedelta.runs.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
README = REPOSITORY / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)[^)]*\)")
TARGET = re.compile(r"^([a-z]+):", re.MULTILINE)
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/**/*.md")])


@dataclass(frozen=True)
class Block:
    line: int  # of the first line of code, from 1
    text: str


def blocks(language: str) -> list[Block]:
    text = README.read_text(encoding="utf-8")
    found = (match for match in FENCE.finditer(text) if match[1] == language)
    return [Block(line=text.count("\n", 0, match.start(2)) + 1, text=match[2]) for match in found]


def commands() -> list[list[str]]:
    lines = (line for block in blocks("bash") for line in block.text.splitlines())
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


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


def test_python_blocks_run_in_order(minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks("python"):
        padded = "\n" * (block.line - 1) + block.text  # so that a traceback shows the README's line
        exec(compile(padded, str(README), "exec"), namespace)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: f"line {block.line}")
def test_yaml_blocks_are_valid_configs(block: Block):
    load_config(yaml.safe_load(block.text))


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_exist(words: list[str]):
    if words[0] == "make":
        assert words[1] in TARGET.findall((REPOSITORY / "Makefile").read_text(encoding="utf-8"))
    elif words[0] == "fedelta":
        shown = help_of(words[1])
        missing = [word for word in words if word.startswith("-") and not re.search(rf"{word}\b", shown)]
        assert not missing, f"`fedelta {words[1]} --help` does not know {missing}"
    else:
        assert words[:2] == ["pip", "install"], f"nobody checks `{words[0]}`: add it here"


def test_the_table_lists_every_method_and_what_it_claims():
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(fedelta.list_methods())
    claims = {name: ranks == "yes" for name, ranks in rows}
    assert claims == {name: fedelta.get_method(name).hetero_rank for name in claims}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files(page: Path):
    broken = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if not (page.parent / link).exists()]
    assert not broken, f"{page.name} links to what is not there: {broken}"


def test_the_readme_has_blocks_of_each_kind():
    assert {kind: bool(blocks(kind)) for kind in ("python", "yaml", "bash")} == dict.fromkeys(
        ("python", "yaml", "bash"), True
    ), "a block that is not found is not tested"
