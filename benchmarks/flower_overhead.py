"""What does a round over Flower cost on top of Flower's own empty round, with a worker at each site?

Two sites on this machine, a SuperLink with TLS, node keys. The empty round is an app whose messages hold nothing and whose
ClientApp imports nothing of ours; it and ours take turns. A round of ours is MiniLM's adapter of rank 8 and one step at each
site; the seconds that the slower site says it worked are taken off. What is left is ours: imports, packing, the socket,
checks, the mean.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from common import deployments
from common.extras import missing

EMPTY_SERVER = '''\
"""Rounds of messages with nothing in them."""

import json
import time
from pathlib import Path

from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(nodes := list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    seconds = []
    for t in range(int(context.run_config["rounds"])):
        began = time.perf_counter()
        waiting = set(grid.push_messages([Message(RecordDict(), node, "train", group_id=str(t)) for node in nodes]))
        while waiting:
            waiting -= {m.metadata.reply_to_message_id for m in grid.pull_messages(list(waiting))}
            time.sleep(0.2 if waiting else 0)
        seconds.append(time.perf_counter() - began)
        Path(context.run_config["output"]).write_text(json.dumps(seconds))
'''

EMPTY_CLIENT = '''\
"""Answers nothing."""

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def answer(message, context):
    return Message(RecordDict(), reply_to=message)
'''

WORKED = re.compile(r"answered train by train in ([\d.]+) s")


def config_in(folder: Path, rounds: int) -> Path:
    """Writes the config of our rounds."""
    raw = {
        "name": "overhead",
        "device": "cpu",
        "output": str(folder / "run"),
        "model": {"name": "minilm"},
        "lora": {"rank": 8, "target_modules": ["query", "value"]},
        "task": {"name": "classification", "labels": LABELS, "max_length": 16},
        "data": {"source": "docstrings", "limit": {"train": 64}},
        "partition": {"scheme": "iid", "clients": 2},
        "method": "fedavg",
        "training": {"batch_size": 4, "local_steps": 1},
        "federation": {"rounds": rounds, "deadline": 120, "engine": "sequential"},
        "evaluation": {"every": rounds + 1, "diagnostics": False},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")
    return path


LABELS = ["algebra", "graphs", "internet", "models"]


def empty_seconds(going: Any, app: Path, output: Path) -> list[float]:
    """Returns the seconds of each empty round but the first."""
    said = going.call("flwr", "run", str(app), "deployment", "--run-config", f"output='{output}'", "--format", "json")
    going.wait_end(str(json.loads(said[said.index("{") :])["run-id"]), 600)
    return json.loads(output.read_text())[1:]


def our_seconds(going: Any, output: Path) -> tuple[list[float], list[float]]:
    """Returns the seconds of each of our rounds but the first, and those that the slower site worked in it."""
    logs = [going.folder / f"state-{k}/site.log" for k in range(2)]
    before = [len(log.read_text()) for log in logs]
    going.wait_end(going.run("--run-config", f"overrides='output={output}'"), 600)
    rounds = [json.loads(line)["seconds"]["round"] for line in (output / "rounds.jsonl").read_text().splitlines()]
    worked = [[float(x) for x in WORKED.findall(log.read_text()[start:])] for log, start in zip(logs, before, strict=True)]
    return rounds[1:], [max(pair) for pair in zip(*worked, strict=True)][1:]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Returns the figures of all pairs."""
    deployment = deployments.module("deployment")
    pairs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="fo-") as name:
        folder = Path(name)
        empty = folder / "empty"
        deployments.write_app(empty, "nothing", EMPTY_SERVER, EMPTY_CLIENT, {"rounds": str(args.rounds), "output": ""})
        with deployment.Deployment(folder / "sites", config_in(folder, args.rounds), 2) as going:
            for pair in range(args.pairs):

                def plain(pair: int = pair) -> list[float]:
                    return empty_seconds(going, empty, folder / f"empty-{pair}.json")

                first = plain() if pair % 2 == 0 else None
                ours, worked = our_seconds(going, folder / f"run-{pair}")
                nothing = plain() if first is None else first
                own = [a - b for a, b in zip(ours, worked, strict=True)]
                medians = {"empty": nothing, "ours": ours, "sites": worked, "overhead": own}
                found = {key: statistics.median(values) for key, values in medians.items()}
                found["overhead"] -= found["empty"]
                pairs.append(found)
    return {
        "rounds": args.rounds,
        "pairs": pairs,
        "overhead_seconds": statistics.median(pair["overhead"] for pair in pairs),
        "load": os.getloadavg()[0],
    }


def report(found: Mapping[str, Any]) -> str:
    """Returns the figures as text."""
    lines = [
        f"an empty round {p['empty']:.2f} s, ours {p['ours']:.2f} s, of which the slower site worked {p['sites']:.2f} s: "
        f"{p['overhead']:+.2f} s"
        for p in found["pairs"]
    ]
    return "\n".join([*lines, f"overhead {found['overhead_seconds']:.2f} s a round, load {found['load']:.1f}"])


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6, help="of each run; the first is not counted")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one pair of three rounds")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if missing("flwr", "flower", as_json=args.json):
        return
    if args.quick:
        args.rounds, args.pairs = 3, 1
    found = measure(args)
    print(json.dumps(found) if args.json else report(found))


if __name__ == "__main__":
    main()
