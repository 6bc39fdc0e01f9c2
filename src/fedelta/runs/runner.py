"""Carries out a run: from a config to a folder of results, round by round."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from fedelta.engines import checkpoint
from fedelta.engines.rounds import Snapshot
from fedelta.method import Client, Method
from fedelta.report.run_view import RunView
from fedelta.report.terminal import is_watched
from fedelta.report.words import main_metric, number
from fedelta.runs import best, platforms
from fedelta.runs.config import RunConfig, read_config
from fedelta.runs.config.allowed import TRAINER, function_in
from fedelta.runs.config.checks import check, demand_here
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.read import Overrides, Source
from fedelta.runs.config.resume import (
    demand_leave,
    demand_rounds,
    demand_same_base,
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
from fedelta.runs.opening import Build, Opening, Options, changes_of, opening_of
from fedelta.runs.own_methods import code_digests
from fedelta.runs.records import Record
from fedelta.runs.rounds import Experiment
from fedelta.runs.shards import Alone, Processes
from fedelta.runs.sinks import Sink, demand_functions, demand_installed, reporting
from fedelta.tasks.task import Task
from fedelta.tree import Adapter

if TYPE_CHECKING:
    from fedelta.runs.given import Evaluate


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

    def __repr__(self) -> str:
        metric = main_metric(self.records[-1:])
        scores = {} if metric is None else self.final.get("test") or self.final.get("validation") or {}
        scored = f", {metric} {number(scores[metric])}" if metric in scores else ""
        return f"RunResult({str(self.folder)!r}, {len(self.records)} rounds{scored})"

    @property
    def final(self) -> Record:
        """Returns the record of the last round, which is always an evaluated one."""
        return self.records[-1]


def run(
    config: Source | None = None,
    overrides: Overrides = (),
    *,
    method: str | Method | None = None,
    task: str | Task | None = None,
    clients: Sequence[Client] | None = None,
    evaluate: Evaluate | None = None,
    resume: str | Path | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
    allow_files: Collection[str | PathLike[str]] = (),
    progress: bool | None = None,
    sinks: Sequence[Sink] = (),
) -> RunResult:
    """Runs a config to its end.

    A new run that ends before its first round is on disk leaves nothing.

    Args:
        config: a YAML file, a built-in name, a mapping or a `RunConfig`; not needed with `resume`.
        overrides: changes by dotted key, as `fedelta.runs.config.load_config` takes them.
        method: a name, the path of a Python file, which runs, or a method, in place of the config's.
        task: likewise.
        clients: such as `fedelta.hf_clients` makes, or your own. They bring data, model, ranks, task and training, of which the
            config says nothing. To resume, make the same ones again: ids, ranks, numbers of examples and the adapter that
            they begin from are compared, their rows cannot be.
        evaluate: with `clients`, rows to score on under "validation" and "test", where `fedelta.hf_clients` made them; or a
            function that takes a `Round` and returns scores, such as {"test": {"accuracy": 0.5}}.
        resume: the folder of a run to go on with after its last checkpoint, to more rounds where the overrides say so.
        force: takes the place of a run in the folder, which becomes `<name>.old` once the first round of the new one is done.
        trust_remote_code: allows the model's own code to run; asked for again at every resumption, since a folder's word for
            it does not count.
        allow_files: the Python files, by path or sha256, that may run if the config names them, be it a file, a mapping or a
            `RunConfig`: any of them may have come from somebody else. Files in the user's own list may, too (`fedelta allow`).
        progress: shows the run round by round; by default in a terminal and in a notebook.
        sinks: functions that take each record once its round is on disk, such as a tracker's; what one raises ends the run.

    Raises:
        ConfigError: for a config that cannot be run, or changes that would make a resumed run another one.
        FileExistsError: for a folder that is in use.
        BlockingIOError: for a folder that another process is writing to.
        QuorumError: in a round with too few usable updates.
    """
    opening = opened(
        config,
        overrides,
        method=method,
        task=task,
        clients=clients,
        evaluate=evaluate,
        resume=resume,
        force=force,
        trust_remote_code=trust_remote_code,
        allow_files=allow_files,
        sinks=sinks,
    )
    view = RunView("screen" if (is_watched() if progress is None else progress) else "quiet")
    with view.shown(), opening as going:
        view.begin(going.experiment.config.federation.rounds, going.folder.survey()[0])
        for record in going.records():
            view.show(record)
    folder = going.folder
    return RunResult(folder.path, folder.records(), best.last_of(folder.adapters))


def rounds(config: Source | None = None, overrides: Overrides = (), **options: Unpack[Options]) -> Generator[Record]:
    """Runs a config and yields each round's record once the round is on disk; the caller owns the loop.

    Leaving the loop, or closing the iterator, ends the run cleanly after the round that it yielded last. Arguments and errors
    are those of `run`.
    """
    with opened(config, overrides, **options) as going:
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
    processes: Processes = Alone(),  # noqa: B008 - it holds nothing
    build: Build | None = None,
    **options: Unpack[Options],
) -> Generator[OpenRun]:
    """Builds a run, for the block of a `with` that plays its rounds; errors and other arguments are those of `run`.

    Args:
        processes: those that answer, from `runs.shards`.
        build: makes the experiment of a run whose clients are elsewhere.
    """
    opening = opening_of(options, build or partial(_here, processes=processes))
    changes, sinks = changes_of(options, overrides), options.get("sinks", ())
    demand_functions(sinks)
    if (resume := options.get("resume")) is not None:
        with _resumed(RunFolder(Path(resume)), config, changes, opening) as going, _whole(going, sinks):
            yield going
    else:
        settled = read_config(config if config is not None else {}, changes)
        demand_installed(settled)
        with _new(settled, options.get("force", False), opening) as going, _whole(going, sinks):
            yield going


@contextmanager
def _whole(going: OpenRun, sinks: Sequence[Sink]) -> Generator[None]:
    """Hands records on to sinks while a run plays its rounds, and lets go of its model afterwards.

    A model's hooks and the layers that they are on refer to one another. So it would stay in memory, with all that its passes
    keep, until Python next looks for such circles, which is rare: a process that carries out run after run would hold several.
    """
    with closing(going.experiment), reporting(going, sinks):
        yield


@contextmanager
def _new(config: RunConfig, force: bool, opening: Opening) -> Generator[OpenRun]:
    """Opens a run at its first round. All that can fail is built before anything in the folder is touched."""
    config = opening.settled(config)
    chosen, target = check(config, opening.own), RunFolder(config.folder())
    target.bring_back()
    target.demand_room(force=force)  # before the lock, which would make a file in a folder that is not ours
    with ExitStack() as stack:
        # An ExitStack undoes in reverse. So a folder that was not used is removed while its lock is still held, and nobody can
        # begin in a folder that is about to go.
        stack.enter_context(target.locked())
        stack.callback(target.remove_if_unused)
        target.demand_room(force=force)  # again, since another run may have ended here before we had the lock
        experiment = opening.build(config, chosen, {})
        visit_all = experiment.engine()
        folder = target
        if target.holds_results():
            target.say_what_goes()
            folder = target.draft
            stack.enter_context(folder.locked())  # the lock moves with it, so that its new name is never without one
            stack.callback(folder.remove_if_unused)
        folder.clear()
        going = OpenRun(experiment, visit_all, folder, _notes(experiment, chosen), target, code=chosen.files)
        try:
            yield going
        finally:
            if going.folder is target and checkpoint.exists(target.checkpoint):
                going.draw()
            else:  # no round is done, and the parts of an unfinished one would only be in the way
                going.folder.clear()


@contextmanager
def _resumed(folder: RunFolder, config: Source | None, overrides: Overrides, opening: Opening) -> Generator[OpenRun]:
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
        settled = keep_choices(fixed, opening.settled(read_config(given, overrides)), overrides)
        demand_installed(settled)
        chosen = check(settled, opening.own)
        demand_leave(old.model, settled.model)
        demand_same_run(fixed, settled)
        demand_rounds(settled.federation.rounds, start.t if start else 0)
        experiment = opening.build(settled, chosen, notes)
        now = _notes(experiment, chosen)
        demand_same_base(notes.get("base"), now["base"], settled.model)
        demand_same_rows(notes.get("rows", {}), now["rows"], settled.data)
        demand_same_sites(notes.get("sites", {}), now.get("sites", {}))
        demand_same_code(notes.get("code", {}), now.get("code", {}))
        platforms.compare(notes.get("platform", {}), now["platform"])
        visit_all = experiment.engine()
        folder.rewind(start.t if start else 0, notes.get("record"))
        best.say_missing(folder.adapters, notes)
        # The new notes win: the next checkpoint names the platform that the run goes on with.
        going = OpenRun(experiment, visit_all, folder, {**notes, **now}, folder, start, chosen.files)
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


def _notes(experiment: Experiment, chosen: Choices) -> dict[str, Any]:
    """Returns what a checkpoint keeps of the run beside the method's state: what makes it this run, and where it runs."""
    graph = {"topology": dict(experiment.contraction)} if experiment.contraction else {}
    code = code_digests(experiment.method, chosen.task)
    if (trainer := experiment.config.training.trainer) is not None:
        code["the trainer"] = f"{chosen.files[TRAINER].digest}:{function_in(trainer)[1]}"
    rows = {} if experiment.deal is None else row_digests(experiment.deal.splits)
    return {
        **graph,
        **experiment.notes,
        **({"code": code} if code else {}),
        "fixed": fixed_values(experiment.config),
        "base": experiment.template.base,
        "rows": rows,
        "platform": platforms.here(experiment.device, experiment.processes),
    }
