"""Runs a study: several methods in several settings over several seeds, each at its own tuned learning rate.

    python experiments/study.py experiments/rank_collapse/study.yaml            # runs what is missing, then writes the tables
    python experiments/study.py experiments/rank_collapse/study.yaml --table    # only the tables of what is there
    python experiments/study.py experiments/decentralised/study.yaml --table diagnostics.cross_term_norm

A study file has

    base       the config that all runs share
    settings   by name, overrides (a circumstance: a graph, a skew); may be left out
    variants   by name, overrides (what is compared), and perhaps `tune`, a grid of its own
    reference  the variant that the others are compared with, run by run
    seeds      of the runs
    tune       key, values, setting and seed: each variant's value is the one that is best by validation there, and is then
               used in every setting and for every seed

Each run is a folder of its own under runs/<study>; one that was stopped is taken up, one that is done is not repeated. Several
of these processes may work on one study at the same time.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from scipy import stats

from fedelta.runs.config import load_config
from fedelta.runs.evaluation import is_better
from fedelta.runs.folder import RunFolder
from fedelta.runs.runner import rounds


@dataclass(frozen=True)
class Study:
    """What a study file says."""

    path: Path
    text: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Study:
        return cls(path, yaml.safe_load(path.read_text(encoding="utf-8")))

    @property
    def folder(self) -> Path:
        return Path("runs") / self.path.parent.name

    @property
    def settings(self) -> Mapping[str, Mapping[str, Any]]:
        return self.text.get("settings") or {"all": {}}

    @property
    def metric(self) -> str:
        return self.text["base"].get("evaluation", {}).get("best_by", "accuracy")

    @property
    def tuning_setting(self) -> str:
        return self.text["tune"].get("setting", next(iter(self.settings)))

    def tuning(self, variant: str) -> list[Job]:
        """The runs of which the best gives a variant its value."""
        tune = self.text["tune"]
        values = self.text["variants"][variant].get("tune", tune["values"])
        return [Job(self, self.tuning_setting, variant, tune["seed"], value) for value in values]

    def main(self, variant: str, value: float) -> list[Job]:
        """The runs that are compared."""
        return [Job(self, setting, variant, seed, value) for seed in self.text["seeds"] for setting in self.settings]

    def chosen(self, variant: str) -> float | None:
        """The tuned value of a variant; None while its runs are not done."""
        jobs = self.tuning(variant)
        if not all(job.done for job in jobs):
            return None
        best = jobs[0]
        for job in jobs[1:]:
            if is_better(job.validation, best.validation, self.metric):
                best = job
        return best.value


@dataclass(frozen=True)
class Job:
    """One run of a study."""

    study: Study
    setting: str
    variant: str
    seed: int
    value: float

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.study.folder / self.setting / self.variant / f"{self.value:g}" / f"seed-{self.seed}")

    @property
    def overrides(self) -> dict[str, Any]:
        changes = {k: v for k, v in self.study.text["variants"][self.variant].items() if k != "tune"}
        own = {self.study.text["tune"]["key"]: self.value, "seed": self.seed, "output": str(self.folder.path)}
        return {**self.study.settings[self.setting], **changes, **own}

    @property
    def done(self) -> bool:
        return (self.folder.path / "done").is_file()

    @property
    def validation(self) -> float:
        return self.folder.records()[-1]["validation"][self.study.metric]

    def final(self, key: str) -> float:
        """The number under a dotted key of the last record."""
        found = at(self.folder.records()[-1], key)
        assert found is not None, f"{self.folder.path} has no {key}"
        return found

    def run(self) -> None:
        """Runs it to its end, from its last checkpoint if there is one."""
        began = time.perf_counter()
        if self.folder.config_file.is_file():
            played = rounds(resume=self.folder.path)
        else:
            played = rounds(load_config(self.study.text["base"], self.overrides))
        for _ in played:
            pass
        (self.folder.path / "done").write_text(f"{time.perf_counter() - began:.0f} s\n", encoding="utf-8")

    @contextmanager
    def claim(self) -> Iterator[bool]:
        """Whether this process has the run for itself; the claim ends with the process."""
        lock = self.folder.path.with_suffix(".lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True


def work(study: Study) -> None:
    """Runs whatever is missing and not in the hands of another process, until nothing is."""
    while missing := _missing(study):
        if not any(_try(job) for job in missing):
            time.sleep(10)


def _missing(study: Study) -> list[Job]:
    """What can be run now: tuning first, since the rest waits for it."""
    chosen = {v: study.chosen(v) for v in study.text["variants"]}
    tuning = [job for v, value in chosen.items() if value is None for job in study.tuning(v)]
    main = [job for v, value in chosen.items() if value is not None for job in study.main(v, value)]
    main.sort(key=lambda job: study.text["seeds"].index(job.seed))  # a study that is cut short has whole seeds
    return [job for job in tuning + main if not job.done]


def _try(job: Job) -> bool:
    with job.claim() as mine:
        if not mine or job.done:
            return False
        print(f"{time.strftime('%H:%M:%S')} {job.folder.path}", flush=True)
        job.run()
        return True


def at(record: Any, key: str) -> float | None:
    """The number under a dotted key; None where there is none."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def tables(study: Study, key: str) -> str:
    """Every finished run into a CSV file; the summary of one number as Markdown."""
    variants = study.text["variants"]
    chosen = {v: value for v in variants if (value := study.chosen(v)) is not None}
    jobs = [job for v, value in chosen.items() for job in study.main(v, value) if job.done]
    with (study.folder / f"{key.split('.')[-1]}.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["setting", "variant", study.text["tune"]["key"], "seed", "validation", key, "bytes"])
        rows.writerows([j.setting, j.variant, j.value, j.seed, j.validation, j.final(key), _bytes(j)] for j in jobs)
    return "\n".join(line for setting in study.settings for line in _table(study, setting, chosen, jobs, key))


def _table(study: Study, setting: str, chosen: Mapping[str, float], jobs: Sequence[Job], key: str) -> Iterator[str]:
    reference = study.text["reference"]
    scores = {v: {j.seed: j.final(key) for j in jobs if (j.setting, j.variant) == (setting, v)} for v in chosen}
    yield f"\n{setting}: {key}, mean and standard deviation over seeds; difference to {reference} by seed,"
    yield "with its 95% t-interval\n"
    yield f"| variant | {study.text['tune']['key']} | seeds | mean | difference | MiB sent |"
    yield "|---|---|---|---|---|---|"
    for v, found in scores.items():
        if not found:
            continue
        sent = statistics.fmean(_bytes(j) for j in jobs if (j.setting, j.variant) == (setting, v))
        paired = [score - scores[reference][seed] for seed, score in found.items() if seed in scores.get(reference, {})]
        difference = "reference" if v == reference else interval(paired)
        yield f"| {v} | {chosen[v]:g} | {len(found)} | {spread(list(found.values()))} | {difference} | {sent / 2**20:.1f} |"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.fmean(values):.4f} ± {statistics.stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


def interval(differences: Sequence[float]) -> str:
    """The mean difference and its 95% t-interval."""
    if len(differences) < 2:
        return "–"
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.fmean(differences):+.4f} ± {half:.4f}"


def _bytes(job: Job) -> int:
    return sum(sum(record["bytes"].values()) for record in job.folder.records())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("--table", nargs="?", const="", metavar="KEY", help="write the tables of what is there, run nothing")
    arguments = parser.parse_args()
    study = Study.read(arguments.study)
    if arguments.table is None:
        with suppress(KeyboardInterrupt):
            work(study)
    print(tables(study, arguments.table or f"test.{study.metric}"))


if __name__ == "__main__":
    main()
