"""Writes the tables of a comparison for a paper: LaTeX with booktabs, every name escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from fedelta.report.compared import Compared, unit_for
from fedelta.report.comparison import Comparison
from fedelta.report.numerals import DASH, MINUS, NO_BREAK, count
from fedelta.report.outcome import outcomes
from fedelta.report.settings import by_setting
from fedelta.report.standings import Absent, Standing, absent, shows_macro_f1, standings
from fedelta.report.statistics import FEWEST

ESCAPES = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    MINUS: "$-$",
    DASH: "--",
    NO_BREAK: "~",
    "\n": " ",
}


DAGGER = r"$^\dagger$"
"""Marks a score in which a run that diverged counts as a constant answer would."""


def latex(comparison: Comparison) -> str:
    """Returns results.tex: a table for each setting, and before them one of methods by settings where there are several.

    Bold are the best mean and all that these seeds cannot tell from it.
    """
    found = outcomes(comparison)
    tables = ["% needs \\usepackage{booktabs}"]
    if len(found) > 1:
        tables.append(_by_settings(comparison, found))
    tables += [_of_setting(comparison, name, c) for name, c in found.items() if c.study.last is not None]
    return "\n\n".join(tables) + "\n"


def escaped(text: str) -> str:
    """Returns a text in which no sign means anything to LaTeX."""
    shown = "".join(ESCAPES.get(sign, sign) for sign in text)
    # After the end of a row these two would be arguments of it.
    return f"{{{shown[0]}}}{shown[1:]}" if shown.startswith(("[", "*")) else shown


def _table(alignment: str, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{{alignment}}}",
        r"\toprule",
        *_rows([head]),
        r"\midrule",
        *_rows(rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _rows(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in rows:
        yield " & ".join(row) + r" \\"


def _reference(*names: str) -> str:
    """Returns the label of a table: letters, digits and hyphens only."""
    return "tab:" + "-".join("".join(x if x.isascii() and x.isalnum() else "-" for x in name) for name in names if name)


# --- one setting -----------------------------------------------------------------------------------------------------


def _of_setting(comparison: Comparison, name: str, c: Compared) -> str:
    rows = standings(c)
    factor, unit = unit_for([s.sent for s in rows])
    macro = shows_macro_f1(c)
    head = ["Method", _with_unit(c.measure.name.capitalize(), c.measure.unit), "Difference"]
    head += [*(["Macro-F1"] if macro else []), f"Sent, {unit}", "Steps", "Rows seen", "$n$"]
    lines = [_method(c, s, factor, macro=macro) for s in rows]
    lines += [_missing(x, len(head)) for x in absent(c)]
    return _table("l" + "r" * (len(head) - 1), head, lines, _caption(c, name), _reference(comparison.name, name))


def _with_unit(name: str, unit: str) -> str:
    return escaped(f"{name}, {unit}" if unit else name)


def _method(c: Compared, s: Standing, factor: int, *, macro: bool) -> list[str]:
    m = c.measure
    score = m.text(s.mean) + (f" ± {m.text(s.sd)}" if s.sd is not None else "")
    return [
        escaped(s.group.label),
        _cell(score, s.bold, s.group.label in _diverged(c)),
        escaped(_difference(c, s)),
        *([escaped(m.text(s.macro_f1))] if macro else []),
        f"{s.sent / factor:.1f}",
        escaped(count(s.steps)),
        escaped(count(s.rows_seen)),
        str(s.seeds),
    ]


def _difference(c: Compared, s: Standing) -> str:
    if s.is_baseline:
        return "baseline"
    if s.difference is None or s.difference.mean is None:
        return DASH
    interval = f" [{c.measure.difference(s.interval.low)}, {c.measure.difference(s.interval.high)}]" if s.interval else ""
    mark = f" ({s.mark})" if c.study.named and s.mark in ("ahead", "behind") else ""
    return f"{c.measure.difference(s.difference.mean)}{interval}{mark}"


def _missing(x: Absent, width: int) -> list[str]:
    reason = escaped(f"{x.state}: {x.reason}" if x.reason else x.state)
    # A claim's sentence is longer than a line.
    return [escaped(x.label), rf"\multicolumn{{{width - 1}}}{{p{{0.7\linewidth}}}}{{\small\raggedright {reason}}}"]


def _diverged(c: Compared) -> set[str]:
    """Returns the labels of methods of which a run diverged."""
    return {group.label for group in c.study.groups if any(run.diverged for run in group.runs.values())}


def _caption(c: Compared, name: str) -> str:
    return escaped(_told(c, name)) + _of_daggers([c])


def _of_daggers(settings: Iterable[Compared]) -> str:
    """Returns the sentence that explains the marks of runs that diverged; nothing where there are none."""
    if not any(map(_diverged, settings)):
        return ""
    return f" {DAGGER}: some run diverged, and counts as the share of the commonest label where that is known."


def _told(c: Compared, name: str) -> str:
    m, where = c.measure, f"{name}: " if name else ""
    score = f"{where}{c.study.part} {m.name} after round {(c.study.last or 0) + 1}"
    if c.seeds == 1:
        return f"{score}, one seed: a difference may be chance."
    paired = f"Differences to {c.study.baseline.label}, {m.difference_unit or m.name}, paired by seed, with 95 % t-intervals."
    if c.seeds < FEWEST:
        return f"{score}, mean ± sd of {c.seeds} seeds. {paired}"
    marks = " Ahead and behind: paired t-tests with Holm's correction, 5 %." if c.study.named else ""
    bold = "Bold: the best mean and all that these seeds cannot tell from it (studentised range, seeds as blocks, 5 %)."
    return f"{score}, mean ± sd of {c.seeds} seeds. {paired}{marks} {bold}"


# --- several settings ------------------------------------------------------------------------------------------------


def _by_settings(comparison: Comparison, found: Mapping[str, Compared]) -> str:
    table = by_setting(comparison, found)
    head = ["Method", *(escaped(name) for name in found)]
    lost = {name: _diverged(c) for name, c in found.items()}

    def cells(label: str) -> list[str]:
        texts = {name: table.texts[label].get(name, DASH) for name in found}
        return [_cell(text, name in table.bold[label], label in lost[name]) for name, text in texts.items()]

    rows = [[escaped(label), *cells(label)] for label in table.labels]
    first = next(iter(found.values()))
    caption = escaped(f"{comparison.name}: {first.study.part} {first.measure.name}, {first.measure.unit or 'mean'}, mean ± sd.")
    caption += " Bold: the best mean of a setting and all that its seeds cannot tell from it." + _of_daggers(found.values())
    return _table("l" + "r" * len(found), head, rows, caption, _reference(comparison.name, "settings"))


def _cell(text: str, bold: bool, diverged: bool) -> str:
    return (rf"\textbf{{{escaped(text)}}}" if bold else escaped(text)) + (DAGGER if diverged else "")
