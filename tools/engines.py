"""Writes docs/reference/engines.md: which tests show that an engine gives a method the bits of one client after another.

python tools/engines.py    runs these tests, about a minute, and writes the page; ends with code 1 if one of them fails

It needs Flower, so `make engines` runs it where `make sites-deps` has installed that. A cell says no more than a test did:
"not tried" is no promise either way.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from fedelta import topology
from fedelta.engines.federation import largest_template
from fedelta.engines.node import take_part
from fedelta.engines.settings import RunSettings
from fedelta.exchange.parcels import Parcel
from fedelta.methods import get_method, list_methods
from fedelta.models.toy import toy_federation
from fedelta.tree import Adapter
from fedelta.tree.value import BaseDelta

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/reference/engines.md"

POOLS = "It pools the data of all clients, which no site gives away."
MOVES = "It moves the base model, which nodes without a server would move apart."
NOT_FOR_GOSSIP = (
    "It does not claim to work without a server (`decentralised`). `gossip` runs it with a warning; no test compares its bits."
)
NO_TEST = "No test runs it with this engine."
NOTES = (POOLS, MOVES, NOT_FOR_GOSSIP, NO_TEST)


@dataclass(frozen=True)
class Column:
    """One engine.

    Attributes:
        title: its name at the head of the table.
        about: what its test does.
        equal: the test of equal bits, as pytest names it; each of its cases ends with the name of a method.
        pooling: the test that a method which pools data is refused; "" if there is none.
    """

    title: str
    about: str
    equal: str
    pooling: str = ""


NODES = Column(
    "node by node",
    "Four nodes on a ring, each with a model of its own, exchange parcels as bytes for 4 rounds. "
    "The state of each node in each round and the bytes it sent are those of `gossip`, which trains one node after another.",
    "tests/engines/test_node.py::test_nodes_are_gossip_to_the_last_bit_in_every_round_eng_8",
)
COLUMNS = (
    Column(
        "site by parcels",
        "Each message goes to a new site, which begins from its own disk; parcels cross as bytes. "
        "4 rounds, two of three clients in each.",
        "tests/engines/test_site.py::test_a_new_site_for_each_message_gives_the_numbers_of_one_process",
        "tests/sites/test_remote.py::test_a_method_that_pools_data_is_refused_before_a_site_is_asked",
    ),
    Column(
        "Flower",
        "The client app answers Flower's messages over a grid in memory, a fresh site for each. "
        "4 rounds, all clients first and then some.",
        "tests/sites/test_flower_rounds.py::test_eng_3_a_fresh_site_for_each_message_gives_the_rounds_of_one_process",
        "tests/sites/test_flower_rounds.py::test_eng_3_a_method_that_pools_data_is_refused_by_name",
    ),
    NODES,
    Column(
        "shards",
        "Two and then three processes share each cohort for 12 rounds, in which clients fail and the run is taken up again. "
        "Tried for methods with a memory at clients, with a base that moves, with both and with neither.",
        "tests/engines/runners/test_sharded.py::test_several_ranks_give_the_rounds_of_one",
    ),
)

Outcomes = Mapping[str, Sequence[bool]]
"""By method, or by "" for a test of one case: each case that ran, True if it passed."""

Rows = Mapping[str, Sequence[str]]
"""By method: a cell for each column."""


# --- what the tests say ----------------------------------------------------------------------------------------------


def outcomes() -> dict[str, Outcomes]:
    """Runs the tests once; returns what each gave, by its name in a column."""
    tests = [test for column in COLUMNS for test in (column.equal, column.pooling) if test]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        subprocess.run(command, cwd=ROOT, check=False)
        if not report.exists():
            raise SystemExit("pytest wrote no report: see above")
        found = read(report)
    silent = [test for test in tests if not found.get(test)]
    if silent:
        raise SystemExit(f"no case ran of {', '.join(silent)}: is Flower installed (make sites-deps)?")
    return {test: found[test] for test in tests}


def read(report: Path) -> dict[str, dict[str, list[bool]]]:
    """Returns what a JUnit report says, by test and method; cases that were skipped did not run."""
    found: dict[str, dict[str, list[bool]]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is not None:
            continue
        name, _, parameters = case.attrib["name"].partition("[")
        method = parameters.rstrip("]").rpartition("-")[2]
        test = f"{case.attrib['classname'].replace('.', '/')}.py::{name}"
        passed = case.find("failure") is None and case.find("error") is None
        found.setdefault(test, {}).setdefault(method, []).append(passed)
    return found


class NoPost:
    """The post of a node that is refused before it sends anything."""

    def send(self, to: int, parcel: Parcel) -> None:
        raise AssertionError("a node sent before it was refused")

    def announce(self, parcel: Parcel) -> None:
        raise AssertionError("a node announced itself before it was refused")

    def take(self, seconds: float) -> tuple[int, Parcel] | None:
        raise AssertionError("a node listened before it was refused")


def no_score(adapter: Adapter, base: BaseDelta | None) -> Mapping[str, float]:
    """The score of a run that never begins: methods that weigh by scores ask for one before all else."""
    return {"loss": 0.0}


def reason_of_node(name: str) -> str | None:
    """Asks a node to take part with a method; returns the note of its refusal, None if it would. Another error is raised."""
    made = toy_federation((2, 2, 2))
    clients = [made[k] for k in range(3)]
    peers, template, settings = [c.peer for c in clients], largest_template(clients), RunSettings(rounds=1, score=no_score)
    try:
        take_part(get_method(name), clients[0], peers, template, NoPost(), mixing=topology.ring(3), settings=settings)
    except ValueError as error:
        for words, note in (("pools data", POOLS), ("moves the base model", MOVES)):
            if words in str(error):
                return note
        raise
    return None


def cell(name: str, column: Column, found: Mapping[str, Outcomes]) -> str:
    """Returns what is known of a method with an engine: yes, no, refused or not tried, the last two with a note's number."""
    cases = found[column.equal].get(name)
    if cases:
        return "yes" if all(cases) else "no"
    if column is NODES:
        reason = reason_of_node(name)
        return noted("refused", reason) if reason else noted("not tried", NOT_FOR_GOSSIP)
    if name == "centralised" and column.pooling:
        return noted("refused", POOLS) if all(found[column.pooling][""]) else "no"
    return noted("not tried", NO_TEST)


def noted(word: str, note: str) -> str:
    return f"{word} ({NOTES.index(note) + 1})"


# --- the page --------------------------------------------------------------------------------------------------------


def page(rows: Rows) -> str:
    """Returns the page of a table."""
    titles = ["method", *(column.title for column in COLUMNS)]
    lines = [titles, ["---"] * len(titles), *([f"[`{name}`](methods/{name}.md)", *cells] for name, cells in rows.items())]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "\n".join(f"{number}. {note}" for number, note in enumerate(NOTES, 1))
    return "\n\n".join([HEAD, table, "## Notes", notes, "## Tests", *(about(i, rows) for i in range(len(COLUMNS))), TAIL])


def about(index: int, rows: Rows) -> str:
    """Returns the paragraph of a column."""
    column = COLUMNS[index]
    count = sum(cells[index] == "yes" for cells in rows.values())
    file, _, test = column.equal.partition("::")
    text = f"**{column.title}**: {count} of {len(rows)} methods. {column.about}\n`{file}`, `{test}`."
    if column.pooling:
        file, _, test = column.pooling.partition("::")
        text += f"\nRefusal: `{file}`, `{test}`."
    return text


HEAD = """---
hide: [toc]
---

# Engines

Which engine gives a method the same bits as one client after another in one process?
Each "yes" is a test on a toy federation that compares whole states, not a tolerance. A number leads to a note below.

| cell | meaning |
| --- | --- |
| yes | the test ran with this method, and every bit was equal |
| refused | the engine refuses this method before anything is sent |
| not tried | no test compares this method with this engine |"""

TAIL = """A node's refusals are not from a test for each method: the tool that writes this page asks a node
to take part with every method that has no test here.

The batched engine has no column, since it may differ by rounding: it adds in another order.
`tests/engines/runners/test_batched.py` holds every method to a relative difference of 1e-9 in double precision.

Floating point differs between machines and versions of torch. The two sides of a comparison here run on the same ones.

`make engines` runs these tests and writes this page.
"""


def main() -> int:
    """Writes the page; returns 1 if a cell says no."""
    found = outcomes()
    rows = {name: [cell(name, column, found) for column in COLUMNS] for name in list_methods()}
    PAGE.write_text(page(rows), encoding="utf-8")
    return int(any("no" in cells for cells in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
