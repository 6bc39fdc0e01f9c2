"""Carries out a run: from a config to a folder of results, round by round."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from fedelta.engines import checkpoint
from fedelta.engines.rounds import Snapshot
from fedelta.runs import best, platforms
from fedelta.runs.config import RunConfig, read_config
from fedelta.runs.config.checks import check, demand_here
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.read import Overrides, Source
from fedelta.runs.config.resume import (
    demand_leave,
    demand_rounds,
    demand_same_code,
    demand_same_rows,
    demand_same_run,
    demand_same_sites,
    fixed_values,
    keep_choices,
    without_leave,
)
from fedelta.runs.deal import row_digests
from fedelta.runs.folder import RunFolder
from fedelta.runs.open_run import OpenRun
from fedelta.runs.own_methods import code_digests
from fedelta.runs.records import Record
from fedelta.runs.rounds import Experiment
from fedelta.runs.shards import Alone, Processes
from fedelta.tree import Adapter

Build: TypeAlias = Callable[[RunConfig, Choices, Mapping[str, Any]], Experiment]
"""Makes a run's experiment of its config, what that names, and the notes of the checkpoint that it goes on from, if any."""


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        folder: where everything is.
        records: one for each round, as in rounds.jsonl.
        adapter: the server's after the last round, with all that was added to the base; None for a personal method, or where
            there is no server, or whose file was taken away or damaged since, as the log says.
    """

    folder: Path
    records: Sequence[Record]
    adapter: Adapter | None

    @property
    def final(self) -> Record:
        """Returns the record of the last round, which is always an evaluated one."""
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


def _here(config: RunConfig, chosen: Choices, notes: Mapping[str, Any], processes: Processes) -> Experiment:
    """Builds a run whose clients train in this process, or in all processes of one machine or cluster."""
    demand_here(config)
    from fedelta.runs.experiment import build  # with transformers and PEFT, which a server of real sites does without

    e = build(config, chosen)
    shares = processes.count if e.choice.engine == "batched" else 1  # one after another has the same bits anywhere
    return replace(e, engine=partial(processes.engine, e), processes=shares)


@contextmanager
def opened(
    config: Source | None = None,
    overrides: Overrides = (),
    *,
    resume: str | Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    processes: Processes = Alone(),  # noqa: B008 - it holds nothing
    build: Build | None = None,
) -> Generator[OpenRun]:
    """Builds a run, for the block of a `with` that plays its rounds; errors and other arguments are those of `rounds`.

    Args:
        processes: those that answer, from `runs.shards`.
        build: makes the experiment of a run whose clients are elsewhere.
    """
    build = build or partial(_here, processes=processes)
    changes = _with_leave(overrides) if trust_remote_code else overrides
    if resume is not None:
        with _resumed(RunFolder(Path(resume)), config, changes, build) as going:
            yield going
    else:
        with _new(read_config(config if config is not None else {}, changes), force, build) as going:
            yield going


def _with_leave(overrides: Overrides) -> Overrides:
    if isinstance(overrides, Mapping):
        return {**overrides, "model.trust_remote_code": True}
    return [*overrides, "model.trust_remote_code=true"]


@contextmanager
def _new(config: RunConfig, force: bool, build: Build) -> Generator[OpenRun]:
    """Opens a run at its first round. All that can fail is built before anything in the folder is touched."""
    chosen, target = check(config), RunFolder(config.folder())
    target.bring_back()
    target.demand_room(force=force)  # before the lock, which would make a file in a folder that is not ours
    with ExitStack() as stack:
        # An ExitStack undoes in reverse. So a folder that was not used is removed while its lock is still held, and nobody can
        # begin in a folder that is about to go.
        stack.enter_context(target.locked())
        stack.callback(target.remove_if_unused)
        target.demand_room(force=force)  # again, since another run may have ended here before we had the lock
        experiment = build(config, chosen, {})
        visit_all = experiment.engine()
        folder = target
        if target.holds_results():
            target.say_what_goes()
            folder = target.draft
            stack.enter_context(folder.locked())  # the lock moves with it, so that its new name is never without one
            stack.callback(folder.remove_if_unused)
        folder.clear()
        going = OpenRun(experiment, visit_all, folder, _notes(experiment), target)
        try:
            yield going
        finally:
            if going.folder is target and checkpoint.exists(target.checkpoint):
                going.draw()
            else:  # no round is done, and the parts of an unfinished one would only be in the way
                going.folder.clear()


@contextmanager
def _resumed(folder: RunFolder, config: Source | None, overrides: Overrides, build: Build) -> Generator[OpenRun]:
    """Opens a run at the round after its last checkpoint."""
    folder.bring_back()
    folder.config()  # raises if there is no run; taking the lock would make a folder
    folder.demand_kinds()
    with folder.locked():
        old = folder.config()
        start = checkpoint.load(folder.checkpoint) if checkpoint.exists(folder.checkpoint) else None
        _demand_checkpoint(folder, start)
        notes: Mapping[str, Any] = start.notes if start else {}
        fixed = notes["fixed"] if start else fixed_values(old)
        given = old if config is None else read_config(config)
        if config is None or isinstance(config, str | Path):
            given = without_leave(given)  # the file may be the folder's own config.yaml, which may not allow itself anything
        settled = keep_choices(fixed, read_config(given, overrides), overrides)
        chosen = check(settled)
        demand_leave(old.model, settled.model)
        demand_same_run(fixed, settled)
        demand_rounds(settled.federation.rounds, start.t if start else 0)
        experiment = build(settled, chosen, notes)
        now = _notes(experiment)
        demand_same_rows(notes.get("rows", {}), now["rows"], settled.data)
        demand_same_sites(notes.get("sites", {}), now.get("sites", {}))
        demand_same_code(notes.get("code", {}), now.get("code", {}))
        platforms.compare(notes.get("platform", {}), now["platform"])
        visit_all = experiment.engine()
        folder.rewind(start.t if start else 0, notes.get("record"))
        best.say_missing(folder.adapters, notes)
        # The new notes win: the next checkpoint names the platform that the run goes on with.
        going = OpenRun(experiment, visit_all, folder, {**notes, **now}, folder, start)
        going.choose_best_anew()
        try:
            yield going
        finally:
            going.draw()


def _demand_checkpoint(folder: RunFolder, start: Snapshot | None) -> None:
    """Raises FileNotFoundError if a run's checkpoint was taken away: a kill leaves at most one record without one."""
    done = len(folder.survey()[0])
    if start is None and done > 1:
        raise FileNotFoundError(
            f"{folder.path} has the records of {done} rounds, but no checkpoint to go on from: bring {folder.checkpoint} back, "
            "or start a new run"
        )


def _notes(experiment: Experiment) -> dict[str, Any]:
    """Returns what a checkpoint keeps of the run beside the method's state: what makes it this run, and where it runs."""
    graph = {"topology": dict(experiment.contraction)} if experiment.contraction else {}
    code = code_digests(experiment.method)
    rows = {} if experiment.deal is None else row_digests(experiment.deal.splits)
    return {
        **graph,
        **experiment.notes,
        **({"code": code} if code else {}),
        "fixed": fixed_values(experiment.config),
        "rows": rows,
        "platform": platforms.here(experiment.device, experiment.processes),
    }
