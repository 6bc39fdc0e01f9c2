"""Resolves patterns of layer names once into exact names, in time linear in a name's length, whoever wrote the pattern.

Python's own matcher can take years for a pattern of six characters, `(a+)+`. RE2 never does, and in return takes no
back-references and no look-around. A pattern that both accept means here what it means to PEFT, except that \\w, \\d and \\s
match ASCII alone.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TypeAlias, TypeVar

import re2

from fedelta.registry import nearest

V = TypeVar("V")

Matcher: TypeAlias = Callable[[str], object]
"""Takes a whole name; what it returns is true where the name matches."""

AMBIGUOUS = {
    "[:": "a set that holds '[:'",
    "{,": "a repetition without a lower bound; write {0,n}",
}
"""By a text in a pattern, what it is: RE2 and Python's matcher both accept it, and read it in two ways."""

PLAIN = re.compile(r"[\w.-]*", re.ASCII)
"""Patterns without repetition or choice, which no matcher is slow at."""

FLAGS = re.compile(r"\(\?[a-zA-Z]+\)")
"""Flags for a whole pattern, which cannot stand within a larger one, where PEFT puts a key."""

MOST = 1000
"""The largest number of patterns that are compiled: they come with files, and take a quarter of a millisecond each."""


def check_pattern(pattern: str, where: str = "") -> None:
    """Raises ValueError, naming `where` it stands, for a pattern that is not one or that RE2 does not accept."""
    _compiled(pattern, where)


def matching(pattern: str, names: Collection[str], where: str) -> list[str]:
    """Returns the names that a pattern matches as a whole, as PEFT reads a `target_modules` that is one text.

    Raises:
        ValueError: as `check_pattern`.
    """
    matcher = _compiled(pattern, where)
    return [n for n in names if matcher(n)]


def by_layer(patterns: Mapping[str, V], names: Collection[str], where: str) -> dict[str, V]:
    """Returns the values of a `rank_pattern` or an `alpha_pattern` by exact name, without names that have no value.

    As in PEFT, the first key counts that matches a name or all of it after a dot. A name that no key matches is looked up
    as it is.

    Raises:
        ValueError: as `check_pattern`, or for more than `MOST` patterns that are not names.
    """
    _check_number(patterns, where)
    # Keys that stand for one whole name, as our own adapters have them, are looked up and not tried: there may be thousands.
    whole: dict[str, int] = {}
    tried = [(k, _suffix_matcher(key, where)) for k, key in enumerate(patterns) if _whole_name(key) is None]
    for k, key in enumerate(patterns):
        if (name := _whole_name(key)) is not None:
            whole.setdefault(name, k)
    values = list(patterns.values())
    found: dict[str, V] = {}
    for name in names:
        last = whole.get(name, len(values))
        first = next((k for k, matcher in tried if k < last and matcher(name)), last)
        if first < len(values):
            found[name] = values[first]
        elif name in patterns:
            found[name] = patterns[name]
    return found


def demand_used(keys: Iterable[str], names: Collection[str], where: str) -> None:
    """Raises ValueError for the first key, a name or a pattern, that no layer is called: PEFT would leave it out in silence.

    Args:
        keys: of a `rank_pattern`, say.
        names: of all layers that they can be for.
        where: what the keys are of, for the message.
    """
    for key in keys:
        if not by_layer({key: None}, names, where):
            last = sorted({name.rpartition(".")[2] for name in names})
            found = nearest(key, [*last, *names], then=f"there are {', '.join(last)}")
            raise ValueError(f"{where}: {shortened(key)} is the name of no layer{found}")


def harmless(patterns: Mapping[str, V], names: Collection[str], where: str) -> dict[str, V]:
    """Returns the same mapping in a form that PEFT matches fast: a key that is more than a name lists the exact names."""
    _check_number(patterns, where)
    found: dict[str, V] = {}
    for key, value in patterns.items():
        if PLAIN.fullmatch(key):
            found[key] = value
        else:
            matcher = _suffix_matcher(key, where)
            matched = [n for n in names if matcher(n)]
            found.setdefault(exactly(matched) if matched else f"(?!){re.escape(key)}", value)  # PEFT warns of what is unused
    return found


def exactly(names: Collection[str]) -> str:
    """Returns a regular expression that matches these whole names and nothing else, fast in any matcher."""
    return f"^(?:{'|'.join(map(re.escape, names))})$"


def _check_number(patterns: Collection[str], where: str) -> None:
    count = sum(1 for key in patterns if not PLAIN.fullmatch(key) and _whole_name(key) is None)
    if count > MOST:
        raise ValueError(f"{where}: {count} patterns, where at most {MOST} are accepted: list the layers' names instead")


def _suffix_matcher(key: str, where: str) -> Matcher:
    """Matches names that end in what a key matches, from their start or a dot on."""
    if PLAIN.fullmatch(key):
        return partial(_ends_in, key)
    check_pattern(key, where)
    if flags := FLAGS.search(key):
        raise ValueError(
            f"{where}: the pattern {shortened(key)} holds the flags {flags.group()}, which cannot stand within the larger "
            "pattern that a key is put into: write them around what they are for, such as (?i:query)"
        )
    return _compiled(rf"(.*\.)?({key})", where)


def _ends_in(key: str, name: str) -> bool:
    """Returns whether a name, or all of it after a dot, is the key, in which a dot matches all but a new line."""
    at = len(name) - len(key)
    if at < 0 or (at > 0 and name[at - 1] != ".") or "\n" in name:
        return False
    return name.endswith(key) or all(k in (c, ".") for k, c in zip(key, name[at:], strict=True))


def _whole_name(key: str) -> str | None:
    """Returns the name that a key stands for that is `^` and the escaped name; None for any other key."""
    if not key.startswith("^"):
        return None
    name = re.sub(r"\\(.)", r"\1", key.removeprefix("^"))
    return name if key == f"^{re.escape(name)}" else None


def _compiled(pattern: str, where: str) -> Matcher:
    where = f"{where}: " if where else ""
    for text, what in AMBIGUOUS.items():
        if text in pattern:
            raise ValueError(f"{where}the pattern {shortened(pattern)} holds {what}: matchers differ on it")
    try:
        matcher = re2.compile(pattern, _options()).fullmatch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)  # compiled only, never matched: PEFT must be able to read it, too
    except (re2.error, re.error, RecursionError, OverflowError, UnicodeError) as error:
        raise ValueError(
            f"{where}the pattern {shortened(pattern)} is not accepted ({_reason(error)}); back-references and look-around "
            "are left out on purpose, since they can take years to match: list the layers' names instead"
        ) from error
    return matcher


def _options() -> re2.Options:
    options = re2.Options()
    options.log_errors = False
    return options


def _reason(error: Exception) -> str:
    first = error.args[0] if error.args else error
    return first.decode(errors="replace") if isinstance(first, bytes) else str(first)


def shortened(pattern: str) -> str:
    """Returns a pattern as an error message shows it."""
    return repr(pattern if len(pattern) <= 80 else f"{pattern[:77]}...")
