"""Shows that this checkout computes, to the bit, what another commit does.

Every registered method runs in the sequential and in the batched engine, and without a server where it claims that it can: on
toy clients in float64 at equal and at unequal ranks, and on MiniLM at unequal ranks where the method claims them. What the runs
leave is compared: on the toy every participant's model after every round, the diagnostics, losses and bytes; on MiniLM the
adapter files, byte for byte, and `rounds.jsonl` but for its times; where a run is refused, the words. The other commit is
checked out into a temporary git worktree. Changes of this checkout that are not committed count.

    python benchmarks/same_bits.py COMMIT [--toy] [--expect METHOD,...] [--without KEY,...] [--json]

Exits with 1 if a method differs that --expect does not name. A new method is no difference; one that is gone is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

REPOSITORY = Path(__file__).resolve().parents[1]
WORKER = Path(__file__).parent / "common" / "bits.py"
ENGINES = ("sequential", "batched", "gossip")

Facts: TypeAlias = Mapping[str, str]
Key: TypeAlias = tuple[str, str, str, str, str]
"""Model, method, its settings, ranks, engine."""


@dataclass(frozen=True)
class Verdict:
    """One run in both commits.

    Attributes:
        word: "same", "refused alike", "differs", "new" or "gone".
        first: the first thing that differs, with both values.
    """

    word: str
    first: str = ""


def compare(here: Facts | None, there: Facts | None, without: Sequence[str] = ()) -> Verdict:
    """The verdict on one run by what it left here and in the other commit; None where the run does not exist.

    Args:
        here, there: by their paths.
        without: parts of a path, such as "diagnostics": what lies below them is not compared.
    """
    if here is None or there is None:
        return Verdict("gone" if here is None else "new")
    here, there = (_kept(facts, without) for facts in (here, there))
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            return Verdict("differs", f"{name}: {here.get(name, 'nothing')} here, {there.get(name, 'nothing')} there")
    return Verdict("refused alike" if "refused" in here else "same")


def _kept(facts: Facts, without: Sequence[str]) -> Facts:
    return {name: value for name, value in facts.items() if not set(without) & set(name.split("/"))}


# --- both commits ------------------------------------------------------------------------------------------------------


@contextmanager
def checked_out(commit: str) -> Generator[Path]:
    """A temporary worktree of a commit."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve() / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            _git("worktree", "remove", "--force", str(tree))


def _git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(REPOSITORY), *arguments], check=True, stdout=subprocess.DEVNULL)


def left_by(tree: Path, toy: bool) -> dict[Key, Facts]:
    """What the runs of a checkout leave, each run by its key; all of them in one process of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "facts.json"
        environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command = [sys.executable, str(WORKER), str(output), *(["--toy"] if toy else [])]
        subprocess.run(command, env=environment, check=True)
        found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    if not Path(found["fedelta"]).is_relative_to(tree / "src"):
        raise SystemExit(f"{found['fedelta']} was imported in place of the sources in {tree}")
    return {_key(case): case["facts"] for case in found["cases"]}


def _key(case: Mapping[str, Any]) -> Key:
    settings = json.dumps(case["hyper"], sort_keys=True) if case["hyper"] else ""
    return case["model"], case["method"], settings, case["ranks"], case["engine"]


# --- what is shown -----------------------------------------------------------------------------------------------------


def table(model: str, verdicts: Mapping[Key, Verdict]) -> str:
    """Method by engine: the words of all settings and ranks."""
    methods = list(dict.fromkeys(key[1] for key in verdicts if key[0] == model))
    lines = [f"{model:22}" + "".join(f"{engine:22}" for engine in ENGINES)]
    for method in methods:
        cells = [_cell([v.word for k, v in verdicts.items() if k[:2] == (model, method) and k[4] == e]) for e in ENGINES]
        lines.append(f"{method:22}" + "".join(f"{cell:22}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _cell(words: Sequence[str]) -> str:
    """The words of all runs in a cell, or the worst alone if one is not well; a dash where there is no run."""
    for worst in ("differs", "gone", "new"):
        if worst in words:
            return worst
    return ", ".join(sorted(set(words), reverse=True)) or "–"


def differences(verdicts: Mapping[Key, Verdict]) -> dict[str, list[str]]:
    """By method, the runs that differ, each with the first thing that does."""
    found: dict[str, list[str]] = {}
    for (model, method, settings, ranks, engine), verdict in verdicts.items():
        if verdict.word in ("differs", "gone"):
            run = ", ".join(filter(None, [model, engine, f"{ranks} ranks", settings]))
            found.setdefault(method, []).append(f"{run}: {verdict.first or 'there is no such run here'}")
    return found


def _report(verdicts: Mapping[Key, Verdict], expected: Sequence[str]) -> None:
    for model in dict.fromkeys(key[0] for key in verdicts):
        print(table(model, verdicts), end="\n\n")
    found = differences(verdicts)
    for method, runs in found.items():
        print(f"{method} differs{', as expected' if method in expected else ''}:")
        print("".join(f"  {run}\n" for run in runs))
    for method in expected:
        if method not in found:
            print(f"{method} was expected to differ, and does not")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", default="HEAD", help="to compare with; HEAD if not given")
    parser.add_argument("--toy", "--quick", action="store_true", help="the toy alone, under a minute")
    parser.add_argument("--expect", type=_names, default=[], metavar="METHOD,...", help="methods that may differ")
    parser.add_argument(
        "--without", type=_names, default=[], metavar="KEY,...", help="parts of the records not to compare, such as diagnostics"
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    args = parser.parse_args(arguments)
    began = time.perf_counter()
    with checked_out(args.commit) as tree:
        there = left_by(tree, args.toy)
    here = left_by(REPOSITORY, args.toy)
    verdicts = {key: compare(here.get(key), there.get(key), args.without) for key in {**here, **there}}
    found = differences(verdicts)
    if args.json:
        seconds = round(time.perf_counter() - began, 1)
        print(json.dumps({"benchmark": "same_bits", "runs": len(verdicts), "seconds": seconds, "differ": found}))
    else:
        _report(verdicts, args.expect)
    return 1 if set(found) - set(args.expect) else 0


if __name__ == "__main__":
    sys.exit(main())
