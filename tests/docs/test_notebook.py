"""The notebooks of `examples`, run from the first cell to the last in a kernel of their own, in an empty folder."""

import os
import sys
from pathlib import Path

import pytest

import fedelta

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def notebooks() -> list[Path]:
    return sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("notebook", notebooks(), ids=lambda path: path.name)
def test_every_cell_of_a_notebook_runs(
    notebook: Path, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_kernel: str
):
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    source = Path(fedelta.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")])))
    read = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") for cell in read.cells), "keep outputs out: they name the machine that made them"
    # A cell that raises ends the client with that error.
    nbclient.NotebookClient(
        read, timeout=600, kernel_name=own_kernel, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    code = [cell for cell in read.cells if cell.cell_type == "code"]
    shown = {cell["id"]: str([output.get("data") for output in cell["outputs"]]) for cell in code}
    assert "graphs" in shown["load"]
    assert "test.accuracy" in shown["records"]
    assert "report.html" in shown["report"]
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


@pytest.fixture
def own_kernel(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a kernel of this interpreter, in a folder where no other one is found."""
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "kernels" / "here"
    folder.mkdir(parents=True)
    command = f'["{Path(sys.executable).as_posix()}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (folder / "kernel.json").write_text(f'{{"argv": {command}, "display_name": "here", "language": "python"}}')
    monkeypatch.setenv("JUPYTER_PATH", str(home))
    monkeypatch.setenv("IPYTHONDIR", str(home / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(home / "runtime"))
    return "here"


def test_the_notebook_is_found():
    assert "quickstart.ipynb" in {path.name for path in notebooks()}, "the examples are not where they are looked for"
