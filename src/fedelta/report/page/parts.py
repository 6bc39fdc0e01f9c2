"""The parts that a page is put together from: values, no text of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

NONE = Markup("")


@dataclass(frozen=True)
class Grid:
    """A plain table: heads, and rows of cells, of which the first names the row.

    Attributes:
        keys: of the series of each row, by which a chip hides it; empty for rows that are never hidden.
        styles: class of colour of each row; empty for none.
        faded: numbers of the rows that stand for nothing that was run.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    keys: Sequence[str] = ()
    styles: Sequence[str] = ()
    faded: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """A drawing with its title, caption and the numbers behind it.

    Attributes:
        title: states what was found where that is computed, else names the figure.
        caption: says what is drawn, and of how many seeds.
        wide, narrow: the drawing for a screen and for a phone; empty markup for a figure that is a table.
        body: what stands in place of a drawing, or above it.
        data: the numbers; None where the figure is a table itself.
        columns: keys of the series in the columns of `data` after the first, by which a chip hides them.
        whole: whether it takes the whole width of the page: a table of many columns.
    """

    title: str
    caption: str
    wide: Markup = NONE
    narrow: Markup = NONE
    body: Markup = NONE
    data: Grid | None = None
    columns: Sequence[str] = ()
    whole: bool = False


@dataclass(frozen=True)
class Section:
    """A question with its figures.

    Attributes:
        anchor: of the link to it.
        short: of that link.
        title: the question.
        text: a sentence under it.
        figures: half the page wide.
        small: a third of the page wide.
    """

    anchor: str
    short: str
    title: str
    text: str
    figures: Sequence[Figure] = ()
    small: Sequence[Figure] = ()
