"""The wheel that users install: the package with the data that its code reads, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names of the files in a wheel of this checkout."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file).namelist()


def test_the_wheel_holds_the_data_that_the_code_reads(wheel: list[str]) -> None:
    configs = [path.name for path in (REPOSITORY / "src/fedelta/runs/configs").glob("*.yaml")]
    data = ["py.typed", "methods/catalogue.json", "methods/citations.toml", *(f"runs/configs/{name}" for name in configs)]
    assert configs
    assert {f"fedelta/{name}" for name in data} <= set(wheel)


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: list[str]) -> None:
    source = REPOSITORY / "src"
    files = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file() and not path.match("*.pyc")}
    assert {name for name in wheel if ".dist-info/" not in name} == files


def test_the_wheel_has_the_command(wheel: list[str]) -> None:
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)
