"""Every method with a paper has one citation, which says what the method's class says of its paper."""

import inspect
import re
from collections import Counter
from collections.abc import Mapping

import pytest

from fedelta.methods import list_methods, method_class
from fedelta.report.citations import Citation, bibliography, citations, cited_by

NAMES = [name for name in list_methods() if "arXiv" in method_class(name).paper]


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def known() -> Mapping[str, Citation]:
    return citations()


def test_who_follows_a_paper_cites_it() -> None:
    own = {name for name in list_methods() if method_class(name).follows == "no paper of its own"}
    assert set(list_methods()) - own <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_cites_what_its_docstring_names(name: str) -> None:
    cls = method_class(name)
    cited, source = cited_by(cls.paper), words(inspect.getdoc(cls) or "")
    assert cited is not None
    assert f"arXiv {cited.arxiv}" in cls.paper
    if cls.paper.startswith("baseline"):  # of another method's paper
        return
    assert f'"{cited.title}"' in source
    assert f"arXiv {cited.arxiv}" in source
    assert cited.authors[0].partition(",")[0] in cls.paper
    assert str(cited.year) in cls.paper
    venue = cited.booktitle or cited.journal
    assert venue is None or f"({venue} {cited.year})" in source


def test_no_paper_stands_there_twice_or_for_nobody(known: Mapping[str, Citation]) -> None:
    assert set(known) == {cited.arxiv for name in NAMES if (cited := cited_by(method_class(name).paper))}
    assert max(Counter(citation.title for citation in known.values()).values()) == 1


def test_entries_are_what_bibtex_reads(known: Mapping[str, Citation]) -> None:
    text = bibliography(method_class(name).paper for name in NAMES)
    entries = text.split("\n\n")
    assert len(entries) == len(known)
    assert entries == sorted(entries, key=lambda entry: entry.partition("{")[2])
    for entry in entries:
        assert re.match(r"@(inproceedings|article|misc)\{[a-z]+\d{4}[a-z0-9]*,\n", entry)
        assert entry.endswith("\n}")
        assert entry.count("{") == entry.count("}")
        assert entry.isascii()
