"""Tables of a page: what a target takes, the time of each stage, every run or cell, and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from fedelta.report import readings
from fedelta.report.compared import Compared, mean_of, mean_total, place, unit_for
from fedelta.report.comparison import Comparison
from fedelta.report.numerals import DASH, count
from fedelta.report.outcome import keys_of
from fedelta.report.page.parts import Grid
from fedelta.report.study import Group, Run

TARGETS = tuple(share / 10 for share in range(9, 0, -1))


def what_it_takes(c: Compared) -> tuple[str, Grid] | None:
    """Returns a caption and the cost of each method: bytes, time, and rounds and bytes to a target score."""
    groups = [g for g in c.ranked() if readings.runs_of(c.study, g)]
    if not groups:
        return None
    target = _target(c, groups)
    factor, unit = unit_for([mean_total(c.study, g, way) for g in groups for way in ("up", "down")])
    head = ["method", f"up, {unit}", f"down, {unit}", "s a round", "steps", "rows seen"]
    text = f"{c.measure.with_unit(target)}" if target is not None else ""
    head += [f"rounds to {text}", f"{unit} to {text}", "seeds there"] if target is not None else []
    rows = [_taken(c, g, target, factor) for g in groups]
    caption = "Means over seeds; seconds are of this machine." if c.seeds > 1 else "Seconds are of this machine."
    if target is not None:
        caption += f" Target: {text}, the last ten-percent line that most methods’ means pass; read off evaluated rounds only."
    return caption, Grid(head, rows, keys=[g.key for g in groups], styles=[g.style for g in groups])


def _target(c: Compared, groups: Sequence[Group]) -> float | None:
    if c.measure.factor == 1.0 or c.study.part is None:
        return None
    majority = c.study.groups[0].first.facts.get("majority") or 0.0
    ends = [mean for g in groups if (mean := c.mean(g.key)) is not None]
    passed = [t for t in TARGETS if t > majority and 2 * sum(end >= t for end in ends) > len(ends)]
    return passed[0] if passed else None


def _taken(c: Compared, group: Group, target: float | None, factor: int) -> list[str]:
    runs = readings.runs_of(c.study, group)
    ways = [f"{mean_total(c.study, group, way) / factor:.1f}" for way in ("up", "down")]
    pace = fmean(readings.seconds(run) / len(run.records) for run in runs)
    row = [group.label, *ways, f"{pace:.2f}" if pace < 10 else f"{pace:.0f}"]
    row += [count(mean_of(readings.steps, runs)), count(mean_of(readings.rows_seen, runs))]
    if target is None:
        return row
    there = [(t, readings.sent(run)[t]) for run in runs if (t := _first_at(c, run, target)) is not None]
    if not there:
        return [*row, DASH, DASH, f"0 of {len(group.runs)}"]
    middle, sent = fmean(t + 1 for t, _ in there), fmean(b for _, b in there)
    return [*row, f"{middle:.0f}", f"{sent / factor:.1f}", f"{len(there)} of {len(group.runs)}"]


def _first_at(c: Compared, run: Run, target: float) -> int | None:
    return next((t for t, x in run.scores(str(c.study.part), c.measure.metric).items() if x >= target), None)


STAGES = ("train", "aggregate", "diagnostics", "evaluation", "save")


def by_stage(c: Compared) -> Grid | None:
    """Returns the seconds of each stage of a run and the peak of memory; None where no record has any beyond the round."""
    groups = [g for g in c.ranked() if readings.runs_of(c.study, g)]
    times = {g.key: [_stage(c, g, stage) for stage in STAGES] for g in groups}
    peaks = {name: [_peak(c, g, of) for g in groups] for name, of in (("memory", "peak"), ("GPU", "cuda"))}
    peaks = {name: found for name, found in peaks.items() if any(found)}
    shown = [k for k in range(len(STAGES)) if any(row[k] is not None for row in times.values())]
    if not peaks and all(STAGES[k] == "evaluation" for k in shown):
        return None
    factor, unit = unit_for([peak for found in peaks.values() for peak in found if peak is not None])
    head = ["method", *(STAGES[k] for k in shown), *(f"{name}, {unit}" for name in peaks)]
    rows: list[list[str]] = []
    for row, g in enumerate(groups):
        seconds = [f"{x:.1f}" if (x := times[g.key][k]) is not None else DASH for k in shown]
        memory = [f"{x / factor:.1f}" if (x := found[row]) is not None else DASH for found in peaks.values()]
        rows.append([g.label, *seconds, *memory])
    return Grid(head, rows, keys=[g.key for g in groups], styles=[g.style for g in groups])


def _peak(c: Compared, group: Group, of: str) -> float | None:
    return mean_of(lambda run: readings.peak_memory(run, of), readings.runs_of(c.study, group))


def _stage(c: Compared, group: Group, stage: str) -> float | None:
    return mean_of(lambda run: readings.seconds_of(run, stage), readings.runs_of(c.study, group))


def every_run(c: Compared) -> Grid:
    """Returns every run with its state, score and bytes."""
    factor, unit = unit_for([readings.total(run) for run in c.study.runs])
    rows: list[list[str]] = []
    for group in c.study.groups:
        for seed, run in group.runs.items():
            state = "diverged" if run.diverged else "done" if run.finished else "unfinished"
            score = c.measure.text(c.study.score(run)) if c.study.metric else DASH
            sent = f"{readings.total(run) / factor:.1f}"
            rows.append([place(run.name), group.label, str(seed), f"{len(run.records)} of {run.rounds}", state, score, sent])
    keys = [group.key for group in c.study.groups for _ in group.runs]
    return Grid(["run", "method", "seed", "rounds", "state", c.measure.name or "score", f"sent, {unit}"], rows, keys=keys)


def every_cell(comparison: Comparison, found: Mapping[str, Compared]) -> Grid:
    """Returns every cell of a suite with its state, and the error's first line or the claim where it has no run."""
    several = len(comparison.settings) > 1
    measure = next(iter(found.values())).measure
    keys = keys_of(comparison)
    rows: list[list[str]] = []
    for cell in comparison.cells:
        c = found.get(cell.setting)
        score = c.measure.text(c.study.score(cell.run)) if c is not None and cell.run is not None and cell.run.records else DASH
        state = "diverged" if cell.run is not None and cell.run.diverged else cell.state
        why = f"{state}: {cell.reason}" if cell.reason else state
        name = [cell.setting] if several else []
        rows.append([cell.label, *name, str(cell.seed), why, score, cell.commit or DASH, cell.digest[:12] or DASH])
    head = ["method", *(["setting"] if several else []), "seed", "state", measure.name or "score", "commit", "config"]
    without = frozenset(i for i, cell in enumerate(comparison.cells) if cell.run is None)
    return Grid(head, rows, keys=[keys[cell.label] for cell in comparison.cells], faded=without)


def common_settings(c: Compared) -> Grid:
    """Returns the settings that all runs share."""
    settings = [run.settings for run in c.study.runs]
    shared = {k: v for k, v in settings[0].items() if all(k in s and s[k] == v for s in settings)}
    return Grid(["key", "value"], [[key, place(value)] for key, value in sorted(shared.items())])


def differing_settings(c: Compared) -> Grid | None:
    """Returns the settings in which the methods differ; None where they differ in none."""
    if not c.study.differing:
        return None
    head = ["key", *(group.label for group in c.study.groups)]
    return Grid(head, [[key, *(place(v) for v in values)] for key, values in sorted(c.study.differing.items())])
