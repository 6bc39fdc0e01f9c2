"""Tables of a study's README, made from the files beside it.

    table: scores suite=S [setting=T] [against=LABEL]                one row a method: scores by seed, mean, difference
    table: verdicts suite=S against=LABEL [setting=T] [lines=A,B]    one row a method, the best mean first, with Holm's p
    table: claims                                                    one row a claim of claims.yaml, with its verdict
    table: rows of=FILE.csv [columns=a,b] [key=value ...]            the rows of a file as they are
    table: means of=FILE.csv by=a,b value=c                          the mean of a column, and its range, for each group

A page outside a study names the study whose files it means: `study=NAME` in any of them.

A claim is judged by the rule that the READMEs state; `study_claims.verdict` is that rule.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import yaml
from study_claims import HEAD, claim_row
from study_scores import Scores, difference, rows_in, scores_of

from fedelta.report.statistics import FEWEST, Difference, against_baseline

TABLE = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

NOTHING = "Nothing of it has been run yet.\n"


def filled(text: str, folder: Path) -> str:
    """Returns a page whose tables are what the files of its folder say, or of the folder in it that a table names."""
    return TABLE.sub(partial(_filled, folder=folder), text)


def shows_results(text: str) -> bool:
    """Returns whether some table of a page is made of the results.csv that `studies` writes."""
    return any(shlex.split(found[2])[0] in ("scores", "verdicts", "claims") for found in TABLE.finditer(text))


def _filled(found: re.Match[str], folder: Path) -> str:
    kind, *words = shlex.split(found[2])
    options = dict(word.split("=", 1) for word in words)
    return found[1] + KINDS[kind](folder / options.pop("study", ""), options) + found[3]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown; columns of numbers alone stand to the right."""
    columns = list(zip(*rows, strict=True))
    marks = ["---:" if all(map(_is_number, filter(None, column))) and any(column) else "---" for column in columns]
    lines = [f"| {' | '.join(row)} |\n" for row in [head, *rows]]
    return "".join([lines[0], f"|{'|'.join(marks)}|\n", *lines[1:]])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.]+(e-?\d+)?", text) is not None


# --- scores ----------------------------------------------------------------------------------------------------------


def scores_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns a row for each method: rate, scores by seed, mean, gain in the end, difference to another, bytes and time."""
    known = _methods(folder, options)
    if not any(scores.last for scores in known.values()):
        return NOTHING
    against = options.get("against", next(iter(known)))
    head = ["method", "rate", "by seed", "mean", "gain at the end", f"difference to {against}", "MiB sent", "minutes"]
    return _table(head, [_scores_row(label, own, None if label == against else known[against]) for label, own in known.items()])


def _methods(folder: Path, options: Mapping[str, str]) -> dict[str, Scores]:
    """Returns the scores of each method of a suite's setting, in the order of results.csv."""
    rows, suite, setting = rows_in(folder / "results.csv"), options["suite"], options.get("setting", "")
    labels = dict.fromkeys(r["label"] for r in rows if (r["suite"], r["setting"]) == (suite, setting))
    return {label: scores_of(rows, suite, setting, label) for label in labels}


def _scores_row(label: str, own: Scores, other: Scores | None) -> list[str]:
    if not own.last:
        return [label, "", "unrun", "", "", "", "", ""]
    values = list(own.last.values())
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return [
        label,
        ", ".join(sorted({f"{float(r['learning_rate']):g}" for r in own.rows})),
        ", ".join(f"{value:.1f}" for value in values),
        f"{fmean(values):.1f}{spread}",
        f"{own.gain:+.1f}",
        "" if other is None else difference(own, other),
        f"{fmean(float(r['bytes']) for r in own.rows) / 2**20:.1f}",
        f"{fmean(float(r['seconds']) for r in own.rows) / 60:.1f}",
    ]


# --- verdicts --------------------------------------------------------------------------------------------------------


def verdicts_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns a row for each method that has seeds enough: mean, difference to the baseline with its interval and p, bytes.

    The p are adjusted together (Holm) over all methods but `lines`, which are there to compare with.
    """
    against, lines = options["against"], options.get("lines", "").split(",")
    whole = {label: own for label, own in _methods(folder, options).items() if len(own.last) >= FEWEST}
    if against not in whole:
        return NOTHING
    by_seed = {label: {int(seed): score for seed, score in own.last.items()} for label, own in whole.items()}
    unadjusted = against_baseline(by_seed, against)
    tested = against_baseline({label: x for label, x in by_seed.items() if label not in lines}, against)
    found = {**{label: replace(x, adjusted=None) for label, x in unadjusted.items()}, **tested}
    ordered = sorted(whole, key=lambda label: -fmean(whole[label].last.values()))
    head = ["method", "seeds", "mean", f"to `{against}`, pp", "95 % interval", "p (Holm)", "MiB sent"]
    return _table(head, [_verdicts_row(label, whole[label], found.get(label)) for label in ordered])


def _verdicts_row(label: str, own: Scores, found: Difference | None) -> list[str]:
    values = list(own.last.values())
    interval, adjusted = (None, None) if found is None else (found.interval, found.adjusted)
    return [
        f"`{label}`",
        str(len(values)),
        f"{fmean(values):.1f}, sd {stdev(values):.1f}",
        "–" if interval is None else f"{interval.mean:+.1f}",
        "–" if interval is None else f"{interval.low:+.1f} to {interval.high:+.1f}",
        "–" if adjusted is None else f"{adjusted:.2f}",
        f"{fmean(float(r['bytes']) for r in own.rows) / 2**20:.1f}",
    ]


# --- claims ----------------------------------------------------------------------------------------------------------


def claims_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns a row for each claim of claims.yaml: the difference, what these seeds separate, and the verdict."""
    rows = rows_in(folder / "results.csv")
    claims = cast("list[dict[str, Any]]", yaml.safe_load((folder / "claims.yaml").read_text(encoding="utf-8")))
    return _table(HEAD, [claim_row(rows, claim) for claim in claims])


# --- other files -----------------------------------------------------------------------------------------------------


def rows_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns the rows of a file, or those with some values."""
    asked = {key: value for key, value in options.items() if key not in ("of", "columns")}
    rows = [r for r in rows_in(folder / options["of"]) if all(r[key] == value for key, value in asked.items())]
    if not rows:
        return NOTHING
    columns = options["columns"].split(",") if "columns" in options else [key for key in rows[0] if key not in asked]
    return _table(columns, [[r[key] for key in columns] for r in rows])


def means_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns the mean of a column and its range for each group of rows."""
    by, value = options["by"].split(","), options["value"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows_in(folder / options["of"]):
        groups.setdefault(tuple(row[key] for key in by), []).append(float(row[value]))
    if not groups:
        return NOTHING
    found = [[*group, str(len(x)), f"{fmean(x):.3g}", f"{min(x):.3g} to {max(x):.3g}"] for group, x in groups.items()]
    return _table([*by, "rows", f"mean {value}", "range"], found)


KINDS: Mapping[str, Callable[[Path, Mapping[str, str]], str]] = {
    "scores": scores_table,
    "verdicts": verdicts_table,
    "claims": claims_table,
    "rows": rows_table,
    "means": means_table,
}
