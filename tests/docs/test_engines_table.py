"""The table of engines has every method, and no test behind it failed."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from fedelta.methods import list_methods

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "engines.md"
ROW = re.compile(r"^\| \[`(\w+)`\]\(methods/\1\.md\) \| (.*) \|$", re.MULTILINE)
CELL = r"yes|(refused|not tried) \(\d\)"


@pytest.fixture(scope="module", name="rows")
def rows_of_the_page() -> dict[str, list[str]]:
    return {name: cells.split(" | ") for name, cells in ROW.findall(PAGE.read_text(encoding="utf-8"))}


def test_every_method_has_a_row(rows: dict[str, list[str]]) -> None:
    assert list(rows) == list_methods(), "stale: make engines"


def test_no_cell_says_no(rows: dict[str, list[str]]) -> None:
    wrong = {name: cells for name, cells in rows.items() for cell in cells if not re.fullmatch(CELL, cell)}
    assert not wrong


def test_the_page_is_what_the_tool_makes_of_its_cells(rows: dict[str, list[str]], tool: Callable[[str], ModuleType]) -> None:
    assert PAGE.read_text(encoding="utf-8") == tool("engines").page(rows), "stale: make engines"


def test_a_failed_and_a_skipped_case_are_no_yes(tmp_path: Path, tool: Callable[[str], ModuleType]) -> None:
    engines = tool("engines")
    report = tmp_path / "report.xml"
    cases = [("2-fedavg", ""), ("3-fedavg", "<failure/>"), ("2-flora", "<skipped/>"), ("2-scaffold", "")]
    column = engines.COLUMNS[-1]
    file, _, test = column.equal.partition("::")
    module = file.removesuffix(".py").replace("/", ".")
    text = "".join(f'<testcase classname="{module}" name="{test}[{case}]">{inner}</testcase>' for case, inner in cases)
    report.write_text(f"<testsuite>{text}</testsuite>")
    found = engines.read(report)
    cells = [engines.cell(name, column, found) for name in ("fedavg", "flora", "scaffold")]
    assert cells == ["no", "not tried (4)", "yes"]
