"""The model of what clients cost a server, and its tables, made of what `costs.py` measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FAMILIES = {
    "fedavg": "means of factors",
    "flexlora": "means of deltas, by SVD",
    "flora": "stacks, added to the base",
    "fedex_lora": "means of factors, the rest to the base",
    "scaffold": "memories at clients",
}
"""A method of each family."""

CLIENTS = tuple(10**k for k in range(3, 8))
COHORT = 100
MEASURED = 10**6

MODEL = """\
bytes          = visits x (down + up)
server seconds = rounds x seconds(C)         measured at C = 100 and 1,000; a line through both for others
server memory  = process + column x N + table x seen + state + min(C x up, 1 GiB)
memories       = memory x seen               at the sites, or in the process that simulates them
"""
"""Of N clients, `seen` of whom have taken part, in cohorts of C."""


@dataclass(frozen=True)
class Cost:
    """What one family costs: seconds by the size of the cohort; bytes for each client, but for `state`."""

    seconds: Mapping[int, float]
    down: float
    up: float
    state: float
    table: float
    memory: float

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Cost:
        """Reads what was measured of a family."""
        cohorts = {int(c): row for c, row in found["cohorts"].items()}
        first, seen = cohorts[min(cohorts)], found["seen"]
        table = seen["bytes"] - seen["of_which_memory"]
        seconds = {c: row["cpu_seconds"] for c, row in cohorts.items()}
        return cls(seconds, first["down"], first["up"], first["state"], table, first["memory"])

    def seconds_of(self, cohort: int) -> float:
        """The server's seconds in a round, on the line through what was measured."""
        few, many = sorted(self.seconds)
        slope = (self.seconds[many] - self.seconds[few]) / (many - few)
        return self.seconds[few] + slope * (cohort - few)


@dataclass(frozen=True)
class Process:
    """A server before it has seen anybody: bytes of the process itself, and for each client of the population."""

    itself: float
    column: float

    @classmethod
    def of(cls, populations: Mapping[str, Mapping[str, float]]) -> Process:
        """Fits both to the peaks of the smallest population and of the largest that the model is fitted to."""
        peaks = {int(n): row["mib_peak"] * 2**20 for n, row in populations.items()}
        few, many = min(peaks), max(n for n in peaks if n <= MEASURED)
        column = max(0.0, (peaks[many] - peaks[few]) / (many - few))
        return cls(peaks[few] - column * few, column)

    def memory(self, clients: int, cost: Cost, cohort: int) -> float:
        """The bytes of a server of whose clients all have taken part."""
        return self.itself + (self.column + cost.table) * clients + cost.state + min(cohort * cost.up, 2**30)


def tables(found: Mapping[str, Any]) -> str:
    """All tables and the model, as the page has them."""
    costs = {method: Cost.of(family) for method, family in found["families"].items()}
    process = Process.of(found["populations"])
    parts = [
        _table(["clients", "s a round", "of the processor", "peak, MiB", "by the model, MiB"], _populations(found, process)),
        _table(
            ["family", "method", "down, KB", "up, KB", "s, C = 100", "s, C = 1,000", "state, MB", "table, B", "memory, KB"],
            _families(costs),
        ),
        "```text\n" + MODEL + _fitted(process) + "```",
        _table(["all once, in rounds of 100", *(_words(n) for n in CLIENTS)], _all_once(costs, process)),
    ]
    return "\n\n".join(parts)


def with_tables(page: str, found: Mapping[str, Any]) -> str:
    """The page with what lies between its two marks made anew."""
    return re.sub(
        r"(<!-- tables: begin -->\n).*?(<!-- tables: end -->)",
        lambda match: f"{match[1]}\n{tables(found)}\n\n{match[2]}",
        page,
        flags=re.DOTALL,
    )


def _populations(found: Mapping[str, Any], process: Process) -> Iterator[Sequence[str]]:
    for n, row in sorted(((int(n), row) for n, row in found["populations"].items()), key=lambda pair: pair[0]):
        model = (process.itself + process.column * n) / 2**20
        seconds = f"{row['seconds_round']:.2f}", f"{row['cpu_seconds_round']:.2f}"
        yield f"{n:,}", *seconds, f"{row['mib_peak']:.0f}", f"{model:.0f}"


def _families(costs: Mapping[str, Cost]) -> Iterator[Sequence[str]]:
    for method, cost in costs.items():
        seconds = [f"{x:.2f}" for _, x in sorted(cost.seconds.items())]
        sizes = f"{cost.state / 1e6:.1f}", f"{cost.table:.0f}", f"{cost.memory / 1e3:.0f}"
        yield FAMILIES[method], f"`{method}`", f"{cost.down / 1e3:,.0f}", f"{cost.up / 1e3:,.0f}", *seconds, *sizes


def _fitted(process: Process) -> str:
    return f"with process = {process.itself / 2**20:.0f} MiB, column = {process.column:.0f} B\n"


def _all_once(costs: Mapping[str, Cost], process: Process) -> Iterator[Sequence[str]]:
    for method, cost in costs.items():
        yield f"`{method}`, bytes", *(_bytes(n * (cost.down + cost.up)) for n in CLIENTS)
        yield "server's time", *(_time(n / COHORT * cost.seconds_of(COHORT)) for n in CLIENTS)
        yield "server's memory", *(_bytes(process.memory(n, cost, COHORT)) for n in CLIENTS)
        if cost.memory:
            yield "memories", *(_bytes(n * cost.memory) for n in CLIENTS)


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _words(n: int) -> str:
    return f"{n:,}"


def _bytes(x: float) -> str:
    for unit, size in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9)):
        if x >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
