"""What the page of choices says of rules against drift has its line in the results of the study that measured it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUDY = ROOT / "experiments" / "drift"
PAGE = (ROOT / "docs" / "explanation" / "choosing.md").read_text(encoding="utf-8")
MEASURED = {"fedsam", "fedsmoo", "fedlada", "fedglomo", "ilora", "fedrot_lora"}
"""Methods that the page may name only with figures of this study."""


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    """The script that makes the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STUDY))
        import table  # pyright: ignore[reportMissingImports]

        yield table
        sys.modules.pop("table")


def lines_of(study: Any) -> list[str]:
    """Returns the lines that the committed results give; none while there are no results."""
    return study.table(study.read(study.RESULTS)) if study.RESULTS.exists() else []


def test_what_is_named_has_its_line(study: Any) -> None:
    measured = {name for line in lines_of(study) for name in re.findall(r"^\| `(\w+)`", line)}
    assert MEASURED & set(re.findall(r"`(\w+)`", PAGE)) <= measured


def test_the_tables_are_those_of_the_results(study: Any) -> None:
    lines = lines_of(study)
    for page in study.PAGES if lines else ():
        text = page.read_text(encoding="utf-8")
        assert study.with_table(text, "\n".join(lines)) == text, page


def test_a_method_with_too_few_seeds_has_no_line(study: Any) -> None:
    few = [_row("fedavg", str(seed), 0.7) for seed in range(study.FEWEST_SEEDS - 1)]
    assert study.table(few) == list(study.HEAD)


def test_a_line_says_mean_spread_difference_and_bytes(study: Any) -> None:
    rows = [_row("fedsam", str(seed), value) for seed, value in enumerate((0.70, 0.72, 0.74))]
    found = {"difference": 0.01, "low": -0.02, "high": 0.04, "p_adjusted": 0.5}
    rows += [_row("fedsam", "", value, statistic) for statistic, value in found.items()]
    assert study.table(rows)[-1] == "| `fedsam` | 3 | 72.0, sd 2.0 | +1.0 | -2.0 to +4.0 | 0.50 | 3.0 |"


def test_a_page_without_marks_is_refused(study: Any) -> None:
    with pytest.raises(ValueError, match="drift: begin"):
        study.with_table("# A page\n", "| |")


def _row(label: str, seed: str, value: float, statistic: str = "value") -> dict[str, str]:
    size = str(3 * 2**19) if seed else ""
    return {"label": label, "seed": seed, "value": str(value), "statistic": statistic, "bytes_up": size, "bytes_down": size}
