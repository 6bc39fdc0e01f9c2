"""A run that is going on: it plays the rounds, and writes what each leaves. Where the clients train is nothing to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedelta.activity import board
from fedelta.code_files import CodeFile
from fedelta.diagnostics import diagnose, new_reasons
from fedelta.engines import checkpoint
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.settings import Score
from fedelta.engines.visits import VisitAll
from fedelta.exchange import files
from fedelta.models.adapter_files import save_adapter
from fedelta.peers import Peer, kinds_of
from fedelta.report.charts import curves
from fedelta.report.page import page
from fedelta.runs import best, client_lines, facts
from fedelta.runs.evaluation import Evaluator, Scores, by_metric, fairness, mean
from fedelta.runs.folder import RunFolder, finite
from fedelta.runs.machine import Stopwatch, moment
from fedelta.runs.records import Record, without_times
from fedelta.runs.reports import read_run
from fedelta.runs.rounds import Experiment, play
from fedelta.tasks.metrics import is_better
from fedelta.tasks.task import Example
from fedelta.tree import Message, effective

logger = logging.getLogger(__name__)


@dataclass
class OpenRun:
    """A run that is built and has its folder; it writes what each round leaves.

    Attributes:
        experiment: what the run needs.
        visit_all: the engine.
        folder: where it writes now.
        notes: what a checkpoint keeps beside the method's state.
        target: the folder that the run is to be in: it differs from `folder` until the run takes the place of an earlier one.
        start: the snapshot to go on from; None from the first round.
        code: by key of the config, the Python files that define its method or its task.
        pictures: the end of the run leaves curves and a page.
        sinks: take each record once it is on disk.
    """

    experiment: Experiment
    visit_all: VisitAll
    folder: RunFolder
    notes: dict[str, Any]
    target: RunFolder
    start: Snapshot | None = None
    code: Mapping[str, CodeFile] = field(default_factory=dict[str, CodeFile])
    pictures: bool = True
    sinks: Sequence[Callable[[Record], None]] = ()

    def records(self) -> Iterator[Record]:
        """Runs the rounds that are left; each is on disk when its record is yielded."""
        e = self.experiment
        self.folder.write_config(e.config, self.code)
        facts.write_once(self.folder.run_file, self.folder.split_file, e, self.notes, self.code)
        settings = replace(e.settings, score=_validate(e), start=self.start, engine=self.visit_all)
        for done in play(e, e.clients, settings):
            record = self.write(done)
            for sink in self.sinks:
                sink(record)
            yield record

    def write(self, done: Round) -> Record:
        """Writes adapters, lines and checkpoint of a round, in this order (see `fedelta.runs.folder`); returns the record."""
        clock = Stopwatch({"round": done.seconds, "train": done.training, "aggregate": done.seconds - done.training})
        record: Record = {
            "t": done.t,
            "cohort": sorted([u.sender.id for u in done.updates] + list(done.dropped)),
            "dropped": done.dropped,
            "train_loss": done.loss,
            "bytes": {"down": sum(done.bytes.down.values()), "up": sum(done.bytes.up.values())},
            "seconds": clock.seconds,
        }
        if done.gossip:
            record["topology"] = {**self.experiment.contraction, "lost_links": len(done.lost_links)}
        settings = self.experiment.config.evaluation
        if settings.diagnostics:
            board().say("diagnosing")
            with clock.measure("diagnostics"):
                values = diagnose(done, per_layer=settings.diagnostics != "global")
            record["diagnostics"], self.notes["reasons"] = new_reasons(values, self.notes.get("reasons", {}))
        own: Mapping[int, Scores] = {}
        if (done.t + 1) % settings.every == 0 or self._is_last(done):
            board().say("evaluating")
            with clock.measure("evaluation"):
                own = self.experiment.own_scores(done)
                record |= self._evaluate(done)
                record |= {"clients": fairness(own)} if own else {}
            board().say("saving")
            with clock.measure("save"):
                self._save_adapters(done, record)
        record = finite(record | moment())
        names = list(self.experiment.config.client_files())
        client_lines.append(self.folder.clients_file, finite(client_lines.client_line(done, own, names)))
        self.folder.append(record)
        # Without the times, which are no result: equal runs have equal checkpoints.
        self.notes["record"] = without_times(record) | {"seconds": {}}
        checkpoint.save(self.folder.checkpoint, replace(done.snapshot, notes=self.notes))
        # Only now, when a round is whole, does the run take the place of an earlier one.
        if self.folder is not self.target:
            self.folder.take_place_of(self.target)
            self.folder = self.target
        return record

    def draw(self) -> None:
        """Draws the curves of the rounds so far and writes their page, if there are any."""
        records = self.folder.records() if self.pictures else []
        if records:
            e = self.experiment
            board().say("drawing the report")
            curves(records, self.folder.curves, title=e.config.name, majority=e.majority())
            self._report()

    def _report(self) -> None:
        # A page is made of records that are safe on the disk: a fault in it must not end a run, or hide what ended it.
        try:
            config = self.experiment.config
            text = page([read_run(self.folder, config.name, config)])
        except Exception as error:
            logger.warning("%s is not written: %s; try `fedelta report %s`", self.folder.report, error, self.folder.path)
        else:
            files.commit(self.folder.report, text.encode())

    def choose_best_anew(self) -> None:
        """Chooses the best round anew from the records if `evaluation.best_by` is no longer the metric that chose it.

        The new one's adapter is there if it is the last evaluated round, or was the best before. Else there is no adapters/best
        until a better round comes. The old one is renamed after its metric.
        """
        metric, adapters = self.experiment.config.evaluation.best_by, self.folder.adapters
        self._move_best()  # finishes moves that a death interrupted
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
        if e.measure is not None:
            return dict(e.measure(done))
        scores: Record = {}
        for name, rows in _common_rows(e):
            # A participant's own model needs what it remembers, which may be elsewhere.
            if e.evaluator is None or (done.personal and not e.memories_here):
                continue
            board().say(f"evaluating {name}")
            if done.gossip:
                nodes = e.evaluator.by_peer(done, rows)
                scores[name] = mean(nodes)
                scores.setdefault("nodes", {})[name] = _spread(nodes)
            else:
                scores[name] = e.evaluator.common(done, rows)
        return scores

    def _save_adapters(self, done: Round, record: Record) -> None:
        """Saves the server's model as `last` and perhaps `best`; at the end also those of each rank, or of each client."""
        if not done.personal:
            is_best = self._is_best(record)
            self._save(done.global_model(), "last", *(["best"] if is_best else []))
            if is_best:
                self._note_best(record)
        if self._is_last(done) and (self.experiment.memories_here or not done.personal):
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
        # Once for all names: where a base delta has become dense this is an SVD.
        adapter = effective(model["adapter"], model.get("base"))
        for name in names:
            save_adapter(adapter, self.folder.adapters / name, like=self.experiment.layout)


def _spread(nodes: Mapping[int, Mapping[str, float]]) -> Record:
    """Returns for each metric the mean, the worst node and the spread, and under `each` every node's value by its id."""
    each = by_metric(nodes)
    return {metric: {**spread, "each": each[metric]} for metric, spread in fairness(nodes).items()}


def _first_of_each_rank(done: Round) -> Iterable[Peer]:
    first: dict[int, Peer] = {}
    for peer in kinds_of(done.peers):
        first.setdefault(peer.rank, peer)
    return first.values()


def _common_rows(experiment: Experiment) -> Iterator[tuple[str, Sequence[Example]]]:
    if experiment.validation:
        yield "validation", experiment.validation
    if experiment.test:
        yield "test", experiment.test


def _validate(experiment: Experiment) -> Score | None:
    """Returns what rates uploads on the validation rows, for methods that need it; None without such rows or a model here."""
    if not experiment.validation or experiment.evaluator is None:
        return None
    evaluator: Evaluator = experiment.evaluator
    return lambda adapter, base: evaluator.score({"adapter": adapter, "base": base}, experiment.validation)
