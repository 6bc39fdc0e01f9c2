"""Sources by name: found by their files, and before files and data sets of the Hub."""

from pathlib import Path

import pytest

from fedelta.data import named, sources
from fedelta.data.named._template import Parity
from fedelta.data.sources import load_rows, load_splits, pinned_revision


def test_a_source_is_known_by_its_file():
    assert named.list_sources() == ["docstrings", "fashion_mnist"]
    assert type(named.get_source("docstrings")).__name__ == "Docstrings"
    with pytest.raises(ValueError, match="no source is called 'docstring'; did you mean 'docstrings'"):
        named.get_source("docstring")


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template under the name `parity`, as if its file had that name."""
    monkeypatch.setattr(sources, "is_named", lambda source: source == "parity")  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setattr(sources, "get_source", lambda name, folder: Parity())  # pyright: ignore[reportUnknownLambdaType]


@pytest.mark.usefixtures("parity")
def test_what_a_source_lacks_is_carved_from_its_training_rows():
    splits = load_splits("parity", validation_fraction=0.1)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [180, 20, 50]
    assert splits.test[0] == {"text": "the number 200", "label": "even"}
    with pytest.raises(ValueError, match="parity has no split 'dev'; it has train, test"):
        load_splits("parity", validation="dev")
    with pytest.raises(ValueError, match="parity has no split 'dev'"):
        load_rows("parity", split="dev")


def test_a_name_goes_before_a_folder_that_is_called_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "docstrings").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_rows("docstrings", limit=2)[0].keys() == {"text", "label", "package", "module"}
    assert pinned_revision("docstrings") is None
    with pytest.raises(ValueError, match="is a folder: name the file"):
        load_splits("./docstrings")
