"""Writes what the studies in `experiments/` found: results.csv from their stores, and the tables of READMEs from such files.

python tools/studies.py            of every folder
python tools/studies.py NAME ...   of these, such as `raflora`
python tools/studies.py --check    writes nothing; ends with code 1 if a page is not what its files say

Pages of the documentation that show a table of a study are written, or checked, with any of them.

A table stands between two comments. The first says what it shows, and `study_tables` has the kinds:

    <!-- table: scores suite=small setting=trec -->
    <!-- end of table -->
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import study_tables
import yaml

from fedelta.report.comparison import Cell, Comparison
from fedelta.runs.config.allowed import allowed
from fedelta.runs.suite.gather import comparison_of
from fedelta.runs.suite.lines import seconds_of
from fedelta.runs.suite.start import Wanted, ready
from fedelta.runs.suite.work import Options, Work

ROOT = Path(__file__).resolve().parents[1]

EXPERIMENTS, DOCUMENTATION = ROOT / "experiments", ROOT / "docs"

RESULTS = "results.csv"

COLUMNS: Sequence[str] = (
    "suite",
    "setting",
    "method",
    "label",
    "seed",
    "metric",
    "round",
    "value",
    "at",
    "learning_rate",
    "bytes",
    "seconds",
    "state",
    "config_sha256",
    "commit",
)
"""A row is a score on test rows (on validation rows where there are no others); `at` is last for that of the last round. A cell
that is not done has one row without a score."""

Row = Mapping[str, object]


def main() -> None:
    """Does what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="folders in experiments/; all by default")
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    folders = [EXPERIMENTS / name for name in arguments.names] or studies()
    pages = [*map(readme_of, folders), *documentation_pages()]
    if arguments.check:
        stale = [str(page) for page in pages if written(page) != page.read_text(encoding="utf-8")]
        print("\n".join(stale))
        sys.exit(bool(stale))
    for folder in folders:
        if study_tables.shows_results(readme_of(folder).read_text(encoding="utf-8")) and suites_of(folder):
            (folder / RESULTS).write_text(results(folder), encoding="utf-8")
    for page in pages:
        page.write_text(written(page), encoding="utf-8")


def studies() -> list[Path]:
    """Returns the folders that have a README."""
    return sorted(readme.parent for readme in EXPERIMENTS.glob("*/README.md"))


def readme_of(folder: Path) -> Path:
    """Returns the page of a study."""
    return folder / "README.md"


def documentation_pages() -> list[Path]:
    """Returns the pages of the documentation that show a table of some study."""
    return sorted(page for page in DOCUMENTATION.rglob("*.md") if study_tables.TABLE.search(page.read_text(encoding="utf-8")))


def written(page: Path) -> str:
    """Returns a page with its tables as the files beside it say, or for the documentation those of the study that it names."""
    folder = page.parent if page.is_relative_to(EXPERIMENTS) else EXPERIMENTS
    return study_tables.filled(page.read_text(encoding="utf-8"), folder)


def suites_of(folder: Path) -> list[Path]:
    """Returns the suite files of a folder whose store is there."""
    return [path for path in sorted(folder.glob("*.yaml")) if (store := store_of(path)) is not None and store.is_file()]


def store_of(path: Path) -> Path | None:
    """Returns the store that a suite file names; None for any other file, and for a suite without one."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    store = content.get("store") if isinstance(content, dict) and "methods" in content else None
    return None if store is None else path.parent / str(store)


def results(folder: Path) -> str:
    """Returns results.csv of a folder: every cell of its suites, as far as the stores have it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for suite in suites_of(folder):
        writer.writerows(rows_of(compared(suite)))
    return text.getvalue()


def compared(suite: Path) -> Comparison:
    """Returns what a suite's store has of its cells; runs nothing."""
    own_methods = [path for path in suite.parent.glob("*.py") if path.name in suite.read_text(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as empty:
        made = ready(str(suite), Wanted(output=Path(empty), allowed=allowed(own_methods)))
        return comparison_of(Work(made.plan, made.book, Options(1)))


def rows_of(comparison: Comparison) -> Iterator[Row]:
    """Yields the rows of a comparison."""
    for cell in comparison.cells:
        fixed = {
            "suite": comparison.name,
            "setting": cell.setting,
            "method": comparison.methods[cell.label],
            "label": cell.label,
            "seed": cell.seed,
            "state": "diverged" if cell.run is not None and cell.run.diverged else cell.state,
        }
        yield from ({**fixed, **score} for score in scores_of(cell, comparison.metric) or [{}])


def scores_of(cell: Cell, metric: str) -> Sequence[Row]:
    """Returns the scores of a cell by round, with what it cost; none for a cell that is not done.

    A run that diverged counts after the last round as the share of the commonest label, as in the tables of a suite.
    """
    run = cell.run
    if run is None:
        return []
    records = run.records
    part = "test" if any(record.get("test") for record in records) else "validation"
    fixed = {
        "metric": metric,
        "learning_rate": run.config["training"]["learning_rate"],
        "bytes": sum(record["bytes"]["up"] + record["bytes"]["down"] for record in records),
        "seconds": round(seconds_of(records), 1),
        "config_sha256": cell.digest,
        "commit": cell.commit,
    }
    scores = {record["t"] + 1: record[part].get(metric) for record in records if record.get(part)}
    if run.diverged:
        scores[run.rounds] = run.facts.get("majority") if metric == "accuracy" else None
    last = max(scores, default=0)
    return [{**fixed, "round": t, "value": value, "at": "last" if t == last else ""} for t, value in scores.items()]


if __name__ == "__main__":
    main()
