"""Laws, and what came of asking them: the same for methods and for bare aggregation functions."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from fedelta.registry import nearest

S = TypeVar("S")

Outcome: TypeAlias = Literal["kept", "broken", "exempt", "not asked"]


class Violation(Exception):
    """A law does not hold; the message says where and by how much."""


class ConformanceError(AssertionError):
    """Some laws do not hold; `report` has all the verdicts."""

    def __init__(self, report: Report) -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class Law(Generic[S]):
    """Something that must hold of every subject.

    Attributes:
        name: short; what an exemption is declared for.
        statement: one line.
        check: returns, or raises `Violation`.
        silent: why the law says nothing about a subject, or None if it does.
        first: whether nothing else can be judged where it is broken.
    """

    name: str
    statement: str
    check: Callable[[S], None]
    silent: Callable[[S], str | None]
    first: bool = False


def law(
    name: str, *, silent: Callable[[S], str | None] = lambda _: None, first: bool = False
) -> Callable[[Callable[[S], None]], Law[S]]:
    """Makes a law of a function; the first line of its docstring is the statement."""

    def make(check: Callable[[S], None]) -> Law[S]:
        return Law(name, (inspect.getdoc(check) or "").splitlines()[0], check, silent, first)

    return make


@dataclass(frozen=True)
class Verdict:
    """The outcome of one law.

    Attributes:
        law: its name.
        statement: what it says.
        outcome: "kept"; "broken"; "exempt" by the subject's own declaration; "not asked" where it says nothing.
        detail: the violation, or the reason; empty if kept.
    """

    law: str
    statement: str
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Report:
    """Every law's verdict on one subject.

    Attributes:
        subject: what was checked, with its settings.
        verdicts: in the order of the table of laws; no law is left out.
        seconds: that it took.
    """

    subject: str
    verdicts: Sequence[Verdict]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Returns True if no law is broken."""
        return not self.violations

    @property
    def violations(self) -> dict[str, str]:
        """By law, what is wrong."""
        return {v.law: v.detail for v in self.verdicts if v.outcome == "broken"}

    def count(self, outcome: Outcome) -> int:
        """The laws with this outcome."""
        return sum(v.outcome == outcome for v in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """The report in plain values."""
        return {"subject": self.subject, "ok": self.ok, "seconds": self.seconds, "verdicts": [asdict(v) for v in self.verdicts]}

    def __str__(self) -> str:
        lines = [f"  {v.law}: {v.outcome}{': ' if v.detail else ''}{v.detail}" for v in self.verdicts if v.outcome != "kept"]
        return "\n".join([f"{self.subject}: {self.count('broken')} of {len(self.verdicts)} laws are broken", *lines])


def judge(law: Law[S], subject: S, exempt: Mapping[str, str]) -> Verdict:
    """The verdict of one law; an error that the subject raises breaks the law that it was tried for."""
    if law.name in exempt:
        return Verdict(law.name, law.statement, "exempt", exempt[law.name])
    reason = law.silent(subject)
    if reason is not None:
        return Verdict(law.name, law.statement, "not asked", reason)
    try:
        law.check(subject)
    except Violation as found:
        return Verdict(law.name, law.statement, "broken", str(found))
    except Exception as error:  # whatever foreign code raises is a finding about it, and is reported as one
        return Verdict(law.name, law.statement, "broken", f"raised {type(error).__name__}: {error}")
    return Verdict(law.name, law.statement, "kept")


def examine(name: str, subject: S, laws: Sequence[Law[S]], exempt: Mapping[str, str]) -> Report:
    """All laws, in order; after a broken one of the first kind the others are not asked.

    Raises:
        ValueError: for an exemption from a law that there is not, or without a reason.
    """
    _check_exemptions(name, exempt, [x.name for x in laws])
    began, verdicts, stopped = time.perf_counter(), list[Verdict](), ""
    for x in laws:
        verdict = Verdict(x.name, x.statement, "not asked", stopped) if stopped else judge(x, subject, exempt)
        verdicts.append(verdict)
        if x.first and verdict.outcome == "broken":
            stopped = f"{x.name!r} is broken, and without it no other verdict would mean anything"
    return Report(name, verdicts, time.perf_counter() - began)


def _check_exemptions(name: str, exempt: Mapping[str, str], known: Sequence[str]) -> None:
    for entry, reason in exempt.items():
        if entry not in known:
            raise ValueError(
                f"{name} is exempt from {entry!r}, which is no law{nearest(entry, known, then=f'they are {known}')}"
            )
        if not reason.strip():
            raise ValueError(f"{name} is exempt from {entry!r} without a reason: say why")
