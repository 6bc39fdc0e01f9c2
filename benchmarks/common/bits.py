"""All that runs of every method leave, as text to compare: the worker of `same_bits.py`, on whatever fedelta is on the path.

It is run with the sources of two commits, between which modules may have moved, so it uses public names alone.

    PYTHONPATH=CHECKOUT/src python benchmarks/common/bits.py OUTPUT.json [--toy]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch

import fedelta
from fedelta import sampling
from fedelta.models.toy import toy_federation

Facts: TypeAlias = dict[str, str]
"""What a run left, by where it stands: numbers to the last digit, tensors and files as digests."""

TOY_RANKS = {"equal": [2, 2, 2, 2], "unequal": [1, 3, 2, 4]}
MINILM_RANKS = {"equal": [4, 4, 4], "unequal": [2, 4, 8]}

MIXING = torch.tensor([[0.75, 0.25, 0, 0], [0.25, 0.25, 0.5, 0], [0, 0.5, 0.2, 0.3], [0, 0, 0.3, 0.7]], dtype=torch.float64)
"""A path of the toy's four nodes, with unequal weights: equal ones would hide who got which."""

HYPER: dict[str, list[dict[str, Any]]] = {
    "compose": [
        {"local": "fedprox", "server": "flexlora"},
        {"local": ["fedzmg", "scaffold"], "server": "fedavg", "optimizer": "fedadam"},
    ],
    "replication": [{"low_rank": 1}],  # the default would replicate nobody at ranks this small
}
"""Settings for methods whose defaults would show little; MiniLM takes the first. All others run with their defaults."""


@dataclass(frozen=True)
class Case:
    """One run."""

    model: Literal["toy", "minilm"]
    method: str
    hyper: Mapping[str, Any]
    ranks: Literal["equal", "unequal"]
    engine: Literal["sequential", "batched", "gossip"]


def cases(toy_alone: bool) -> Iterator[Case]:
    """Every method in both engines, and without a server where it claims that it can.

    On the toy at equal and unequal ranks, which a method may refuse; on MiniLM at unequal ranks where it claims them.
    """
    for name in fedelta.list_methods():
        for at, hyper in enumerate(HYPER.get(name, [{}])):
            method = fedelta.get_method(name, **hyper)
            engines: list[Any] = ["sequential", "batched", *(["gossip"] if method.decentralised else [])]
            for engine in engines:
                yield Case("toy", name, hyper, "equal", engine)
                yield Case("toy", name, hyper, "unequal", engine)
                if not toy_alone and at == 0:
                    yield Case("minilm", name, hyper, "unequal" if method.hetero_rank else "equal", engine)


def facts(case: Case, rows: Path, work: Path) -> Facts:
    """What one run left, or with what words it was refused."""
    found: Facts = {}
    try:
        found |= _toy(case) if case.model == "toy" else _minilm(case, rows, work)
    except Exception as error:  # a refusal is a result like any other
        found["refused"] = f"{type(error).__name__}: {error}".replace(str(work), "WORK")
    return found


# --- the toy -----------------------------------------------------------------------------------------------------------


def _toy(case: Case) -> Iterator[tuple[str, str]]:
    clients = toy_federation(TOY_RANKS[case.ranks], lora_alpha=4.0, seed=1)
    method = fedelta.get_method(case.method, **case.hyper)
    options: dict[str, Any] = {"rounds": 3, "seed": 1, "score": _score}
    if case.engine == "gossip":
        rounds = fedelta.gossip(method, clients, mixing=MIXING, link_drop=0.1, engine="sequential", **options)
    else:
        rounds = fedelta.federate(method, clients, cohort=sampling.uniform(0.75), engine=case.engine, **options)
    for done in rounds:
        yield from ((f"round {done.t}/{name}", value) for name, value in _of_round(done))


def _of_round(done: fedelta.Round) -> Iterator[tuple[str, str]]:
    yield "train_loss", repr(done.loss)
    yield from _flat({"dropped": done.dropped, "bytes": {"down": done.bytes.down, "up": done.bytes.up}})
    for peer in done.peers:
        yield from _flat(done.participant_model(peer), f"model of client {peer.id}")
    yield from _flat(fedelta.diagnose(done), "diagnostics")


def _score(adapter: fedelta.Adapter, base: object) -> dict[str, float]:
    """Differs between clients."""
    return {"loss": float(sum(x.abs().sum() for x in adapter.dense.values()))}


TIMES = ("seconds", "at", "load", "memory")
"""As `fedelta.runs.records` has them, which the other commit may lack: equal runs differ in them."""

# --- MiniLM ------------------------------------------------------------------------------------------------------------


def _minilm(case: Case, rows: Path, work: Path) -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(dir=work) as folder:
        result = fedelta.run(_config(case, rows, Path(folder) / "run"))
        for record in result.records:
            kept = {k: v for k, v in record.items() if k not in TIMES}
            yield from _flat(kept, f"round {record['t']}")
        adapters = result.folder / "adapters"
        for file in sorted(p for p in adapters.rglob("*") if p.is_file()):
            yield str(file.relative_to(result.folder)), sha256(file.read_bytes()).hexdigest()


def _config(case: Case, rows: Path, folder: Path) -> dict[str, Any]:
    without_server = case.engine == "gossip"
    federation = {"rounds": 2, "token_budget": 2048, "engine": "sequential" if without_server else case.engine}
    return {
        "name": "bits",
        "seed": 1,
        "device": "cpu",
        "output": str(folder),
        "model": {"name": "minilm", "gemm": "default"},  # "auto" is settled by a timing
        "lora": {
            "rank": MINILM_RANKS[case.ranks],
            "lora_alpha": 8.0,
            "target_modules": [f"layer.{k}.attention.self.{which}" for k in (4, 5) for which in ("query", "value")],
        },
        "data": {"source": str(rows), "validation_fraction": 0.2, "test_fraction": 0.2},
        "partition": {"scheme": "quantity", "clients": 3, "concentration": 1.0, "min_examples": 2},
        "method": {"name": case.method, **case.hyper},
        "training": {"batch_size": 2, "local_steps": 2, "learning_rate": 0.01},
        "federation": federation | ({"topology": "ring", "weights": "examples"} if without_server else {}),
        "evaluation": {"every": 2},
    }


def _write_rows(path: Path) -> None:
    draw = random.Random(0)
    words = {"number": ["how many", "how far", "how old"], "place": ["where is", "in which town is", "near what river is"]}
    things = ["the bridge", "the oldest tree", "that museum", "the ship", "the clock tower"]
    lines = [{"text": f"{draw.choice(words[label])} {draw.choice(things)}", "label": label} for label in list(words) * 15]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# --- text --------------------------------------------------------------------------------------------------------------


def _flat(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of mappings, lists and dataclasses, by their path."""
    if isinstance(value, torch.Tensor):
        yield where, _digest(value)
    elif isinstance(value, Mapping):
        for key, x in value.items():
            yield from _flat(x, f"{where}/{key}".lstrip("/"))
    elif isinstance(value, list | tuple):
        for key, x in enumerate(value):
            yield from _flat(x, f"{where}/{key}")
    elif is_dataclass(value):
        yield from _flat({f.name: getattr(value, f.name) for f in fields(value)}, where)
    else:
        yield where, repr(value)


def _digest(x: torch.Tensor) -> str:
    data = x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{x.dtype} {tuple(x.shape)} {sha256(data).hexdigest()[:16]}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a list of cases with their facts, as JSON")
    parser.add_argument("--toy", action="store_true", help="without MiniLM")
    args = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # what is left out of a round stands in the facts
    torch.set_num_threads(1)
    sys.modules["matplotlib.figure"] = None  # type: ignore[assignment] - a second a run for a picture that nobody looks at
    with tempfile.TemporaryDirectory() as work:
        rows = Path(work) / "rows.jsonl"
        _write_rows(rows)
        found = [asdict(case) | {"facts": facts(case, rows, Path(work))} for case in cases(args.toy)]
    args.output.write_text(json.dumps({"fedelta": fedelta.__file__, "cases": found}), encoding="utf-8")


if __name__ == "__main__":
    main()
