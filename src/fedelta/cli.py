"""The command line. Commands parse and print; what they do is done by the modules that they import when they are called.

So `--help` does not wait for torch. Errors that a user can mend end with one message and exit code 2.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedelta.report.terminal import Mode
    from fedelta.runs.config import RunConfig
    from fedelta.runs.experiment import Deal
    from fedelta.runs.folder import RunFolder

T = TypeVar("T", int, float)

MENDABLE = (ValueError, OSError, ImportError, ArithmeticError)
"""Errors whose message tells the user what to do; everything else is a fault of fedelta and keeps its traceback."""

STOPPED = 130
"""The exit code after Ctrl-C, as shells have it."""


class _Group(TyperGroup):
    """Turns errors into one message each."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _note("stopped at once; a run that has finished a round can be taken up after it with --resume")
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            if ctx.params.get("debug") or not _is_mendable(error):
                raise
            _fail(str(error) or type(error).__name__)
            raise typer.Exit(2) from error


def _is_mendable(error: Exception) -> bool:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("fedelta"):
        return False
    # QuorumError is a RuntimeError, as is much that torch raises; its module is not imported for the sake of its name.
    return isinstance(error, MENDABLE) or type(error).__name__ == "QuorumError"


def _fail(message: str) -> None:
    typer.secho(f"error: {message}", fg="red", err=True)


def _note(message: str) -> None:
    typer.secho(message, dim=True, err=True)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a built-in config: quickstart.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the config, such as lora.rank=4.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, and nothing else.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it, too.")]
Folders = Annotated[list[Path], typer.Argument(metavar="DIR...", help="PEFT folders.")]
Which = Annotated[
    Literal["best", "last"] | None,
    typer.Option(
        "--round",
        metavar="best|last",
        help="Of a run: the best round by validation (the default, where there is one), or the last.",
    ),
]
OfRank = Annotated[
    int | None, typer.Option("--rank", metavar="R", help="Of a run: what participants of this rank had at the end.")
]
OfClient = Annotated[int | None, typer.Option("--client", metavar="K", help="Of a run: what this client had at the end.")]

Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run the code that comes with the model; the folder of a run cannot ask for it."),
]


def main() -> None:
    """The entry point of the `fedelta` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the library warns when a process forks
    app(prog_name="fedelta")


def _print_version(value: bool) -> None:
    if value:
        from fedelta import __version__

        typer.echo(f"fedelta {__version__}")
        raise typer.Exit


@app.callback()
def fedelta(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Federated low-rank adaptation of Hugging Face models."""


# --- runs ------------------------------------------------------------------------------------------------------------


@app.command()
def run(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help="A YAML file, or `quickstart`.")] = None,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Go on with the run in this folder.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="The run's folder; `runs/<name>` by default.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Take the place of an earlier run in the folder, which becomes NAME.old.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show bytes, memory and steps, and do not train.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Run a federation: a folder with config, log, adapters, checkpoint and picture.

    Ctrl-C ends after the round; --resume goes on with the same numbers as if it had not been stopped.
    """
    from fedelta.report.terminal import quieten_libraries, show_warnings
    from fedelta.runs.config import ConfigError, load_config
    from fedelta.runs.config.resume import without_leave
    from fedelta.runs.folder import RunFolder

    if (config is None) == (resume is None):
        raise ConfigError("give a config to run, or --resume with the folder of a run: one of them")
    if resume is not None and (output is not None or force):
        raise ConfigError("--resume goes on in its own folder: leave --output and --force out")
    mode: Mode = "json" if as_json else "quiet" if quiet else "screen"
    show_warnings(mode)
    changes = [*(overrides or []), *([f"output={output}"] if output else [])]
    changes += ["model.trust_remote_code=true"] if trust else []
    settled = load_config(without_leave(RunFolder(resume).config()) if resume else config or {}, changes)
    quieten_libraries()
    if dry_run:
        _show_plan(settled, as_json)
        return
    folder = RunFolder(resume or settled.folder())
    if not resume:
        folder.demand_room(force=force)
    _play(folder, settled, resume, force, mode)


def _play(folder: RunFolder, config: RunConfig, resume: Path | None, force: bool, mode: Mode) -> None:
    """Runs round by round; what a person reads is shown around it."""
    from contextlib import closing

    from fedelta.report.terminal import CtrlC, RunView, out
    from fedelta.runs import runner

    dealt = _deal(config) if mode == "screen" else None
    if dealt is not None:
        out.print(_split_table(dealt))
    view = RunView(mode, config.federation.rounds, folder.survey()[0] if resume else [])
    with CtrlC() as ctrl_c, closing(runner.rounds(config, resume=resume, force=force)) as records, view.shown():
        for record in records:
            view.show(record)
            if ctrl_c.asked:
                break
    if dealt is not None:
        out.print(_summary(folder, config, dealt))
    if ctrl_c.asked:
        _note(f"stopped after a whole round; go on with: fedelta run --resume {folder.path}")
        raise typer.Exit(STOPPED)


def _summary(folder: RunFolder, config: RunConfig, dealt: Deal) -> RenderableType:
    from fedelta.report import tables as report

    records = folder.records()
    labels = [dealt.task.label_of(row) for row in dealt.splits.test]
    return report.summary(
        records,
        majority=report.majority(labels),
        folder=folder.path,
        best=report.best_round(records, config.evaluation.best_by),
    )


def _show_plan(config: RunConfig, as_json: bool) -> None:
    from fedelta.report.tables import plan_table
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.experiment import build
    from fedelta.runs.plan import plan

    found = asdict(plan(build(config)))
    print_json(found) if as_json else out.print(plan_table(found))


@app.command()
def partition(
    config: Config,
    overrides: Overrides = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Show which client gets which data, without a model."""
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.config import load_config

    dealt = _deal(load_config(config, overrides or []))
    print_json(_split_rows(dealt)) if as_json else out.print(_split_table(dealt))
    if plot:
        from fedelta.split.view import plot_partition

        plot_partition(dealt.parts, _labels(dealt), plot)


def _deal(config: RunConfig) -> Deal:
    from fedelta.runs.experiment import deal

    return deal(config)


def _labels(dealt: Deal) -> list[Any]:
    return [dealt.task.label_of(row) for row in dealt.splits.train]


def _split_rows(dealt: Deal) -> list[dict[str, Any]]:
    from fedelta.split.view import partition_table

    rows = partition_table(dealt.parts, _labels(dealt))
    return [{**row, "rank": rank} for row, rank in zip(rows, dealt.ranks, strict=True)]


def _split_table(dealt: Deal) -> RenderableType:
    from fedelta.report.tables import split_table

    return split_table(_split_rows(dealt))


# --- adapters --------------------------------------------------------------------------------------------------------


@app.command()
def methods(
    as_json: AsJson = False,
) -> None:
    """List the methods: source, unequal ranks, what travels."""
    from fedelta.methods import list_methods, method_class
    from fedelta.report.tables import methods_table
    from fedelta.report.terminal import out, print_json

    rows = [
        {"name": name, "paper": cls.paper, "hetero_rank": cls.hetero_rank, "travels": cls.travels, "aliases": list(cls.aliases)}
        for name, cls in ((name, method_class(name)) for name in list_methods())
    ]
    print_json(rows) if as_json else out.print(methods_table(rows))


@app.command()
def check(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", help="Of methods or tasks, or Python files with one of them each."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All methods and tasks there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """Ask methods, or tasks, the laws that all of their kind obey; ends with code 1 if one is broken.

    A file's code runs. The guides "Write your own method" and "Write your own task" say what each law is.
    """
    from fedelta.methods import list_methods
    from fedelta.report.tables import laws_table, reports_table
    from fedelta.report.terminal import out, print_json
    from fedelta.tasks import list_tasks
    from fedelta.testing import check

    if bool(targets) == everything:
        raise ValueError("give the methods or tasks to check, or --all: one of them")
    reports = {name: check(name) for name in targets or [*list_methods(), *list_tasks()]}
    if as_json:
        print_json({name: report.as_dict() for name, report in reports.items()})
    elif len(reports) == 1:
        out.print(laws_table(next(iter(reports.values())).as_dict()))
    else:
        out.print(reports_table({name: report.as_dict() for name, report in reports.items()}))
    if not all(report.ok for report in reports.values()):
        raise typer.Exit(1)


@app.command()
def aggregate(
    folders: Folders,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where to write.")],
    method: Annotated[str, typer.Option(metavar="NAME", help="One of `fedelta methods`.")] = "fedavg",
    ranks: Annotated[str | None, typer.Option(metavar="R,...", help="Of the results; by default those of the inputs.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="W,...", help="One for each input; equal by default.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of the method.")] = None,
) -> None:
    """Merge PEFT adapters on disk by a method, without training.

    One result is written to OUT itself, several to OUT/rank-R or, without --ranks, to OUT under the inputs' names.
    """
    from fedelta.adapters.aggregation import aggregate
    from fedelta.models.adapter_files import save_adapter
    from fedelta.runs.config import pairs
    from fedelta.runs.export import demand_unused

    wanted = _numbers(ranks, "--ranks", int)
    places = _places(output, folders, wanted)
    for place in places:
        demand_unused(place)
    results = aggregate(
        folders, method=method, ranks=wanted, weights=_numbers(weights, "--weights", float), **dict(pairs(settings or []))
    )
    for place, (k, result) in zip(places, enumerate(results), strict=True):
        save_adapter(result, place, like=folders[k % len(folders)])
        _note(f"wrote {place}")


def _numbers(text: str | None, option: str, kind: type[T]) -> list[T] | None:
    """Numbers between commas."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of numbers between commas, such as 4,8") from None


def _places(output: Path, folders: Sequence[Path], ranks: Sequence[int] | None) -> list[Path]:
    """Where each result goes; names that occur twice get the position of their input in front."""
    names = [folder.resolve().name for folder in folders] if ranks is None else [f"rank-{rank}" for rank in ranks]
    if len(names) == 1:
        return [output]
    twice = len(set(names)) < len(names)
    return [output / (f"{k}-{name}" if twice else name) for k, name in enumerate(names)]


@app.command()
def inspect(folders: Folders, plot: Plot = None, as_json: AsJson = False) -> None:
    """Show the spectrum and ranks of adapters, layer by layer, and how much their subspaces overlap."""
    from itertools import combinations

    from fedelta.adapters import inspection
    from fedelta.models.adapter_files import load_adapter
    from fedelta.report import tables as report
    from fedelta.report.terminal import out, print_json

    adapters = {str(folder): load_adapter(folder) for folder in folders}
    facts = {name: [asdict(x) for x in inspection.describe(adapter)] for name, adapter in adapters.items()}
    overlaps = {
        (a, b): [asdict(x) for x in inspection.compare(adapters[a], adapters[b], (a, b))] for a, b in combinations(adapters, 2)
    }
    if as_json:
        print_json({"adapters": facts, "overlaps": [{"between": pair, "layers": rows} for pair, rows in overlaps.items()]})
    else:
        for name, rows in facts.items():
            out.print(report.spectra_table(name, rows))
        for (a, b), rows in overlaps.items():
            out.print(report.overlap_table(f"{a} and {b}", rows))
    if plot:
        report.spectra(facts, plot)


@app.command()
def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="The folder of a run, or a PEFT folder.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a Hub data set, or docstrings.")],
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Of a Hub data set or of docstrings.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Take so many rows, drawn at random.")] = None,
    which: Which = None,
    rank: OfRank = None,
    client: OfClient = None,
    trust: Trust = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter on other data, with the run's task and model.

    A PEFT folder of no run needs the rest by --set, such as task.labels='[cats, dogs]'.
    """
    from fedelta.report.tables import scores_table
    from fedelta.report.terminal import out, print_json, quieten_libraries, show_warnings
    from fedelta.runs import export as deployment

    show_warnings("screen")
    quieten_libraries()
    source = deployment.find(target, overrides or [], which=which, rank=rank, client=client, trust_remote_code=trust)
    scores = deployment.score(source, data, split=split, limit=limit)
    print_json({"adapter": str(source.adapter), **scores}) if as_json else out.print(scores_table(str(source.adapter), scores))


@app.command()
def export(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a PEFT folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where to write.")],
    merged: Annotated[bool, typer.Option("--merged", help="A whole model, the delta in its weights.")] = False,
    which: Which = None,
    rank: OfRank = None,
    client: OfClient = None,
    trust: Trust = False,
    overrides: Overrides = None,
) -> None:
    """Write an adapter of a run as a PEFT folder, or merged as a Hugging Face model."""
    from fedelta.report.terminal import quieten_libraries, show_warnings
    from fedelta.runs import export as deployment

    show_warnings("screen")
    quieten_libraries()
    source = deployment.find(target, overrides or [], which=which, rank=rank, client=client, trust_remote_code=trust)
    deployment.export(source, output, merged=merged)
    _note(f"wrote {source.adapter} to {output}{', merged into its model' if merged else ''}")
