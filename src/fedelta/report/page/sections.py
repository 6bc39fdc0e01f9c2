"""The questions of a page, each with the figures that answer it."""

from __future__ import annotations

from collections.abc import Iterator

from fedelta.report.compared import Compared
from fedelta.report.page import bands, curves, diagnostics, others, tables
from fedelta.report.page.parts import Figure, Section

WIDEST = 6
"""Columns of a table that half the page has room for."""


def sections_of(c: Compared) -> Iterator[Section]:
    """Returns the questions that these runs have an answer to."""
    how = [figure for figure in (curves.scores(c), curves.losses(c)) if figure]
    if how:
        yield Section("how", "How?", "How did it get there?" if c.study.one_run else "How did they get there?", "", how)
    yield Section(
        "cost",
        "At what cost?",
        "At what cost?",
        "",
        [figure for figure in (curves.against_bytes(c), _stages(c), _takes(c)) if figure],
    )
    large = [
        bands.energy_bands(c),
        diagnostics.higher_rank_energy(c),
        *diagnostics.diagnostics(c, [diagnostics.AGGREGATION_ERROR], small=False),
    ]
    maps = [others.layer_map(c, key, title, caption) for key, title, caption in _MAPS]
    small = list(diagnostics.diagnostics(c, diagnostics.OF_THE_UPDATE))
    why = [figure for figure in (*large, *maps) if figure]
    if why or small:
        yield Section("why", "Why?", "Why?", _WHY, why, small)
    whom = [figure for figure in (others.clients(c), others.split(c)) if figure]
    if whom:
        yield Section("whom", "For whom?", "For whom does it work?", "", whom)
    nodes = list(diagnostics.diagnostics(c, diagnostics.OF_NODES, small=False))
    if nodes:
        yield Section(
            "nodes", "Consensus", "Do the nodes agree?", "Without a server each node keeps a model of its own.", nodes
        )


_WHY = (
    "What aggregation does to the update: how many ranks stay in use, and whether clients pull together. "
    "These describe the update, not its use."
)

_MAPS = (
    ("effective_rank", "Effective rank by layer", "After the last round; stronger is more."),
    ("increment_overlap_B_squared", "Overlap of clients’ increments by layer", "After the last round, mean cos² of B."),
)


def _takes(c: Compared) -> Figure | None:
    found = tables.what_it_takes(c)
    if found is None:
        return None
    caption, grid = found
    return Figure("What it takes", caption, data=grid, whole=len(grid.head) > WIDEST)


def _stages(c: Compared) -> Figure | None:
    grid = tables.by_stage(c)
    if grid is None:
        return None
    caption = "Seconds of a whole run, mean over seeds, and the peak of memory; of this machine, and of what else it did."
    return Figure("Where the time goes", caption, data=grid, whole=len(grid.head) > WIDEST)
