"""Turns a docstring into plain English prose without names, which a reader understands and cannot place.

Code, doctests, tables of parameters and addresses are cut away. Identifiers become the words they are made of, without the
packages before them, and the words in `GIVEAWAYS` become "thing": a label has to be told from what is said, not from a name.
"""

from __future__ import annotations

import re

MASK = "thing"
FEWEST_WORDS = 10
MOST_WORDS = 60
MOST_MASKED = 0.3
"""The largest share of masked words in a usable text."""

GIVEAWAYS = (
    *("accelerate", "argparse", "aten", "asyncio", "base ?model", "dtypes?", "dynamo", "fx", "hf", "hugging ?face", "imaplib"),
    *(
        "inductor",
        "logging",
        "matplotlib",
        "nd ?arrays?",
        "network ?x",
        "networkx",
        "nn",
        "np",
        "num ?py",
        "nx",
        "peft",
        "pydantic",
    ),
    *("py ?torch", "rich", "smtplib", "sym ?py", "tensors?", "torch", "torch ?script", "transformers?", "typer", "unittest"),
    *("urllib", "xmlrpc"),
)
"""Names of the packages and of their best-known things, as patterns of whole words in any case."""

_SECTION = re.compile(
    r"(args?|arguments?|attributes?|examples?|inputs?|keyword arg\w*|methods|notes?|other parameters|outputs?|"
    r"parameters?|params|raises|references?|returns?|see also|shape|todo|usage|warnings?|warns|yields?)\s*:?\s*$",
    re.IGNORECASE,
)
_NOT_PROSE = re.compile(r"(>>>|!!!|\.\.\s|```|:\w+[^:]*:\s|@\w+|[-*+•]\s|\d+[.)]\s|[-=~^*#]{3,}|\|)")
_PARAMETER = re.compile(r"^\S+\s*(\([^)]*\))?\s*:(\s|$)")
_ADDRESS = re.compile(r"\(?(https?|ftp)://[^\s)]+\)?|\[\w+\]_?")
_MARKUP = re.compile(r":\w+(:\w+)*:(?=`)|[*`\[\]{}<>\\$\"~]|(?<!\w)'|'(?!\w)")
_DOTTED = re.compile(r"(?<![\w.])(?:\w{2,}\.)+(?=\w{2,})")
_INNER_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_GIVEAWAY = re.compile(rf"\b({'|'.join(GIVEAWAYS)})\b", re.IGNORECASE)
_REPEATED = re.compile(rf"\b{MASK}(\W+{MASK}\b)+")
_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


def prose_of(docstring: str) -> str | None:
    """Returns a cleaned docstring's opening prose, masked, of at most `MOST_WORDS` words; None if there is too little."""
    text = " ".join(_opening(docstring.splitlines()))
    text = " ".join(masked(text).split()[:MOST_WORDS])
    return text if _is_prose(text) else None


def masked(text: str) -> str:
    """Returns the text without addresses and markup, identifiers as words, and `MASK` for names that give a group away."""
    text = _MARKUP.sub("", _ADDRESS.sub(" ", text))
    text = _INNER_CAPITAL.sub(" ", _DOTTED.sub("", text)).replace("_", " ").replace("()", "")
    return " ".join(_REPEATED.sub(MASK, _GIVEAWAY.sub(MASK, text)).split())


def likeness(text: str) -> str:
    """Returns a key that texts share if they open with the same twelve unmasked words: copies with other names in them."""
    return " ".join(word for word in _WORD.findall(text.lower()) if word != MASK)[:80]


def _opening(lines: list[str]) -> list[str]:
    """Returns the lines of prose before the first section, code or table."""
    found: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        underlined = bool(re.fullmatch(r"[-=~^]{3,}", following.strip())) and bool(line.strip())
        if underlined or _SECTION.match(line.strip()) or _NOT_PROSE.match(line.strip()) or _PARAMETER.match(line):
            if found or not underlined:
                break
            continue
        if not line.startswith(("    ", "\t")):
            found.append(line)
    return found


def _is_prose(text: str) -> bool:
    words = _WORD.findall(text)
    if not text.isascii() or not FEWEST_WORDS <= len(words):
        return False
    letters = sum(character.isalpha() or character in " .,'" for character in text)
    return letters >= 0.9 * len(text) and sum(word.lower() == MASK for word in words) <= MOST_MASKED * len(words)
