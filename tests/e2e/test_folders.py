"""The folder of a run: who may write to it, what becomes of the run that was there, and what a resumed run accepts."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedelta
from fedelta import registry
from fedelta.engines import checkpoint
from fedelta.exchange import files
from fedelta.models.adapter_files import copy_adapter, load_adapter, save_adapter
from fedelta.models.base_files import find_base
from fedelta.models.toy import random_adapter
from fedelta.report.terminal import show_warnings
from fedelta.runs.config import ConfigError
from fedelta.runs.evaluation import LOWER_IS_BETTER
from fedelta.runs.export import find
from fedelta.runs.folder import RunFolder, finite
from fedelta.runs.records import without_times
from fedelta.runs.runner import rounds
from fedelta.tree import Adapter

Config = dict[str, Any]
ONE_ROUND = {"federation.rounds": 1}


def adapter_of(rank: int) -> Adapter:
    return Adapter(random_adapter(rank, seed=rank).layers, {})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def quick(tiny_config: Config) -> Config:
    """Two clients of one rank, without diagnostics."""
    lora = {"rank": 2, "target_modules": ["query"]}
    evaluation = {"diagnostics": False}
    return tiny_config | {"lora": lora, "partition": {"scheme": "iid", "clients": 2}, "evaluation": evaluation}


@pytest.fixture(scope="module")
def original(quick: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds; tests work on copies."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    fedelta.run(quick, {"output": str(folder)})
    return folder


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


# --- a new run in the place of an old one ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mistake", [{"model.name": "nowhere"}, {"data.source": "nowhere.jsonl"}, {"lora.target_modules": ["x"]}]
)
def test_force_touches_nothing_before_everything_is_built(mistake: Config, quick: Config, finished: Path):
    before = contents(finished)
    with pytest.raises((OSError, ValueError)):
        fedelta.run(quick, {"output": str(finished), **mistake}, force=True)
    assert contents(finished) == before
    assert [p.name for p in finished.parent.iterdir()] == ["run"]


def test_the_old_run_is_there_until_the_new_one_has_finished_a_round(quick: Config, finished: Path):
    before = contents(finished)
    new = rounds(quick, {"output": str(finished), "seed": 5}, force=True)
    next(new)
    assert contents(finished.with_name("run.old")) == before
    assert len(RunFolder(finished).records()) == 1
    new.close()
    assert (finished / "curves.png").exists()
    again = fedelta.run(quick, {"output": str(finished), "seed": 6, **ONE_ROUND}, force=True)
    assert len(again.records) == 1
    assert RunFolder(finished.with_name("run.old")).config().seed == 5, "an old run is replaced at the next time"
    assert sorted(p.name for p in finished.parent.iterdir()) == ["run", "run.old"]


def test_that_an_earlier_old_run_goes_is_said_before_it_is_lost(
    quick: Config, finished: Path, caplog: pytest.LogCaptureFixture
):
    output = {"output": str(finished), **ONE_ROUND}
    with pytest.raises(FileExistsError) as refused:
        fedelta.run(quick, output)
    assert "is removed" not in str(refused.value)
    shutil.copytree(finished, finished.with_name("run.old"))
    goes = r"run\.old that is there is removed once the first round of the new run is done"
    with pytest.raises(FileExistsError, match=goes):
        fedelta.run(quick, output)
    new = rounds(quick, {**output, "federation.rounds": 2}, force=True)
    with closing(new), pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            next(new)
    assert re.search(goes, caplog.text)
    assert (finished.with_name("run.old") / "config.yaml").exists()


def test_a_new_run_that_fails_in_its_first_round_leaves_the_old_one(
    quick: Config, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    before = contents(finished)

    def fail(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        fedelta.run(quick, {"output": str(finished)}, force=True)
    assert contents(finished) == before
    assert [p.name for p in finished.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("place", ["run", "run.old"])
def test_foreign_files_are_refused_before_anything_is_touched_by_advice_that_works(
    place: str, quick: Config, finished: Path, tmp_path: Path
):
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=rf"{place} holds notes\.txt, which no run wrote: move that elsewhere"):
        fedelta.run(quick, {"output": str(finished), **ONE_ROUND}, force=True)
    assert contents(tmp_path) == before
    (tmp_path / place / "notes.txt").rename(tmp_path / "notes.txt")
    fedelta.run(quick, {"output": str(finished), **ONE_ROUND}, force=True)


def test_a_run_that_was_stopped_before_its_first_round_was_done_is_not_in_the_way(
    quick: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fedelta.run(quick, {"output": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()
    fedelta.run(quick, {"output": str(tmp_path / "run"), **ONE_ROUND})


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("left", [[".config.yaml.tmp"], ["config.yaml"], ["config.yaml", ".lock"]])
def test_what_a_kill_before_round_0_leaves_is_not_in_the_way(left: list[str], quick: Config, tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).write_text("name: ru")
    if "config.yaml" not in left:
        with pytest.raises(FileNotFoundError, match=r"has no config\.yaml; .* start it again"):
            fedelta.run(resume=folder)
    assert len(fedelta.run(quick, {"output": str(folder), **ONE_ROUND}).records) == 1
    assert not (folder / ".config.yaml.tmp").exists()


@pytest.mark.parametrize("name", ["config.yaml", "rounds.jsonl", "rounds.damaged.jsonl"])
def test_half_of_any_file_that_a_run_commits_is_its_own(
    name: str, quick: Config, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    before = contents(finished)
    place = files.os.replace
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", lambda s, t: interrupt() if Path(t).name == name else place(s, t))
        with pytest.raises(KeyboardInterrupt):
            files.commit(finished / name, b"half")
    assert contents(finished) != before
    fedelta.run(quick, {"output": str(finished), **ONE_ROUND}, force=True)


def die_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """Interrupts in place of the n-th change of a name, from 1, where the system cannot exchange names."""
    real, passed = os.replace, 0

    def replace(source: Any, target: Any) -> None:
        nonlocal passed
        passed += 1
        if passed == number:
            raise KeyboardInterrupt
        real(source, target)

    patch.setattr(files, "_exchange", lambda one, other: False)
    patch.setattr(os, "replace", replace)


def change_of_names(finished: Path, death: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A finished draft that dies as it takes the place of a run; returns the files of that run."""
    before = contents(finished)
    draft = RunFolder(finished).draft
    shutil.copytree(finished, draft.path)
    (draft.path / "curves.png").write_bytes(b"of the new run")
    with monkeypatch.context() as patch:
        die_at(death, patch)
        with pytest.raises(KeyboardInterrupt):
            draft.take_place_of(RunFolder(finished))
    return before


@pytest.mark.parametrize("death", [1, 2, 3, 4])
def test_a_death_in_a_change_of_names_in_three_steps_loses_no_run(death: int, finished: Path, monkeypatch: pytest.MonkeyPatch):
    before = change_of_names(finished, death, monkeypatch)
    fedelta.run(resume=finished)
    names = ["run.old", "run"] if death == 4 else ["run", "run.old"]
    assert contents(finished.with_name(names[0])) == before | ({} if death == 4 else {"curves.png": any_bytes(finished)})
    assert not files.spare_of(finished).exists()


def any_bytes(folder: Path) -> bytes:
    return (folder / "curves.png").read_bytes()


def test_a_run_that_lost_its_name_is_in_the_way_of_a_new_one(quick: Config, finished: Path, monkeypatch: pytest.MonkeyPatch):
    before = change_of_names(finished, 3, monkeypatch)
    assert not finished.exists()
    with pytest.raises(FileExistsError, match="it holds a run: take it up with --resume"):
        fedelta.run(quick, {"output": str(finished)})
    assert contents(finished) == before
    fedelta.run(quick, {"output": str(finished), **ONE_ROUND}, force=True)
    assert contents(finished.with_name("run.old")) == before


def test_a_change_of_names_that_is_going_on_is_left_alone(quick: Config, finished: Path, monkeypatch: pytest.MonkeyPatch):
    change_of_names(finished, 3, monkeypatch)
    with files.locked(files.spare_of(finished)), pytest.raises(BlockingIOError, match="another process is writing"):
        fedelta.run(quick, {"output": str(finished)}, force=True)
    assert not finished.exists()


# --- one writer at a time --------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(quick: Config, finished: Path):
    message = "another process is writing to .*run: wait until it has ended"
    with closing(rounds(overrides={"federation.rounds": 4}, resume=finished)) as first:
        next(first)
        with pytest.raises(BlockingIOError, match=message):
            fedelta.run(overrides={"federation.rounds": 4}, resume=finished)
        with pytest.raises(BlockingIOError, match=message):
            fedelta.run(quick, {"output": str(finished)}, force=True)
        assert next(first)["t"] == 3
    fedelta.run(overrides={"federation.rounds": 5}, resume=finished)


def test_a_forced_run_keeps_its_folder_locked_on_both_sides_of_the_change_of_names(quick: Config, finished: Path):
    with closing(rounds(quick, {"output": str(finished)}, force=True)) as new:
        next(new)
        with pytest.raises(BlockingIOError):
            fedelta.run(resume=finished)


def test_an_old_run_that_is_going_on_is_not_removed(quick: Config, finished: Path):
    old = Path(shutil.copytree(finished, finished.with_name("run.old")))
    before = contents(finished)
    with closing(rounds(overrides={"federation.rounds": 4}, resume=old)) as going:
        next(going)
        with pytest.raises(BlockingIOError, match=r"another process is writing to .*run\.old"):
            fedelta.run(quick, {"output": str(finished), **ONE_ROUND}, force=True)
        assert contents(finished) == before
        next(going)


def test_an_old_run_that_begins_while_a_new_one_has_its_first_round_is_not_removed(
    quick: Config, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    old = Path(shutil.copytree(finished, finished.with_name("run.old")))
    before, save = contents(finished), checkpoint.save
    with ExitStack() as held:

        def begin(*args: Any) -> None:
            save(*args)
            held.enter_context(files.locked(old))

        monkeypatch.setattr(checkpoint, "save", begin)
        with pytest.raises(BlockingIOError, match=r"another process is writing to .*run\.old"):
            fedelta.run(quick, {"output": str(finished), **ONE_ROUND}, force=True)
    assert contents(finished) == before
    assert checkpoint.exists(RunFolder(old).checkpoint)


def test_a_lock_is_gone_with_its_process(finished: Path):
    code = (
        "import os, sys; from pathlib import Path; from fedelta.exchange import files\n"
        "with files.locked(Path(sys.argv[1])):\n    print('locked', flush=True); os.read(0, 1); os._exit(9)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(finished)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(BlockingIOError), files.locked(finished):
        pass
    holder.communicate(b"x")
    with files.locked(finished):
        pass


# --- folders in one step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", [True, False])
def test_an_adapter_folder_is_replaced_in_one_step(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "last"
    save_adapter(adapter_of(2), folder)
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    place, seen = files.os.replace, list[str]()

    def watch(source: Any, target: Any) -> None:
        seen.append(Path(target).name)
        place(source, target)

    monkeypatch.setattr(files.os, "replace", watch)
    save_adapter(adapter_of(3), folder)
    assert {layer.rank for layer in load_adapter(folder).layers.values()} == {3}
    assert seen == (
        [] if exchange else [".last.swap", "last", next(n for n in seen if n.startswith(".last.") and n != ".last.swap")]
    )
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_an_adapter_folder_stays_and_is_followed(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The draft lies beside the folder and not beside the link, which may be on another disk."""
    (tmp_path / "large" / "mine").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "large" / "mine")
    if there:
        save_adapter(adapter_of(2), tmp_path / "large" / "mine")
    else:
        (tmp_path / "large" / "mine").rmdir()
    drafts, mkdtemp = list[Path](), tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **options: drafts.append(Path(options["dir"])) or mkdtemp(**options))
    save_adapter(adapter_of(3), tmp_path / "link")
    assert drafts == [tmp_path / "large"]
    assert (tmp_path / "link").is_symlink()
    for place in ("link", "large/mine"):
        assert {layer.rank for layer in load_adapter(tmp_path / place).layers.values()} == {3}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large", "link"]
    assert [p.name for p in (tmp_path / "large").iterdir()] == ["mine"]


def test_a_folder_behind_a_link_is_replaced_and_not_the_link(tmp_path: Path):
    for name in ("draft", "folder"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    files.replace_folder(tmp_path / "draft", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == ["folder", "folder/draft", "link"]


def test_other_files_beside_an_adapter_stay(tmp_path: Path):
    save_adapter(adapter_of(2), tmp_path / "mine")
    (tmp_path / "mine/README.md").write_text("mine")
    save_adapter(adapter_of(3), tmp_path / "mine")
    assert (tmp_path / "mine/README.md").read_text() == "mine"
    assert {layer.rank for layer in load_adapter(tmp_path / "mine").layers.values()} == {3}


# --- what a resumed run accepts --------------------------------------------------------------------------------------


def edit(folder: Path, section: str, **values: Any) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section].update(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_an_edit_of_the_config_by_hand_is_refused_like_set(finished: Path):
    edit(finished, "training", learning_rate=0.5)
    edit(finished, "federation", rounds=3)
    before = contents(finished)
    with pytest.raises(ConfigError, match=r"training\.learning_rate cannot change .* was 0\.01, is 0\.5"):
        fedelta.run(resume=finished)
    assert contents(finished) == before
    fedelta.run(overrides={"training.learning_rate": 0.01}, resume=finished)


def test_a_choice_that_was_edited_away_comes_from_the_checkpoint(finished: Path):
    edit(finished, "federation", engine="auto", token_budget=None, rounds=3)
    fedelta.run(resume=finished)
    assert RunFolder(finished).config().federation.engine == "batched"


def test_other_rows_are_refused(quick: Config, rows_file: Path, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    rows = rows_file.read_text().splitlines()
    data.write_text("\n".join(rows))
    folder = tmp_path / "run"
    fedelta.run(quick, {"output": str(folder), "data.source": str(data), **ONE_ROUND})
    data.write_text("\n".join(rows[1:] + rows[:1]))
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"rows\.jsonl has changed: the .* are not those that the run began with"):
        fedelta.run(overrides={"federation.rounds": 2}, resume=folder)
    assert contents(folder) == before


def test_a_model_is_taken_as_it_is_where_a_person_says_so_and_not_where_the_folder_does(
    quick: Config, tiny_model: Path, tmp_path: Path
):
    model, folder = Path(shutil.copytree(tiny_model, tmp_path / "model")), tmp_path / "run"
    fedelta.run(quick, {"output": str(folder), "model.name": str(model), **ONE_ROUND})
    (model / "generation_config.json").write_text("{}")
    more = ["federation.rounds=2"]
    for asked in (more, [*more, "model.digest=" + "0" * 64]):
        with pytest.raises(ValueError, match=r"model\.digest"):
            fedelta.run(overrides=asked, resume=folder)
    edit(folder, "model", digest=None)
    with pytest.raises(ValueError, match=r"take them as they are with model\.digest=null"):
        fedelta.run(overrides=more, resume=folder)
    fedelta.run(overrides=[*more, "model.digest=null"], resume=folder)
    assert RunFolder(folder).config().model.digest == find_base(str(model)).digest()
    fedelta.run(overrides={"federation.rounds": 3}, resume=folder)


OWN_METHOD = """
from dataclasses import dataclass
from fedelta.methods.fedavg import FedAvg

@dataclass(frozen=True, kw_only=True)
class Mine(FedAvg):
    paper = "an example"
"""


@pytest.fixture
def own_method(tmp_path: Path) -> Iterator[Path]:
    """The file of a method `my_own_method`, beside the library's own as far as names go."""
    path = tmp_path / "methods/my_own_method.py"
    path.parent.mkdir()
    path.write_text(OWN_METHOD)
    fedelta.methods.__path__.append(str(path.parent))
    registry.names_in.cache_clear()
    yield path
    fedelta.methods.__path__.remove(str(path.parent))
    registry.names_in.cache_clear()
    sys.modules.pop("fedelta.methods.my_own_method", None)


@pytest.mark.parametrize("method", ["my_own_method", {"name": "compose", "local": "fedprox", "server": "my_own_method"}])
def test_an_edit_of_an_own_method_is_refused(method: str | Config, own_method: Path, quick: Config, tmp_path: Path):
    folder = tmp_path / "run"
    fedelta.run(quick, {"output": str(folder), "method": method, **ONE_ROUND})
    assert list(checkpoint.load(folder / "checkpoint").notes["code"]) == ["fedelta.methods.my_own_method"]
    own_method.write_text(OWN_METHOD + "    # edited\n")
    before = contents(folder)
    with pytest.raises(ConfigError, match=r"the file that defines fedelta\.methods\.my_own_method was edited"):
        fedelta.run(overrides={"federation.rounds": 2}, resume=folder)
    assert contents(folder) == before
    own_method.write_text(OWN_METHOD)
    fedelta.run(overrides={"federation.rounds": 2}, resume=folder)


def test_a_method_of_the_library_has_no_digest_of_its_own(finished: Path):
    assert "code" not in checkpoint.load(finished / "checkpoint").notes


def test_files_that_another_program_left_are_not_in_the_way_and_stay(finished: Path):
    (finished / "adapters/.DS_Store").write_bytes(b"Finder")
    (finished / "adapters/.link").symlink_to(finished.parent)
    (finished / "adapters/.mine").mkdir()
    (finished / ".notes.tmp").write_text("mine")
    (finished / "checkpoint/.notes.tmp").write_text("mine")
    (finished / "checkpoint/clients/.mine").mkdir(parents=True, exist_ok=True)
    fedelta.run(overrides={"federation.rounds": 4}, resume=finished)
    assert {p.name for p in (finished / "adapters").iterdir()} >= {".DS_Store", ".link", ".mine"}
    for name in (".notes.tmp", "checkpoint/.notes.tmp", "checkpoint/clients/.mine"):
        assert (finished / name).exists(), name


def test_drafts_that_a_kill_left_are_removed(finished: Path):
    drafts = ["adapters/.best.draft", "adapters/.rank-2.swap", "adapters/.client-10.ab_12345", "adapters/.last.x1y2z3__"]
    for name in drafts:
        (finished / name).mkdir()
    left = [".config.yaml.tmp", ".rounds.damaged.jsonl.tmp", "checkpoint/.2.json.tmp", "checkpoint/.state-2.safetensors.tmp"]
    for name in left:
        (finished / name).write_text("half")
    fedelta.run(resume=finished)
    assert [name for name in [*drafts, *left] if (finished / name).exists()] == []


@pytest.mark.parametrize(
    "name", ["config.yaml", "rounds.jsonl", "curves.png", ".lock", "checkpoint/state-2.safetensors", "checkpoint/2.json"]
)
def test_a_folder_in_the_place_of_a_file_is_named(name: str, finished: Path, quick: Config):
    (finished / name).unlink()
    (finished / name).mkdir()
    with pytest.raises(IsADirectoryError, match=rf"{Path(name).name} is a folder, where .* move it elsewhere"):
        fedelta.run(resume=finished)
    if "/" not in name:
        with pytest.raises(FileExistsError, match=rf"holds {name}, which no run wrote: move that elsewhere"):
            fedelta.run(quick, {"output": str(finished)}, force=True)


@pytest.mark.parametrize("name", ["adapters", "checkpoint"])
def test_a_file_in_the_place_of_a_folder_is_named(name: str, finished: Path):
    shutil.rmtree(finished / name)
    (finished / name).touch()
    with pytest.raises(NotADirectoryError, match=rf"{name} is a file, where a run has a folder: move it elsewhere"):
        fedelta.run(resume=finished)


def test_a_config_that_is_gone_is_not_a_run_that_has_done_nothing(finished: Path):
    (finished / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"has the rounds of a run, but its config\.yaml is gone: bring it back"):
        fedelta.run(resume=finished)


def test_adapters_that_are_gone_are_said(finished: Path, caplog: pytest.LogCaptureFixture):
    fedelta.run(resume=finished)
    assert "gone or empty" not in caplog.text
    shutil.rmtree(finished / "adapters")
    fedelta.run(resume=finished)
    assert "adapters is gone or empty: `last` comes again" in caplog.text


@pytest.mark.parametrize("name", ["best", "last"])
@pytest.mark.parametrize("damage", ["gone", "cut", "no config"])
def test_an_adapter_that_is_gone_or_damaged_is_said(name: str, damage: str, finished: Path, caplog: pytest.LogCaptureFixture):
    file = finished / "adapters" / name / "adapter_model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-8])
    elif damage == "gone":
        file.unlink()
    else:
        (file.parent / "adapter_config.json").unlink()
    fedelta.run(resume=finished)
    assert f"adapters/{name} is gone or damaged" in caplog.text
    assert "it comes again with the next" in caplog.text


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_without_its_file_is_answered_with_a_remedy(file: str, finished: Path, tmp_path: Path):
    (finished / "adapters" / "best" / file).unlink()
    with pytest.raises(FileNotFoundError, match=rf"adapters/best has no {file}: bring it back, .* \(best, last, rank-"):
        find(finished)
    with pytest.raises(FileNotFoundError, match=rf"best has no {file}; give a folder with"):
        copy_adapter(finished / "adapters" / "best", tmp_path / "copy")


def test_rounds_cannot_go_below_those_that_are_done(finished: Path):
    with pytest.raises(ConfigError, match=r"federation\.rounds = 1 is below the 2 rounds that are done"):
        fedelta.run(overrides=ONE_ROUND, resume=finished)
    assert len(RunFolder(finished).records()) == 2


def test_another_version_of_the_library_is_said(
    finished: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("fedelta.runs.platforms.version", lambda name: "9.9")
    fedelta.run(overrides={"federation.rounds": 3}, resume=finished)
    assert f"fedelta {fedelta_version()} -> 9.9" in caplog.text


def fedelta_version() -> str:
    from importlib.metadata import version

    return version("fedelta")


def test_quiet_says_that_a_run_began_on_another_platform(finished: Path, monkeypatch: pytest.MonkeyPatch):
    from fedelta.report import terminal

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    monkeypatch.setattr(terminal, "RichHandler", lambda **options: handler)
    log, level = logging.getLogger("fedelta"), logging.getLogger("fedelta").level
    try:
        show_warnings("quiet")
        monkeypatch.setattr("fedelta.runs.platforms.version", lambda name: "9.9")
        fedelta.run(resume=finished)
        logging.getLogger("fedelta.engines").warning("a client is left out")
    finally:
        log.handlers.clear()
        log.setLevel(level)
    assert len(said) == 1
    assert "began on another platform" in said[0]


# --- the best round --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_best_round_is_the_best_of_the_records_by_its_metric(metric: str, quick: Config, tmp_path: Path):
    changes = {
        "evaluation.best_by": metric,
        "federation.rounds": 3,
        "training.learning_rate": 0.05,
        "output": str(tmp_path / "run"),
    }
    result = fedelta.run(quick, changes)
    values = [r["validation"][metric] for r in result.records]
    best = checkpoint.load(tmp_path / "run/checkpoint").notes["best"]
    assert best["value"] == (min if metric == "loss" else max)(values)
    assert best["t"] == values.index(best["value"])


def test_small_losses_and_perplexities_are_good():
    from fedelta.runs.evaluation import is_better

    assert LOWER_IS_BETTER == {"loss", "perplexity"}
    for metric in ("loss", "perplexity"):
        assert is_better(1.0, 2.0, metric)
        assert not is_better(2.0, 1.0, metric)
    assert is_better(2.0, 1.0, "accuracy")
    assert not is_better(1.0, 2.0, "accuracy")


def with_scores(folder: Path, accuracy: list[float], loss: list[float]) -> None:
    """Rewrites the validation scores of a run's records, and the best round of its checkpoint by accuracy."""
    records = RunFolder(folder).records()
    for record, a, x in zip(records, accuracy, loss, strict=True):
        record["validation"] |= {"accuracy": a, "loss": x}
    (folder / "rounds.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    snapshot = checkpoint.load(folder / "checkpoint")
    t = accuracy.index(max(accuracy))
    notes = {**snapshot.notes, "best": {"t": t, "metric": "accuracy", "value": accuracy[t]}}
    object.__setattr__(snapshot, "notes", notes)
    checkpoint.save(folder / "checkpoint", snapshot)


def best_after(folder: Path) -> Config:
    """The best round as a resumed run by loss begins with it; its third round is not better."""
    fedelta.run(overrides={"evaluation.best_by": "loss", "federation.rounds": 3}, resume=folder)
    return checkpoint.load(folder / "checkpoint").notes["best"]


def test_another_best_by_is_answered_from_the_records(finished: Path):
    with_scores(finished, accuracy=[0.9, 0.1], loss=[0.2, 1e-9])
    before = contents(finished / "adapters")
    assert best_after(finished) == {"t": 1, "metric": "loss", "value": 1e-9}
    after = contents(finished / "adapters")
    assert after["best/adapter_model.safetensors"] == before["last/adapter_model.safetensors"]
    assert after["best-accuracy/adapter_model.safetensors"] == before["best/adapter_model.safetensors"]


def test_a_best_round_whose_adapter_was_not_kept_is_said(finished: Path, caplog: pytest.LogCaptureFixture):
    with_scores(finished, accuracy=[0.1, 0.9], loss=[1e-9, 0.2])
    assert best_after(finished) == {"t": 0, "metric": "loss", "value": 1e-9}
    assert "the best round by loss is 0, whose adapter was not kept: adapters/best is now adapters/best-accuracy" in caplog.text
    assert not (finished / "adapters/best").exists()


def by(metric: str, folder: Path, rounds: int = 2) -> Config:
    """The notes of a run that is taken up with another metric, by default to no further round."""
    fedelta.run(overrides={"evaluation.best_by": metric, "federation.rounds": rounds}, resume=folder)
    return dict(checkpoint.load(folder / "checkpoint").notes)


def weights(folder: Path) -> dict[str, bytes]:
    """The weights of a run's adapters, by name."""
    return {p.parent.name: p.read_bytes() for p in sorted(folder.glob("adapters/best*/adapter_model.safetensors"))}


def test_the_best_adapter_survives_a_choice_that_is_made_twice(finished: Path):
    with_scores(finished, accuracy=[0.9, 0.1], loss=[0.2, 1e-9])
    before, last = weights(finished)["best"], (finished / "adapters/last/adapter_model.safetensors").read_bytes()
    assert before != last
    for _ in range(2):  # no round is left, so that nothing else writes a checkpoint
        assert by("loss", finished)["best"] == {"t": 1, "metric": "loss", "value": 1e-9}
        assert weights(finished) == {"best": last, "best-accuracy": before}


def test_a_metric_that_is_taken_back_brings_its_adapter_back(finished: Path):
    with_scores(finished, accuracy=[0.9, 0.1], loss=[0.2, 1e-9])
    before, last = weights(finished)["best"], (finished / "adapters/last/adapter_model.safetensors").read_bytes()
    for _ in range(2):
        by("loss", finished)
        assert by("accuracy", finished)["best"] == {"t": 0, "metric": "accuracy", "value": 0.9}
        assert weights(finished) == {"best": before, "best-loss": last}


def test_a_folder_that_has_the_name_for_the_best_so_far_is_not_overwritten(finished: Path):
    with_scores(finished, accuracy=[0.9, 0.1], loss=[0.2, 1e-9])
    before = weights(finished)["best"]
    shutil.copytree(finished / "adapters/last", finished / "adapters/best-accuracy")
    last = weights(finished)["best-accuracy"]
    by("loss", finished)
    assert weights(finished) == {"best": last, "best-accuracy": last, "best-accuracy-0": before}


@pytest.mark.parametrize("done", [1, 2])
def test_a_death_in_another_choice_of_the_best_is_made_good(done: int, finished: Path, tmp_path: Path):
    """At every change of a name in turn, then taken up as before the death."""
    if done == 2:
        with_scores(finished, accuracy=[0.9, 0.1], loss=[0.2, 1e-9])
    else:  # one round is done, so that there is no checkpoint before it to fall back to
        fedelta.run(RunFolder(finished).config(), {"output": str(finished), **ONE_ROUND}, force=True)
    original = Path(shutil.copytree(finished, tmp_path / "original"))
    by("loss", finished, done)
    wanted, death = (weights(finished), checkpoint.load(finished / "checkpoint").notes), 0
    for death in range(1, 30):
        folder = Path(shutil.copytree(original, tmp_path / f"death-{death}"))
        with pytest.MonkeyPatch.context() as patch:
            die_at(death, patch)
            try:
                by("loss", folder, done)
                break
            except KeyboardInterrupt:
                pass
        found = by("loss", folder, done)
        assert {**found, "fixed": 0} == {**wanted[1], "fixed": 0}
        assert weights(folder) == wanted[0]
    assert death > (4 if done == 2 else 1)


# --- damaged records -------------------------------------------------------------------------------------------------


def test_a_damaged_record_is_named_by_file_and_line_and_kept(finished: Path, caplog: pytest.LogCaptureFixture):
    log = finished / "rounds.jsonl"
    first, second = log.read_text().splitlines()
    log.write_text(f"{first[:40]}\n{second}\n")
    with pytest.raises(ValueError, match=r"rounds\.jsonl, line 1: damaged.*--resume"):
        RunFolder(finished).records()
    damaged = log.read_bytes()
    result = fedelta.run(overrides={"federation.rounds": 3}, resume=finished)
    assert [r["t"] for r in result.records] == [1, 2]
    assert "rounds.jsonl, line 1: damaged" in caplog.text
    assert "the record of round 0 is gone" in caplog.text
    assert (finished / "rounds.damaged.jsonl").read_bytes() == damaged


WRONG_RECORDS: dict[str, Config | str] = {
    "no round": {"t": -1},
    "a truth": {"t": True},
    "no number": {"train_loss": float("nan")},
    "a loss in words": {"train_loss": "low"},
    "larger than a float": {"train_loss": 10**400},
    "no bytes": {"bytes": {}},
    "bytes of one way": {"bytes": {"down": 1, "up": None}},
    "seconds in words": {"seconds": {"round": "x"}},
    "a cohort of none": {"cohort": None},
    "scores in a list": {"test": [0.5]},
    "a score in words": {"validation": {"accuracy": "good"}},
    "a spread without a mean": {"clients": {"accuracy": {"worst": 1}}},
    "a rank in words": {"diagnostics": {"effective_rank": "full"}},
    "an infinite score": '{"x": 1e999}',
    "deep nesting": "[" * 100_000,
    "a list": "[1]",
    "only a round": '{"t": 1}',
}


@pytest.mark.parametrize("wrong", WRONG_RECORDS)
def test_a_record_that_its_readers_could_not_use_is_a_damaged_line(wrong: str, finished: Path):
    log, change = finished / "rounds.jsonl", WRONG_RECORDS[wrong]
    first, second = log.read_text().splitlines()
    line = change if isinstance(change, str) else json.dumps(json.loads(second) | change)
    log.write_text(f"{first}\n{line}\n")
    records, damages = RunFolder(finished).survey()
    assert [r["t"] for r in records] == [0]
    assert damages == [f"{log}, line 2: damaged, not the record of a round"]


def test_a_run_goes_on_over_a_record_that_its_readers_could_not_use(finished: Path, caplog: pytest.LogCaptureFixture):
    log = finished / "rounds.jsonl"
    log.write_text('{"t": 0, "train_loss": NaN}\n' + log.read_text().splitlines()[1] + "\n" + "[" * 100_000 + "\n")
    assert [r["t"] for r in fedelta.run(resume=finished).records] == [1]
    assert "rounds.jsonl, line 1: damaged" in caplog.text
    assert "rounds.jsonl, line 3: damaged" in caplog.text


@pytest.mark.parametrize("left", [None, "first", "cut"])
def test_the_last_record_comes_back_from_the_checkpoint(left: str | None, finished: Path, caplog: pytest.LogCaptureFixture):
    log = finished / "rounds.jsonl"
    first, second = log.read_text().splitlines()
    log.unlink()
    if left is not None:
        log.write_text(f"{first}\n" + (second[:50] if left == "cut" else ""))
    result = fedelta.run(resume=finished)
    assert [r["t"] for r in result.records] == ([1] if left is None else [0, 1])
    assert without_times(result.records[-1]) == without_times(json.loads(second))
    assert "the record of round 1 was gone and comes from the checkpoint" in caplog.text
    assert ("the record of round 0 is gone" in caplog.text) == (left is None)


def test_a_damaged_checkpoint_goes_back_a_round_and_ends_with_the_same_bytes(
    finished: Path, original: Path, caplog: pytest.LogCaptureFixture
):
    state = finished / "checkpoint/state-2.safetensors"
    state.write_bytes(state.read_bytes()[:-1] + b"\x55")
    fedelta.run(resume=finished)
    assert "state-2.safetensors was cut or altered" in caplog.text
    names = ("adapters/last/adapter_model.safetensors", "checkpoint/state-2.safetensors", "checkpoint/2.json")
    assert all((finished / name).read_bytes() == (original / name).read_bytes() for name in names)


def test_a_checkpoint_that_was_taken_away_is_missed_before_a_record_is_dropped(finished: Path):
    shutil.rmtree(finished / "checkpoint")
    before = contents(finished)
    with pytest.raises(FileNotFoundError, match=r"has the records of 2 rounds, but no checkpoint to go on from"):
        fedelta.run(resume=finished)
    assert contents(finished) == before


def test_what_json_does_not_have_is_null_wherever_it_stands() -> None:
    nan, infinite = float("nan"), float("inf")
    found = finite({"a": nan, "layers": {"cosine": [0.5, nan, -infinite], "names": ["x"]}, "pair": (1, infinite)})
    assert found == {"a": None, "layers": {"cosine": [0.5, None, None], "names": ["x"]}, "pair": [1, None]}
