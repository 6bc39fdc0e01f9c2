"""The pages of methods say what their classes say, the guide to writing one works, the table of choices names what there is."""

import re
import sys
from pathlib import Path

import pytest

from fedelta.method import Method
from fedelta.methods import list_methods, method_class
from fedelta.report import catalogue
from fedelta.testing import LAWS, UNEQUAL_RANKS, check_method, class_from_file

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE = (DOCS / "how-to" / "own-method.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's file, where its commands expect it."""
    path = tmp_path / "median_lora.py"
    path.write_text(PYTHON[0], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "median_lora", raising=False)
    return path


def test_the_guide_leads_to_a_method_that_keeps_all_laws(example: Path) -> None:
    assert "fedelta check median_lora.py" in GUIDE
    found = class_from_file(example)
    assert issubclass(found, Method)
    report = check_method(found)
    assert report.ok
    assert report.count("exempt") == 0
    assert sum(bool(line.strip()) for line in PYTHON[0].splitlines()) <= 30


def test_the_guide_leads_to_a_method_that_runs(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(PYTHON[1], "docs/how-to/own-method.md", "exec"), {})
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


def test_the_guide_names_every_law() -> None:
    table = GUIDE[GUIDE.index("## The laws") :]
    named = {name.strip() for row in re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE) for name in row.split(",")}
    assert {law.name for law in (UNEQUAL_RANKS, *LAWS)} == named - {"law", "---"} - {""}


NOT_CHOSEN = {"zeropad", "local_only", "centralised", "fedsvd", "lora_fair", "svd_redistribution"}


def test_choices_are_methods() -> None:
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|", (DOCS / "explanation" / "choosing.md").read_text(encoding="utf-8"), re.MULTILINE)
    chosen = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert chosen <= set(list_methods())
    assert set(list_methods()) - chosen <= NOT_CHOSEN


@pytest.mark.parametrize("name", list_methods())
def test_the_pages_show_where_a_formula_was_read(name: str) -> None:
    follows = method_class(name).follows
    page = (DOCS / "reference" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert f"| formula from | {follows} |" in page
    assert f'"{follows}"' in catalogue.HEAD or follows == "no paper of its own"


def test_every_paper_says_what_it_reports_and_the_page_shows_it() -> None:
    for name in list_methods():
        cls = method_class(name)
        entry = (DOCS / "reference" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        shown = re.findall(r"^\| reported \| (.+) \|$", entry, re.MULTILINE)
        if cls.follows == "no paper of its own":
            assert shown == [cls.reported or "nothing: no paper of its own"], name
        else:
            assert cls.reported, f"{name} has the paper {cls.paper!r} and no `reported`"
            assert shown == [cls.reported], name
