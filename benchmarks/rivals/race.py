"""fedelta against other simulators, each in its own process and environment, with all cores on each side.

Every program does the same work, which lies in a folder (see `work`), and leaves when its rounds began and what it trained.
What they trained must agree: a benchmark of unequal work is worthless. Programs run in turns; a ratio is that of one repeat.

    seconds a round     the median over a program's rounds but the first, in which processes come up and models are loaded
    seconds a run       of the whole command, start-up included; Flower's SuperLink, which outlives runs, is up before
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from common.timing import ratios, summary
from common.workloads import Shape, adapted_model, make_clients, work_of, write_start
from rivals import bare
from rivals.programs import OURS, RIVALS, Settings
from safetensors.torch import load_file

CLIENTS = 10
TOLERANCE = 1e-2
"""How far two programs may end apart, by how far the training moved. In eight rounds rounding gives 1e-5 on tiny and up to 4e-3
on MiniLM, between one and two threads of the same program."""


def compete(settings: Settings, rivals: Mapping[str, Path], cores: int, repeats: int) -> dict[str, Any]:
    """A row of the table: seconds, and the ratios of each other program's to fedelta's.

    Args:
        settings: the work.
        rivals: their environments, by name.
        cores: that each side uses.
        repeats: of all programs.

    Raises:
        ValueError: if a program did other work.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, settings)
        environments, programs = {**dict.fromkeys(OURS, Path(sys.prefix)), **rivals}, OURS | RIVALS
        runs: dict[str, list[float]] = {name: [] for name in environments}
        rounds: dict[str, list[float]] = {name: [] for name in environments}
        for name in in_turns(list(environments), repeats):
            with programs[name](environments[name], folder, settings, cores) as program:
                runs[name].append(program.run())
            rounds[name].append(seconds_of_a_round(folder / f"{name}.json"))
        others = [name for name in environments if name != "fedelta"]
        return {
            **asdict(settings),
            "cores": cores,
            "repeats": repeats,
            "seconds_round": {name: statistics.median(values) for name, values in rounds.items()},
            "seconds_run": {name: statistics.median(values) for name, values in runs.items()},
            "ratio_round": {name: summary(ratios(rounds[name], rounds["fedelta"])) for name in others},
            "ratio_run": {name: summary(ratios(runs[name], runs["fedelta"])) for name in others},
            "disagreement": {name: checked(folder, name) for name in others},
        }


def in_turns(names: Sequence[str], repeats: int) -> Iterator[str]:
    """All names in each repeat, each time another one first."""
    for repeat in range(repeats):
        first = repeat % len(names)
        yield from [*names[first:], *names[:first]]


def prepare(folder: Path, settings: Settings) -> None:
    """Writes the work."""
    adapted = adapted_model(settings.model)
    clients = make_clients(adapted, settings.clients, batch=settings.batch, length=settings.length, steps=settings.steps)
    write_start(folder, settings.model, clients)
    work_of(clients, settings.length, settings.rounds).save(folder)


def seconds_of_a_round(path: Path) -> float:
    """The median, without the first round."""
    stamps = json.loads(path.read_text(encoding="utf-8"))["stamps"][1:]
    return statistics.median(b - a for a, b in pairwise(stamps))


def checked(folder: Path, name: str) -> float:
    """How far a program ended from fedelta."""
    start = bare.state_of(bare.load_model(folder))
    apart = bare.disagreement(load_file(folder / f"{name}.safetensors"), load_file(folder / "fedelta.safetensors"), start)
    if not apart <= TOLERANCE:
        raise ValueError(f"{name} and fedelta did not do the same work: they end {apart:.1e} apart, {TOLERANCE} is allowed")
    return apart


# --- the command line ------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a race."""
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=list(RIVALS),
        help="race against these in place of the table",
    )
    parser.add_argument("--environments", type=Path, default=Path(".rivals"), help="where rivals/make_envs.py put theirs")
    parser.add_argument("--rounds", type=int, default=8, help="of a race; two or more")


def run(args: argparse.Namespace, steps: Mapping[str, int], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The races that were asked for, on all cores.

    Args:
        args: with the table's `models`, `shapes`, `steps` and `repeats` as well.
        steps: of a client in a round, by model, where `args.steps` is not given.
        say: prints a row.
    """
    rivals = {name: args.environments.resolve() / name for name in args.rivals}
    if missing := [str(folder) for folder in rivals.values() if not folder.is_dir()]:
        raise SystemExit(f"no environment {', '.join(missing)}: python benchmarks/rivals/make_envs.py {' '.join(rivals)}")
    rows: list[dict[str, Any]] = []
    for model in args.models:
        for shape in args.shapes or [Shape(4, 16)]:
            settings = Settings(model, shape.batch, shape.length, CLIENTS, args.steps or steps[model], args.rounds)
            rows.append(compete(settings, rivals, os.cpu_count() or 1, args.repeats))
            say(table(rows[-1]))
    return rows


def table(row: Mapping[str, Any]) -> str:
    """A row as text."""
    head = (
        f"{row['model']} {row['batch']}x{row['length']}, {row['clients']} clients, {row['steps']} steps, {row['cores']} cores"
    )
    lines = [f"{head}\n{'':<20}{'s/round':>9}{'ratio':>8}{'quartiles':>16}{'s/run':>9}{'ratio':>8}{'disagree':>10}"]
    for name in row["seconds_round"]:
        text = f"{name:<20}{row['seconds_round'][name]:>9.3f}"
        if name in row["ratio_round"]:
            ratio, low, high = row["ratio_round"][name]["median"], *row["ratio_round"][name]["quartiles"]
            text += f"{ratio:>8.2f}{f'{low:.2f} - {high:.2f}':>16}{row['seconds_run'][name]:>9.2f}"
            text += f"{row['ratio_run'][name]['median']:>8.2f}{row['disagreement'][name]:>10.0e}"
        else:
            text += f"{'':>24}{row['seconds_run'][name]:>9.2f}"
        lines.append(text)
    return "\n".join(lines)
