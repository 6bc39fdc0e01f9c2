"""A run, or several side by side, as one HTML file: no script, no network, every title computed from the records.

The page takes `Run` values and reads no folder: `fedelta.runs.reports` does. Every text that comes from a folder is escaped, by
the template and by `drawing.svg.tag`, since a stranger may have made the folder. The same runs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedelta.report import readings
from fedelta.report.cautions import cautions
from fedelta.report.compared import Compared, compared, place
from fedelta.report.comparison import Comparison
from fedelta.report.drawing.svg import swatch
from fedelta.report.grouping import study_of
from fedelta.report.numerals import listed, share
from fedelta.report.outcome import outcomes
from fedelta.report.page import curves, others, tables
from fedelta.report.page.parts import Figure, Section
from fedelta.report.study import Run, Study
from fedelta.report.verdict import tiles, verdict

__all__ = ["Run", "page"]

FOLDER = Path(__file__).parent


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
        found = outcomes(runs)
        if not found:
            raise ValueError("there is nothing to report yet: no run has finished a round")
        return _page(next(iter(found.values())), title or runs.name)
    if not any(run.records for run in runs):
        raise ValueError("there is nothing to report yet: no run has finished a round")
    study = study_of([run for run in runs if run.records], metric=metric, baseline=baseline)
    return _page(compared(study), title or _title(study))


def _page(c: Compared, title: str) -> str:
    study = c.study
    finding, rest = verdict(c)
    sections = list(_sections(c))
    return _template().render(
        css=Markup(_css()),
        title=title,
        kind="One run" if study.one_run else "Comparison",
        chips=[] if study.one_run else [(g.key, g.style, g.label, swatch(g.style)) for g in study.groups],
        keys=[g.key for g in study.groups],
        finding=finding,
        rest=rest,
        tiles=tiles(c),
        facts=_facts(c),
        cautions=cautions(c),
        lead=tables.lead(c),
        sections=sections,
        swatch=swatch,
        runs=tables.every_run(c),
        provenance=_provenance(c),
        common=tables.common_settings(c),
        differing=tables.differing_settings(c),
        absent=_absent(c),
    )


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


def _facts(c: Compared) -> list[str]:
    """Returns what was compared, in a few lines."""
    study = c.study
    first = study.groups[0].first
    federation: Mapping[str, Any] = first.config.get("federation", {})
    clients = len(first.split["clients"]) if first.split else (first.config.get("partition") or {}).get("clients")
    cohort = max((len(r["cohort"]) for r in first.records), default=0)
    found = [
        f"{len(study.runs)} runs: {len(study.groups)} methods, {c.seeds} seeds"
        if not study.one_run
        else f"method {first.method}"
    ]
    found.append(f"{clients or cohort} clients, {cohort} a round, {federation.get('rounds', len(first.records))} rounds")
    found.append(f"ranks {_ranks(first)}")
    found.append(f"split: {_split_words(first)}")
    majority = first.facts.get("majority")
    found.append(
        f"data {place((first.config.get('data') or {}).get('source'))}"
        + (f"; the commonest label has {share(majority)} of the test rows" if majority else "")
    )
    return found


def _ranks(run: Run) -> str:
    if run.split:
        ranks = sorted({int(client.get("rank", 0)) for client in run.split["clients"].values()}, reverse=True)
        return " · ".join(map(str, ranks))
    return str((run.config.get("lora") or {}).get("rank", "–"))


def _split_words(run: Run) -> str:
    partition: Mapping[str, Any] = run.config.get("partition") or {}
    if (run.config.get("data") or {}).get("clients"):
        return "a file for each client"
    settings = [f"{k} {v}" for k, v in partition.items() if k not in ("scheme", "clients", "min_examples") and v is not None]
    return ", ".join([str(partition.get("scheme", "–")), *settings])


def _sections(c: Compared) -> Iterator[Section]:
    """Returns the questions that these runs have an answer to."""
    how = [figure for figure in (curves.scores(c), curves.losses(c)) if figure]
    if how:
        yield Section("how", "How?", "How did it get there?" if c.study.one_run else "How did they get there?", "", how)
    yield Section(
        "cost", "At what cost?", "At what cost?", "", [figure for figure in (curves.against_bytes(c), _takes(c)) if figure]
    )
    large = [
        others.energy_bands(c),
        curves.higher_rank_energy(c),
        *curves.diagnostics(c, [curves.AGGREGATION_ERROR], small=False),
    ]
    maps = [others.layer_map(c, key, title, caption) for key, title, caption in _MAPS]
    small = list(curves.diagnostics(c, curves.OF_THE_UPDATE))
    why = [figure for figure in (*large, *maps) if figure]
    if why or small:
        yield Section("why", "Why?", "Why?", _WHY, why, small)
    whom = [figure for figure in (others.clients(c), others.split(c)) if figure]
    if whom:
        yield Section("whom", "For whom?", "For whom does it work?", "", whom)
    nodes = list(curves.diagnostics(c, curves.OF_NODES, small=False))
    if nodes:
        yield Section(
            "nodes", "Consensus", "Do the nodes agree?", "Without a server each node keeps a model of its own.", nodes
        )


_WHY = (
    "What aggregation does to the update: how many ranks stay in use, and whether clients pull together. "
    "These describe the update, not its use."
)

_MAPS = (
    ("effective_rank", "Effective rank by layer", "After the last round; stronger is more."),
    ("increment_overlap_B_squared", "Overlap of clients’ increments by layer", "After the last round, mean cos² of B."),
)


def _takes(c: Compared) -> Figure | None:
    found = tables.what_it_takes(c)
    if found is None:
        return None
    caption, grid = found
    return Figure("What it takes", caption, data=grid)


def _provenance(c: Compared) -> list[tuple[str, str]]:
    runs = c.study.runs
    platforms: list[Mapping[str, Any]] = [run.facts["platform"] for run in runs if run.facts.get("platform")]
    found: list[tuple[str, str]] = []
    for key in ("fedelta", "torch", "device", "threads"):
        values = sorted({str(platform[key]) for platform in platforms if key in platform})
        if values:
            found.append((key, listed(values)))
    models = sorted({place((run.config.get("model") or {}).get("name")) for run in runs})
    found.append(("model", listed(models)))
    rows = {str(sorted(run.facts["rows"].items())): run.facts["rows"] for run in runs if run.facts.get("rows")}
    if len(rows) == 1:
        found.append(("rows", ", ".join(f"{count} {part}" for part, count in next(iter(rows.values())).items())))
    found.append(("seeds", ", ".join(map(str, c.study.seeds))))
    states = [("done", sum(run.finished for run in runs)), ("unfinished", sum(not run.finished for run in runs))]
    found.append(("runs", ", ".join(f"{count} {name}" for name, count in states if count)))
    return found


def _absent(c: Compared) -> list[str]:
    """Says what is not in the page, and why."""
    study = c.study
    records = [record for run in study.runs for record in run.records]
    found: list[str] = []
    if study.part is None:
        found.append("Scores: no round was evaluated yet, or nothing to score is here.")
    clients = [run for run in study.runs if readings.clients_of(run, c.measure.metric)]
    if not clients and any(r.get("clients") for r in records):
        found.append(
            "Clients one by one: clients.jsonl is not with these runs; it was withheld, or sums up more than 1,000 clients."
        )
    elif not clients:
        found.append("Scores of clients: not measured; set data.client_test_fraction.")
    if not any(run.split for run in study.runs):
        found.append("The split of the data: split.json is not with these runs; it was withheld, or the rows are elsewhere.")
    reasons = _reasons(study)
    found += [f"{name}: {reason}." for name, reason in reasons.items()]
    if not any(r.get("diagnostics") for r in records):
        found.append("Diagnostics: not measured; set evaluation.diagnostics.")
    return found


_EXPLAINED = ("energy_by_band", "higher_rank_energy_ratio", "aggregation_error", "consensus_product_relative")


def _reasons(study: Study) -> dict[str, str]:
    """Returns why a diagnostic is in no run, as the records say."""
    found: dict[str, str] = {}
    for record in (record for run in study.runs for record in run.records):
        values: Mapping[str, Any] = record.get("diagnostics") or {}
        for name in _EXPLAINED:
            if f"{name}_reason" in values:
                found.setdefault(name, str(values[f"{name}_reason"]))
    if not any("topology" in record for run in study.runs for record in run.records):
        found.pop("consensus_product_relative", None)  # with a server nobody looks for it
    measured = {
        n for run in study.runs for r in run.records for n in _EXPLAINED if (r.get("diagnostics") or {}).get(n) is not None
    }
    return {name.replace("_", " "): reason for name, reason in found.items() if name not in measured}
