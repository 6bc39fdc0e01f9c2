"""A module, class or function that a page names by its whole name is where the page says."""

import pkgutil
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

HISTORY = "CHANGELOG.md"
"""Names what was then."""

NAMED = re.compile(r"\bfedelta(?:\.[A-Za-z_]\w*)+")

FILES = {"fedelta.json"}
"""Look like names and are none."""

PAGES = [
    page
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", "experiments/**/*.md", "tests/**/*.md")
    for page in sorted(REPOSITORY.glob(pattern))
    if page.name != HISTORY
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_what_a_page_names_is_there(page: Path) -> None:
    named = set(NAMED.findall(page.read_text(encoding="utf-8"))) - FILES
    assert [name for name in sorted(named) if not exists(name)] == []


def exists(name: str) -> bool:
    """Says if a name leads to a module, or to something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
