"""Citations of the methods' papers as BibTeX; read from `methods/citations.toml` without torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Citation:
    """A paper, as far as it is known.

    Attributes:
        key: of the entry.
        title: as printed.
        authors: "Family, Given" or "Family"; "others" for those that are not known.
        year: of the venue, else of the preprint.
        arxiv: its id.
        booktitle: the conference, by its short name.
        journal: its short name.
    """

    key: str
    title: str
    authors: Sequence[str]
    year: int
    arxiv: str
    booktitle: str | None = None
    journal: str | None = None

    def bibtex(self) -> str:
        """Returns the entry; doubled braces keep the title's capitals."""
        kind = "inproceedings" if self.booktitle else "article" if self.journal else "misc"
        fields = {
            "title": f"{{{self.title}}}",
            "author": " and ".join(self.authors),
            "booktitle": self.booktitle,
            "journal": self.journal,
            "year": self.year,
            "eprint": self.arxiv,
            "archiveprefix": "arXiv",
        }
        lines = [f"  {name} = {{{value}}}," for name, value in fields.items() if value is not None]
        return "\n".join([f"@{kind}{{{self.key},", *lines, "}"])


@cache
def citations() -> dict[str, Citation]:
    """Returns all papers by their arXiv ids."""
    tables = tomllib.loads(files("fedelta").joinpath("methods/citations.toml").read_text(encoding="utf-8"))
    found = {key: Citation(key, **table) for key, table in tables.items()}
    return {citation.arxiv: citation for citation in found.values()}


def cited_by(paper: str) -> Citation | None:
    """Returns the paper whose arXiv id stands in a method's line of source; None for a method without one."""
    found = re.search(r"arXiv (\d{4}\.\d{5})", paper)
    return citations().get(found[1]) if found else None


def bibliography(papers: Iterable[str]) -> str:
    """Returns the entries for methods' lines of source, each once, in the order of their keys."""
    found = {citation.key: citation for citation in map(cited_by, papers) if citation is not None}
    return "\n\n".join(found[key].bibtex() for key in sorted(found))
