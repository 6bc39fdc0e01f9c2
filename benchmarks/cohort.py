"""A cohort's round in one pass of the model, against the loop that a user would write by hand, and against other simulators.

Federated averaging of a LoRA adapter, rank 8 on query and value, on random tokens. In one process and in turns: a bare PEFT
loop, and `fedelta.federate` with each of `OPTIONS`; all train on the same batches, and the adapters that come out are compared.
Ratios are those of the seconds of one repeat, bare loop over fedelta; given are median and quartiles over the repeats. Apart:

    batching   sequential / batched, both with full passes and torch's own products
    gemm       the sequential engine with torch's own products / with those that `gemm="auto"` picks
    compact    full / compact passes of the sequential engine: no padding (rows of "ragged" shapes are as long as TREC's;
               the bare loop pads each batch to its longest row, as a data collator does), and less of the last layer

    python benchmarks/cohort.py [--quick] [--json] [--models tiny minilm] [--shapes 4x16 4xragged] [--clients 1 10]
    python benchmarks/cohort.py --rivals flower pfl      # see benchmarks/rivals/make_envs.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from common.timing import cpus, interleaved, ratios, summary, walls
from common.workloads import MODELS, Gemm, Shape, adapted_model, hush, make_clients, work_of, write_start
from rivals import bare, race
from safetensors.torch import load_file

from fedelta import save_adapter
from fedelta.client import LocalClient
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.peft import PeftAdaptedModel


@dataclass(frozen=True)
class Option:
    """A way to run fedelta: what a user can set."""

    engine: str
    gemm: Gemm = "default"
    compact: bool = False

    @property
    def kind(self) -> tuple[Gemm, bool]:
        """What the model is prepared for."""
        return self.gemm, self.compact


OPTIONS: dict[str, Option] = {
    "sequential": Option("sequential"),
    "batched": Option("batched"),
    "gemm": Option("sequential", "auto"),
    "compact": Option("sequential", "default", compact=True),
    "auto": Option("auto", "auto", compact=True),
    "bf16": Option("auto", "bf16", compact=True),
}
STEPS = {"tiny": 10, "minilm": 3}
SHAPES = {model: ["4x16", "4x64", "16x64", "4xragged", "16xragged"] for model in MODELS}
QUICK_STEPS = {"tiny": 3, "minilm": 1}
QUICK_SHAPES = {"tiny": ["4x16", "4xragged"], "minilm": ["4x16"]}
WANTED = {("minilm", "4x64"): 1.9, ("minilm", "4x16"): 2.3, ("tiny", "4x16"): 2.8}
"""Of "auto" over the bare loop, with ten clients and one thread; nowhere is it to be below `FLOOR`."""
FLOOR = 0.95


class Bench:
    """One model under each product of frozen weights, and the bare PEFT model, for the number of threads that torch has now."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.adapted = {kind: adapted_model(name, *kind) for kind in dict.fromkeys(o.kind for o in OPTIONS.values())}
        self.plain = self.adapted["default", False]
        with tempfile.TemporaryDirectory() as folder:
            write_start(Path(folder), name, self._clients(self.plain, 1, Shape(1, 4), 1))
            self.bare = bare.load_model(Path(folder))
        self.start = bare.state_of(self.bare)

    def measure(self, shape: Shape, clients: int, steps: int, repeats: int) -> dict[str, Any]:
        """A row of the table."""
        cohorts = {kind: self._clients(adapted, clients, shape, steps) for kind, adapted in self.adapted.items()}
        work = work_of(cohorts["default", False], shape.length)
        runs: dict[str, Callable[[], Any]] = {"bare": partial(bare.one_round, self.bare, work, self.start)}
        runs |= {name: partial(one_round, cohorts[option.kind], option.engine) for name, option in OPTIONS.items()}
        found, passes = first_runs({"bare": self.bare} | {n: self.adapted[o.kind].module for n, o in OPTIONS.items()}, runs)
        taken = interleaved(runs, repeats)
        seconds, cpu = {n: walls(s) for n, s in taken.items()}, {n: cpus(s) for n, s in taken.items()}
        return {
            "threads": torch.get_num_threads(),
            "model": self.name,
            "shape": str(shape),
            "clients": clients,
            "steps": steps,
            "repeats": repeats,
            "seconds": {name: statistics.median(values) for name, values in seconds.items()},
            "ratio": {name: summary(ratios(seconds["bare"], seconds[name])) for name in OPTIONS},
            "ratio_of_cpu_time": {name: statistics.median(ratios(cpu["bare"], cpu[name])) for name in OPTIONS},
            "gain_of_batching": summary(ratios(seconds["sequential"], seconds["batched"])),
            "gain_of_gemm": summary(ratios(seconds["sequential"], seconds["gemm"])),
            "passes": {name: len(tokens) for name, tokens in passes.items()},
            "tokens_seen": {name: sum(tokens) / int(work.lengths.sum()) for name, tokens in passes.items()},
            "gain_of_compact": summary(ratios(seconds["sequential"], seconds["compact"])),
            "disagreement": {name: self._disagreement(found[name], found["bare"]) for name in OPTIONS},
        }

    def _clients(self, adapted: PeftAdaptedModel, count: int, shape: Shape, steps: int) -> list[LocalClient]:
        adapted.joint_refusal()  # rehearses the model, whose passes are not to be counted among those of a round
        return make_clients(adapted, count, batch=shape.batch, length=shape.length, steps=steps)

    def _disagreement(self, ours: Any, by_hand: bare.State) -> float:
        """The distance from the bare loop's result, by how far that one moved."""
        with tempfile.TemporaryDirectory() as folder:
            save_adapter(ours, Path(folder) / "adapter", like=self.plain.layout)
            return bare.disagreement(load_file(Path(folder) / "adapter" / "adapter_model.safetensors"), by_hand, self.start)


def one_round(clients: Sequence[LocalClient], engine: str) -> Any:
    """A round of FedAvg; returns the mean adapter."""
    [done] = federate(get_method("fedavg"), clients, rounds=1, engine=engine)
    return done.state["adapter"]


def first_runs(models: Mapping[str, Any], runs: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """What each run returns, and the tokens of each pass of its model in it. Warms up allocators and caches."""
    found: dict[str, Any] = {}
    passes: dict[str, list[int]] = {}
    for name, run in runs.items():
        tokens = passes[name] = list[int]()
        hook = models[name].get_input_embeddings().register_forward_pre_hook(partial(_count, tokens))
        found[name] = run()
        hook.remove()
    return found, passes


def _count(tokens: list[int], module: Any, args: Sequence[Any]) -> None:
    tokens.append(args[0].numel())


# --- what comes out --------------------------------------------------------------------------------------------------


HEAD = (
    f"{'thr':>3} {'model':<7}{'shape':<10}{'K':>3}{'ms/step':>9}"
    + "".join(f"{name:>11}" for name in OPTIONS)
    + f"{'quartiles':>13}{'batching':>10}{'gemm':>6}{'compact':>9}{'passes':>10}{'disagree':>10}"
)


def line(row: Mapping[str, Any]) -> str:
    """A row as text: milliseconds of a client's step in the bare loop, then ratios."""
    low, high = row["ratio"]["auto"]["quartiles"]
    quartiles, passes = f"{low:.2f}-{high:.2f}", f"{row['passes']['bare']}/{row['passes']['auto']}"
    step = 1e3 * row["seconds"]["bare"] / row["clients"] / row["steps"]
    return (
        f"{row['threads']:>3} {row['model']:<7}{row['shape']:<10}{row['clients']:>3}{step:>9.2f}"
        + "".join(f"{row['ratio'][name]['median']:>11.2f}" for name in OPTIONS)
        + f"{quartiles:>13}{row['gain_of_batching']['median']:>10.2f}{row['gain_of_gemm']['median']:>6.2f}"
        + f"{row['gain_of_compact']['median']:>9.2f}{passes:>10}{row['disagreement']['auto']:>10.0e}"
    )


def verdict(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What was wanted of "auto", and whether it was found."""
    found: dict[str, Any] = {}
    for row in rows:
        wanted = WANTED.get((row["model"], row["shape"]))
        if wanted and row["clients"] == 10 and row["threads"] == 1:
            key = f"{row['model']}_{row['shape']}"
            found |= {key: row["ratio"]["auto"]["median"], f"{key}_at_least_{wanted}": row["ratio"]["auto"]["median"] >= wanted}
    if rows:
        worst = min(row["ratio"]["auto"]["median"] for row in rows)
        found |= {"worst": worst, f"worst_at_least_{FLOOR}": worst >= FLOOR}
    return found


def measured(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All rows that were asked for."""
    steps, shapes = (QUICK_STEPS, QUICK_SHAPES) if args.quick else (STEPS, SHAPES)
    for threads in args.threads:
        torch.set_num_threads(threads)
        for model in args.models:
            bench = Bench(model)
            for shape in args.shapes or map(Shape.read, shapes[model]):
                for clients in args.clients:
                    yield bench.measure(shape, clients, args.steps or steps[model], args.repeats)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten clients, batches of 4, few steps, one thread; under 50 s")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--shapes", nargs="+", type=Shape.read, metavar="BATCHxLENGTH", help="of a client's step; the length may be 'ragged'"
    )
    parser.add_argument("--clients", nargs="+", type=int, metavar="K")
    parser.add_argument("--threads", nargs="+", type=int, help="of torch; 1 with --quick, else 1 and 2")
    parser.add_argument("--steps", type=int, help=f"local steps; {QUICK_STEPS} with --quick, else {STEPS}")
    parser.add_argument("--repeats", type=int, help="3 with --quick, else 7")
    race.add_arguments(parser)
    args = parser.parse_args()
    args.clients = args.clients or ([10] if args.quick else [1, 4, 10, 32])
    args.threads = args.threads or ([1] if args.quick else [1, 2])
    args.repeats = args.repeats or (3 if args.quick else 7)
    return args


def main() -> None:
    args = read_arguments()
    hush()
    say: Callable[[str], None] = (lambda _: None) if args.json else partial(print, flush=True)
    result: dict[str, Any] = {"benchmark": "cohort", "torch": torch.__version__, "transformers": transformers.__version__}
    if args.rivals:
        result["rivals"] = race.run(args, STEPS, say)
    else:
        say(HEAD)
        result["rows"] = [say(line(row)) or row for row in measured(args)]
        result |= verdict(result["rows"])
        say("\n".join(f"{k:32} {v}" for k, v in verdict(result["rows"]).items()))
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
