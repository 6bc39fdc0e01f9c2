"""Writes the list and the pages of the methods, from what their classes say and from what they keep and send."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from textwrap import dedent
from typing import Any

from fedelta.method import Method
from fedelta.methods import list_methods, method_class
from fedelta.report.citations import cited_by
from fedelta.testing import scene_of
from fedelta.testing.scene import Scene, quiet

WIDE = "---\nhide: [toc]\n---\n\n"
"""Leaves the page's contents out, since algorithms and tables need the width."""

HEAD = f"""{WIDE}# Methods

One page for each method, written from its class and from two rounds on a toy federation.
[Which one is for me?](../../explanation/choosing.md) · [How do I add my own?](../../how-to/own-method.md)

| column | meaning |
| --- | --- |
| unequal ranks | clients may have different ranks |
| gossip | it also works without a server, between nodes on a graph |
| a model for each client | participants end with different models |
| one-shot aggregation | it can merge trained adapters once, as `fedelta aggregate` does |
| validation scores | it needs validation data |
| formula from | the source that the implementation follows, see below |

"the paper": its formula, and no reservation is made. "published code": the paper's method as code that others rely on has it.
"the authors' code": the paper's text was not at hand. "others' readings": neither text nor code was, but notes and
re-implementations by others. "the abstract": not even these, and the rest is our reading. Each page says more under *Source*.
Every method passes `fedelta check`; a page names what its method is exempt from, and why.
"""

CLAIMS = {
    "hetero_rank": "unequal ranks",
    "decentralised": "gossip",
    "personal": "a model for each client",
    "one_shot": "one-shot aggregation",
    "needs_validation": "validation scores",
}
"""Claims of a class, in words."""


def entries() -> list[dict[str, Any]]:
    """Returns what `fedelta methods` says of each method; it stands in `methods/catalogue.json`, to be read without torch."""
    return [_entry(name, method_class(name)) for name in list_methods()]


def _entry(name: str, cls: type[Method]) -> dict[str, Any]:
    return {
        "name": name,
        "paper": cls.paper,
        "hetero_rank": cls.hetero_rank,
        "travels": cls.travels,
        "aliases": list(cls.aliases),
    }


def pages() -> dict[str, str]:
    """Returns the text of each page in Markdown: "index", and one for each method by its name."""
    with quiet():
        classes = {name: method_class(name) for name in list_methods()}
        return {"index": f"{HEAD}\n{_overview(classes)}", **{name: _page(name, cls) for name, cls in classes.items()}}


def _overview(classes: Mapping[str, type[Method]]) -> str:
    def row(name: str, cls: type[Method]) -> list[str]:
        return [f"[`{name}`]({name}.md)", *("yes" if getattr(cls, c) else "" for c in CLAIMS), cls.follows]

    head = ["method", *CLAIMS.values(), "formula from"]
    return _table(head, (row(name, cls) for name, cls in classes.items()))


def _page(name: str, cls: type[Method]) -> str:
    names = f"{cls.__name__}, also {', '.join(f'`{a}`' for a in cls.aliases)}" if cls.aliases else cls.__name__
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    prose = [_paragraph_of(x) for x in paragraphs if not x.startswith("Args:")]
    table = _table(["name", "default", "meaning"], _hyper_parameters(cls)) if fields(cls) else "None.\n"
    parts = [f"{WIDE}# {name}", f"{names}: {cls.paper}", *prose, "## Hyper-parameters", table.rstrip(), "## Facts"]
    page = "\n\n".join([*parts, _table(["", ""], _facts(cls))])
    cited = cited_by(cls.paper)
    return page if cited is None else f"{page}\n## Cite\n\n```bibtex\n{cited.bibtex()}\n```\n"


def _paragraph_of(text: str) -> str:
    """Puts a paragraph of a docstring into one line; leaves the algorithm's box and tables as they are."""
    if text.startswith("|"):
        return text
    head, _, rest = text.partition("\n")
    return f"```text\n{dedent(rest)}\n```" if head == "Algorithm:" else " ".join(text.split())


def _hyper_parameters(cls: type[Method]) -> Iterator[list[str]]:
    """Yields a row for each argument that the docstring explains, with the default of its field."""
    defaults = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(cls)}
    explained = dedent(_paragraph(cls, "Args:").partition("\n")[2])
    for entry in re.split(r"\n(?=\S)", explained):
        name, _, meaning = " ".join(entry.split()).partition(": ")
        yield [f"`{name}`", f"`{defaults[name]!r}`", meaning]


def _facts(cls: type[Method]) -> list[list[str]]:
    scene = scene_of(cls)
    done = scene.rounds[-1]
    down = done.method.broadcast(done.t, done.before, done.peers[0])
    facts = {
        "travels": cls.travels,
        "message down": _keys(down),
        "message up": _keys(done.updates[0].content),
        "state": _keys(done.state),
        "client's memory": _keys(done.client_states.get(0, {})),
        "numbers in round 0": _traffic(scene),
        "claims": ", ".join(words for claim, words in CLAIMS.items() if getattr(cls, claim)) or "none",
        "works on": {"factors": "factors", "product": "dW", "base": "the base"}[cls.coordinates],
        "formula from": cls.follows,
        "reported": cls.reported or "nothing: no paper of its own",
        **{f"exempt from *{law}*": reason for law, reason in cls.exempt.items()},
    }
    return [[key, value] for key, value in facts.items()]


def _keys(message: Mapping[str, Any]) -> str:
    return ", ".join(f"`{key}`" for key in message) or "nothing"


def _traffic(scene: Scene) -> str:
    if "bytes" in scene.method.exempt:
        return "depends on the data"
    done = scene.rounds[0]
    down, up = done.method.traffic(0, done.template, done.peers[0], done.peers)
    own = sum(x.A.numel() + x.B.numel() for x in scene.clients()[0].template.layers.values())
    return f"{down} down and {up} up, where a client's A and B have {own} and its head has 4"


def _paragraph(cls: type[Method], start: str) -> str:
    return next((x for x in (inspect.getdoc(cls) or "").split("\n\n") if x.startswith(start)), "")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
