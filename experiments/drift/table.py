"""Writes the table of results.csv into README.md and into docs/explanation/choosing.md, between marks that both have.

python experiments/drift/table.py
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.csv"
PAGES = (HERE / "README.md", HERE.parents[1] / "docs" / "explanation" / "choosing.md")
BASELINE = "fedavg"
BEGIN, END = "<!-- drift: begin -->", "<!-- drift: end -->"
HEAD = (
    f"| method | seeds | test accuracy, % | to `{BASELINE}`, pp | 95 % interval | p (Holm) | sent, MiB |",
    "|---|---|---|---|---|---|---|",
)
FEWEST_SEEDS = 3
"""Below which nothing is said."""

Row = Mapping[str, str]


def main() -> None:
    text = "\n".join(table(read(RESULTS)))
    for page in PAGES:
        page.write_text(with_table(page.read_text(encoding="utf-8"), text), encoding="utf-8")


def read(path: Path) -> list[Row]:
    """Returns the rows of the suite's results on test accuracy after the last round."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if (row["metric"], row["split"], row["at"]) == ("accuracy", "test", "last")]


def table(rows: Sequence[Row]) -> list[str]:
    """Returns the lines of the table, the best mean first; a method with too few seeds has no line."""
    whole = {label: own for label, own in by_label(rows).items() if len(_scores(own)) >= FEWEST_SEEDS}
    ordered = sorted(whole, key=lambda label: -fmean(_scores(whole[label])))
    return [*HEAD, *(_line(label, whole[label]) for label in ordered)]


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found = defaultdict[str, list[Row]](list)
    for row in rows:
        found[row["label"]].append(row)
    return found


def with_table(page: str, text: str) -> str:
    """Returns a page whose lines between the marks are those of `text`."""
    found = re.compile(f"{re.escape(BEGIN)}\n.*?{re.escape(END)}", re.DOTALL)
    if not found.search(page):
        raise ValueError(f"the page has no table: it needs the lines {BEGIN} and {END}")
    return found.sub(lambda _: f"{BEGIN}\n{text}\n{END}", page)


def _line(label: str, own: Sequence[Row]) -> str:
    scores = _scores(own)
    sent = fmean(float(row["bytes_up"]) + float(row["bytes_down"]) for row in own if row["seed"]) / 2**20
    compared = {row["statistic"]: float(row["value"]) for row in own if not row["seed"]}
    score = f"{fmean(scores):.1f}, sd {stdev(scores):.1f}"
    return f"| `{label}` | {len(scores)} | {score} | {_difference(compared)} | {sent:.1f} |"


def _scores(own: Sequence[Row]) -> list[float]:
    """Returns a method's scores in percent, one for each seed."""
    return [100 * float(row["value"]) for row in own if row["seed"]]


def _difference(compared: Mapping[str, float]) -> str:
    """Returns the cells of the difference, its interval and its p; dashes where there is none, as for the baseline."""
    if "low" not in compared:
        return "– | – | –"
    low, high = (f"{100 * compared[end]:+.1f}" for end in ("low", "high"))
    adjusted = f"{compared['p_adjusted']:.2f}" if "p_adjusted" in compared else "–"
    return f"{100 * compared['difference']:+.1f} | {low} to {high} | {adjusted}"


if __name__ == "__main__":
    main()
