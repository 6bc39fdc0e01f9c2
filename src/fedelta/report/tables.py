"""Makes tables for the terminal from records and plain rows; computes nothing that they hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fedelta.report.words import Record, duration, main_metric, number, size, total_bytes, total_seconds


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> Table:
    """Returns a table whose first `left` columns are text and whose others are figures."""
    table = Table(title=title, title_justify="left", caption_justify="left", header_style="bold", box=None, pad_edge=False)
    for k, column in enumerate(columns):
        table.add_column(column, justify="left" if k < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def split_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lists each client's share, from the rows of `fedelta.split.view.partition_table` with the client's "rank"."""
    lines = [
        [str(row["client"]), str(row["rank"]), str(row["examples"]), number(row["distance"], 2), _commonest(row)]
        for row in rows
    ]
    table = _table("Split of the training rows", ["client", "rank", "examples", "distance", "commonest labels"], lines)
    table.columns[-1].justify = "left"
    table.caption = "distance: total variation from the labels of all clients together"
    return table


def _commonest(row: Mapping[str, Any], count: int = 3) -> str:
    held = sorted(((n, label) for label, n in row["labels"].items() if n), key=lambda x: -x[0])
    shown = [f"{label} {n / row['examples']:.0%}" for n, label in held[:count]]
    return ", ".join(shown + (["…"] if len(held) > count else []))


def methods_table(methods: Sequence[Mapping[str, Any]]) -> Table:
    """Lists the methods: name, source, ranks, and what travels."""
    rows = [(m["name"], m["paper"], "yes" if m["hetero_rank"] else "no", m["travels"]) for m in methods]
    return _table("Methods", ["name", "source", "unequal ranks", "what travels"], rows, left=4)


def laws_table(report: Mapping[str, Any]) -> Table:
    """Returns one subject's verdicts, law by law, from `fedelta.testing.Report.as_dict`."""
    rows = [(v["law"], v["outcome"], v["detail"] or v["statement"]) for v in report["verdicts"]]
    return _table(f"Laws of {report['subject']}", ["law", "", "why, or what it says"], rows, left=3)


def reports_table(reports: Mapping[str, Mapping[str, Any]]) -> Table:
    """Counts the verdicts on many methods or tasks, and says in words what is broken."""
    rows: list[tuple[str, ...]] = []
    for name, report in reports.items():
        found = [v["outcome"] for v in report["verdicts"]]
        broken = "; ".join(f"{v['law']}: {v['detail']}" for v in report["verdicts"] if v["outcome"] == "broken")
        counts = [str(found.count(outcome)) for outcome in ("kept", "exempt", "not asked", "broken")]
        rows.append((name, broken or "all kept", *counts, number(report["seconds"], 1)))
    return _table("Laws", ["name", "broken", "kept", "exempt", "not asked", "broken", "seconds"], rows, left=2)


def summary(records: Sequence[Record], *, majority: float | None, folder: Path, best: int | None = None) -> RenderableType:
    """Sums a run up: the last metrics, the majority line, bytes, time, and where the files are.

    Args:
        records: of all rounds.
        majority: share of the commonest label on the test rows; None where a task has no labels.
        folder: the run's.
        best: the round that was best on validation data.
    """
    metric = main_metric(records)
    scored = [r for r in records if r.get("test") or r.get("validation")]
    rows: list[tuple[str, str]] = [("rounds", str(len(records)))]
    if scored:
        rows += _scores(scored[-1], str(metric))
    if majority is not None and metric == "accuracy":
        rows.append(("majority class", number(majority)))
    if best is not None:
        rows.append(("best round by validation", str(best)))
    rows += [("sent", size(total_bytes(records))), ("time", duration(sum(map(total_seconds, records))))]
    table = _table("Result", ["", ""], rows, left=1)
    table.show_header = False
    return Group(table, Text(f"\nadapters, log and picture: {folder}", style="dim"))


def _scores(last: Record, metric: str) -> list[tuple[str, str]]:
    rows = [(f"{part} {metric}", number(last[part].get(metric))) for part in ("test", "validation") if last.get(part)]
    if spread := last.get("clients", {}).get(metric):
        rows.append((f"clients' {metric}", f"mean {number(spread['mean'])}, worst {number(spread['worst'])}"))
    return rows


def scores_table(name: str, scores: Mapping[str, float]) -> Table:
    """Lists the metrics of one adapter, and the number of examples."""
    rows = [(metric, str(value) if metric == "examples" else number(value)) for metric, value in scores.items()]
    return _table(name, ["metric", "value"], rows)


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
    table = _table("Plan, without training", ["", ""], rows)
    table.show_header = False
    table.caption = "activations are not in the memory figures: they depend on batch size and length"
    return table


def spectra_table(name: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    """Shows one adapter layer by layer, from the facts of `fedelta.adapters.inspection.describe`."""

    def row(x: Mapping[str, Any]) -> list[str]:
        ranks = [number(x["effective_rank"], 2), number(x["stable_rank"], 2)]
        return [str(x["layer"]), str(x["rank"]), f"{x['scale']:g}", f"{x['norm']:.3g}", *ranks, _leading(x["spectrum"])]

    rows = [row(x) for x in layers]
    return _table(name, ["layer", "rank", "scale", "‖dW‖", "effective rank", "stable rank", "largest singular values"], rows)


def _leading(spectrum: Sequence[float], count: int = 4) -> str:
    return " ".join(f"{s:.3g}" for s in spectrum[:count]) + (" …" if len(spectrum) > count else "")


def overlap_table(pair: str, layers: Sequence[Mapping[str, Any]]) -> Table:
    """Compares two adapters layer by layer, from the facts of `fedelta.adapters.inspection.compare`."""

    def angles(x: Mapping[str, Any]) -> list[str]:
        return [number(x["overlap"], 3), number(x["smallest"], 1), number(x["largest"], 1)]

    rows = [[str(x["layer"]), number(x["cosine"], 3), *angles(x["A"]), *angles(x["B"])] for x in layers]
    columns = ["layer", "cosine", "A overlap", "min°", "max°", "B overlap", "min°", "max°"]
    table = _table(pair, columns, rows)
    table.caption = "overlap: mean squared cosine of the principal angles, 1 for one subspace inside the other"
    return table
