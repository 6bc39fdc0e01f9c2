"""A whole run: from a config to a folder of results, round by round."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedelta.diagnostics import diagnose, new_reasons
from fedelta.engines import checkpoint
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.visits import VisitAll
from fedelta.models.adapter_files import save_adapter
from fedelta.peers import Peer, kinds_of
from fedelta.report.charts import curves
from fedelta.report.words import majority
from fedelta.runs import best, platforms
from fedelta.runs.config import RunConfig, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.config.read import Overrides, Source
from fedelta.runs.config.resume import (
    demand_leave,
    demand_rounds,
    demand_same_code,
    demand_same_rows,
    demand_same_run,
    fixed_values,
    keep_choices,
    without_leave,
)
from fedelta.runs.deal import row_digests
from fedelta.runs.evaluation import fairness, mean
from fedelta.runs.experiment import Experiment, build, play
from fedelta.runs.folder import RunFolder, finite
from fedelta.runs.own_methods import code_digests
from fedelta.runs.records import Record
from fedelta.runs.shards import Alone, Processes
from fedelta.tasks.metrics import is_better
from fedelta.tree import Adapter, Message, effective


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        folder: where everything is.
        records: one for each round, as in rounds.jsonl.
        adapter: the server's after the last round, with all that was added to the base; None for a personal method, or where
            there is no server.
    """

    folder: Path
    records: Sequence[Record]
    adapter: Adapter | None

    @property
    def final(self) -> Record:
        """The record of the last round, which is always an evaluated one."""
        return self.records[-1]


def run(
    config: Source | None = None,
    overrides: Overrides = (),
    *,
    resume: str | Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
) -> RunResult:
    """Runs a config to its end; arguments and errors are those of `rounds`."""
    with opened(config, overrides, resume=resume, force=force, trust_remote_code=trust_remote_code) as going:
        for _ in going.records():
            pass
    folder = going.folder
    return RunResult(folder.path, folder.records(), best.last_of(folder.adapters))


def rounds(
    config: Source | None = None,
    overrides: Overrides = (),
    *,
    resume: str | Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Generator[Record]:
    """Runs a config and yields each round's record once the round is on disk; the caller owns the loop.

    Leaving the loop, or closing the iterator, ends the run cleanly after the round that it yielded last. A new run that ends
    before its first round is on disk leaves nothing.

    Args:
        config: a YAML file, a built-in name, a mapping or a `RunConfig`; not needed with `resume`.
        overrides: changes by dotted key, as `fedelta.runs.config.load_config` takes them.
        resume: the folder of a run to go on with after its last checkpoint, to more rounds where the overrides say so.
        trust_remote_code: allows the model's own code to run; asked for again at every resumption, since a folder's word for
            it does not count.
        force: takes the place of a run in the folder, which becomes `<name>.old` once the first round of the new one is done.

    Raises:
        ConfigError: for a config that cannot be run, or changes that would make a resumed run another one.
        FileExistsError: for a folder that is in use.
        BlockingIOError: for a folder that another process is writing to.
        QuorumError: in a round with too few usable updates.
    """
    with opened(config, overrides, resume=resume, force=force, trust_remote_code=trust_remote_code) as going:
        yield from going.records()


@contextmanager
def opened(
    config: Source | None = None,
    overrides: Overrides = (),
    *,
    resume: str | Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    processes: Processes = Alone(),  # noqa: B008 - it holds nothing
) -> Generator[OpenRun]:
    """Builds a run, for the block of a `with` that plays its rounds.

    Arguments and errors are those of `rounds`; `processes` are those that answer, from `runs.shards`.
    """
    changes = _with_leave(overrides) if trust_remote_code else overrides
    if resume is not None:
        with _resumed(RunFolder(Path(resume)), config, changes, processes) as going:
            yield going
    else:
        with _new(read_config(config if config is not None else {}, changes), force, processes) as going:
            yield going


def _with_leave(overrides: Overrides) -> Overrides:
    if isinstance(overrides, Mapping):
        return {**overrides, "model.trust_remote_code": True}
    return [*overrides, "model.trust_remote_code=true"]


@contextmanager
def _new(config: RunConfig, force: bool, processes: Processes) -> Generator[OpenRun]:
    """A run from its first round. All that can fail is built before anything in the folder is touched."""
    chosen, target = check(config), RunFolder(config.folder())
    target.bring_back()
    target.demand_room(force=force)  # before the lock, which would make a file in a folder that is not ours
    with ExitStack() as stack:
        # Undone in reverse: a folder that is not used goes while its lock is still held, the draft's before the target's, so
        # that nobody can begin in a folder that is about to be removed.
        stack.enter_context(target.locked())
        stack.callback(target.remove_if_unused)
        target.demand_room(force=force)
        experiment = build(config, chosen)
        visit_all = processes.engine(experiment)
        folder = target
        if target.holds_results():
            target.say_what_goes()
            folder = target.draft
            stack.enter_context(folder.locked())  # the lock moves with it, so that its new name is never without one
            stack.callback(folder.remove_if_unused)
        folder.clear()
        going = OpenRun(experiment, visit_all, folder, _notes(experiment, processes), target)
        try:
            yield going
        finally:
            if going.folder is target and checkpoint.exists(target.checkpoint):
                going.draw()
            else:  # no round is done, and what there is of one would only be in the way
                going.folder.clear()


@contextmanager
def _resumed(folder: RunFolder, config: Source | None, overrides: Overrides, processes: Processes) -> Generator[OpenRun]:
    """The rounds of a run that are left."""
    folder.bring_back()
    folder.config()  # or locking would make a folder where there is no run
    folder.demand_kinds()
    with folder.locked():
        old = folder.config()
        start = checkpoint.load(folder.checkpoint) if checkpoint.exists(folder.checkpoint) else None
        _demand_checkpoint(folder, start)
        notes: Mapping[str, Any] = start.notes if start else {}
        fixed = notes["fixed"] if start else fixed_values(old)
        given = old if config is None else read_config(config)
        if config is None or isinstance(config, str | Path):
            given = without_leave(given)  # a file may be the folder's own
        settled = keep_choices(fixed, read_config(given, overrides), overrides)
        chosen = check(settled)
        demand_leave(old, settled)
        demand_same_run(fixed, settled)
        demand_rounds(settled, start.t if start else 0)
        experiment = build(settled, chosen)
        now = _notes(experiment, processes)
        demand_same_rows(notes.get("rows", {}), now["rows"], settled.data)
        demand_same_code(notes.get("code", {}), now.get("code", {}))
        platforms.compare(notes.get("platform", {}), now["platform"])
        visit_all = processes.engine(experiment)
        folder.rewind(start.t if start else 0, notes.get("record"))
        best.say_missing(folder.adapters, notes)
        going = OpenRun(experiment, visit_all, folder, {**notes, **now}, folder, start)
        going.choose_best_anew()
        try:
            yield going
        finally:
            going.draw()


def _demand_checkpoint(folder: RunFolder, start: Snapshot | None) -> None:
    """Raises FileNotFoundError if a run's checkpoint was taken away: a kill leaves one record without it at most."""
    done = len(folder.survey()[0])
    if start is None and done > 1:
        raise FileNotFoundError(
            f"{folder.path} has the records of {done} rounds, but no checkpoint to go on from: bring {folder.checkpoint} back, "
            "or start a new run"
        )


def _notes(experiment: Experiment, processes: Processes) -> dict[str, Any]:
    """Returns what a checkpoint keeps of the run beside the method's state: what makes it this run, and where it runs."""
    graph = {"topology": dict(experiment.contraction)} if experiment.contraction else {}
    code = code_digests(experiment.method)
    shares = processes.count if experiment.choice.engine == "batched" else 1  # one after another has the same bits anywhere
    return {
        **graph,
        **({"code": code} if code else {}),
        "fixed": fixed_values(experiment.config),
        "rows": row_digests(experiment.deal.splits),
        "platform": platforms.here(experiment.model.device, shares),
    }


@dataclass
class OpenRun:
    """A run that is built and has its folder; it writes what each round leaves.

    Attributes:
        experiment: what the run needs.
        visit_all: the engine.
        folder: where it writes now.
        notes: what a checkpoint keeps beside the method's state.
        target: the folder that the run is to be in: another than `folder` until it has taken the place of an earlier run.
        start: the snapshot to go on from; None from the first round.
    """

    experiment: Experiment
    visit_all: VisitAll
    folder: RunFolder
    notes: dict[str, Any]
    target: RunFolder
    start: Snapshot | None = None

    def records(self) -> Iterator[Record]:
        """Runs the rounds that are left; each is on disk when its record is yielded."""
        e = self.experiment
        self.folder.write_config(e.config)
        settings = replace(e.settings, score=_validate(e), start=self.start, engine=self.visit_all)
        for done in play(e, e.clients, settings):
            yield self.write(done)

    def write(self, done: Round) -> Record:
        """Adapters, record, checkpoint, in this order: see `fedelta.runs.folder`."""
        record: Record = {
            "t": done.t,
            "cohort": sorted([u.sender.id for u in done.updates] + list(done.dropped)),
            "dropped": done.dropped,
            "train_loss": done.loss,
            "bytes": {"down": sum(done.bytes.down.values()), "up": sum(done.bytes.up.values())},
            "seconds": {"round": round(done.seconds, 3)},
        }
        if done.gossip:
            record["topology"] = {**self.experiment.contraction, "lost_links": len(done.lost_links)}
        settings = self.experiment.config.evaluation
        if settings.diagnostics:
            values = diagnose(done, per_layer=settings.diagnostics != "global")
            record["diagnostics"], self.notes["reasons"] = new_reasons(values, self.notes.get("reasons", {}))
        if (done.t + 1) % settings.every == 0 or self._is_last(done):
            began = time.perf_counter()
            record |= self._evaluate(done)
            self._save_adapters(done, record)
            record["seconds"]["evaluation"] = round(time.perf_counter() - began, 3)
        record = finite(record)
        self.folder.append(record)
        self.notes["record"] = {k: v for k, v in record.items() if k != "seconds"} | {"seconds": {}}  # times are no result
        checkpoint.save(self.folder.checkpoint, replace(done.snapshot, notes=self.notes))
        if self.folder is not self.target:
            self.folder.take_place_of(self.target)
            self.folder = self.target
        return record

    def draw(self) -> None:
        """Draws what there is to draw."""
        records = self.folder.records()
        if records:
            dealt = self.experiment.deal
            constant = majority(dealt.labels(dealt.splits.test))
            curves(records, self.folder.curves, title=self.experiment.config.name, majority=constant)

    def choose_best_anew(self) -> None:
        """Takes the best round from the records if `evaluation.best_by` is another metric than when it was chosen.

        Its adapter is there if it is the last evaluated round, or was the best once. Else adapters/best would not be what its
        name says: it is renamed after the metric it was chosen by, and comes again with the next better round.
        """
        metric, adapters = self.experiment.config.evaluation.best_by, self.folder.adapters
        self._move_best()  # left over by a death
        chosen = best.choose_anew(self.notes, self.folder.records(), metric, adapters)
        if chosen != self.notes:
            self._keep_notes(chosen)
        self._move_best()

    def _move_best(self) -> None:
        if best.MOVES in self.notes:
            self._keep_notes(best.move(self.notes, self.folder.adapters))

    def _keep_notes(self, notes: dict[str, Any]) -> None:
        """Takes these notes, and writes them to the checkpoint that the run goes on from."""
        self.notes = notes
        if self.start is not None:
            checkpoint.save(self.folder.checkpoint, replace(self.start, notes=notes))

    def _is_last(self, done: Round) -> bool:
        return done.t + 1 == self.experiment.config.federation.rounds

    def _evaluate(self, done: Round) -> Record:
        e = self.experiment
        scores: Record = {}
        for name, rows in _common_rows(e):
            if done.gossip:
                nodes = e.evaluator.by_peer(done, rows)
                scores[name] = mean(nodes)
                scores.setdefault("nodes", {})[name] = _spread(nodes)
            else:
                scores[name] = e.evaluator.common(done, rows)
        if e.client_tests:
            scores["clients"] = fairness(e.evaluator.by_client(done, e.client_tests))
        return scores

    def _save_adapters(self, done: Round, record: Record) -> None:
        """`last` and `best` for the server's model; at the end one for each rank, or each client where models differ."""
        if not done.personal:
            is_best = self._is_best(record)
            self._save(done.global_model(), "last", *(["best"] if is_best else []))
            if is_best:
                self._note_best(record)
        if self._is_last(done):
            for peer in done.peers if done.personal else _first_of_each_rank(done):
                self._save(done.participant_model(peer), f"client-{peer.id}" if done.personal else f"rank-{peer.rank}")

    def _is_best(self, record: Record) -> bool:
        metric = self.experiment.config.evaluation.best_by
        value, so_far = record.get("validation", {}).get(metric), self.notes.get("best")
        return value is not None and (so_far is None or is_better(value, so_far["value"], metric))

    def _note_best(self, record: Record) -> None:
        metric = self.experiment.config.evaluation.best_by
        self.notes["best"] = {"t": record["t"], "metric": metric, "value": record["validation"][metric]}

    def _save(self, model: Message, *names: str) -> None:
        adapter = effective(model["adapter"], model.get("base"))  # an SVD, where a base delta has become dense
        for name in names:
            save_adapter(adapter, self.folder.adapters / name, like=self.experiment.model.layout)


def _spread(nodes: Mapping[int, Mapping[str, float]]) -> Record:
    """By metric: mean, worst node and spread, and `each` node's value by its id."""
    return {m: {**spread, "each": {k: s[m] for k, s in nodes.items()}} for m, spread in fairness(nodes).items()}


def _first_of_each_rank(done: Round) -> Iterable[Peer]:
    first: dict[int, Peer] = {}
    for peer in kinds_of(done.peers):
        first.setdefault(peer.rank, peer)
    return first.values()


def _common_rows(experiment: Experiment) -> Iterator[tuple[str, Sequence[Any]]]:
    yield from ((n, r) for n, r in (("validation", experiment.validation), ("test", experiment.test)) if r)


def _validate(experiment: Experiment) -> Any:
    """A rating of uploads on the validation rows, for methods that need one."""
    if not experiment.validation:
        return None
    return lambda adapter, base: experiment.evaluator.score({"adapter": adapter, "base": base}, experiment.validation)
