"""Figures that are no lines: maps by layer, the strip of clients, and the split of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from fedelta.report import readings
from fedelta.report.compared import Compared, competitors
from fedelta.report.drawing.lines import NARROW, WIDE
from fedelta.report.drawing.rows import Bar, Dots, bars, strip
from fedelta.report.drawing.svg import swatch, tag
from fedelta.report.numerals import DASH, significant
from fedelta.report.page.parts import Figure, Grid
from fedelta.report.study import Group, Run

MOST_LAYERS = 24
"""Rows of a map by layer; more layers are put together by module."""

MOST_COLUMNS = 5
"""Methods for which half the page has room in a map by layer."""

MOST_LABELS = 12
"""Labels that have a colour; of more, the eleven largest do, and the rest is `other`."""

LEFT_BEHIND = 0.4
"""A score of the worst client below which it counts as left behind."""

STEPS = 9

# --- maps by layer ---------------------------------------------------------------------------------------------------


def layer_map(c: Compared, key: str, title: str, caption: str) -> Figure | None:
    """Returns a table of layers by methods whose cells are darker the larger the value; None where nothing was measured."""
    columns = {group: found for group in c.study.groups if (found := _by_layer(c, group, key))}
    layers = list(dict.fromkeys(layer for found in columns.values() for layer in found))
    if not layers:
        return None
    grouped = len(layers) > MOST_LAYERS
    table = {
        group.key: _by_module(found) if grouped else {k: [x] for k, x in found.items()} for group, found in columns.items()
    }
    names = list(dict.fromkeys(name for found in table.values() for name in found))
    values = [fmean(x) for found in table.values() for x in found.values()]
    low, high = min(values), max(values)
    heads = [tag("th", swatch(g.style), g.label, scope="col", data_m=g.key, class_=g.style) for g in columns]
    body = [
        tag("tr", tag("th", _short(name), scope="row", title=name), *_cells(table, name, low, high)) for name in names[:200]
    ]
    whole = tag("table", tag("thead", tag("tr", tag("td"), *heads)), tag("tbody", *body), class_="heat")
    more = " Layers are put together by module; the title of a cell has each." if grouped else ""
    seeds = " Mean of the seeds." if c.seeds > 1 else ""
    return Figure(title, caption + seeds + more, body=tag("div", whole, class_="scroll"), whole=len(columns) > MOST_COLUMNS)


def _by_layer(c: Compared, group: Group, key: str) -> dict[str, float]:
    """Returns a number of each layer in the last round that has a table, mean over seeds."""
    found: dict[str, list[float]] = {}
    for run in readings.runs_of(c.study, group):
        tables = ((r.get("diagnostics") or {}).get("layers") for r in reversed(run.records))
        table: Mapping[str, Any] = next((t for t in tables if isinstance(t, dict) and t), {})
        columns = [table.get(name) for name in ("layer", key)]
        if not all(isinstance(column, list) for column in columns):
            continue
        for layer, value in zip(*columns, strict=False):
            if readings.is_number(value):
                found.setdefault(str(layer), []).append(float(value))
    return {layer: fmean(values) for layer, values in found.items()}


def _by_module(layers: Mapping[str, float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for layer, value in layers.items():
        found.setdefault(layer.rsplit(".", 1)[-1], []).append(value)
    return found


def _cells(table: Mapping[str, Mapping[str, Sequence[float]]], name: str, low: float, high: float) -> list[Markup]:
    cells: list[Markup] = []
    for key, found in table.items():
        if name not in found:
            cells.append(tag("td", DASH, data_m=key))
            continue
        value = fmean(found[name])
        step = min(STEPS - 1, int((value - low) / (high - low) * STEPS)) if high > low else 0
        each = ", ".join(significant(x) for x in found[name]) if len(found[name]) > 1 else None
        cells.append(tag("td", significant(value), class_=f"h{step}", data_m=key, title=each))
    return cells


def _short(layer: str) -> str:
    """Returns a layer's number and module for the margin: `layer 0 · query`."""
    parts = layer.split(".")
    number = next((part for part in parts if part.isdigit()), None)
    return " · ".join([f"layer {number}", parts[-1]]) if number else ".".join(parts[-2:])


# --- clients ---------------------------------------------------------------------------------------------------------


def clients(c: Compared) -> Figure | None:
    """Draws each client's score on its own rows; None where there are no scores of single clients."""
    m = c.measure
    rows = [row for group in c.study.groups if (row := _dots(c, group)) is not None]
    if not rows:
        return None
    worsts = {row.label: fmean(_worst_of(c, run) for run in _scored(c, c.group(row.key))) for row in rows}
    pick = min if m.lower_is_better else max
    kindest = pick([row.label for row in competitors(rows)], key=lambda label: worsts[label])
    if len(competitors(rows)) == 1:
        title = f"The worst client scores {m.with_unit(worsts[kindest])}"
    elif m.factor != 1.0 and all(worsts[row.label] < LEFT_BEHIND for row in competitors(rows)):
        title = "Some clients are left behind whatever the method"
    else:
        title = f"{kindest} treats its worst client best"
    several = "; one dot a client and seed" if c.seeds > 1 else ", one dot a client"
    caption = (
        f"{m.name.capitalize()} on each client’s own held-out rows after the last evaluated round{several}, the bar their mean."
    )
    text = f"{m.name} on own rows" + (f", {m.unit}" if m.unit else "")
    data = Grid(
        ["method", "clients", "mean", "worst"], [_summary(c, row, worsts) for row in rows], keys=[row.key for row in rows]
    )
    label = f"{title}. The numbers are in the table under the chart."
    return Figure(
        title, caption, strip(rows, text, m.factor, WIDE, label), strip(rows, text, m.factor, NARROW, label), data=data
    )


def _scored(c: Compared, group: Group) -> list[Run]:
    return [run for run in readings.runs_of(c.study, group) if readings.clients_of(run, c.measure.metric)]


def _worst_of(c: Compared, run: Run) -> float:
    found = readings.clients_of(run, c.measure.metric) or {}
    return max(found.values()) if c.measure.lower_is_better else min(found.values())


def _dots(c: Compared, group: Group) -> Dots | None:
    values: list[tuple[float, str]] = []
    for run in _scored(c, group):
        seed = f", seed {run.seed}" if c.seeds > 1 else ""
        scores = readings.clients_of(run, c.measure.metric) or {}
        values += [(value, f"{readings.called(run, k)}{seed}: {c.measure.with_unit(value)}") for k, value in scores.items()]
    if not values:
        return None
    pick = max if c.measure.lower_is_better else min
    worst = pick(values, key=lambda pair: pair[0])[1]
    return Dots(group.key, group.style, group.label, values, fmean(value for value, _ in values), f"worst: {worst}")


def _summary(c: Compared, row: Dots, worsts: Mapping[str, float]) -> list[str]:
    return [row.label, str(len(row.values)), c.measure.text(row.mean), c.measure.text(worsts[row.label])]


def split(c: Compared) -> Figure | None:
    """Draws the training rows of each client by label, of the first run that has them."""
    run = next((run for run in c.study.runs if run.split is not None), None)
    if run is None or run.split is None or not run.split["clients"]:
        return None
    found: Mapping[str, Any] = run.split["clients"]
    styles = _label_styles(found)
    drawn = [_bar(readings.called(run, k), client, styles) for k, client in found.items()]
    sizes = [int(client["rows"]) for client in found.values()]
    fold = f"{max(sizes) / min(sizes):.0f}-fold" if min(sizes) else "without bound"
    skew = skew_of([client.get("labels") or {} for client in found.values()])
    word = "weakly" if skew is None or skew < 0.2 else "moderately" if skew < 0.4 else "strongly"
    title = f"Sizes differ {fold}" if max(sizes) > min(sizes) else "All clients have as many rows"
    title += "" if skew is None else f"; labels are {word} skewed"
    distance = (
        ""
        if skew is None
        else f" Mean distance from all clients’ labels together: {skew:.2f} (total variation; 0 = alike, 1 = disjoint)."
    )
    caption = (
        f"Training rows by client{' and label' if skew is not None else ''}, seed {run.seed}; r is the client’s rank.{distance}"
    )
    legend = [tag("span", tag("i", class_=style), name) for name, style in styles.items()]
    body = tag("p", *legend, class_="bleg") if skew is not None else Markup("")
    label = f"{title}. The numbers are in the table under the chart."
    wide, narrow = (bars(drawn, size, "training rows", label) for size in (WIDE, NARROW))
    shifted = " Each client’s images are shifted, synthetically: the table says how." if _is_shifted(found) else ""
    return Figure(title, caption + shifted, wide, narrow, body=body, data=_sizes(drawn, found))


def _is_shifted(clients: Mapping[str, Any]) -> bool:
    return any("feature_shift" in client for client in clients.values())


def _sizes(drawn: Sequence[Bar], clients: Mapping[str, Any]) -> Grid:
    """Returns the table under the split: rows, held-out rows and, where there is one, the synthetic shift of each client."""
    columns = ["client", "training rows", "held out"]
    rows = [
        [bar.name, str(bar.total), str(client.get("test_rows", DASH))]
        for bar, client in zip(drawn, clients.values(), strict=True)
    ]
    if _is_shifted(clients):
        columns.append("shift (synthetic)")
        for row, client in zip(rows, clients.values(), strict=True):
            row.append(str(client.get("feature_shift", DASH)))
    return Grid(columns, rows[:200])


def _bar(called: str, client: Mapping[str, Any], styles: Mapping[str, str]) -> Bar:
    name = f"{called} · r {client.get('rank', DASH)}"
    labels: Mapping[str, int] = client.get("labels") or {"": int(client["rows"])}
    parts: dict[str, int] = dict.fromkeys(styles, 0)
    for label, count in labels.items():
        into = label if label in styles else "other" if "other" in styles else next(iter(styles))
        parts[into] += int(count)
    return Bar(name, [(styles[label], count, f"{name}: {label} {count}") for label, count in parts.items() if count])


def _label_styles(clients: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Gives the commonest labels a colour each."""
    totals: dict[str, int] = {}
    for client in clients.values():
        for label, count in (client.get("labels") or {}).items():
            totals[label] = totals.get(label, 0) + int(count)
    ordered = sorted(totals, key=lambda label: (-totals[label], label))
    if len(ordered) > MOST_LABELS:
        ordered = [*ordered[: MOST_LABELS - 1], "other"]
    return {label: f"c{i}" for i, label in enumerate(ordered)} or {"rows": "c0"}


def skew_of(clients: Sequence[Mapping[str, int]]) -> float | None:
    """Returns the mean total variation between a client's labels and those of all together; None without labels.

    0 means that all clients are alike, 1 that no two share a label.
    """
    total: dict[str, int] = {}
    for labels in clients:
        for label, count in labels.items():
            total[label] = total.get(label, 0) + count
    everything = sum(total.values())
    held = [labels for labels in clients if sum(labels.values())]
    if not held:
        return None
    return fmean(
        sum(abs(labels.get(k, 0) / sum(labels.values()) - total[k] / everything) for k in total) / 2 for labels in held
    )
