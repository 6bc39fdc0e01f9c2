"""Says in a sentence or two who wins and how sure that is, and in four tiles by how much, at what cost, why and for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fedelta.report import readings, statistics
from fedelta.report.compared import Compared, competitors, mean_total
from fedelta.report.numerals import listed, share
from fedelta.report.study import Group, Run
from fedelta.report.words import LINES, size

ALIKE = 1.02
"""The ratio of bytes up to which two methods send about the same."""


@dataclass(frozen=True)
class Tile:
    """A number of the first screen, and a sentence on it."""

    head: str
    value: str
    text: str


def verdict(c: Compared) -> tuple[str, str]:
    """Returns the finding, and what goes with it. It never says significant: only ahead, behind, or cannot tell apart."""
    study = c.study
    if study.one_run:
        return _of_one_run(c, study.runs[0])
    if all(run.diverged for run in study.runs):
        return "Every run diverged.", _why_diverged(study.runs)
    if study.last is None:
        return "No scores yet.", "Losses and bytes are all that these runs have in common so far."
    if study.unlike:
        return "These runs answer different questions.", f"They differ in {listed(study.unlike)}: no difference is computed."
    best = c.best
    if best is None:
        return "No scores yet.", "No method has a score at the compared round."
    finding, rest = _against_baseline(c, best) if study.named else _against_best(c, best)
    return finding, " ".join(filter(None, [rest, _cost(c, best)]))


def across(found: Mapping[str, Compared]) -> str:
    """Says in how many settings which method has the best mean, and in how many it is alone there."""
    best = {name: c.best for name, c in found.items() if c.best is not None and not c.study.unlike}
    if not best:
        lost = all(run.diverged for c in found.values() for run in c.study.runs)
        return "Every run diverged." if lost and found else "No setting has scores yet."
    wins: dict[str, int] = {}
    for group in best.values():
        wins[group.label] = wins.get(group.label, 0) + 1
    most = max(wins, key=lambda label: wins[label])
    clear = sum(_stands_alone(found[name], group) for name, group in best.items() if group.label == most)
    tail = f"and is clearly best in {clear or 'none'}."
    if len(wins) == 1:
        every = "both" if len(best) == 2 else f"all {len(best)}"
        return f"{most} has the best mean in {every} settings, {tail}"
    return f"No method has the best mean in every setting: {most} has it in {wins[most]} of {len(best)}, {tail}"


def _stands_alone(c: Compared, best: Group) -> bool:
    """Returns whether every other method is behind the best mean."""
    others = [mark for key, mark in c.against_best.items() if key != best.key]
    return bool(others) and all(mark == "behind" for mark in others)


def _why_diverged(runs: Sequence[Run]) -> str:
    """Returns the remedy: where nothing was ever finite, the method itself may be wrong."""
    if all(run.diverged_at_once for run in runs):
        return "In the first round: check the method, if it is your own, or lower the learning rate."
    return "Lower the learning rate, or clip gradients."


def _of_one_run(c: Compared, run: Run) -> tuple[str, str]:
    done, study = len(run.records), c.study
    where = f"after round {run.records[-1]['t'] + 1}"
    if run.diverged:
        return "The run diverged.", f"Its loss or score is no number {where}. {_why_diverged([run])}"
    if study.part is None or study.last is None:
        return "No scores yet.", f"{done} of {run.rounds} rounds are done."
    value = c.measure.with_unit(study.score(run))
    finding = f"{run.method} ends at {value} {study.part} {c.measure.name}"
    if not run.finished:
        return f"{run.method} is at {value} {study.part} {c.measure.name} {where} of {run.rounds}.", "The run is not finished."
    majority = run.facts.get("majority")
    rest = f"A constant answer scores {share(majority)}." if majority and study.metric == "accuracy" else ""
    return f"{finding} {where}.", " ".join(filter(None, [_beside_lines(c, run), rest]))


def _beside_lines(c: Compared, run: Run) -> str:
    """Says between which lines a run ends, where they came with its config."""
    known = run.lines(str(c.study.part), str(c.study.metric))
    found = [f"{words} {c.measure.with_unit(known[name])}" for name, words in LINES.items() if name in known]
    return f"To compare: {listed(found)}." if found else ""


def _against_best(c: Compared, best: Group) -> tuple[str, str]:
    direction = "lowest" if c.measure.lower_is_better else "highest"
    value = c.measure.with_unit(c.mean(best.key))
    where = f"{value} after round {(c.study.last or 0) + 1}"
    others = [group for group in c.ranked() if group.key in c.table and group.key != best.key]
    if not others:
        return f"{best.label} reaches {where}.", ""
    if c.seeds == 1:
        second = f"{others[0].label} {c.measure.with_unit(c.mean(others[0].key))}"
        return "One seed: a difference may be chance.", f"{best.label} ends {direction}, {where}; {second}."
    if c.seeds < statistics.FEWEST:
        return "Two seeds allow no verdict.", f"{best.label} has the {direction} mean, {where}."
    behind = [group.label for group in others if c.marks.get(group.key) == "behind"]
    level = [group.label for group in others if c.marks.get(group.key) == "not separated"]
    if not behind and not level:
        return "No verdict.", f"{best.label} has the {direction} mean, {where}, but the others lack seeds."
    if not level:
        return f"{best.label} is ahead of {listed(behind)}.", f"It has the {direction} mean, {where}."
    cannot = f"{c.seeds} seeds cannot tell it from {listed(level)}"
    tail = f"; {listed(behind)} {'is' if len(behind) == 1 else 'are'} behind" if behind else ""
    return "No method is clearly best.", f"{best.label} has the {direction} mean, {where}, but {cannot}{tail}."


def _against_baseline(c: Compared, best: Group) -> tuple[str, str]:
    base = c.study.baseline.label
    ahead = [c.group(key).label for key, mark in c.marks.items() if mark == "ahead"]
    behind = [c.group(key).label for key, mark in c.marks.items() if mark == "behind"]
    level = [c.group(key).label for key, mark in c.marks.items() if mark == "not separated"]
    rest = [f"The best mean is that of {best.label}, {c.measure.with_unit(c.mean(best.key))}."]
    if c.seeds < statistics.FEWEST:
        return f"Too few seeds for a verdict against {base}.", rest[0]
    if not (ahead or behind or level) and len(c.table) > 1:
        return f"No verdict against {base}.", f"{rest[0]} The others lack seeds."
    rest += [f"{listed(behind)} {'is' if len(behind) == 1 else 'are'} behind {base}."] if behind else []
    rest += [f"{c.seeds} seeds cannot tell {listed(level)} from {base}."] if level else []
    if not ahead:
        return f"No method is ahead of {base}.", " ".join(rest)
    return f"{listed(ahead)} {'is' if len(ahead) == 1 else 'are'} ahead of {base}.", " ".join(rest)


def _cost(c: Compared, best: Group) -> str:
    totals = {group.key: mean_total(c.study, group) for group in _of_known_cost(c.study.groups) if group.key in c.table}
    if best.key not in totals or len(totals) < 2 or not any(totals.values()):
        return ""
    least, mine = c.group(min(totals, key=lambda key: totals[key])), size(totals[best.key])
    if max(totals.values()) < ALIKE * min(totals.values()):
        return f"All send about the same, {mine}."
    if least.key == best.key:
        return f"{best.label} also sends the least, {mine}."
    return f"{least.label} sends the least, {size(totals[least.key])}; {best.label} {mine}."


def _of_known_cost(groups: Sequence[Group]) -> list[Group]:
    """Returns the groups some run of which is whole: what ends early, since it diverged or is not done, sends less."""
    return [group for group in groups if any(run.whole for run in group.runs.values())]


def tiles(c: Compared) -> list[Tile]:
    """Returns the four numbers of the first screen."""
    if c.study.one_run:
        return _tiles_of_one_run(c, c.study.runs[0])
    best = c.best or competitors(c.study.groups)[0]
    return [_by_how_much(c), _at_what_cost(c, best), _ranks_in_use(c, best), _for_whom(c, best)]


def _tiles_of_one_run(c: Compared, run: Run) -> list[Tile]:
    m, study = c.measure, c.study
    part = study.part or "test"
    final = Tile("Final", m.with_unit(study.score(run)), f"{part} {m.name} after round {run.records[-1]['t'] + 1}")
    chosen = run.best_round(m.metric)
    if chosen is None:
        best = Tile("Best", "–", "no validation rows to choose a round by")
    else:
        value = run.scores(part, m.metric).get(chosen)
        best = Tile("Best", m.with_unit(value), f"{part} {m.name} at round {chosen + 1}, the best on validation")
    sent = Tile("Sent", size(readings.total(run)), f"both ways, {len(run.records)} rounds{_on_a_graph([run])}")
    return [final, best, sent, _worst_tile(c, [run])]


def _on_a_graph(runs: Sequence[Run]) -> str:
    return "; per edge, counted up" if any("topology" in record for run in runs for record in run.records[:1]) else ""


def _by_how_much(c: Compared) -> Tile:
    head, m = "By how much", c.measure
    ranked = [group for group in c.ranked() if group.key in c.table]
    if c.study.unlike or len(ranked) < 2:
        return Tile(head, "–", "there is no second method to compare with on the same question")
    top, second = ranked[:2]
    pair = statistics.against_baseline({top.key: c.table[top.key], second.key: c.table[second.key]}, second.key)[top.key]
    if pair.mean is None:
        return Tile(head, "–", f"{top.label} and {second.label} have no seed in common")
    value = f"{m.difference(pair.mean)} {m.difference_unit}".strip()
    if pair.interval is None:
        return Tile(head, value, f"{top.label} over {second.label}, one seed: no interval")
    bounds = f"{m.difference(pair.interval.low)} to {m.difference(pair.interval.high)}"
    return Tile(head, value, f"{top.label} over {second.label}, paired by seed; 95 % interval {bounds}")


def _at_what_cost(c: Compared, best: Group) -> Tile:
    totals = {group.key: mean_total(c.study, group) for group in [best, *_of_known_cost(competitors(c.study.groups))]}
    least = c.group(min(totals, key=lambda key: totals[key]))
    text = f"{best.label}, both ways, {best.first.rounds} rounds{_on_a_graph(c.study.runs)}"
    if least.key != best.key and ALIKE * totals[least.key] < totals[best.key]:
        text += f"; the least is {size(totals[least.key])}, {least.label}"
    return Tile("At what cost", size(totals[best.key]), text)


def _ranks_in_use(c: Compared, best: Group) -> Tile:
    head, ratio = "Ranks in use", readings.at("diagnostics", "higher_rank_energy_ratio")
    ends = {g.key: readings.series(readings.runs_of(c.study, g), ratio) for g in competitors(c.study.groups)}
    if ends.get(best.key):
        text = f"of {best.label}’s energy lies beyond the smallest rank"
        others = {key: points[-1].mean for key, points in ends.items() if points and key != best.key}
        if others:
            low = min(others, key=lambda key: others[key])
            text += f"; {c.group(low).label} ends with {share(others[low])}"
        return Tile(head, share(ends[best.key][-1].mean), text)
    rank = readings.series(readings.runs_of(c.study, best), readings.at("diagnostics", "effective_rank"))
    if rank:
        return Tile(head, f"{rank[-1].mean:.1f}", f"effective rank of {best.label}’s mean update, mean over layers")
    return Tile(head, "–", "not measured: set evaluation.diagnostics")


def _for_whom(c: Compared, best: Group) -> Tile:
    return _worst_tile(c, list(best.runs.values()), f"{best.label}’s ")


def _worst_tile(c: Compared, runs: Sequence[Run], whose: str = "") -> Tile:
    found = readings.worst_clients(runs, c.measure.metric)
    if any(run.diverged for run in runs):
        return Tile("For whom", "–", "a run diverged, so that its clients have no model")
    if not found:
        return Tile("For whom", "–", "not measured: set data.client_test_fraction")
    value = c.measure.with_unit(fmean(worst for worst, _, _ in found))
    if len(found) == 1:
        return Tile("For whom", value, f"on {whose or 'the '}worst client ({found[0][2]}), on its own rows")
    return Tile("For whom", value, f"on {whose}worst client, mean of the seeds")
