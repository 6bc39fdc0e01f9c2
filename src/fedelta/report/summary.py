"""Sums a comparison up as plain JSON values: what a page embeds, and what `summary.json` holds, for programs that read on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedelta.report.cautions import cautions
from fedelta.report.compared import Compared, place
from fedelta.report.comparison import Comparison
from fedelta.report.outcome import outcomes
from fedelta.report.standings import Standing, absent, standings
from fedelta.report.statistics import Interval
from fedelta.report.verdict import verdict


def summary(comparison: Comparison) -> dict[str, Any]:
    """Returns what was compared, the states of the cells, and by setting the verdict, its marks and a row for each method."""
    found = outcomes(comparison)
    return {
        "suite": comparison.name,
        "methods": dict(comparison.methods),
        "seeds": list(comparison.seeds),
        "baseline": comparison.baseline,
        "cells": _states(comparison),
        "settings": {name: summary_of(c, comparison.settings[name]) for name, c in found.items()},
    }


def _states(comparison: Comparison) -> dict[str, int]:
    counts: dict[str, int] = {}
    for cell in comparison.cells:
        counts[cell.state] = counts.get(cell.state, 0) + 1
    return counts


def summary_of(c: Compared, swept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns one setting: its verdict, its marks of honesty, and what each table says of each method."""
    finding, rest = verdict(c)
    return {
        "swept": dict(swept or {}),
        "split": c.study.part,
        "metric": c.study.metric,
        "round": None if c.study.last is None else c.study.last + 1,
        "verdict": f"{finding} {rest}".strip(),
        "marks": [{"mark": mark.head, "text": mark.text, "warning": mark.warn} for mark in cautions(c)],
        "untrained": c.untrained,
        "methods": [_row(s) for s in standings(c)],
        "without a run": [{"label": x.label, "state": x.state, "reason": x.reason} for x in absent(c)],
    }


def _row(s: Standing) -> dict[str, Any]:
    difference = s.difference
    return {
        "label": s.group.label,
        "mean": s.mean,
        "sd": s.sd,
        "seeds": {str(seed): place(run.name) for seed, run in s.group.runs.items()},
        "difference": difference.mean if difference else None,
        "interval": _bounds(s.interval),
        "bootstrap": _bounds(difference.bootstrap if difference else None),
        "p": difference.p if difference else None,
        "p_adjusted": difference.adjusted if difference else None,
        "mark": s.mark,
        "best": s.best,
        "worst_client": s.worst[0] if s.worst else None,
        "macro_f1": s.macro_f1,
        "bytes": {"up": s.up, "down": s.down},
        "seconds": s.seconds,
        "steps": s.steps,
        "rows_seen": s.rows_seen,
        "learning_rates": list(s.rates),
        "tuned": s.tuned,
        "at_edge": s.at_edge,
    }


def _bounds(interval: Interval | None) -> list[float] | None:
    return [interval.low, interval.high] if interval else None
