"""What a run left, taken into use: merged exports where the base is not just what the checkpoint holds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertModel

import fedelta
from fedelta.models.loading import load_model
from fedelta.report.model_card import caution
from fedelta.runs import export as deployment
from fedelta.runs.config import load_config
from fedelta.runs.config.choices import choices_of

ONE_ROUND = {"federation.rounds": 1, "evaluation.diagnostics": False}


@pytest.fixture(scope="module")
def finished(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "done"
    fedelta.run(tiny_config, {**ONE_ROUND, "output": str(folder)})
    return folder


def test_what_the_checkpoint_lacks_is_merged_as_it_was_drawn(tiny_config: dict[str, Any], tiny_model: Path, tmp_path: Path):
    """A frozen pooler that is drawn from the run's seed is part of the base."""
    BertModel.from_pretrained(tiny_model, add_pooling_layer=False).save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    changes = {**ONE_ROUND, "seed": 3, "model.name": str(tmp_path / "base"), "output": str(tmp_path / "run")}
    fedelta.run(tiny_config, changes)
    source = deployment.find(tmp_path / "run")
    told = deployment.export(source, tmp_path / "adapter")
    assert told.drawn == ("bert.pooler.dense.bias", "bert.pooler.dense.weight"), "and not the head, which is in the adapter"
    assert "lacks `bert.pooler.dense.bias`" in (tmp_path / "adapter/README.md").read_text()
    assert caution(deployment.export(source, tmp_path / "merged", merged=True)) is None
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    task = choices_of(source.config).task.settled([{"label": "cats"}, {"label": "dogs"}])
    drawn, _ = load_model(str(tmp_path / "base"), task, device="cpu", seed=3)
    assert torch.equal(merged.bert.pooler.dense.weight, drawn.bert.pooler.dense.weight)


def test_a_card_has_the_scale_that_a_run_had(finished: Path, tmp_path: Path):
    source = deployment.find(finished)
    source = replace(
        source, config=source.config.model_copy(update={"lora": source.config.lora.model_copy(update={"scale": 2.5})})
    )
    deployment.export(source, tmp_path / "scaled")
    card = (tmp_path / "scaled/README.md").read_text()
    assert "- Scale at every rank: `2.5`\n" in card
    assert "lora_alpha" not in card, "which had no effect"
    deployment.export(deployment.find(finished), tmp_path / "plain")
    assert "- lora_alpha: `16`\n" in (tmp_path / "plain/README.md").read_text()


def test_another_base_is_refused_but_a_quantised_one_has_no_whole_fingerprint(finished: Path, tmp_path: Path):
    """The fingerprint of a run on a quantised base is that of the packed weights; its delta goes into the whole ones."""
    extra = finished / "adapters" / "best" / "fedelta.json"
    weights = extra.with_name("adapter_model.safetensors")
    base = json.loads(extra.read_text())["base"]
    for file in (extra, weights):
        file.write_bytes(file.read_bytes().replace(base.encode(), b"0" * len(base)))
    with pytest.raises(ValueError, match="was trained on base 0000"):
        deployment.export(deployment.find(finished), tmp_path / "out", merged=True)
    deployment.export(deployment.find(finished, ["model.quantization=4bit"]), tmp_path / "out", merged=True)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.num_labels == 2


def test_rows_that_do_not_fit_are_named_with_their_part(tiny_config: dict[str, Any], tmp_path: Path):
    (tmp_path / "test.jsonl").write_text('{"text": "bark", "label": "wolves"}\n')
    with pytest.raises(ValueError, match="test rows: row 0: 'wolves' in field 'label' is not one of the 2 labels"):
        fedelta.run(load_config(tiny_config, {"data.test": str(tmp_path / "test.jsonl"), "output": str(tmp_path / "run")}))


def test_a_client_is_meant_by_its_name_or_its_number(tiny_config: dict[str, Any], tmp_path: Path):
    files = {}
    for name, label in (("north", "cats"), ("south", "dogs"), ("0", "cats")):
        rows = [{"text": f"{name} {k}", "label": ("cats", "dogs")[k % 2] if k % 3 else label} for k in range(12)]
        files[name] = str(tmp_path / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {key: value for key, value in tiny_config.items() if key != "partition"}
    rank = {"lora": {**config["lora"], "rank": 2}}
    source = {"data": {"clients": files, "test_fraction": 0.25}}
    fedelta.run({**config, **rank, **source}, {**ONE_ROUND, "method": "local_only", "output": str(tmp_path / "run")})

    def found(client: int | str) -> str:
        return deployment.find(tmp_path / "run", client=client).adapter.name

    assert [found("south"), found(1), found("1"), found("0"), found(0)] == ["client-1"] * 3 + ["client-2", "client-0"]
    with pytest.raises(ValueError, match="has no client 'west': its clients are north, south, 0"):
        found("west")
    split = tmp_path / "run" / "split.json"
    split.write_text(split.read_text().replace('"south"', '["south"]').replace('"2": {', '"two": {'))
    with pytest.raises(ValueError, match=r"has no client 'west': its clients are north$"):
        found("west")
