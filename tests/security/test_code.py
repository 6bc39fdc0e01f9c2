"""A config, or a folder, that somebody sent, and that names a Python file: the file's code does not run."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

import fedelta
from fedelta.cli import app
from fedelta.code_files import read_code
from fedelta.runs.config import ConfigError, load_config, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.config.node import Refusal, node_from, read_node
from fedelta.runs.config.own import Own
from fedelta.runs.config.terms import terms_of, under_terms
from fedelta.runs.folder import RunFolder
from fedelta.runs.reports import write_report

METHOD = """
from dataclasses import dataclass
from pathlib import Path
from fedelta.methods.flexlora import FlexLoRA

Path({mark!r}).touch()

@dataclass(frozen=True, kw_only=True)
class Theirs(FlexLoRA):
    trim: float = {trim}
"""

TASK = """
from dataclasses import dataclass
from pathlib import Path
from fedelta.tasks import Classification

Path({mark!r}).touch()

@dataclass(frozen=True, kw_only=True)
class Theirs(Classification):
    threshold: int = {trim}
"""

Config = dict[str, Any]
Sent = Callable[..., Path]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that exists once a stranger's code has run."""
    return tmp_path / "mark"


_written = iter(range(10**6))
"""Makes each file another one, since a file of equal bytes runs once in a process."""


@pytest.fixture
def sent(tmp_path: Path, mark: Path, tiny_config: Config) -> Sent:
    """Writes a config as a stranger would, with the file that it names beside it."""

    def write(key: str = "method", choice: Any = "./theirs.py") -> Path:
        folder = tmp_path / "sent"
        folder.mkdir(exist_ok=True)
        text = {"method": METHOD, "task": TASK}[key]
        (folder / "theirs.py").write_text(text.format(mark=str(mark), trim=next(_written)))
        (folder / "run.yaml").write_text(yaml.safe_dump({**tiny_config, key: choice}))
        return folder / "run.yaml"

    return write


@pytest.mark.parametrize("key", ["method", "task"])
@pytest.mark.parametrize("form", ["./theirs.py", {"path": "theirs.py"}, {"name": "theirs.py"}])
def test_a_config_alone_runs_no_file(key: str, form: Any, sent: Sent, mark: Path, tmp_path: Path) -> None:
    config = sent(key, form)
    output = tmp_path / "run"
    for command in (["run", "--output", output], ["run", "--dry-run"], ["partition"], ["run", "--set", "federation.rounds=1"]):
        name, *rest = command
        result = call(name, config, *rest)
        assert result.exit_code == 2, result.output
        assert "a config alone cannot make its code run" in " ".join(result.output.split())
    mapping = yaml.safe_load(config.read_text()) | {key: str(config.parent / "theirs.py")}
    for given in (config, str(config), mapping, read_config(config)):
        with pytest.raises(ConfigError, match="cannot make its code run"):
            fedelta.run(given, {"output": str(output)})
        with pytest.raises(ConfigError, match="cannot make its code run"):
            load_config(given)
    assert not mark.exists()
    assert not output.exists()


def test_no_place_within_a_method_runs_a_file(sent: Sent, mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = sent()
    monkeypatch.chdir(config.parent)
    for choice in ("theirs.py", "./theirs.py", {"name": "theirs.py"}, {"path": "theirs.py"}):
        for key in ("server", "local", "optimizer"):
            with pytest.raises(ConfigError):
                load_config({"method": {"name": "compose", key: choice}})
    assert not mark.exists()


@pytest.mark.parametrize("how", ["--allow-file", "--set", "allow"])
def test_it_runs_once_a_person_names_it(
    how: str, sent: Sent, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    config = sent()
    file = config.parent / "theirs.py"
    named = {"--allow-file": ["--allow-file", file], "--set": ["--set", f"method={file}"], "allow": []}[how]
    if how == "allow":
        assert call("allow", file).exit_code == 0
    result = call("run", config, "--output", tmp_path / "run", "--quiet", *named)
    assert result.exit_code == 0, result.output
    assert mark.exists()
    assert (tmp_path / "run/code/method.py").read_bytes() == file.read_bytes()
    assert json.loads((tmp_path / "run/run.json").read_text())["code"] == {"method": read_code(file).digest}
    file.write_text(file.read_text() + "# edited\n")
    if how != "--set":
        again = call("run", config, "--output", tmp_path / "again", "--allow-file", tmp_path / "run/code/method.py")
        assert "cannot make its code run" in " ".join(again.output.split()), "another file of the same name is another file"


def test_a_file_that_is_not_the_one_that_was_named_does_not_run(sent: Sent, mark: Path, tmp_path: Path) -> None:
    config = sent()
    harmless = tmp_path / "theirs.py"
    harmless.write_text(METHOD.format(mark=str(tmp_path / "other"), trim=0))
    result = call("run", config, "--output", tmp_path / "run", "--allow-file", harmless)
    assert result.exit_code == 2
    assert not mark.exists()


# --- a folder that somebody sent -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own_run(tiny_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of an own method and an own task; tests take copies."""
    place = tmp_path_factory.mktemp("own")
    for name, text in (("method.py", METHOD), ("task.py", TASK)):
        (place / name).write_text(text.format(mark=str(place / "first"), trim=7))
    task = {"path": str(place / "task.py"), "labels": ["cats", "dogs"]}
    config = {**tiny_config, "method": str(place / "method.py"), "task": task}
    fedelta.run(config, {"output": str(place / "run")}, allow_files=[place / "method.py", place / "task.py"])
    return place / "run"


@pytest.fixture
def folder(own_run: Path, mark: Path, tmp_path: Path) -> Path:
    """A run's folder whose files of code leave a mark."""
    copy = tmp_path / "copy"
    shutil.copytree(own_run, copy)
    for key, text in (("method", METHOD), ("task", TASK)):
        (copy / f"code/{key}.py").write_text(text.format(mark=str(mark), trim=next(_written)))
    return copy


def test_what_is_said_of_a_folder_runs_none_of_its_code(folder: Path, mark: Path, tmp_path: Path, rows_file: Path) -> None:
    write_report([folder], tmp_path / "page.html")
    assert RunFolder(folder).config().method["name"] == "method.py"
    for command in (
        ["inspect", folder / "adapters/last"],
        ["report", folder, "-o", tmp_path / "again.html"],
    ):
        assert call(*command).exit_code == 0
    for command in (
        ["evaluate", folder, rows_file],
        ["export", folder, "-o", tmp_path / "merged", "--merged"],
        ["run", "--resume", folder],
        ["run", folder / "config.yaml", "--output", tmp_path / "elsewhere"],
    ):
        result = call(*command)
        assert result.exit_code == 2, result.output
        assert "cannot make its code run" in " ".join(result.output.split()), command
    told = call("export", folder, "-o", tmp_path / "exported")  # needs none of it: the card then says less
    assert told.exit_code == 0
    assert "cannot make its code run" in " ".join(told.output.split())
    assert not mark.exists()


def test_an_adapter_is_put_to_use_without_the_code_of_its_method(
    sent: Sent, mark: Path, tmp_path: Path, rows_file: Path
) -> None:
    config, folder = sent(), tmp_path / "run"
    assert call("run", config, "--output", folder, "--quiet", "--allow-file", config.parent / "theirs.py").exit_code == 0
    mark.unlink()
    (folder / "code/method.py").write_text(METHOD.format(mark=str(mark), trim=next(_written)))
    for command in (
        ["evaluate", folder, rows_file],
        ["export", folder, "-o", tmp_path / "exported"],
        ["export", folder, "-o", tmp_path / "merged", "--merged"],
    ):
        result = call(*command)
        assert result.exit_code == 0, result.output
    assert not mark.exists()


def test_scores_need_the_task_alone(own_run: Path, rows_file: Path, tmp_path: Path) -> None:
    """In a process of its own, where no code of the run has run before."""
    (tmp_path / "copy").mkdir()
    copy = shutil.copytree(own_run, tmp_path / "copy/run")
    (copy / "code/method.py").write_text("raise SystemExit('ran')\n")
    command = ["evaluate", str(copy), str(rows_file), "--json", "--allow-file", str(copy / "code/task.py")]
    entry = "import sys; from fedelta.cli import main; sys.argv[0] = 'fedelta'; main()"
    done = subprocess.run([sys.executable, "-c", entry, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 90


def test_a_run_is_taken_up_from_its_own_copies_wherever_the_files_went(own_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(own_run, tmp_path / "moved")
    code = [copy / "code/method.py", copy / "code/task.py"]
    more = {"federation.rounds": 3}
    assert fedelta.run(overrides=more, resume=copy, allow_files=code).final["t"] == 2
    assert yaml.safe_load((copy / "config.yaml").read_text())["method"]["path"] == "code/method.py"
    code[0].write_text(code[0].read_text() + "# edited\n")
    with pytest.raises(ConfigError, match="the file that defines the method was edited since the run began"):
        fedelta.run(overrides={"federation.rounds": 4}, resume=copy, allow_files=code)
    code[0].write_text(code[0].read_text().replace("class Theirs", "class Renamed"))
    with pytest.raises(ConfigError, match="the file that defines the method was edited since the run began"):
        fedelta.run(overrides={"federation.rounds": 4}, resume=copy, allow_files=code)
    code[0].unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*code/method\.py"):
        fedelta.run(overrides={"federation.rounds": 4}, resume=copy, allow_files=code[1:])


# --- a server, and a site --------------------------------------------------------------------------------------------


@pytest.fixture
def led(tiny_config: Config, tmp_path: Path, mark: Path) -> tuple[Config, Path, dict[str, Any]]:
    """The config of sites, a file of theirs, and the terms of a server that runs a file of equal bytes."""
    file, theirs = tmp_path / "mine.py", tmp_path / "server.py"
    for path in (file, theirs):
        path.write_text(METHOD.format(mark=str(mark), trim=3))
    config = read_config({**tiny_config, "method": str(theirs)})
    chosen = check(config, Own(frozenset({read_code(theirs).digest})))
    terms = json.loads(json.dumps(terms_of(config, chosen.method, chosen.files)))
    return tiny_config, file, terms


def test_no_code_and_no_path_travels(led: tuple[Config, Path, dict[str, Any]], tmp_path: Path) -> None:
    _, file, terms = led
    assert terms["digests"] == {"method": read_code(file).digest}
    assert terms["method"] == {"name": "server.py", "sigma_on": "B", "trim": 3} | terms["method"]
    assert str(tmp_path / "server.py") not in json.dumps(terms)
    assert "Theirs" not in json.dumps(terms)


def test_a_site_runs_its_own_file_of_the_digest_and_no_other(led: tuple[Config, Path, dict[str, Any]]) -> None:
    given, file, terms = led
    own = read_config(given)
    with pytest.raises(Refusal, match=r"method 'server.py' is the Python file with sha256 .*, and this site has no such file"):
        under_terms(own, terms, node_from({"name": "a"}))
    settled, chosen = under_terms(own, terms, node_from({"name": "a", "code": [str(file)]}))
    assert settled.method["path"] == str(file)
    assert type(chosen.method).__name__ == "Theirs"
    file.write_text(file.read_text() + "# edited\n")
    with pytest.raises(Refusal, match="this site has no such file"):
        under_terms(own, terms, node_from({"name": "a", "code": [str(file)]}))


@pytest.mark.parametrize(
    ("term", "value", "message"),
    [
        ("method", {"name": "x", "path": "mine.py"}, r"method\.path is this site's own"),
        ("task", {"name": "x", "path": "mine.py"}, r"task\.path is this site's own"),
        ("method", "mine.py", "do not say of which digest"),
        ("task", {"name": "mine.py"}, "do not say of which digest"),
        ("digests", {"method": "mine.py"}, "where a sha256"),
        ("digests", ["mine.py"], "where a sha256"),
        ("digests", {"model": "0" * 64}, "where a sha256"),
        ("method", {"name": "compose", "server": "mine.py"}, "no method is called 'mine.py'"),
    ],
)
def test_a_server_that_names_a_file_in_another_way_is_refused(
    term: str, value: Any, message: str, led: tuple[Config, Path, dict[str, Any]], mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, file, terms = led
    mark.unlink()
    file.write_text(METHOD.format(mark=str(mark), trim=next(_written)))
    monkeypatch.chdir(file.parent)
    plain = {key: part for key, part in terms.items() if key != "digests"} | {"method": {"name": "flexlora"}}
    with pytest.raises(Refusal, match=message):
        under_terms(read_config(given), plain | {term: value}, node_from({"name": "a", "code": ["mine.py"]}))
    assert not mark.exists()


def test_a_site_consents_to_its_own_task_alone(tiny_config: Config, tmp_path: Path, mark: Path) -> None:
    mine, other = tmp_path / "mine.py", tmp_path / "other.py"
    for k, path in enumerate((mine, other)):
        path.write_text(TASK.format(mark=str(mark), trim=k))
    node = node_from({"name": "a", "code": [str(mine), str(other)]})

    def terms(task: str) -> dict[str, Any]:
        config = read_config({**tiny_config, "task": task})
        chosen = check(config, Own(node.may_run()))
        return terms_of(config, chosen.method, chosen.files)

    own = read_config({**tiny_config, "task": str(mine)})
    _, chosen = under_terms(own, terms(str(mine)), node)
    assert type(chosen.task).__name__ == "Theirs"
    for task in (str(other), "classification"):
        with pytest.raises(Refusal, match="this site's config consents to 'Theirs' alone"):
            under_terms(own, terms(task), node)


def test_a_node_files_code_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("x = 1\n")
    (tmp_path / "node.yaml").write_text("{name: a, code: [mine.py]}\n")
    node = read_node(tmp_path / "node.yaml")
    assert next(iter(node.files().values())).path == tmp_path / "mine.py"
    assert node.may_run() == set(node.files())
