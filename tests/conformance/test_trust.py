"""Each known fault of experiments/trust is caught, each right function passes, and the committed table is what comes out."""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedelta.testing import check_aggregator

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "trust"


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    """The script that makes the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        import run  # pyright: ignore[reportMissingImports]

        yield run
        for name in ("run", "faults"):
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with (FOLDER / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_each_fault_is_caught_and_the_same_without_it_passes(study: Any):
    for fault in study.FAULTS:
        assert check_aggregator(fault.right, **fault.claims).ok, fault.name
        assert not check_aggregator(fault.aggregate, **fault.claims, raise_on_failure=False).ok, fault.name


def test_right_functions_give_the_dense_answer_and_faults_do_not(study: Any):
    pair = study.made_up()
    for fault in study.FAULTS:
        right = study.Fault(fault.name, fault.right, fault.right, "", fault.claims, fault.start)
        if not fault.claims.get("exact", True) and not fault.start:
            continue
        assert study.error_of(right, pair) < 1e-12, fault.name
        assert study.error_of(fault, pair) > 1e-3, fault.name


def test_the_committed_numbers_come_out_again(study: Any, rows: list[dict[str, str]]):
    pair = study.made_up()
    assert [row["what goes wrong"] for row in rows] == [fault.name for fault in study.FAULTS]
    for fault, row in zip(study.FAULTS, rows, strict=True):
        assert study.measured(fault, {"made up": pair}) == {k: v for k, v in row.items() if k != "trained"}


def test_the_page_has_the_table_of_the_file(study: Any, rows: list[dict[str, str]]):
    assert study.table(rows) + "\n" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_first_round_is_told_by_how_much(study: Any):
    fault = next(fault for fault in study.FAULTS if fault.start)
    report = check_aggregator(fault.aggregate, **fault.claims, raise_on_failure=False)
    assert set(report.violations) == {"first round"}
    assert "client 1 of ranks [4, 4, 4] as 0.5 times the common one" in report.violations["first round"]


def test_a_lost_root_is_told(study: Any):
    fault = next(fault for fault in study.FAULTS if "Sigma" in fault.name)
    report = check_aggregator(fault.aggregate, **fault.claims, raise_on_failure=False)
    assert "loses a square root of the singular values" in report.violations["mean"]
