"""Writes a comparison for a terminal: table with a forest plot in text, the verdict, the marks of honesty, and the paths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from fedelta.report.cautions import cautions
from fedelta.report.compared import Compared, unit_for
from fedelta.report.comparison import Comparison
from fedelta.report.drawing.rows import ForestRow, forest_axis
from fedelta.report.drawing.svg import Axis, tick_text
from fedelta.report.numerals import DASH, count
from fedelta.report.outcome import outcomes
from fedelta.report.settings import BySetting, by_setting, settings_line
from fedelta.report.standings import Standing, absent, interval_of, shows_macro_f1, standings
from fedelta.report.verdict import across, verdict

NARROWEST = 40
FOREST = 24
LONGEST_NAME = 24

SIGNS = {"k0": "●", "k1": "■", "k2": "▲", "k3": "◆", "k4": "▼", "kr": "+", "kg": "·"}
"""The mark of each class of colour, as on the page."""

COLOURS = {
    "k0": "#0072b2",
    "k1": "#c04f00",
    "k2": "#007f5c",
    "k3": "#a8478a",
    "k4": "#8f6a00",
    "kr": "dim",
    "kg": "default",
}


@dataclass(frozen=True)
class Column:
    """A column: its head, a text a row, and whether it may go where there is no room."""

    head: str
    cells: Sequence[str]
    optional: bool = True
    left: bool = False

    @property
    def width(self) -> int:
        """Returns the cells of a terminal that it takes."""
        return max(cell_len(text) for text in (self.head, *self.cells))


def terminal_table(comparison: Comparison, width: int = 100, *, paths: Sequence[str] = ()) -> Text:
    """Returns the whole text, in colour where the console has any; its `plain` is the text alone.

    Args:
        comparison: cells that are not done are said to be missing.
        width: of the terminal; optional columns go from the right until the others fit.
        paths: of the files that were written, for the last line.
    """
    width = max(width, NARROWEST)
    found = outcomes(comparison)
    lines: list[Text] = []
    if not found:
        lines.append(Text(f"{comparison.name}: no run has finished a round yet"))
    elif len(comparison.settings) == 1:
        lines += _one_setting(comparison.name, next(iter(found.values())), width)
    else:
        lines += _several(comparison, found, width)
    lines += [Text(), Text("   ".join(paths))] if paths else []
    return Text("\n").join(lines)


def _one_setting(name: str, c: Compared, width: int) -> Iterator[Text]:
    yield Text(_title(name, c), style="bold")
    if c.study.last is not None:
        yield from _table(c, width)
    yield Text()
    finding, rest = verdict(c)
    yield Text.assemble((finding, "bold"), " ", rest)
    yield Text(_marks(c), style="dim")


def _title(name: str, c: Compared) -> str:
    m = c.measure
    if c.study.last is None:
        return name
    unit = f", {m.unit}" if m.unit else ""
    title = f"{name}: {c.study.part} {m.name} after round {c.study.last + 1}{unit}"
    if len(c.study.groups) < 2:
        return title
    paired = ", paired by seed" if c.seeds > 1 else ""
    unit = f", {m.difference_unit}" if m.difference_unit else ""
    return f"{title}; differences to {c.study.baseline.label}{unit}{paired}"


def _marks(c: Compared) -> str:
    """Returns the marks that are on, shortly: those with a number in full, of the others what they name."""
    return " · ".join(f"{mark.head}: {mark.text}" for mark in cautions(c) if mark.warn or mark.head.startswith("n = "))


def _table(c: Compared, width: int) -> Iterator[Text]:
    rows = standings(c)
    columns = _fitting(_columns(c, rows), width)
    styles = [COLOURS[s.group.style] for s in rows]
    if c.untrained is not None:
        styles.append("dim")
    yield _line(columns, [column.head for column in columns], "bold")
    for i, style in enumerate(styles):
        yield _line(columns, [column.cells[i] for column in columns], style)
    for x in absent(c):
        reason = f": {x.reason}" if x.reason else ""
        yield Text(f"  {x.label}  {x.state}{reason}", style="dim")


def _line(columns: Sequence[Column], texts: Sequence[str], style: str) -> Text:
    """Returns a line whose first column and forest have the method's colour."""
    line = Text()
    for k, (column, text) in enumerate(zip(columns, texts, strict=True)):
        room = " " * (column.width - cell_len(text))
        shown = text + room if column.left else room + text
        line.append(shown if k == 0 else f"  {shown}", style=style if column.left or style == "bold" else "")
    line.rstrip()
    return line


def _fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Returns the columns less the last optional ones, until they fit."""
    kept = list(columns)
    while sum(column.width + 2 for column in kept) - 2 > width and any(column.optional for column in kept):
        kept.remove(next(column for column in reversed(kept) if column.optional))
    return kept


def _columns(c: Compared, rows: Sequence[Standing]) -> list[Column]:
    m = c.measure
    factor, unit = unit_for([s.sent for s in rows])
    several = c.seeds > 1
    extra = 0 if c.untrained is None else 1
    names = [f"{SIGNS[s.group.style]} {_short(s.group.label)}" for s in rows] + ["  untrained"] * extra
    scores = [f"{m.text(s.mean)} ± {m.text(s.sd)}" if s.sd is not None else m.text(s.mean) for s in rows]
    scores += [m.text(c.untrained)] * extra

    def figures(head: str, texts: Sequence[str]) -> Column:
        return Column(head, [*texts, *[DASH] * extra])

    return [
        Column("method", names, optional=False, left=True),
        Column("mean ± sd" if several else "score", scores, optional=False),
        Column("diff.", [_difference(c, s) for s in rows] + [""] * extra, optional=False),
        *([Column("95 % interval", [_bounds(c, s) for s in rows] + [""] * extra, optional=False)] if several else []),
        *([_forest(c, rows, extra)] if len(rows) > 1 and c.differences else []),
        figures("best", [m.text(s.best) for s in rows]),
        figures("worst", [m.text(s.worst[0]) if s.worst else DASH for s in rows]),
        *([figures("macro-F1", [m.text(s.macro_f1) for s in rows])] if shows_macro_f1(c) else []),
        figures(unit, [f"{s.sent / factor:.1f}" for s in rows]),
        figures("n", [str(s.seeds) for s in rows]),
        figures("rate", [s.rate + ("*" if s.at_edge else "") for s in rows]),
        figures("steps", [count(s.steps) for s in rows]),
        figures("rows seen", [count(s.rows_seen) for s in rows]),
        figures("s", [f"{s.seconds:.0f}" for s in rows]),
    ]


def _short(label: str) -> str:
    return label if cell_len(label) <= LONGEST_NAME else set_cell_size(label, LONGEST_NAME - 1) + "…"


def _difference(c: Compared, s: Standing) -> str:
    return DASH if s.is_baseline or s.difference is None else c.measure.difference(s.difference.mean)


def _bounds(c: Compared, s: Standing) -> str:
    return "baseline" if s.is_baseline else c.measure.bounds(s.interval) or DASH


# --- the forest ------------------------------------------------------------------------------------------------------


def _forest(c: Compared, rows: Sequence[Standing], extra: int) -> Column:
    drawn = [interval_of(c, s) for s in rows]
    whole = forest_axis([row for row in drawn if row is not None])
    axis = Axis(whole.low, whole.high, 0, FOREST - 1, whole.ticks)
    texts = [_forest_row(row, axis, SIGNS[s.group.style]) for row, s in zip(drawn, rows, strict=True)]
    return Column(_forest_head(axis), [*texts, *[""] * extra], left=True)


def _forest_head(axis: Axis) -> str:
    """Writes the ticks at their places, less those that would touch another."""
    cells = [" "] * FOREST
    for tick in axis.ticks:
        text = tick_text(tick, axis.ticks)
        start = min(max(0, round(axis.at(tick)) - len(text) // 2), FOREST - len(text))
        around = cells[max(0, start - 1) : start + len(text) + 1]
        if all(cell == " " for cell in around):
            cells[start : start + len(text)] = list(text)
    return "".join(cells)


def _forest_row(row: ForestRow | None, axis: Axis, sign: str) -> str:
    if row is None:
        return ""
    cells = [" "] * FOREST
    zero = round(axis.at(0.0))
    cells[zero] = "│"
    if row.bounds is not None:
        low, high = (round(axis.at(x)) for x in row.bounds)
        cells[low : high + 1] = ["─"] * (high + 1 - low)
        cells[zero] = "┼" if low < zero < high else cells[zero]
        cells[low] = "◄" if row.bounds[0] < axis.low else "├"
        cells[high] = "►" if row.bounds[1] > axis.high else "┤"
    cells[round(axis.at(row.mean))] = sign
    return "".join(cells)


# --- several settings ------------------------------------------------------------------------------------------------


def _several(comparison: Comparison, found: dict[str, Compared], width: int) -> Iterator[Text]:
    """Yields a table of methods by settings, in blocks that fit, and a verdict for each setting."""
    first = next(iter(found.values()))
    yield Text(f"{comparison.name}: {settings_line(first)}; * best mean, or not separated from it", style="bold")
    table = by_setting(comparison, found)
    names = Column("method", [_named(first, found, label) for label in table.labels], optional=False, left=True)
    columns = [
        Column(_short(name), [_marked(table, label, name) for label in table.labels], optional=False)
        for name in comparison.settings
    ]
    for block in _blocks(columns, width - names.width):
        yield _line([names, *block], [column.head for column in (names, *block)], "bold")
        for i in range(len(table.labels)):
            yield _line([names, *block], [column.cells[i] for column in (names, *block)], "")
        yield Text()
    yield Text(across(found), style="bold")
    for name, c in found.items():
        finding, rest = verdict(c)
        yield Text.assemble((f"{name}: ", "bold"), f"{finding} {rest}")
        yield Text(f"  {_marks(c)}", style="dim")


def _marked(table: BySetting, label: str, name: str) -> str:
    return table.texts[label].get(name, DASH) + ("*" if name in table.bold[label] else "")


def _named(first: Compared, found: dict[str, Compared], label: str) -> str:
    groups = [group for c in found.values() for group in c.study.groups if group.label == label]
    return f"{SIGNS[groups[0].style] if groups else ' '} {_short(label)}"


def _blocks(columns: Sequence[Column], width: int) -> Iterator[list[Column]]:
    block: list[Column] = []
    for column in columns:
        if block and sum(c.width + 2 for c in (*block, column)) > width:
            yield block
            block = []
        block.append(column)
    yield block
