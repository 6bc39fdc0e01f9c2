"""The page on merging has the figures of the script, and the figures are those of the versions that made them."""

import csv
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def merge(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("merge.py")


def test_the_page_has_the_table_of_the_committed_results(merge: ModuleType):
    page = merge.PAGE.read_text(encoding="utf-8")
    assert merge.with_table(page, merge.read_results()) == page, "python benchmarks/merge.py --write"


def test_the_committed_results_are_those_of_the_script(merge: ModuleType):
    kept = merge.read_results()
    if kept[0]["peft"] != version("peft"):
        pytest.skip(f"the figures are of PEFT {kept[0]['peft']}, here is {version('peft')}")
    for before, now in zip(kept, merge.measured(), strict=False):  # those of published adapters need their files
        assert now.keys() == before.keys()
        assert now["inputs"] == before["inputs"], "python benchmarks/merge.py --write"
        for way in (*merge.PEFT_WAYS, *merge.OWN_WAYS):
            if "refused" in (before[way], now[way]):
                assert before[way] == now[way]
            else:
                assert float(now[way]) == pytest.approx(float(before[way]), rel=0.02, abs=merge.EXACT)


def test_the_ways_that_are_exact_are_exact_and_the_best_is_never_worse(merge: ModuleType):
    """What the page says of ours, whatever PEFT's version."""
    for row in csv.DictReader(merge.RESULTS.open(encoding="utf-8")):
        assert float(row["flora"]) < merge.EXACT
        for way in ("linear", "svd", "fedavg"):
            assert row[way] == "refused" or float(row[way]) > float(row["flexlora"]) - merge.EXACT
