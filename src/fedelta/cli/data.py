"""`fedelta partition`: the split of the data over clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedelta.cli.options import AllowFiles, AsJson, Config, Overrides, Plot, allowed_files

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fedelta.runs.deal import Deal


def partition(
    config: Config,
    overrides: Overrides = None,
    allow_files: AllowFiles = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Show which client gets which data, without a model."""
    from fedelta.report.terminal import out, print_json
    from fedelta.runs.config import read_config

    settled = read_config(config, overrides or [])
    from fedelta.runs.config.checks import check  # with torch, which a wrong key need not wait for
    from fedelta.runs.config.own import Own
    from fedelta.runs.deal import deal

    dealt = deal(settled, check(settled, Own(allowed_files(overrides, allow_files))).task)
    print_json(_split_rows(dealt)) if as_json else out.print(split_table(dealt))
    if plot:
        from fedelta.split.view import plot_partition

        plot_partition(dealt.parts, dealt.labels(dealt.splits.train), plot, names=dealt.names)


def split_table(dealt: Deal) -> RenderableType:
    """Returns the split as a table, client by client."""
    from fedelta.report.split_table import split_table as table

    return table(_split_rows(dealt))


def _split_rows(dealt: Deal) -> list[dict[str, Any]]:
    from fedelta.split.view import partition_table

    rows = partition_table(dealt.parts, dealt.labels(dealt.splits.train))
    named = [{"name": name} for name in dealt.names] or [{}] * len(rows)
    shifted = [{"feature_shift": shift} for shift in dealt.shifts] or [{}] * len(rows)
    each = zip(rows, named, shifted, dealt.ranks, strict=True)
    return [{**row, **name, **shift, "rank": rank} for row, name, shift, rank in each]
