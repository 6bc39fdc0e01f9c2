"""Says what was compared, what exactly was run, and what is not in a page, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from fedelta.report import readings
from fedelta.report.compared import Compared, place
from fedelta.report.comparison import Comparison
from fedelta.report.numerals import listed, share
from fedelta.report.study import Run, Study


def facts_of(c: Compared) -> list[str]:
    """Returns what was compared, in a few lines."""
    study = c.study
    first = study.groups[0].first
    cohort = max((len(r["cohort"]) for r in first.records), default=0)
    found = [
        f"{len(study.runs)} runs: {len(study.groups)} methods, {c.seeds} seeds"
        if not study.one_run
        else f"method {first.method}"
    ]
    found.append(f"{_clients(first) or cohort} clients, {cohort} a round, {first.rounds} rounds")
    found.append(f"ranks {_ranks(first)}")
    found.append(f"split: {_split_words(first)}")
    if release := first.facts.get("release"):  # other weights than the model's name means elsewhere
        found.append(f"model {place((first.config.get('model') or {}).get('name'))} ({release})")
    majority = first.facts.get("majority")
    found.append(
        f"data {_data_words(first)}" + (f"; the commonest label has {share(majority)} of the test rows" if majority else "")
    )
    if lines := first.facts.get("lines") if study.one_run else None:
        found.append(f"lines to compare with: {lines['command']} at {lines['commit']}, with the same rows and settings")
    return found


def facts_of_suite(comparison: Comparison, shown: str) -> list[str]:
    """Returns the suite's cells by state, and which of several settings the sections before the last show."""
    states: dict[str, int] = {}
    for cell in comparison.cells:
        states[cell.state] = states.get(cell.state, 0) + 1
    found = [f"{len(comparison.cells)} cells: {', '.join(f'{count} {state}' for state, count in states.items())}"]
    if len(comparison.settings) > 1:
        found.append(f"{len(comparison.settings)} settings; shown first is {shown}, then all side by side")
    return found


def _ranks(run: Run) -> str:
    if run.split:
        ranks = sorted({int(client.get("rank", 0)) for client in run.split["clients"].values()}, reverse=True)
        return " · ".join(map(str, ranks))
    rank = (run.config.get("lora") or {}).get("rank", "–")
    choices = rank.get("choices") if isinstance(rank, Mapping) else rank
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        return str(choices)
    return " · ".join(map(str, sorted(set(choices), reverse=True)))


def _clients(run: Run) -> int | None:
    """Returns how many clients there are; where their split is withheld, by the config, if that says so."""
    if run.split:
        return len(run.split["clients"])
    return len(_files(run)) or (run.config.get("partition") or {}).get("clients")


def _files(run: Run) -> Mapping[str, Any]:
    """Returns the file of each client by its name; none where the rows are dealt, for which `partition` counts."""
    return (run.config.get("data") or {}).get("clients") or {}


def _data_words(run: Run) -> str:
    if files := _files(run):
        return f"in {len(files)} files"
    return "of a program" if _is_of_program(run) else place((run.config.get("data") or {}).get("source"))


def _is_of_program(run: Run) -> bool:
    """Returns whether a program brought the clients and their rows; sections of the config then have defaults."""
    return (run.config.get("federation") or {}).get("where") == "program"


def _split_words(run: Run) -> str:
    partition: Mapping[str, Any] = run.config.get("partition") or {}
    if _files(run):
        return "a file for each client"
    if _is_of_program(run):
        return "as the program dealt the rows"
    others = ("scheme", "clients", "min_examples", "feature_shift")
    settings = [f"{k} {v}" for k, v in partition.items() if k not in others and v is not None]
    if shifts := partition.get("feature_shift"):
        settings.append(f"a synthetic feature shift by client ({', '.join(map(str, shifts))})")
    return ", ".join([str(partition.get("scheme", "–")), *settings])


KEPT = (
    "fedelta",
    "commit",
    "torch",
    "transformers",
    "peft",
    "python",
    "device",
    "cores",
    "threads",
    "base",
    "license",
    "release",
)
"""What of a run's code, versions and machine stands in a page, where it was written down."""


def provenance_of_suite(comparison: Comparison, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns what a suite was made by and of: command, digest of its text, commits, and what its runs say."""
    commits = sorted({cell.commit for cell in comparison.cells if cell.commit})
    digest = sha256(comparison.text.encode()).hexdigest() if comparison.text else ""
    found = [("suite", comparison.name), ("command", comparison.command), ("sha256", digest), ("commit", listed(commits))]
    known = [(name, value) for name, value in found if value]
    said = {name for name, _ in known}
    return [*known, *(pair for pair in provenance_of(runs) if pair[0] not in said)]


def provenance_of(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns versions, machine, model, rows and states of some runs."""
    found: list[tuple[str, str]] = []
    commands = {str(run.facts["command"]) for run in runs if run.facts.get("command")}
    if len(commands) == 1:
        found.append(("command", commands.pop()))
    for key in KEPT:
        values = sorted({value for run in runs if (value := _origin(run, key))})
        if values:
            found.append((key, listed(values)))
    models = sorted({place((run.config.get("model") or {}).get("name")) for run in runs})
    found.append(("model", listed(models)))
    rows = {str(sorted(run.facts["rows"].items())): run.facts["rows"] for run in runs if run.facts.get("rows")}
    if len(rows) == 1:
        found.append(("rows", ", ".join(f"{count} {part}" for part, count in next(iter(rows.values())).items())))
    digests = {str(run.facts["data"]): run.facts["data"] for run in runs if run.facts.get("data")}
    if len(digests) == 1:
        found.append(("digests", ", ".join(f"{part} {digest[:12]}" for part, digest in next(iter(digests.values())).items())))
    found += _dates(runs)
    found.append(("seeds", ", ".join(map(str, sorted({run.seed for run in runs})))))
    states = [("done", sum(run.finished for run in runs)), ("unfinished", sum(not run.finished for run in runs))]
    found.append(("runs", ", ".join(f"{count} {name}" for name, count in states if count)))
    return found


def _origin(run: Run, key: str) -> str:
    """Returns what a run says of its code or machine; of a device its own name rather than its kind."""
    tables: Sequence[Mapping[str, Any]] = (run.facts, run.facts.get("versions") or {}, run.facts.get("platform") or {})
    return next((str(table[key]) for table in tables if table.get(key)), "")


def _dates(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Returns when the first run began and the last record was written, as they say; the page has no time of its own."""
    starts = [str(run.facts["start"]) for run in runs if run.facts.get("start")]
    ends = [str(run.records[-1]["at"]) for run in runs if run.records and run.records[-1].get("at")]
    return [("dates", f"{min(starts)} to {max(ends)}")] if starts and ends else []


def absent_of(c: Compared) -> list[str]:
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
    if any((record.get("diagnostics") or {}).get("spectrum") for run in study.runs for record in run.records):
        found.pop("energy_by_band", None)  # the bands are taken from the spectrum
    if not any("topology" in record for run in study.runs for record in run.records):
        found.pop("consensus_product_relative", None)  # with a server nobody looks for it
    measured = {
        n for run in study.runs for r in run.records for n in _EXPLAINED if (r.get("diagnostics") or {}).get(n) is not None
    }
    return {name.replace("_", " "): reason for name, reason in found.items() if name not in measured}
