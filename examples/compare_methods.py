"""Compares three methods and one of your own on a CSV file over five seeds, to a LaTeX table and a figure for a paper.

    pip install 'fedelta[compare,plots]'
    python examples/compare_methods.py

All is one command, `fedelta compare`. The script makes a CSV file and a tiny model for it, and then shows what a study of days
rests on: the comparison is killed half-way and started again, and no finished run is repeated; then the folder of all runs is
deleted, and table, figure and page are made again from the store, the same bytes, with nothing trained. With rows and a model
of your own, write their names into `CONFIG`.
"""

# Tested with:
# Needs: scipy, matplotlib

import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from tiny_bert import save_model

WORDS = {
    "billing": ["invoice", "refund", "price", "charge", "bank"],
    "delivery": ["parcel", "late", "driver", "address", "door"],
    "account": ["password", "login", "email", "profile", "locked"],
}
COMMON = ["my", "the", "please", "is", "again", "today"]

CONFIG = {
    "name": "tickets",
    "device": "cpu",
    "model": {"name": "model"},
    "data": {"source": "tickets.csv", "validation_fraction": 0.15, "test_fraction": 0.3},
    "task": {"name": "classification"},
    "partition": {"scheme": "dirichlet", "clients": 5, "concentration": 0.5, "min_examples": 4},
    "lora": {"rank": 4, "target_modules": ["query", "value", "dense"]},
    "training": {"batch_size": 8, "local_steps": 10, "learning_rate": 0.01},
    "federation": {"rounds": 8},
    "evaluation": {"every": 4, "diagnostics": False},
}
METHODS = ["fedavg", "ffa_lora", "flexlora", str(Path(__file__).with_name("my_method.py"))]
SEEDS = 5
STORE, SUITE = Path("tickets.jsonl.gz"), Path("runs/tickets-compare")
OUTPUTS = ["results.csv", "results.tex", "results.pdf", "report.html"]

FEDELTA = shutil.which("fedelta", path=str(Path(sys.executable).parent)) or "fedelta"
COMMAND = [FEDELTA, "compare", "tickets.yaml", "--methods", ",".join(METHODS)]
COMMAND += ["--seeds", str(SEEDS), "--store", str(STORE), "--jobs", "1"]


def write_inputs() -> None:
    """Writes tickets.csv, the model that reads it, and tickets.yaml."""
    draws = random.Random(0)
    with Path("tickets.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for _ in range(400):
            label = draws.choice(list(WORDS))
            other = draws.choice(list(WORDS))  # no ticket is about one thing alone
            words = draws.choices(WORDS[label], k=2) + draws.choices(WORDS[other], k=1) + draws.choices(COMMON, k=3)
            rows.writerow([" ".join(draws.sample(words, k=len(words))), label])
    save_model(Path("model"), [word for words in [*WORDS.values(), COMMON] for word in words])
    Path("tickets.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")


def finished() -> dict[Path, int]:
    """Returns, of each run that has all its rounds, when its log was last written."""
    logs = sorted(SUITE.glob("cells/*/*/seed-*/rounds.jsonl"))
    rounds = CONFIG["federation"]["rounds"]
    return {log: log.stat().st_mtime_ns for log in logs if log.read_bytes().count(b"\n") == rounds}


def kill_after(runs: int) -> dict[Path, int]:
    """Starts the comparison and kills it, with all its processes, once some runs are finished; returns these."""
    process = subprocess.Popen(COMMAND, start_new_session=True)
    while process.poll() is None and len(finished()) < runs:
        time.sleep(0.02)
    assert process.poll() is None, "the comparison ended before it was killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return finished()


def outputs() -> dict[str, bytes]:
    """Returns what came out, by name."""
    return {name: (SUITE / name).read_bytes() for name in OUTPUTS}


def main() -> None:
    write_inputs()
    before = kill_after(runs=7)
    print(f"\nkilled with {len(before)} of {len(METHODS) * SEEDS} runs finished; the same command goes on:\n")

    subprocess.run(COMMAND, check=True)
    after, found = finished(), outputs()
    assert len(after) == len(METHODS) * SEEDS
    assert all(after[log] == written for log, written in before.items()), "a finished run was run again"

    shutil.rmtree("runs")
    subprocess.run(COMMAND, check=True, stdout=subprocess.DEVNULL)
    assert not finished(), "something was trained that the store has"
    assert outputs() == found, "the store gives other tables"
    print(f"\nruns/ was deleted; {', '.join(OUTPUTS)} are made again from {STORE}, the same bytes, with nothing trained")
    print((SUITE / "results.tex").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
