"""The guide to writing a task: its code is short and keeps the laws, its table has all of them, its template works."""

import re
import sys
from pathlib import Path

import pytest

from fedelta.tasks import Task
from fedelta.testing import TASK_LAWS, check, check_task, named

REPOSITORY = Path(__file__).resolve().parents[2]
GUIDE = (REPOSITORY / "docs" / "how-to" / "own-task.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
REVIEWS = ({"text": "Works as it should.", "stars": 5}, {"text": "It broke.", "stars": 1})


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's two tasks, where its command expects them."""
    for name, text in (("good_review", PYTHON[0]), ("yes_or_no", PYTHON[2])):
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"_fedelta_checked_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guides_whole_task_keeps_all_laws_in_under_sixty_lines(files: Path) -> None:
    assert "fedelta check yes_or_no.py" in GUIDE
    report = check("yes_or_no.py")
    assert report.count("kept") == len(TASK_LAWS), str(report)
    assert sum(bool(line.strip()) for line in PYTHON[2].splitlines()) < 60


def test_the_guides_other_reading_of_a_row_keeps_all_laws(files: Path) -> None:
    found = named("good_review.py")
    assert issubclass(found, Task)
    assert check_task(found, REVIEWS).count("kept") == len(TASK_LAWS)


def test_the_template_keeps_all_laws() -> None:
    template = REPOSITORY / "src" / "fedelta" / "tasks" / "_template.py"
    assert check(str(template)).count("kept") == len(TASK_LAWS)


def test_the_guide_names_every_law() -> None:
    table = GUIDE[GUIDE.index("## The laws") :]
    named_there = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    assert [law.name for law in TASK_LAWS] == [name for name in named_there if name not in ("law", "---")]
