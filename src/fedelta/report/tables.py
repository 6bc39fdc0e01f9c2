"""Makes tables for the terminal from records and plain rows; computes nothing that they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from fedelta.report.words import LINES, Record, duration, folded, main_metric, number, percent, size, total_bytes, total_seconds

NARROWEST = 12
"""Characters in the column of layers below which it is not made narrower."""

MOST_LAYERS = 40
"""Layers of a merged adapter that are all listed; of more, half as many that are farthest from the mean."""

WIDE = 100
"""Columns of a terminal from which four singular values of a layer are shown, and not two."""


def plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """Returns a table whose first `left` columns are text and whose others are figures; no bracket in it is markup."""
    table = _empty(title)
    for k, column in enumerate(columns):
        is_text = k < left
        table.add_column(column, justify="left" if is_text else "right", overflow="fold", no_wrap=not is_text)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _empty(title: str) -> Table:
    return Table(
        title=escape(title), title_justify="left", caption_justify="left", header_style="bold", box=None, pad_edge=False
    )


class _Folded:
    """A name that is folded where its column is too narrow."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(folded(self.name, options.max_width))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(len(self.name), NARROWEST), len(self.name))


def _layer_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Returns a table of layers: what does not fit is taken from their names, and no figure is broken."""
    table = _empty(title)
    table.add_column("layer", vertical="bottom")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, *figures in rows:
        table.add_row(_Folded(name), *figures)
    return table


def methods_table(methods: Sequence[Mapping[str, Any]]) -> Table:
    """Lists the methods: name, source, ranks, and what travels."""
    rows = [(m["name"], m["paper"], "yes" if m["hetero_rank"] else "no", m["travels"]) for m in methods]
    return plain_table("Methods", ["name", "source", "unequal\nranks", "what travels"], rows, left=4)


def laws_table(report: Mapping[str, Any]) -> Table:
    """Returns one subject's verdicts, law by law, from `fedelta.testing.Report.as_dict`."""
    rows = [(v["law"], v["outcome"], v["detail"] or v["statement"]) for v in report["verdicts"]]
    return plain_table(f"Laws of {report['subject']}", ["law", "", "why, or what it says"], rows, left=3)


def reports_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """Counts the verdicts on many methods or tasks, and says in words what is broken."""
    rows: list[tuple[str, ...]] = []
    for name, report in reports.items():
        found = [v["outcome"] for v in report["verdicts"]]
        broken = "; ".join(f"{v['law']}: {v['detail']}" for v in report["verdicts"] if v["outcome"] == "broken")
        counts = [str(found.count(outcome)) for outcome in ("kept", "exempt", "not asked", "broken")]
        rows.append((name, broken or "all kept", *counts, number(report["seconds"], 1)))
    return plain_table("Laws", ["name", "broken", "kept", "exempt", "not asked", "broken", "seconds"], rows, left=2)


def summary(
    records: Sequence[Record],
    *,
    majority: float | None,
    folder: Path,
    best: int | None = None,
    lines: Mapping[str, Any] | None = None,
    page: Path | None = None,
) -> RenderableType:
    """Sums a run up: the last metrics, the majority line, bytes, time, and where the files are.

    Args:
        records: of all rounds.
        majority: share of the commonest label on the test rows; None where a task has no labels.
        folder: the run's.
        best: the round that was best on validation data; counted from 0, as all rounds in the terminal and in the log.
        lines: known ones to compare with, as `run.json` has them.
        page: the report, where there is one.
    """
    metric = main_metric(records)
    scored = [r for r in records if r.get("test") or r.get("validation")]
    rows: list[tuple[str, str]] = [("rounds", str(len(records)))]
    if scored:
        rows += _scores(scored[-1], str(metric))
    if majority is not None and metric == "accuracy":
        rows.append(("majority class", number(majority)))
    rows += _known_lines(lines or {}, str(metric))
    if best is not None:
        rows.append(("best round by validation", f"{best}, from 0"))
    rows += [("sent", size(total_bytes(records))), ("time", duration(sum(map(total_seconds, records))))]
    table = plain_table("Result", ["", ""], rows, left=1)
    table.show_header = False
    made = [f"lines to compare with: {lines['command']} at {lines['commit']}"] if lines else []
    places = [f"\nadapters, log and picture: {folder}", *([f"page to open: {page}"] if page else [])]
    return Group(table, *(Text(line, style="dim") for line in [*made, *places]))


def _known_lines(lines: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    """Returns the test scores of the known lines to compare with."""
    scores = {name: parts.get("test", {}) for name, parts in lines.get("scores", {}).items()}
    return [(words, number(scores[name][metric])) for name, words in LINES.items() if metric in scores.get(name, {})]


def _scores(last: Record, metric: str) -> list[tuple[str, str]]:
    rows = [(f"{part} {metric}", number(last[part].get(metric))) for part in ("test", "validation") if last.get(part)]
    if spread := last.get("clients", {}).get(metric):
        rows.append((f"clients' {metric}", f"mean {number(spread['mean'])}, worst {number(spread['worst'])}"))
    return rows


def scores_table(name: str, scores: Mapping[str, float]) -> RenderableType:
    """Lists the metrics of one adapter, and the number of examples."""
    rows = [(metric, str(value) if metric == "examples" else number(value)) for metric, value in scores.items()]
    # As its title the name would be broken at the width of the table.
    return Group(Text(name), plain_table("", ["metric", "value"], rows))


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Lists what a run would cost; `fedelta.runs.plan.Plan` says what the entries mean."""
    bytes_, memory = plan["bytes"], plan["memory"]
    rows = [
        ("clients (a cohort)", f"{plan['clients']} ({plan['cohort']})"),
        ("rounds", str(plan["rounds"])),
        ("optimiser steps, all clients and rounds", str(plan["steps"])),
        ("trained numbers of the largest client", f"{plan['trained']:,}"),
        *((f"first round, {way}", size(bytes_["first round"][way])) for way in ("down", "up")),
        *((f"later round, {way}", size(bytes_["later round"][way])) for way in ("down", "up")),
        ("sent in all", size(bytes_["total"])),
        *((f"memory: {name}", size(value)) for name, value in memory.items()),
    ]
    table = plain_table("Plan, without training", ["", ""], rows)
    table.show_header = False
    table.caption = "activations are not in the memory figures: they depend on batch size and length"
    return table


def spectra_table(name: str, layers: Sequence[Mapping[str, Any]], width: int) -> Table:
    """Shows one adapter layer by layer.

    Args:
        name: of the adapter.
        layers: from `fedelta.adapters.inspection.describe`.
        width: of the terminal.
    """
    count = 4 if width >= WIDE else 2

    def row(x: Mapping[str, Any]) -> list[str]:
        ranks = [number(x["effective_rank"], 2), number(x["stable_rank"], 2)]
        return [str(x["layer"]), str(x["rank"]), f"{x['scale']:g}", f"{x['norm']:.3g}", *ranks, _leading(x["spectrum"], count)]

    columns = ["rank", "scale", "‖dW‖", "effective\nrank", "stable\nrank", "largest\nsingular values"]
    return _layer_table(name, columns, [row(x) for x in layers])


def _leading(spectrum: Sequence[float], count: int) -> str:
    return " ".join(f"{s:.3g}" for s in spectrum[:count]) + (" …" if len(spectrum) > count else "")


def overlap_table(pair: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    """Compares two adapters layer by layer, from the facts of `fedelta.adapters.inspection.compare`."""

    def angles(x: Mapping[str, Any]) -> list[str]:
        return [number(x["overlap"], 3), number(x["smallest"], 1), number(x["largest"], 1)]

    rows = [[str(x["layer"]), number(x["cosine"], 3), *angles(x["A"]), *angles(x["B"])] for x in layers]
    table = _layer_table(pair, ["cosine", "A\noverlap", "\nmin°", "\nmax°", "B\noverlap", "\nmin°", "\nmax°"], rows)
    table.caption = "overlap: mean squared cosine of the principal angles, 1 for one subspace inside the other"
    return table


def suite_plan_table(
    rows: Sequence[Mapping[str, Any]], seconds: float, jobs: int, seeds: Mapping[str, Mapping[str, int | None]]
) -> RenderableType:
    """Lists what the cells of a suite would cost.

    Args:
        rows: one for each setting and method, as `fedelta.runs.suite.estimate.Row` has them.
        seconds: that all open cells would take; 0.0 while none is finished.
        jobs: cells at a time.
        seeds: by setting and method, how many would separate it from the best mean; None for more than 100.
    """
    lines = [_plan_row(row) for row in rows]
    columns = ["setting", "method", "cells", "done", "tuning", "steps", "bytes", "memory"]
    served = [row for row in rows if not row["refused"]]
    runs = sum(row["cells"] + row["tuning"] for row in served)
    sent = sum((row["cells"] + row["tuning"]) * row["bytes"] for row in served)
    memory = max((row["memory"] for row in served), default=0)
    took = f"about {duration(seconds)} are left" if seconds else "time unknown until a cell is finished"
    said = f"{runs} runs, {size(sent)} on the wire, {jobs} at a time of up to {size(memory)} without activations; {took}"
    refused = [Text(f"not applicable: {row['setting']} {row['label']}: {row['refused']}") for row in rows if row["refused"]]
    more = [Text(_more_seeds(setting, needed)) for setting, needed in seeds.items() if needed]
    return Group(plain_table("What one cell costs", columns, lines, left=2), Text(said), *refused, *more)


def _plan_row(row: Mapping[str, Any]) -> list[str]:
    if row["refused"]:
        return [row["setting"], row["label"], *["–"] * 6]
    counts = [str(row[key]) for key in ("cells", "done", "tuning")]
    costs = [str(row["steps"]), size(row["bytes"]), size(row["memory"])] if row["memory"] else ["–"] * 3
    return [row["setting"], row["label"], *counts, *costs]


def _more_seeds(setting: str, needed: Mapping[str, int | None]) -> str:
    each = ", ".join(f"{label} {'more than 100' if count is None else count}" for label, count in needed.items())
    return f"seeds that would separate it from the best mean, roughly{f', in {setting}' if setting else ''}: {each}"


def fidelity_table(name: str, facts: Mapping[str, Any]) -> Table:
    """Shows how near a merged adapter is to the exact mean, from `fedelta.adapters.fidelity.fidelity`."""
    layers: Sequence[Mapping[str, Any]] = facts["layers"]
    shown = layers if len(layers) <= MOST_LAYERS else sorted(layers, key=lambda x: -(x["distance"] or 0))[: MOST_LAYERS // 2]

    def row(label: str, rank: str, x: Mapping[str, Any]) -> list[str]:
        return [label, rank, *(percent(x[key]) for key in ("energy", "distance", "least"))]

    rows = [row(str(x["layer"]), str(x["rank"]), x) for x in shown]
    rows.append(row(f"all {len(layers)} layers", "", facts))
    table = _layer_table(name, ["rank", "energy\nkept", "distance to\nthe exact mean", "least at\nthis rank"], rows)
    table.caption = "energy: the squared norm, in shares of the exact mean's; distances: in shares of its norm"
    if len(shown) < len(layers):
        table.caption += f". The {len(shown)} layers farthest from it are shown, all by --json"
    return table
