"""A whole run: from a config to a folder of results, round by round."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from fedelta.diagnostics import diagnose, new_reasons
from fedelta.engines import checkpoint
from fedelta.engines.rounds import Round, Snapshot
from fedelta.models.adapter_files import load_adapter, save_adapter
from fedelta.report import tables as report
from fedelta.runs.config import RunConfig, demand_leave, demand_same_run, keep_choices, load_config, without_leave
from fedelta.runs.evaluation import fairness, mean
from fedelta.runs.experiment import Experiment, build, play, resolved
from fedelta.runs.folder import Record, RunFolder, finite
from fedelta.tasks.metrics import is_better
from fedelta.tree import Adapter, Message, effective

logger = logging.getLogger(__name__)

Source: TypeAlias = str | Path | Mapping[str, Any] | RunConfig


@dataclass(frozen=True)
class RunResult:
    """What a run leaves.

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
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    resume: str | Path | None = None,
    trust_remote_code: bool = False,
) -> RunResult:
    """Runs a config to its end; arguments and errors are those of `rounds`."""
    folder = RunFolder(Path(resume) if resume else load_config(config or {}, overrides).folder())
    for _ in rounds(config, overrides, resume=resume, trust_remote_code=trust_remote_code):
        pass
    last = folder.adapters / "last"
    return RunResult(folder.path, folder.records(), load_adapter(last) if last.is_dir() else None)


def rounds(
    config: Source | None = None,
    overrides: Sequence[str] | Mapping[str, Any] = (),
    *,
    resume: str | Path | None = None,
    trust_remote_code: bool = False,
) -> Generator[Record]:
    """Runs a config and yields each round's record once the round is on disk; the caller owns the loop.

    Leaving the loop, or closing the iterator, ends the run cleanly after the round that it yielded last.

    Args:
        config: a YAML file, a built-in name, a mapping or a `RunConfig`; not needed with `resume`.
        overrides: changes by dotted key, as `fedelta.runs.config.load_config` takes them.
        resume: the folder of a run to go on with after its last checkpoint, to more rounds where the overrides say so.
        trust_remote_code: allows the model's own code to run; asked for again at every resumption, since a folder's word for
            it does not count.

    Raises:
        ConfigError: for a config that cannot be run, or changes that would make a resumed run another one.
        FileExistsError: for a folder that is in use.
        QuorumError: in a round with too few usable updates.
    """
    config, folder, start = _begin(config, overrides, resume, trust_remote_code)
    experiment = build(config)
    experiment = replace(experiment, config=resolved(experiment))
    folder.write_config(experiment.config)
    notes = dict(start.notes) if start else {}
    graph = {"topology": dict(experiment.contraction)} if experiment.contraction else {}
    log = _Log(experiment, folder, {**notes, **graph, "platform": _platform(experiment, notes)})
    last = experiment.config.federation.rounds
    try:
        yield from map(log.write, play(experiment, experiment.clients, rounds=last, score=_validate(experiment), start=start))
    finally:
        log.close()


def _begin(
    config: Source | None, overrides: Sequence[str] | Mapping[str, Any], resume: str | Path | None, trust: bool
) -> tuple[RunConfig, RunFolder, Snapshot | None]:
    leave = {"model.trust_remote_code": True} if trust else {}
    if resume is None:
        settled = load_config(load_config(config if config is not None else {}, overrides), leave)
        folder = RunFolder(settled.folder())
        folder.demand_empty()
        return settled, folder, None
    folder = RunFolder(Path(resume))
    old = folder.config()
    given = load_config(old if config is None else config)
    if config is None or isinstance(config, str | Path):
        given = without_leave(given)  # a file may be the folder's own
    settled = keep_choices(old, load_config(load_config(given, overrides), leave))
    demand_leave(old, settled)
    demand_same_run(old, settled)
    start = checkpoint.load(folder.checkpoint) if checkpoint.exists(folder.checkpoint) else None
    folder.rewind(start.t if start else 0)
    return settled, folder, start


def _platform(experiment: Experiment, notes: Mapping[str, Any]) -> dict[str, Any]:
    """What the bits of a result depend on beside the config; a warning if a resumed run began on another."""
    now = {"device": experiment.model.device.type, "threads": torch.get_num_threads(), "torch": torch.__version__}
    before = notes.get("platform", now)
    if changed := [f"{k} {before.get(k)} -> {v}" for k, v in now.items() if before.get(k) != v]:
        logger.warning(
            "the run began on another platform (%s): its bytes may differ from an uninterrupted run's", ", ".join(changed)
        )
    return now


@dataclass
class _Log:
    """Writes a run's folder."""

    experiment: Experiment
    folder: RunFolder
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

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
        checkpoint.save(self.folder.checkpoint, replace(done.snapshot, notes=self.notes))
        return record

    def close(self) -> None:
        """Draws what there is to draw."""
        records = self.folder.records()
        if records:
            dealt = self.experiment.deal
            majority = report.majority([dealt.task.label_of(row) for row in dealt.splits.test])
            report.curves(records, self.folder.curves, title=self.experiment.config.name, majority=majority)

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
            self._save(done.global_model(), "last", *(["best"] if self._is_best(done, record) else []))
        if self._is_last(done):
            for peer in done.peers:
                name = f"client-{peer.id}" if done.personal else f"rank-{peer.rank}"
                if done.personal or peer is _first_of_rank(done, peer.rank):
                    self._save(done.participant_model(peer), name)

    def _is_best(self, done: Round, record: Record) -> bool:
        metric = self.experiment.config.evaluation.best_by
        value, best = record.get("validation", {}).get(metric), self.notes.get("best")
        if value is None or (best is not None and not is_better(value, best["value"], metric)):
            return False
        self.notes["best"] = {"t": done.t, "metric": metric, "value": value}
        return True

    def _save(self, model: Message, *names: str) -> None:
        adapter = effective(model["adapter"], model.get("base"))  # an SVD, where a base delta has become dense
        for name in names:
            save_adapter(adapter, self.folder.adapters / name, like=self.experiment.model.layout)


def _spread(nodes: Mapping[int, Mapping[str, float]]) -> Record:
    """By metric: mean, worst node and spread, and `each` node's value by its id."""
    return {m: {**spread, "each": {k: s[m] for k, s in nodes.items()}} for m, spread in fairness(nodes).items()}


def _first_of_rank(done: Round, rank: int) -> Any:
    return next(p for p in done.peers if p.rank == rank)


def _common_rows(experiment: Experiment) -> Iterator[tuple[str, Sequence[Any]]]:
    yield from ((n, r) for n, r in (("validation", experiment.validation), ("test", experiment.test)) if r)


def _validate(experiment: Experiment) -> Any:
    """A rating of uploads on the validation rows, for methods that need one."""
    if not experiment.validation:
        return None
    return lambda adapter, base: experiment.evaluator.score({"adapter": adapter, "base": base}, experiment.validation)
