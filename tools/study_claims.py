"""Claims of a study, in its claims.yaml, and their verdicts by the rule that its README states.

Keys of a claim:

    claim: what is said            suite: S      setting: T, or settings: [of the first, of the second]
    compared: [A, B]               the label that is said to have the larger scores, and the other one
    round: 5                       scores after that round; the last one by default
    needed: 1.5                    half of the smallest difference claimed; null where any that the seeds separate will do
    within: 2.0                    it is a claim of no difference beyond so many points
    either: true                   and one that a difference on either side contradicts
    baseline: L                    the label that has to be near `centralised` for the comparison to count
    near: [{suite, setting, label}]   lines in the place of it, where others have to be
    beside: S                      the suite that has `centralised`, and the baseline, in place of the claim's own
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from study_scores import Row, Scores, difference, paired, scores_of

from fedelta.report.statistics import FEWEST, exceeds, t_interval

HEAD = ("claim", "compared", "seeds", "difference", "separated", "needed", "verdict")

NEAR, RISING = 10.0, 2.0
"""How near a baseline must be to centralised training, and what a method may still gain in the end: points, or percent where
scores are no shares."""


def claim_row(rows: Sequence[Row], claim: Mapping[str, Any]) -> list[str]:
    """Returns a claim's row under `HEAD`: the difference, what these seeds separate, and the verdict."""
    settings = claim.get("settings", [claim.get("setting", "")] * 2)
    at = str(claim.get("round", "last"))
    first, second = zip(claim["compared"], settings, strict=True)
    own, other = (scores_of(rows, claim["suite"], where, label, at) for label, where in (first, second))
    differences = paired(own, other)
    interval = t_interval(differences)
    return [
        str(claim["claim"]),
        " and ".join(_names(claim)),
        str(len(differences)),
        difference(own, other),
        "" if interval is None else f"{interval.half_width:.1f}",
        "its interval" if claim["needed"] is None else f"{claim['needed']:.1f}",
        _judged(verdict(differences, claim), list(why_not(rows, claim, settings[0], (own, other)))),
    ]


def _names(claim: Mapping[str, Any]) -> list[str]:
    """Returns what is compared: labels, each with its setting where that is what differs."""
    if "settings" not in claim:
        return claim["compared"]
    return [f"{label} in {setting}" for label, setting in zip(claim["compared"], claim["settings"], strict=True)]


def _judged(found: str, reasons: Sequence[str]) -> str:
    """Returns a verdict as it is shown; one that does not count is of how methods start."""
    return f"**does not count** ({', '.join(reasons)}; of the start: {found})" if reasons else f"**{found}**"


def verdict(differences: Sequence[float], claim: Mapping[str, Any]) -> str:
    """Returns "confirmed", "contradicted", "cannot say" or "unrun".

    Args:
        differences: by seed, in points: those of the side that is claimed to be ahead.
        claim: its `needed`, `within` and `either` count.
    """
    if not differences:
        return "unrun"
    interval = t_interval(differences)
    if interval is None or len(differences) < FEWEST:
        return "cannot say"
    needed, within = claim["needed"] or 0.0, claim.get("within")
    ahead = interval.low > 0 and interval.mean >= needed
    behind = interval.high < 0 and interval.mean <= -needed
    if within is not None:
        if -within < interval.low and interval.high < within:
            return "confirmed"
        return "contradicted" if behind or (ahead and claim.get("either")) else "cannot say"
    if needed and needed < interval.half_width:
        return "cannot say"
    return "confirmed" if ahead else "contradicted" if behind else "cannot say"


def why_not(rows: Sequence[Row], claim: Mapping[str, Any], setting: str, sides: Sequence[Scores]) -> Iterator[str]:
    """Yields why a comparison is only one of how methods start; nothing where it counts, or is unrun."""
    if not all(side.rows for side in sides):
        return
    suite, where = (claim["beside"], "") if "beside" in claim else (claim["suite"], setting)
    pooled = scores_of(rows, suite, where, "centralised")
    own = [{"suite": suite, "setting": where, "label": claim.get("baseline", "")}]
    for line in claim.get("near", own):
        named = scores_of(rows, line["suite"], line.get("setting", ""), line["label"])
        if reason := _too_far(line["label"], named, pooled):
            yield reason
    improving = [name for name, side in zip(_names(claim), sides, strict=True) if _still_improves(side)]
    if improving:
        yield f"{' and '.join(improving)} still {'rising' if sides[0].are_shares else 'falling'}"


def _too_far(label: str, line: Scores, pooled: Scores) -> str:
    """Returns by how much a line is behind centralised training, if it is too much; "" if it is near enough."""
    if line.mean is None or pooled.mean is None:
        return "centralised or the baseline is unrun"
    if line.are_shares:
        behind = pooled.mean - line.mean
        return f"{label} is {behind:.0f} points below centralised" if behind > NEAR else ""
    behind = 100 * (line.mean / pooled.mean - 1)
    return f"{label} is {behind:.0f} % above centralised" if behind > NEAR else ""


def _still_improves(side: Scores) -> bool:
    gain = side.gain if side.are_shares or side.mean is None else -100 * side.gain / side.mean
    return exceeds(gain, RISING)
