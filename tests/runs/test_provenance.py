"""What a run says of its code and its command, without anybody's name."""

import subprocess
from pathlib import Path

import pytest

import fedelta
from fedelta.runs import provenance


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["/home/alice/.venv/bin/fedelta", "run", "a.yaml"], "fedelta run a.yaml"),
        (["fedelta", "run", "/home/alice/trial/a.yaml"], "fedelta run .../a.yaml"),
        (["fedelta", "run", "~/trial/a.yaml"], "fedelta run .../a.yaml"),
        (["fedelta", "run", "configs/a.yaml"], "fedelta run configs/a.yaml"),
        (["fedelta", "--set", "data.source=/home/alice/rows.csv"], "fedelta --set data.source=.../rows.csv"),
        (["fedelta", "--set", "data.clients=[/a/b/c.csv,/d/e.csv]"], "fedelta --set 'data.clients=[.../c.csv,.../e.csv]'"),
        ([r"C:\Users\alice\bin\fedelta", "run", r"C:\Users\alice\a.yaml"], "fedelta run .../a.yaml"),
        (["fedelta", "run", "a b.yaml"], "fedelta run 'a b.yaml'"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_a_command_is_told_without_folders(given: list[str], shown: str):
    assert provenance.command(given) == shown


def test_the_commit_is_that_of_a_checkout_and_marked_where_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "src" / "fedelta"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(fedelta, "__file__", str(package / "__init__.py"))
    assert commit() == ""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    git("add", "src")
    git("commit", "-m", "first")
    clean = commit()
    assert len(clean) == 12
    (tmp_path / "untracked").write_text("")
    assert commit() == clean
    (package / "__init__.py").write_text("x = 1\n")
    assert commit() == f"{clean}+"


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "venv" / "lib" / "fedelta"
    package.mkdir(parents=True)
    (tmp_path / "venv" / ".git").mkdir()
    monkeypatch.setattr(fedelta, "__file__", str(package / "__init__.py"))
    assert commit() == ""


def commit() -> str:
    provenance.commit.cache_clear()
    try:
        return provenance.commit()
    finally:
        provenance.commit.cache_clear()
