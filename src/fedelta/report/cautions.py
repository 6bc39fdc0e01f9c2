"""Computes the marks of honesty: what a reader must know before believing the verdict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from fedelta.report import readings, statistics
from fedelta.report.compared import Compared
from fedelta.report.comparison import Tuned
from fedelta.report.numerals import listed, share, two_digits
from fedelta.report.standings import best_and_last
from fedelta.report.study import Group

MUCH = 0.02
"""A change of a share that is worth a mark: 2 percentage points."""

FEW_ROWS = 20
"""Test rows of a client below which its score is mostly chance."""

AMBER_BELOW = 5
"""Seeds below which their number is a warning."""


@dataclass(frozen=True)
class Caution:
    """A mark of honesty: a few words in bold and what they mean; `warn` is amber."""

    head: str
    text: str
    warn: bool = True


def cautions(c: Compared) -> list[Caution]:
    """Returns the marks that are on, warnings first."""
    found = [*_seeds(c), *_states(c), *_curves(c), *_rows(c), *_settings(c), *_machines(c)]
    return sorted(found, key=lambda mark: not mark.warn)


def _seeds(c: Compared) -> Iterator[Caution]:
    study, n = c.study, c.seeds
    if study.one_run or study.unlike:
        return
    if n == 1:
        yield Caution("n = 1", "nothing tells a difference from chance")
        return
    width = statistics.separable(c.table, study.baseline.key) if study.baseline.key in c.table else None
    if width is not None:
        about = f"{two_digits(width * c.measure.factor)} {c.measure.difference_unit}".strip()
        yield Caution(f"n = {n}", f"separates only differences above about {about}", n < AMBER_BELOW)
    behind = {group.label for group in study.groups if c.against_best.get(group.key, "") in ("", "not separated")}
    level = {label: seeds for label, seeds in c.seeds_to_separate().items() if label in behind}
    if level:
        texts = [f"{label} {seeds or f'more than {statistics.MOST_SEEDS}'}" for label, seeds in level.items()]
        yield Caution("more seeds", f"would separate from the best mean, roughly: {listed(texts)}", False)
    if n < statistics.FEWEST:
        yield Caution("95 % t-intervals", f"of differences paired by seed; no verdicts below {statistics.FEWEST} seeds", False)
        return
    against = f"{study.baseline.label} (Holm)" if study.named else "the best mean (studentised range, seeds as blocks)"
    yield Caution("95 % t-intervals", f"of differences paired by seed; marks against {against}", False)


def _states(c: Compared) -> Iterator[Caution]:
    study = c.study
    diverged = [run.name for run in study.runs if run.diverged]
    if diverged:
        known = study.metric == "accuracy" and all(run.facts.get("majority") for run in study.runs if run.diverged)
        counted = "counted as the share of the commonest label" if known and not study.one_run else "left without a score"
        yield Caution("diverged", f"{listed(diverged)}: {counted}")
    at_once = [run.name for run in study.runs if run.diverged_at_once]
    if at_once:
        yield Caution("diverged in the first round", f"{listed(at_once)}: check the method, or the learning rate")
    yield from _cells(c)
    open_ones = [run for run in study.runs if not run.finished]
    if open_ones:
        texts = [f"{run.name} ends after round {len(run.records)} of {run.rounds}" for run in open_ones]
        yield Caution("unfinished", listed(texts))
    known = {(cell.label, cell.seed) for cell in (c.suite.cells if c.suite else ()) if cell.state != "done"}
    lacking = {
        group.label: [seed for seed in study.missing(group) if (group.label, seed) not in known] for group in study.groups
    }
    missing = {label: seeds for label, seeds in lacking.items() if seeds}
    if missing and study.last is not None and not study.one_run:
        texts = [f"{label} lacks seed {listed([str(seed) for seed in seeds])}" for label, seeds in missing.items()]
        yield Caution("empty cells", listed(texts))
    if study.part == "validation":
        yield Caution("no test rows", "scored on the rows that chose")
    elif study.part == "test" and not any(r.get("validation") for run in study.runs for r in run.records):
        yield Caution("no validation rows", "nothing chose a round: there is no best one, and every score is of the last")
    if any(run.facts.get("personal") for run in study.runs):
        yield Caution("personal models", "scores are the mean over the participants’ own models", False)


def _cells(c: Compared) -> Iterator[Caution]:
    """Yields the marks of a suite's cells: failed, running or missing, refused by a claim, and run by other code."""
    cells = c.suite.cells if c.suite else ()
    failed = [
        f"{cell.label} seed {cell.seed}" + (f" ({cell.reason})" if cell.reason else "")
        for cell in cells
        if cell.state == "failed"
    ]
    if failed:
        yield Caution("failed", listed(failed))
    waiting = {state: sum(cell.state == state for cell in cells) for state in ("running", "missing")}
    if any(waiting.values()):
        texts = [f"{count} {state}" for state, count in waiting.items() if count]
        yield Caution("not all cells", f"{listed(texts)} of {len(cells)}")
    refused = list(dict.fromkeys(cell.label for cell in cells if cell.state == "not applicable"))
    if refused:
        yield Caution("not applicable", f"{listed(refused)}: the table says why", False)
    of_runs = {str(run.facts.get("commit") or "") for run in c.study.runs}
    commits = sorted(({cell.commit for cell in cells} if cells else of_runs) - {""})
    if len(commits) > 1:
        yield Caution("several commits", f"cells were run by the code of {listed(commits)}")
    changed = [commit for commit in commits if commit.endswith("+")]
    if changed:
        yield Caution("local changes", f"the code of {listed(changed)} was changed after the commit")


def _curves(c: Compared) -> Iterator[Caution]:
    study = c.study
    if study.part is None or study.metric is None:
        return
    rising = [group.label for group in study.groups if _still_rising(c, group)]
    if rising:
        yield Caution("still rising", f"{listed(rising)} gained more than 2 pp between the last two evaluations")
    apart = [group.label for group in study.groups if _best_is_not_last(c, group)]
    if apart:
        yield Caution("best is not last", f"the best round of {listed(apart)} by validation differs from the last by over 2 pp")
    majority = study.groups[0].first.facts.get("majority")
    if majority and study.metric == "accuracy":
        under = [g.label for g in study.groups if (mean := c.mean(g.key)) is not None and mean < majority]
        if under:
            yield Caution("below the commonest label", f"{listed(under)}: a constant answer scores {share(majority)}")


def _still_rising(c: Compared, group: Group) -> bool:
    if c.measure.factor == 1.0:  # points are of shares
        return False
    study = c.study
    points = readings.series(readings.runs_of(study, group), readings.at(str(study.part), str(study.metric)))
    return len(points) > 1 and statistics.exceeds(points[-1].mean - points[-2].mean, MUCH)


def _best_is_not_last(c: Compared, group: Group) -> bool:
    if c.measure.factor == 1.0:
        return False
    pairs = best_and_last(c, group)
    return bool(pairs) and statistics.exceeds(abs(fmean(best for best, _ in pairs) - fmean(last for _, last in pairs)), MUCH)


def _rows(c: Compared) -> Iterator[Caution]:
    counts = [
        int(client.get("test_rows", 0))
        for run in c.study.runs
        if run.split is not None
        for client in run.split["clients"].values()
    ]
    tested = [count for count in counts if count]
    if tested and min(tested) < FEW_ROWS:
        yield Caution("few rows a client", f"a client is tested on {min(tested)} to {max(tested)} rows")


def _settings(c: Compared) -> Iterator[Caution]:
    study = c.study
    if study.one_run:
        return
    if len(study.groups) > 1:
        yield from _tuning(c)
    tuned = {key for found in (c.suite.tuned if c.suite else {}).values() for key in found.values}
    differing = [key for key in study.differing if not key.startswith("method.") and key not in tuned]
    if differing:
        yield Caution("settings differ", f"beside the method also {listed(differing)}")
    if _changes(c, "partition") and not _dealt_alike(c):
        yield Caution("the partition changes with the seed", "a client’s number is another client in each run", False)
    carved = any(not (run.config.get("data") or {}).get("test") for run in study.runs)
    if carved and _changes(c, "data"):
        yield Caution("test rows change with the seed", "the sd over seeds contains the sampling of rows", False)


def _changes(c: Compared, drawn: str) -> bool:
    """Returns whether what a seed draws differs between the runs of a method."""
    return any(len({run.seed_of(drawn) for run in group.runs.values()}) > 1 for group in c.study.groups)


def _dealt_alike(c: Compared) -> bool:
    """Returns whether a field names each row's client in all runs, and no client differs: no seed draws who has what then."""
    schemes = {(run.config.get("partition") or {}).get("scheme") for run in c.study.runs}
    counts = [
        {k: (client["rows"], client.get("labels")) for k, client in run.split["clients"].items()}
        for run in c.study.runs
        if run.split is not None
    ]
    return schemes == {"natural"} and len(counts) == len(c.study.runs) and all(dealt == counts[0] for dealt in counts)


def _tuning(c: Compared) -> Iterator[Caution]:
    tuned = c.suite.tuned if c.suite else {}
    left = [group.label for group in c.study.groups if group.label not in tuned]
    if not tuned:
        yield Caution("not tuned", "learning rates are those of the configs")
    elif left:
        yield Caution("not tuned", f"{listed(left)}: values are those of the config")
    edges = [f"{label} ({_values(found)})" for label, found in tuned.items() if found.at_edge]
    if edges:
        yield Caution("at the edge of the grid", f"{listed(edges)}: the best value is the smallest or largest tried")


def _values(found: Tuned) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in found.values.items())


def _machines(c: Compared) -> Iterator[Caution]:
    busy = [run.name for run in c.study.runs if readings.was_busy(run)]
    if busy:
        yield Caution("busy machine", f"{len(busy)} of {len(c.study.runs)} runs had more load than cores: do not compare times")
    platforms = {str(sorted(run.facts["platform"].items())) for run in c.study.runs if run.facts.get("platform")}
    if len(platforms) > 1:
        yield Caution("other platform", "the runs differ in versions, device or threads: do not compare times")
