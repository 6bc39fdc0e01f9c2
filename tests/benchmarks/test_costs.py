"""The page on scale says what the committed results do, and its model is the formula that it prints."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedelta.methods import get_method, list_methods

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "costs.json"
PAGE = REPOSITORY / "docs" / "explanation" / "scale.md"

COHORTS = {
    "100": {"cpu_seconds": 1.0, "down": 5.0, "up": 3.0, "state": 7.0, "memory": 2.0},
    "1000": {"cpu_seconds": 10.0, "down": 5.0, "up": 3.0, "state": 7.0, "memory": 2.0},
}
FAMILY: dict[str, Any] = {"cohorts": COHORTS, "seen": {"bytes": 100.0, "of_which_memory": 40.0}}


@pytest.fixture
def cost_tables(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("common/cost_tables.py")


def test_the_page_has_the_tables_of_the_committed_results(cost_tables: ModuleType) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert cost_tables.with_tables(page, json.loads(RESULTS.read_text())) == page, "python benchmarks/costs.py --tables"


def test_the_page_names_the_methods_that_can_be_summed() -> None:
    listed = re.search(r"<!-- sums: begin -->\n(.*?)<!-- sums: end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert listed is not None
    summed = [name for name in list_methods() if name != "compose" and get_method(name).sums == "exact"]
    assert re.findall(r"`(\w+)`", listed[1]) == summed


def test_the_model_is_the_formula_that_is_printed(cost_tables: ModuleType) -> None:
    cost = cost_tables.Cost.of(FAMILY)
    assert [cost.seconds_of(c) for c in (100, 1000, 10_000)] == [1.0, 10.0, 100.0]
    assert (cost.table, cost.memory) == (60.0, 2.0)
    process = cost_tables.Process.of({str(n): {"mib_peak": 100 + n / 10**5} for n in (10**3, 10**6, 10**7)})
    assert process.column == pytest.approx(2**20 / 10**5)
    assert process.itself == pytest.approx(100 * 2**20)
    expected = process.itself + (process.column + 60) * 10**7 + 7 + 300
    assert process.memory(10**7, cost, 100) == pytest.approx(expected)


def test_the_updates_of_a_round_beyond_a_gibibyte_are_on_disk(cost_tables: ModuleType) -> None:
    cost = cost_tables.Cost.of(FAMILY)
    assert cost_tables.Process(0.0, 0.0).memory(0, cost, 10**12) == 7 + 2**30
