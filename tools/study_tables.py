"""Tables of a study's README, made from the files beside it.

    table: scores suite=S [setting=T] [against=LABEL] [points=no]    one row a method: scores by seed, mean, difference
    table: verdicts suite=S against=LABEL [setting=T] [lines=A,B]    one row a method, the best mean first, with Holm's p
    table: claims                                                    one row a claim of claims.yaml, with its verdict
    table: rows of=FILE.csv [columns=a,b] [key=value ...]            the rows of a file as they are
    table: means of=FILE.csv by=a,b value=c                          the mean of a column, and its range, for each group

A page outside a study names the study whose files it means: `study=NAME` in any of them.

A claim is judged by the rule that the READMEs state; `verdict` is that rule.
"""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, cast

import yaml

from fedelta.report.statistics import FEWEST, Difference, against_baseline, t_interval

TABLE = re.compile(r"(<!-- table: (.*?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

NOTHING = "Nothing of it has been run yet.\n"

SHARES = ("accuracy", "macro_f1", "mcc")
"""Metrics that are shown in points, which are hundredths."""

NEAR, RISING = 10.0, 2.0
"""Points within which a baseline must be of centralised training, and points that a method may still gain in the end."""

Row = Mapping[str, str]


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


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown; columns of numbers alone stand to the right."""
    columns = list(zip(*rows, strict=True))
    marks = ["---:" if all(map(_is_number, filter(None, column))) and any(column) else "---" for column in columns]
    lines = [f"| {' | '.join(row)} |\n" for row in [head, *rows]]
    return "".join([lines[0], f"|{'|'.join(marks)}|\n", *lines[1:]])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?[\d.]+(e-?\d+)?", text) is not None


# --- scores ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scores:
    """The scores of one method in one setting.

    Attributes:
        last: by seed, after the last round.
        gain: what the mean gained since the evaluation before; 0.0 where there is none.
        rows: those of the last round.
    """

    last: Mapping[str, float]
    gain: float
    rows: Sequence[Row]


def scores_of(rows: Sequence[Row], suite: str, setting: str, label: str, at: str = "last") -> Scores:
    """Returns the scores of a method after the last round, or after the round `at`."""
    own = [r for r in rows if (r["suite"], r["setting"], r["label"]) == (suite, setting, label) and r["value"]]
    last = [r for r in own if (r["at"] == "last" if at == "last" else r["round"] == at)]
    rounds = sorted({int(r["round"]) for r in own})
    before = [_value(r) for r in own if len(rounds) > 1 and int(r["round"]) == rounds[-2]]
    end = [_value(r) for r in own if r["at"] == "last"]
    gain = fmean(end) - fmean(before) if before else 0.0
    return Scores({r["seed"]: _value(r) for r in last}, gain, last)


def _value(row: Row) -> float:
    """Returns a score, in points where it is a share."""
    return float(row["value"]) * (100 if row["metric"] in SHARES else 1)


def scores_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns a row for each method: rate, scores by seed, mean, gain in the end, difference to another, bytes and time."""
    rows, suite, setting = _read(folder / "results.csv"), options["suite"], options.get("setting", "")
    labels = list(dict.fromkeys(r["label"] for r in rows if (r["suite"], r["setting"]) == (suite, setting)))
    known = {label: scores_of(rows, suite, setting, label) for label in labels}
    if not any(scores.last for scores in known.values()):
        return NOTHING
    against = options.get("against", labels[0])
    head = ["method", "rate", "by seed", "mean", "gain at the end", f"difference to {against}", "MiB sent", "minutes"]
    return _table(head, [_scores_row(label, known[label], None if label == against else known[against]) for label in labels])


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
        "" if other is None else _difference(own, other),
        f"{fmean(float(r['bytes']) for r in own.rows) / 2**20:.1f}",
        f"{fmean(float(r['seconds']) for r in own.rows) / 60:.1f}",
    ]


def paired(own: Scores, other: Scores) -> list[float]:
    """Returns the differences of the seeds that both have."""
    return [own.last[seed] - other.last[seed] for seed in own.last if seed in other.last]


def _difference(own: Scores, other: Scores) -> str:
    found = paired(own, other)
    interval = t_interval(found)
    if interval is None:
        return f"{found[0]:+.1f}" if found else ""
    return f"{interval.mean:+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


# --- verdicts --------------------------------------------------------------------------------------------------------


def verdicts_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns a row for each method that has seeds enough: mean, difference to the baseline with its interval and p, bytes.

    The p are adjusted together (Holm) over all methods but `lines`, which are there to compare with.
    """
    rows, suite, against = _read(folder / "results.csv"), options["suite"], options["against"]
    setting, lines = options.get("setting", ""), options.get("lines", "").split(",")
    labels = dict.fromkeys(r["label"] for r in rows if (r["suite"], r["setting"]) == (suite, setting))
    known = {label: scores_of(rows, suite, setting, label) for label in labels}
    whole = {label: own for label, own in known.items() if len(own.last) >= FEWEST}
    if against not in whole:
        return NOTHING
    by_seed = {label: {int(seed): score for seed, score in own.last.items()} for label, own in whole.items()}
    unadjusted = against_baseline(by_seed, against)
    tested = against_baseline({label: x for label, x in by_seed.items() if label not in lines}, against)
    found = {**{label: replace(x, adjusted=None) for label, x in unadjusted.items()}, **tested}
    ordered = sorted(whole, key=lambda label: -fmean(whole[label].last.values()))
    head = ["method", "seeds", "mean", f"to `{against}`, pp", "95 % interval", "p (Holm)", "MiB sent"]
    return _table(head, [_verdicts_row(label, whole[label], found.get(label)) for label in ordered])


def _verdicts_row(label: str, own: Scores, difference: Difference | None) -> list[str]:
    values = list(own.last.values())
    interval, adjusted = (None, None) if difference is None else (difference.interval, difference.adjusted)
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
    rows = _read(folder / "results.csv")
    claims = cast("list[dict[str, Any]]", yaml.safe_load((folder / "claims.yaml").read_text(encoding="utf-8")))
    head = ["claim", "compared", "seeds", "difference", "separated", "needed", "verdict"]
    return _table(head, [_claim_row(rows, claim) for claim in claims])


def _claim_row(rows: Sequence[Row], claim: Mapping[str, Any]) -> list[str]:
    settings = claim.get("settings", [claim.get("setting", "")] * 2)
    sides = zip(claim["compared"], settings, strict=True)
    own, other = (scores_of(rows, claim["suite"], where, label, str(claim.get("round", "last"))) for label, where in sides)
    differences = paired(own, other)
    interval = t_interval(differences)
    needed = "its interval" if claim["needed"] is None else f"{claim['needed']:.1f}"
    return [
        str(claim["claim"]),
        " and ".join(claim["compared"]),
        str(len(differences)),
        _difference(own, other),
        "" if interval is None else f"{interval.half_width:.1f}",
        needed,
        _judged(verdict(differences, claim), _why_not(rows, claim, settings[0], (own, other))),
    ]


def _judged(found: str, why_not: Sequence[str]) -> str:
    """Returns a verdict as it is shown; one that does not count is of how methods start."""
    return f"**does not count** ({', '.join(why_not)}; of the start: {found})" if why_not else f"**{found}**"


def verdict(differences: Sequence[float], claim: Mapping[str, Any]) -> str:
    """Returns "confirmed", "contradicted", "cannot say" or "unrun".

    Args:
        differences: by seed, in points: those of the side that is claimed to be ahead.
        claim: `needed` is half of the smallest difference that is claimed, in points; null where any that the seeds separate
            will do. `within` makes it a claim that there is no difference beyond so many points.
    """
    if not differences:
        return "unrun"
    interval = t_interval(differences)
    if interval is None or len(differences) < FEWEST:
        return "cannot say"
    needed, within = claim["needed"] or 0.0, claim.get("within")
    if within is not None and -within < interval.low and interval.high < within:
        return "confirmed"
    if within is None and needed and needed < interval.half_width:
        return "cannot say"
    if within is None and interval.low > 0 and interval.mean >= needed:
        return "confirmed"
    return "contradicted" if interval.high < 0 and interval.mean <= -needed else "cannot say"


def _why_not(rows: Sequence[Row], claim: Mapping[str, Any], setting: str, sides: Sequence[Scores]) -> Sequence[str]:
    """Returns why a comparison is only one of how methods start; nothing where it counts, or where scores are no shares."""
    if not all(side.rows and side.rows[0]["metric"] in SHARES for side in sides):
        return []
    suite, where = (claim["beside"], "") if "beside" in claim else (claim["suite"], setting)
    lines = (scores_of(rows, suite, where, label).last for label in (claim["baseline"], "centralised"))
    baseline, pooled = (fmean(line.values()) if line else None for line in lines)
    reasons: list[str] = []
    if baseline is None or pooled is None:
        reasons.append("centralised or the baseline is unrun")
    elif baseline < pooled - NEAR:
        reasons.append(f"{claim['baseline']} is {pooled - baseline:.0f} points below centralised")
    rising = [label for label, side in zip(claim["compared"], sides, strict=True) if side.gain > RISING]
    return [*reasons, f"{' and '.join(rising)} still rising"] if rising else reasons


# --- other files -----------------------------------------------------------------------------------------------------


def rows_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns the rows of a file, or those with some values."""
    asked = {key: value for key, value in options.items() if key not in ("of", "columns")}
    rows = [r for r in _read(folder / options["of"]) if all(r[key] == value for key, value in asked.items())]
    if not rows:
        return NOTHING
    columns = options["columns"].split(",") if "columns" in options else [key for key in rows[0] if key not in asked]
    return _table(columns, [[r[key] for key in columns] for r in rows])


def means_table(folder: Path, options: Mapping[str, str]) -> str:
    """Returns the mean of a column and its range for each group of rows."""
    by, value = options["by"].split(","), options["value"]
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in _read(folder / options["of"]):
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
