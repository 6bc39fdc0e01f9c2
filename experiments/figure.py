"""Draws how one number of the records moves over the rounds of a study: mean over seeds, and the range of the seeds as a band.

python experiments/figure.py experiments/rank_collapse/study.yaml diagnostics.higher_rank_energy_ratio --log
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # before pyplot: there may be no screen

from matplotlib import pyplot
from study import Job, Study, at

from fedelta.report.charts import COLOURS


def draw(study: Study, key: str, log: bool, to: Path) -> None:
    """One panel for each setting, one line for each variant."""
    names = list(study.settings)
    figure, panels = pyplot.subplots(1, len(names), figsize=(1 + 4.5 * len(names), 3.6), sharey=True, squeeze=False)
    for panel, setting in zip(panels[0], names, strict=True):
        for colour, variant in zip(COLOURS, study.text["variants"], strict=False):
            _line(panel, finished(study, setting, variant), key, variant, colour)
        panel.set(xlabel="round", title=setting if len(names) > 1 else "")
        panel.grid(alpha=0.25)
        if log:
            panel.set_yscale("log")
    panels[0][0].set_ylabel(key.split(".")[-1].replace("_", " "))
    panels[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(to, dpi=150)


def finished(study: Study, setting: str, variant: str) -> list[Job]:
    """The runs of a variant that are done, at its tuned value."""
    value = study.chosen(variant)
    jobs = [] if value is None else study.main(variant, value)
    return [job for job in jobs if job.setting == setting and job.done]


def _line(panel: Any, jobs: Sequence[Job], key: str, label: str, colour: str) -> None:
    series = [{r["t"]: v for r in job.folder.records() if (v := at(r, key)) is not None} for job in jobs]
    rounds = [t for t in (series[0] if series else {}) if all(t in s for s in series)]
    if not rounds:
        return
    columns = [[s[t] for s in series] for t in rounds]
    panel.plot(rounds, [statistics.fmean(c) for c in columns], color=colour, label=label)
    panel.fill_between(rounds, [min(c) for c in columns], [max(c) for c in columns], color=colour, alpha=0.2, linewidth=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("key", help="dotted, as in rounds.jsonl")
    parser.add_argument("--log", action="store_true", help="a logarithmic axis")
    arguments = parser.parse_args()
    to = arguments.study.parent / f"{arguments.key.split('.')[-1]}.png"
    draw(Study.read(arguments.study), arguments.key, arguments.log, to)
    print(to)


if __name__ == "__main__":
    main()
