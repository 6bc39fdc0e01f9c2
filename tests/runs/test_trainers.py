"""A run whose clients train by a user's own Trainer, from a config or at a site; and who lets the file run."""

from pathlib import Path
from typing import Any

import pytest
import torch

import fedelta
from fedelta import tree
from fedelta.runs.config import ConfigError, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.config.node import Node, Refusal, read_node
from fedelta.runs.config.own import Own
from fedelta.runs.config.read import named_files
from fedelta.runs.config.section import RefusedByClaim
from fedelta.runs.config.terms import terms_of
from fedelta.runs.sites import build_site

SITE = '''
"""A site's own script."""

from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

MODEL = {model!r}

def make_trainer(turn):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    names = sorted({{row["label"] for row in turn.rows}} | {{"cats", "dogs"}})
    data = [{{**tokenizer(row["text"]), "labels": names.index(row["label"])}} for row in turn.rows]
    base = AutoModelForSequenceClassification.from_pretrained(MODEL, num_labels=2)
    lora = LoraConfig(r=turn.peer.rank, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
    args = TrainingArguments(
        output_dir={output!r}, max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )
    return Trainer(get_peft_model(base, lora), args, train_dataset=data, processing_class=tokenizer)
'''


@pytest.fixture
def script(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    path = tmp_path / "site.py"
    path.write_text(SITE.format(model=str(tiny_model), output=str(tmp_path / "trainer")))
    return path


@pytest.fixture
def config(tiny_config: dict[str, Any], script: Path, tmp_path: Path) -> dict[str, Any]:
    return {**tiny_config, "training": {"trainer": f"{script}:make_trainer"}, "output": str(tmp_path / "run")}


def test_a_run_of_trainers_leaves_a_folder_and_goes_on(config: dict[str, Any], script: Path, tmp_path: Path) -> None:
    whole = fedelta.run({**config, "output": str(tmp_path / "whole")}, allow_files=[script])
    fedelta.run({**config, "federation": {"rounds": 1}}, allow_files=[script])
    gone_on = fedelta.run(resume=tmp_path / "run", overrides={"federation.rounds": 2}, allow_files=[script])
    assert whole.adapter is not None
    assert gone_on.adapter is not None
    for name, x in tree.parameters(whole.adapter).items():
        assert torch.equal(x, tree.parameters(gone_on.adapter)[name])
    assert whole.final["test"]["accuracy"] >= 0
    assert (tmp_path / "run/code/training.trainer.py").read_bytes() == script.read_bytes()


def test_a_config_alone_does_not_let_the_file_run(config: dict[str, Any], script: Path) -> None:
    script.write_text("raise SystemExit('it ran')")
    with pytest.raises(ConfigError, match=r"training.trainer is the file .*site.py, and a config alone cannot"):
        fedelta.run(config)


def test_who_types_the_file_lets_it_run(script: Path) -> None:
    assert named_files([f"training.trainer={script}:make_trainer"]) == [str(script)]
    assert named_files(["training.batch_size=3"]) == []


def test_an_edited_file_is_another_run(config: dict[str, Any], script: Path, tmp_path: Path) -> None:
    fedelta.run({**config, "federation": {"rounds": 1}}, allow_files=[script])
    script.write_text(script.read_text() + "# edited\n")
    more = {"federation.rounds": 2, "training.trainer": f"{script}:make_trainer"}
    with pytest.raises(ConfigError, match="defines the trainer was edited since"):
        fedelta.run(resume=tmp_path / "run", overrides=more, allow_files=[script])
    script.write_text(script.read_text() + "make_another = make_trainer\n")
    more["training.trainer"] = f"{script}:make_another"
    with pytest.raises(ConfigError, match="defines the trainer was edited since the run began, or is another one"):
        fedelta.run(resume=tmp_path / "run", overrides=more, allow_files=[script])


def test_what_cannot_be_with_a_trainer_is_refused_before_anything_is_built(config: dict[str, Any], script: Path) -> None:
    for method, claim in (("fedprox", "asks"), ("centralised", "population")):
        with pytest.raises(RefusedByClaim) as refused:
            fedelta.run({**config, "method": method, "lora": {**config["lora"], "rank": 2}}, allow_files=[script])
        assert refused.value.claim == claim
    both = {**config["training"], "batch_size": 3}
    with pytest.raises(ConfigError, match=r"training.batch_size has no meaning beside training.trainer"):
        fedelta.run({**config, "training": both}, allow_files=[script])
    with pytest.raises(ConfigError, match="trainer"):
        read_config({**config, "training": {"trainer": "site.py"}})
    other = {"trainer": f"{script}:make_none"}
    with pytest.raises(ConfigError, match="defines no function make_none"):
        fedelta.run({**config, "training": other}, allow_files=[script])


def test_a_trainer_on_another_base_is_refused(config: dict[str, Any], script: Path) -> None:
    moved = "    base.bert.pooler.dense.weight.data += 1\n    lora ="
    script.write_text(script.read_text().replace("    lora =", moved))
    with pytest.raises(ValueError, match="other weights than the model of the config"):
        fedelta.run(config, allow_files=[script])


# --- a site ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(tiny_config: dict[str, Any], script: Path, tmp_path: Path) -> Node:
    file = tmp_path / "node.yaml"
    file.write_text("name: north\nclient: 0\nstate: ./state\ntrainer: ./site.py:make_trainer\n")
    return read_node(file)


def test_a_node_file_names_the_sites_own_trainer(tiny_config: dict[str, Any], node: Node) -> None:
    config = read_config({**tiny_config, "task": {"name": "classification", "labels": ["cats", "dogs"]}})
    built = build_site(config, node)
    assert isinstance(built.client, fedelta.TrainerClient)
    result = built.client.train(0, built.client.template)
    assert result.num_steps == 2
    tree.check_fits(result.adapter, built.client.template, "the result", "the template")


def test_a_site_whose_own_config_names_the_trainer_says_nothing_of_it_in_the_terms(
    tiny_config: dict[str, Any], script: Path, node: Node
) -> None:
    labels = {"name": "classification", "labels": ["cats", "dogs"]}
    config = read_config({**tiny_config, "task": labels, "training": {"trainer": f"{script}:make_trainer"}})
    own = node.model_copy(update={"trainer": None, "code": [str(script)]})
    chosen = check(config, Own(own.may_run()))
    terms = terms_of(config, chosen.method, chosen.files)
    assert "trainer" not in str(terms)
    assert isinstance(build_site(config, own, terms).client, fedelta.TrainerClient)


def test_a_site_refuses_what_its_trainer_cannot_do(tiny_config: dict[str, Any], node: Node) -> None:
    labels = {"name": "classification", "labels": ["cats", "dogs"]}
    config = read_config({**tiny_config, "task": labels, "method": "hetlora"})
    assert check(config).trainer is None
    with pytest.raises(Refusal, match="HetLoRA asks clients for a penalty"):
        build_site(config, node)
    bounded = node.model_copy(update={"allow": replace_steps(node)})
    with pytest.raises(Refusal, match="2 local steps in a round are asked for, this site allows 1"):
        build_site(read_config({**tiny_config, "task": labels, "training": {"local_steps": 1}}), bounded)


def replace_steps(node: Node) -> Any:
    return node.allow.model_copy(update={"max_steps": 1})
