"""A comparison as files and text: tables for a program, a paper and a terminal, the picture and the page. Reads no folder."""

from __future__ import annotations

import json
from importlib.util import find_spec

from fedelta.report.comparison import Comparison
from fedelta.report.outcome import studies_of
from fedelta.report.page import page
from fedelta.report.results.latex import latex
from fedelta.report.results.picture import figure
from fedelta.report.results.rows import results_csv, rounds_csv, tidy_rows
from fedelta.report.results.screen import terminal_table
from fedelta.report.summary import summary

__all__ = ["figure", "files", "latex", "results_csv", "rounds_csv", "summary", "terminal_table", "tidy_rows"]


def files(comparison: Comparison, *, rounds: bool = False, picture: bool = True) -> dict[str, bytes]:
    """Returns the files of a comparison by name; the same comparison gives the same bytes.

    `results.csv` and `summary.json` always; `results.tex` and `report.html` once a run has finished a round, `results.pdf` and
    `results.png` once one was evaluated, if matplotlib is there.

    Args:
        comparison: cells that are not done are rows without a value.
        rounds: whether `rounds.csv` is among them: every number of every round.
        picture: whether the picture is, which takes a second or two.

    Raises:
        ImportError: for several seeds without scipy, naming the extra.
    """
    found = {"results.csv": results_csv(comparison), "summary.json": _json(summary(comparison))}
    if rounds:
        found["rounds.csv"] = rounds_csv(comparison)
    studies = studies_of(comparison)
    if studies:
        found |= {"results.tex": latex(comparison), "report.html": page(comparison)}
    written = {name: text.encode() for name, text in found.items()}
    if picture and find_spec("matplotlib") and any(study.last is not None for study in studies.values()):
        written |= {"results.pdf": figure(comparison, "pdf"), "results.png": figure(comparison, "png")}
    return written


def _json(value: object) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1) + "\n"
