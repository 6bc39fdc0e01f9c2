"""The page of methods, written from the classes: what each says of itself, and what it keeps and sends when it is run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from textwrap import dedent
from typing import Any

from fedelta.method import Method
from fedelta.methods import list_methods, method_class
from fedelta.testing import scene_of
from fedelta.testing.scene import Scene, quiet

HEAD = """# Methods

Written by `fedelta methods --markdown` from the classes, with what two rounds on the toy federation show; do not edit.
[Which one for me?](choosing.md) · [Add your own](add-a-method.md)

*Formula from*: what the implementation follows. "the paper": its formula, and no reservation is made. "published code": the
paper's method as code that others rely on has it. "the authors' code": the paper's text was not at hand. "the abstract",
"others' readings": neither text nor code was; the rest is notes and re-implementations by others, and our reading. Each entry
says more under *Source*.
*Reported*: what the source says it reached, and how we read it; neither measured nor reproduced here.
Every method passes `fedelta check`; what it is exempt from, and why, is in its entry.
"""

RESERVATIONS = {
    "the authors' code": r"not available: this follows .*the authors' (report and )?published code",
    "others' readings": r"not available",
    "the abstract": r"Only the abstract",
    "published code": r"after published code",
}
"""What an implementation follows, by the words in which its docstring says so."""

CLAIMS = {
    "hetero_rank": "unequal ranks",
    "decentralised": "gossip",
    "personal": "a model for each client",
    "one_shot": "one-shot aggregation",
    "needs_validation": "validation scores",
}
"""Claims of a class, in words."""


def markdown() -> str:
    """The whole page."""
    with quiet():
        classes = {name: method_class(name) for name in list_methods()}
        parts = [HEAD, _overview(classes), *(_entry(name, cls) for name, cls in classes.items())]
    return "\n".join(parts)


def formula_from(cls: type[Method]) -> str:
    """What an implementation follows, as its docstring says under "Source"."""
    source = " ".join(_paragraph(cls, "Source:").split())
    if cls.paper.startswith("baseline") or not source:
        return "no paper of its own"
    return next((label for label, words in RESERVATIONS.items() if re.search(words, source)), "the paper")


def _overview(classes: Mapping[str, type[Method]]) -> str:
    def row(name: str, cls: type[Method]) -> list[str]:
        return [f"[`{name}`](#{name})", *("yes" if getattr(cls, c) else "" for c in CLAIMS), formula_from(cls)]

    head = ["method", *CLAIMS.values(), "formula from"]
    return _table(head, (row(name, cls) for name, cls in classes.items()))


def _entry(name: str, cls: type[Method]) -> str:
    blocks = (inspect.getdoc(cls) or "").split("\n\n")
    names = f"{cls.__name__}, also {', '.join(f'`{a}`' for a in cls.aliases)}" if cls.aliases else cls.__name__
    body = [_block(x) for x in blocks]
    return "\n\n".join([f"## {name}", f"{names}: {cls.paper}", *body, _table(["", ""], _facts(cls))])


def _block(text: str) -> str:
    """A paragraph of a docstring: algorithm boxes and tables as they stand, arguments as a list."""
    if text.startswith("|"):
        return text
    head, _, rest = text.partition("\n")
    if head == "Algorithm:":
        return f"```text\n{dedent(rest)}\n```"
    if head == "Args:":
        lines = [" ".join(x.split()) for x in re.split(r"\n(?=\S)", dedent(rest))]
        return "\n".join(f"- `{n}`:{about}" for n, _, about in (x.partition(":") for x in lines))
    return " ".join(text.split())


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
    return "\n".join(f"| {' | '.join(x.replace('|', chr(92) + '|') for x in line)} |" for line in lines) + "\n"
