"""A run, or several side by side, as one HTML file: no script, no network, every title computed from the records.

The page takes `Run` values or a `Comparison` and reads no folder: `fedelta.runs.reports` does. Every text that comes from a
folder is escaped, by the template and by `drawing.svg.tag`, since a stranger may have made the folder. The same runs give the
same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedelta.report.cautions import cautions
from fedelta.report.compared import Compared, compared
from fedelta.report.comparison import Comparison
from fedelta.report.drawing.svg import swatch
from fedelta.report.grouping import study_of
from fedelta.report.outcome import keys_of, outcomes
from fedelta.report.page import lead, tables
from fedelta.report.page.facts import absent_of, facts_of, facts_of_suite, provenance_of, provenance_of_suite
from fedelta.report.page.sections import sections_of
from fedelta.report.page.settings import settings
from fedelta.report.study import Run, Study
from fedelta.report.summary import summary, summary_of
from fedelta.report.verdict import across, tiles, verdict

__all__ = ["Run", "page"]

FOLDER = Path(__file__).parent

NOTHING = "there is nothing to report yet: no run has finished a round"


def page(
    runs: Sequence[Run] | Comparison, *, title: str | None = None, metric: str | None = None, baseline: str | None = None
) -> str:
    """Returns the page of some runs, or of a comparison, whose metric and baseline are the suite's.

    Args:
        runs: at least one, with at least one round among them. Those that differ in their seed only are one method.
        title: of the page; says how many methods and seeds there are by default.
        metric: to compare by; accuracy, or else what was measured, by default.
        baseline: a method that the others are compared with, named before they were run; by default differences are to the
            first method, and verdicts are against the best mean.

    Raises:
        ValueError: for no run, no round, or a baseline that is not among them.
        ImportError: for several seeds without scipy, naming the extra.
    """
    if isinstance(runs, Comparison):
        return _of_comparison(runs, title or runs.name)
    if not any(run.records for run in runs):
        raise ValueError(NOTHING)
    study = study_of([run for run in runs if run.records], metric=metric, baseline=baseline)
    c = compared(study)
    finding, rest = verdict(c)
    return _render(
        c,
        title=title or _title(study),
        kind="One run" if study.one_run else "Comparison",
        chips=[] if study.one_run else [(g.key, g.style, g.label, swatch(g.style)) for g in study.groups],
        keys=[g.key for g in study.groups],
        finding=finding,
        rest=rest,
        facts=facts_of(c),
        sections=list(sections_of(c)),
        others=[],
        runs=tables.every_run(c),
        provenance=provenance_of(study.runs),
        suite="",
        absent=absent_of(c),
        data=_data({"settings": {"": summary_of(c)}}),
    )


def _of_comparison(comparison: Comparison, title: str) -> str:
    found = outcomes(comparison)
    if not found:
        raise ValueError(NOTHING)
    (shown, c), *others = found.items()
    finding, rest = verdict(c)
    if len(comparison.settings) > 1:
        finding, rest = across(found), f"In {shown}: {finding} {rest}"
    swept = settings(comparison, found)
    leads = [(name, " ".join(verdict(other)), lead.lead(other)) for name, other in others]
    runs = [run for other in found.values() for run in other.study.runs]
    return _render(
        c,
        title=title,
        kind="Comparison",
        chips=list(_chips(comparison, found)),
        keys=list(keys_of(comparison).values()),
        finding=finding,
        rest=rest,
        facts=[*facts_of_suite(comparison, shown), *facts_of(c)],
        sections=[*sections_of(c), *([swept] if swept else [])],
        others=[(name, text, table) for name, text, table in leads if table is not None],
        runs=tables.every_cell(comparison, found),
        provenance=provenance_of_suite(comparison, runs),
        suite=comparison.text,
        absent=absent_of(c),
        data=_data(summary(comparison)),
    )


def _chips(comparison: Comparison, found: Mapping[str, Compared]) -> Iterator[tuple[str, str, str, Markup]]:
    """Yields key, class of colour, label and mark of every method, also of those that have no run."""
    styles = {group.label: group.style for c in found.values() for group in c.study.groups}
    for label, key in keys_of(comparison).items():
        style = styles.get(label, "kg")
        yield key, style, label, swatch(style)


def _render(c: Compared, **parts: Any) -> str:
    """Fills the template: what differs between runs and a suite, and what is the same of both."""
    return _template().render(
        css=Markup(_css()),
        tiles=tiles(c),
        cautions=cautions(c),
        lead=lead.lead(c),
        swatch=swatch,
        common=tables.common_settings(c),
        differing=tables.differing_settings(c),
        **parts,
    )


def _data(values: Mapping[str, Any]) -> Markup:
    """Returns JSON that no text in it can end: it stands in a block of data, which does not run."""
    text = json.dumps(values, allow_nan=False, ensure_ascii=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


@cache
def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(FOLDER)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html")


@cache
def _css() -> str:
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def _title(study: Study) -> str:
    if study.one_run:
        return str(study.runs[0].config.get("name", study.runs[0].name))
    methods, seeds = len(study.groups), len(study.seeds)
    return f"{methods} method{'s' * (methods > 1)}, {seeds} seed{'s' * (seeds > 1)}"
