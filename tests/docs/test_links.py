"""The check of a built site's links finds what is broken, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def links(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("links")


@pytest.mark.parametrize("link", ["other/", "other/#there", "other/index.html", "#here", "a.png", "https://example.org/x"])
def test_a_link_that_leads_somewhere_is_not_named(links: ModuleType, tmp_path: Path, link: str) -> None:
    assert links.broken(site_with(tmp_path, link)) == []


@pytest.mark.parametrize("link", ["another/", "other/#nowhere", "#nowhere", "b.png"])
def test_a_broken_link_is_named_with_its_page(links: ModuleType, tmp_path: Path, link: str) -> None:
    assert links.broken(site_with(tmp_path, link)) == [f"index.html: {link}"]


def site_with(folder: Path, link: str) -> Path:
    """A site of two pages and a picture, the first page with this link."""
    (folder / "other").mkdir()
    (folder / "other" / "index.html").write_text('<h1 id="there">There</h1>', encoding="utf-8")
    (folder / "a.png").write_bytes(b"")
    (folder / "index.html").write_text(f'<h1 id="here">Here</h1><a href="{link}">x</a>', encoding="utf-8")
    return folder
