"""Commands that take PEFT folders or the folder of a run: `aggregate`, `inspect`, `evaluate`, `export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fedelta.cli import completion
from fedelta.cli.options import AllowFiles, AsJson, Folders, OfClient, OfRank, Overrides, Plot, Trust, Which, allowed_files
from fedelta.cli.output import note

if TYPE_CHECKING:
    from fedelta.report.model_card import Exported
    from fedelta.runs.export import Source
    from fedelta.tree import Adapter

T = TypeVar("T", int, float)


def aggregate(
    folders: Folders,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where to write.")],
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="One of `fedelta methods`, or a Python file, which runs.",
            autocompletion=completion.method_names,
        ),
    ] = "fedavg",
    ranks: Annotated[str | None, typer.Option(metavar="R,...", help="Of the results; by default those of the inputs.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="W,...", help="One for each input, such as its number of training examples; equal by default."),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of the method.")] = None,
    same_base: Annotated[bool, typer.Option("--same-base", help="Take bases of different names for one model.")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge PEFT adapters on disk by a method, without training, and show how near the result is to their exact mean.

    One result is written to OUT itself, several to OUT/rank-R or, without --ranks, to OUT under the inputs' names.
    """
    from fedelta.adapters.aggregation import aggregate, shares
    from fedelta.adapters.fidelity import fidelity
    from fedelta.adapters.reading import read_alike
    from fedelta.models.adapter_files import save_adapter
    from fedelta.report.tables import fidelity_table
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.config import pairs
    from fedelta.runs.export import demand_unused

    wanted, given = _numbers(ranks, "--ranks", int), _numbers(weights, "--weights", float)
    places = _places(output, folders, wanted)
    demand_unused(output)
    adapters = read_alike(folders, same_base=same_base)
    _demand_useful(wanted or [], adapters)
    results = aggregate(adapters, method=method, ranks=wanted, weights=given, **dict(pairs(settings or [])))
    facts = [asdict(fidelity(result, adapters, shares(given, len(adapters)))) for result in results]
    for place, (k, result) in zip(places, enumerate(results), strict=True):
        save_adapter(result, place, like=folders[k % len(folders)])
        note(f"wrote {place}")
    if wanted and (larger := _larger(results, wanted)):
        note(f"{method} does not cut to the rank that was asked for: its result has rank {larger}. flexlora does")
    if as_json:
        print_json({"results": [{"folder": str(place), **found} for place, found in zip(places, facts, strict=True)]})
        return
    for place, found in zip(places, facts, strict=True):
        out.print(fidelity_table(str(place), found))


def _numbers(text: str | None, option: str, kind: type[T]) -> list[T] | None:
    """Reads numbers between commas; None for no text."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text!r} is not a list of numbers between commas, such as 4,8") from None


def _demand_useful(ranks: Sequence[int], adapters: Sequence[Adapter]) -> None:
    """Raises ValueError for a rank that no layer can have: the rest would be zeros, perhaps more than the disk can hold."""
    most = max((min(x.shape) for x in adapters[0].layers.values()), default=0)
    if too_many := sorted({rank for rank in ranks if rank > most}):
        raise ValueError(
            f"--ranks {','.join(map(str, too_many))}: no layer here has more than {most} inputs or outputs, so that {most} "
            "loses nothing: give at most that"
        )


def _larger(results: Sequence[Adapter], ranks: Sequence[int]) -> int | None:
    """Returns the largest rank of a result where it is above the one that was asked for; None where all are as asked."""
    found = [max((x.rank for x in result.layers.values()), default=0) for result in results]
    return max((rank for rank, asked in zip(found, ranks, strict=True) if rank > asked), default=None)


def _places(output: Path, folders: Sequence[Path], ranks: Sequence[int] | None) -> list[Path]:
    """Returns where each result goes; names that occur twice get the position of their input in front."""
    names = [folder.resolve().name for folder in folders] if ranks is None else [f"rank-{rank}" for rank in ranks]
    if len(names) == 1:
        return [output]
    twice = len(set(names)) < len(names)
    return [output / (f"{k}-{name}" if twice else name) for k, name in enumerate(names)]


def inspect(folders: Folders, plot: Plot = None, as_json: AsJson = False) -> None:
    """Show the spectrum and ranks of adapters, layer by layer, and how much their subspaces overlap.

    Of the folder of a run it takes the best adapter if there is one, else the last; each client's where models are personal.
    """
    from itertools import combinations

    from fedelta.adapters import inspection
    from fedelta.models.adapter_files import load_adapter
    from fedelta.report import charts, tables
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.export import adapters_in

    named = [adapter for folder in folders for adapter in adapters_in(folder)]
    adapters = {str(folder): load_adapter(folder) for folder in named}
    facts = {name: list(map(asdict, inspection.describe(adapter))) for name, adapter in adapters.items()}
    overlaps: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for a, b in combinations(adapters, 2):
        overlaps[a, b] = list(map(asdict, inspection.compare(adapters[a], adapters[b], (a, b))))
    if as_json:
        print_json({"adapters": facts, "overlaps": [{"between": pair, "layers": rows} for pair, rows in overlaps.items()]})
    else:
        for name, rows in facts.items():
            out.print(tables.spectra_table(name, rows, out.width))
        for (a, b), rows in overlaps.items():
            out.print(tables.overlap_table(f"{a} and {b}", rows))
    if plot:
        charts.spectra(facts, plot)


def evaluate(
    target: Annotated[Path, typer.Argument(metavar="RUN|DIR", help="The folder of a run, or a PEFT folder.")],
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA", help="A file, a folder of images, a Hub id, or a named source; by default the run's test rows."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Of DATA, where it has several, as on the Hub.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Take so many rows, drawn at random.")] = None,
    which: Which = None,
    rank: OfRank = None,
    client: OfClient = None,
    trust: Trust = False,
    allow_files: AllowFiles = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Score an adapter on other data, with the run's task and model.

    A PEFT folder of no run needs the rest by --set, such as task.labels='[cats, dogs]'.
    """
    from fedelta.report.tables import scores_table
    from fedelta.report.terminal import out, print_json
    from fedelta.runs import export as deployment

    source = _found(target, overrides, allow_files, which=which, rank=rank, client=client, trust_remote_code=trust)
    scores = deployment.score(source, data, split=split, limit=limit)
    print_json({"adapter": str(source.adapter), **scores}) if as_json else out.print(scores_table(str(source.adapter), scores))


def export(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, or a PEFT folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Where to write.")],
    merged: Annotated[bool, typer.Option("--merged", help="A whole model, the delta in its weights.")] = False,
    which: Which = None,
    rank: OfRank = None,
    client: OfClient = None,
    trust: Trust = False,
    allow_files: AllowFiles = None,
    overrides: Overrides = None,
) -> None:
    """Write an adapter of a run as a PEFT folder, or merged as a Hugging Face model, with a model card.

    On stdout come the lines that load, serve and publish it.
    """
    from fedelta.runs import export as deployment

    source = _found(target, overrides, allow_files, which=which, rank=rank, client=client, trust_remote_code=trust)
    told = deployment.export(source, output, merged=merged)
    note(f"wrote {source.adapter} to {output}{', merged into its model' if merged else ''}")
    _show_usage(told, str(output))


def _found(target: Path, overrides: list[str] | None, allow_files: list[str] | None, **choice: Any) -> Source:
    """Finds the adapter that is meant, with the warnings of libraries turned off that say nothing to a user."""
    from fedelta.report.terminal import quieten_libraries, show_warnings
    from fedelta.runs.export import find

    show_warnings("screen")
    quieten_libraries()
    return find(target, overrides or [], allow_files=allowed_files(overrides, allow_files), **choice)


def _show_usage(told: Exported, place: str) -> None:
    """Prints what can be done with an exported folder; each line works as it stands, but for the name on the Hub."""
    from fedelta.report.model_card import caution, load_lines, serve_line, upload_line, why_not_served
    from fedelta.report.terminal import show_code

    name = Path(place).resolve().name
    note("to load it, in Python:")
    show_code("\n".join(load_lines(told, place)))
    if warning := caution(told):
        note(f"{warning}: export it with --merged")
    if (line := serve_line(told, place, name)) is not None:
        note("to serve it:")
        show_code(line)
    if reason := why_not_served(told):
        note(f"{reason}: export it with --merged to serve it")
    note("to publish it:")
    show_code(upload_line(place, name))
