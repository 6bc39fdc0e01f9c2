"""`fedelta run`."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli import completion
from fedelta.cli.data import split_table
from fedelta.cli.imports import uncollected
from fedelta.cli.options import AllowFiles, AsJson, Overrides, Trust, allowed_files
from fedelta.cli.output import STOPPED, note

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedelta.report.terminal import Mode
    from fedelta.runs.config import RunConfig
    from fedelta.runs.config.allowed import Allowed
    from fedelta.runs.open_run import OpenRun
    from fedelta.runs.shards import Processes


def run(
    config: Annotated[
        str | None,
        typer.Argument(metavar="CONFIG", help="A YAML file, or `quickstart`.", autocompletion=completion.configs),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the run in this folder.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; `runs/<name>` by default.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take the place of an earlier run in the folder, which becomes NAME.old.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show bytes, memory and steps, and do not train.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    trust: Trust = False,
    allow_files: AllowFiles = None,
    as_json: AsJson = False,
) -> None:
    """Run a federation: a folder with config, log, adapters, checkpoint and picture.

    Ctrl-C ends after the round; --resume goes on with the same numbers as if it had not been stopped.
    """
    from fedelta.runs import shards

    may_run = allowed_files(overrides, allow_files)
    if shards.rank() > 0:
        shards.serve(may_run)
        return
    changes = [*(overrides or []), *([f"output={output}"] if output else [])]
    changes += ["model.trust_remote_code=true"] if trust else []
    mode: Mode = "json" if as_json else "quiet" if quiet else "screen"
    with shards.processes() as processes:
        settled = _settled(config, changes, resume, keeps_folder=output is None and not force, mode=mode)
        if dry_run:
            _show_plan(settled, may_run, as_json)
        else:
            _play(settled, may_run, resume, force, mode, processes)


def _settled(config: str | None, changes: list[str], resume: Path | None, *, keeps_folder: bool, mode: Mode) -> RunConfig:
    """The config of the run that was asked for, before a model library is imported."""
    from fedelta.report.terminal import show_warnings
    from fedelta.runs.config import ConfigError, read_config

    if (config is None) == (resume is None):
        raise ConfigError("give a config to run, or --resume with the folder of a run: one of them")
    if resume is not None and not keeps_folder:
        raise ConfigError("--resume goes on in its own folder: leave --output and --force out")
    show_warnings(mode)
    return read_config(_stored(resume) if resume else config or {}, changes)


def _stored(folder: Path) -> RunConfig:
    """Returns the config of a run's folder, without what only a person may allow."""
    from fedelta.runs.config.resume import without_leave
    from fedelta.runs.folder import RunFolder

    return without_leave(RunFolder(folder).config())


def _play(config: RunConfig, may_run: Allowed, resume: Path | None, force: bool, mode: Mode, processes: Processes) -> None:
    """Runs round by round, and shows what a person wants to see."""
    from fedelta.report.run_view import RunView
    from fedelta.report.terminal import CtrlC, quieten_libraries, screen

    view = RunView(mode)
    stopped = False
    with CtrlC("importing") as ctrl_c, view.shown():
        # Torch and transformers are imported from here on: seconds, in which there is something to see.
        with uncollected():
            quieten_libraries()
            from fedelta.runs.runner import opened

            if config.federation.where == "here":
                import_module("fedelta.runs.experiment")  # the largest part, which building the run would import

        ctrl_c.enter("building")
        with opened(config, resume=resume, force=force, allow_files=may_run, processes=processes) as going:
            view.begin(going.experiment.config.federation.rounds, going.folder.survey()[0])
            if going.experiment.deal is not None:
                view.say(split_table(going.experiment.deal))
            ctrl_c.enter("rounds")
            for record in going.records():
                view.show(record)
                # After the round is on disk: the run can then be taken up with nothing lost.
                stopped = ctrl_c.asked and record["t"] + 1 < view.rounds
                if stopped:
                    break
    if mode == "screen":
        screen().print(_summary(going))
    if stopped:
        note(f"stopped after a whole round; go on with: fedelta run --resume {going.folder.path}")
        raise typer.Exit(STOPPED)


def _summary(ended: OpenRun) -> RenderableType:
    from fedelta.report.tables import summary
    from fedelta.runs.evaluation import best_round
    from fedelta.runs.reports import json_object, known_facts

    records = ended.folder.records()
    page = ended.folder.path / "report.html"
    return summary(
        records,
        majority=ended.experiment.majority(),
        folder=ended.folder.path,
        best=best_round(records, ended.experiment.config.evaluation.best_by),
        lines=known_facts(json_object(ended.folder.run_file)).get("lines"),
        page=page if page.is_file() else None,
    )


def _show_plan(config: RunConfig, may_run: Allowed, as_json: bool) -> None:
    from fedelta.report.tables import plan_table
    from fedelta.report.terminal import out, print_json, quieten_libraries

    quieten_libraries()
    from fedelta.runs.config.checks import check, demand_here
    from fedelta.runs.config.own import Own
    from fedelta.runs.config.schema import PROGRAM
    from fedelta.runs.outline import built
    from fedelta.runs.plan import plan

    if config.federation.where == PROGRAM:
        demand_here(config)
    found = asdict(plan(built(config, check(config, Own(may_run)))))
    print_json(found) if as_json else out.print(plan_table(found))
