"""`fedelta methods` and `fedelta check`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

Call = Callable[..., Result]
Lines = Callable[[Result], list[Any]]


def test_methods_are_listed_with_source_ranks_and_traffic(succeed: Call, json_lines: Lines):
    rows = json_lines(succeed("methods", "--json"))[0]
    assert {"fedavg", "flexlora", "flora"} <= {row["name"] for row in rows}
    assert {row["name"]: row["hetero_rank"] for row in rows}["fedavg"] is False
    assert all(row["paper"] and row["travels"] for row in rows)
    assert "arXiv" in succeed("methods").stdout


def test_named_methods_are_shown_with_their_papers(succeed: Call, call: Call, json_lines: Lines) -> None:
    shown = succeed("methods", "fedit", "ilora").stdout
    assert "flexlora" not in shown
    assert "@inproceedings{zhang2024fedit," in shown
    assert "  author = {Zhou, Junchao and Liu, Junkang and Shang, Fanhua}," in shown
    rows = json_lines(succeed("methods", "centralised", "fedit", "--json"))[0]
    assert [row["name"] for row in rows] == ["centralised", "fedavg"]
    assert [bool(row["bibtex"]) for row in rows] == [False, True]
    result = call("methods", "fedavgg")
    assert result.exit_code == 2
    assert "did you mean 'fedavg'?" in result.stderr


def test_papers_alone_can_be_written_to_a_file(succeed: Call) -> None:
    everything = succeed("methods", "--bibtex").stdout
    assert everything.startswith("@")
    assert "what travels" not in everything
    assert everything.count("eprint = {2003.00295}") == 1  # one paper of three methods
    assert r"and Kone{\v{c}}n{\'y}, Jakub and Kumar, Sanjiv and McMahan, H. Brendan}" in everything
    assert succeed("methods", "local_only", "--bibtex").stdout == ""


def test_check_names_the_law_that_a_file_breaks(call: Call, json_lines: Lines, tmp_path: Path) -> None:
    path = tmp_path / "forgetful.py"
    path.write_text(
        "from fedelta.methods.fedavg import FedAvg\n"
        "class Forgetful(FedAvg):\n"
        "    def traffic(self, t, template, peer, peers):\n"
        "        return 1, 1\n",
        encoding="utf-8",
    )
    result = call("check", path)
    assert result.exit_code == 1
    assert "declared 1 numbers down and 1 up" in " ".join(result.stdout.split())
    assert [
        v["law"] for v in json_lines(call("check", path, "--json"))[0][str(path)]["verdicts"] if v["outcome"] == "broken"
    ] == ["bytes"]


def test_check_takes_names_and_aliases_and_counts_verdicts(succeed: Call) -> None:
    shown = succeed("check", "fedit", "local_only").stdout
    assert [line.split()[:3] for line in shown.splitlines()[2:4]] == [["fedit", "all", "kept"], ["local_only", "all", "kept"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give the methods or tasks to check, or --all"),
        (["fedavg", "--all"], "give the methods or tasks to check, or --all"),
        (["fedavgg"], "did you mean 'fedavg'?"),
        (["nowhere.py"], "no file nowhere.py"),
    ],
    ids=str,
)
def test_check_says_what_it_cannot_check(call: Call, arguments: list[str], message: str) -> None:
    result = call("check", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
