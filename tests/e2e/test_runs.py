"""Whole runs of every method on a tiny model: what is written, what PEFT makes of it, how a run goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import fedelta
from fedelta.methods import method_class
from fedelta.runs.config import ConfigError
from fedelta.runs.folder import RunFolder
from fedelta.runs.records import without_times as untimed
from fedelta.runs.runner import rounds

Config = dict[str, Any]
EQUAL = {"lora.rank": 4}
HYPER = {"replication": {"name": "replication", "low_rank": 1}}
"""For a method whose defaults would do nothing at the ranks of so small a run."""


def overrides_for(method: str, folder: Path) -> Config:
    own = {} if method_class(method).hetero_rank else EQUAL
    return {"method": HYPER.get(method, method), "output": str(folder), **own}


def logits_by_peft(adapter: Path, base: Path, text: str) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.inference_mode():
        return model(**AutoTokenizer.from_pretrained(base)(text, return_tensors="pt")).logits


def without_times(found: Any) -> list[Config]:
    return [untimed(record) for record in found]


def test_what_was_chosen_is_written_down_and_kept(tiny_config: Config, tmp_path: Path):
    fedelta.run(tiny_config, {"output": str(tmp_path / "run"), "federation.engine": "auto", "model.gemm": "auto"})
    chosen = RunFolder(tmp_path / "run").config()
    assert chosen.model.gemm in ("default", "onednn")
    assert (chosen.federation.engine, chosen.federation.token_budget) == ("batched", 2048)
    overrides = {"output": str(tmp_path / "run"), "federation.rounds": 3, "federation.engine": "auto", "model.gemm": "auto"}
    fedelta.run(tiny_config, overrides, resume=tmp_path / "run")
    again = RunFolder(tmp_path / "run").config()
    assert (again.federation.engine, again.federation.rounds) == ("batched", 3)


@pytest.mark.parametrize("method", fedelta.list_methods())
def test_every_method_runs_and_leaves_adapters_that_peft_loads(
    method: str, tiny_config: Config, tiny_model: Path, tmp_path: Path
):
    result = fedelta.run(tiny_config, overrides_for(method, tmp_path / "run"))
    assert [r["t"] for r in result.records] == [0, 1]
    assert {"train_loss", "validation", "test", "clients", "bytes", "diagnostics"} <= result.final.keys()
    assert (tmp_path / "run/curves.png").stat().st_size > 1000
    adapters = sorted(p.name for p in (tmp_path / "run/adapters").iterdir())
    ranks = [1, 2, 4] if method_class(method).hetero_rank and method != "centralised" else [4]
    of_server = ["best", "last", *(f"rank-{rank}" for rank in ranks)]
    expected = [f"client-{k}" for k in range(3)] if method_class(method).personal else of_server
    assert set(expected) == set(adapters)
    for name in adapters:
        assert torch.isfinite(logits_by_peft(tmp_path / "run/adapters" / name, tiny_model, "cats purr")).all()


@pytest.mark.parametrize("method", ["flexlora", "flora", "fedex_lora"])
def test_the_saved_adapter_is_the_model_that_was_scored(method: str, tiny_config: Config, tiny_model: Path, tmp_path: Path):
    """PEFT's accuracy and loss with `adapters/last` on the pretrained base are those of the log: nothing is lost in a base."""
    from fedelta.runs.config.checks import check
    from fedelta.runs.experiment import build

    result = fedelta.run(tiny_config, overrides_for(method, tmp_path / "run") | {"training.learning_rate": 0.2})
    config = RunFolder(tmp_path / "run").config()
    experiment = build(config, check(config))
    rows = experiment.deal.splits.test
    labels = [experiment.deal.task.labels.index(row["label"]) for row in rows]  # pyright: ignore[reportAttributeAccessIssue]
    logits = torch.cat([logits_by_peft(tmp_path / "run/adapters/last", tiny_model, row["text"]) for row in rows])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).item()
    assert loss == pytest.approx(result.final["test"]["loss"], abs=1e-5)
    assert result.adapter is not None
    assert max(float(x.dense().abs().max()) for x in result.adapter.layers.values()) > 1e-3, "nothing was learned"


def test_a_finished_run_can_be_extended_and_equals_the_longer_run(tiny_config: Config, tmp_path: Path):
    short, long = tmp_path / "short", tmp_path / "long"
    fedelta.run(tiny_config, {"output": str(short)})
    extended = fedelta.run(overrides={"federation.rounds": 4}, resume=short)
    whole = fedelta.run(tiny_config, {"output": str(long), "federation.rounds": 4})
    assert without_times(extended.records) == without_times(whole.records)
    for file in ("adapters/last/adapter_model.safetensors", "checkpoint/state-4.safetensors"):
        assert (short / file).read_bytes() == (long / file).read_bytes()


def test_a_run_with_codecs_sends_less_and_goes_on_with_what_they_left_out(tiny_config: Config, tmp_path: Path):
    coded = {"federation.channel": [{"name": "top_k", "share": 0.2}, "bf16"], "federation.rounds": 3}
    plain = fedelta.run(tiny_config, {"output": str(tmp_path / "plain")})
    whole = fedelta.run(tiny_config, {**coded, "output": str(tmp_path / "whole")})
    assert all(x["bytes"]["up"] < y["bytes"]["up"] for x, y in zip(whole.records[:2], plain.records, strict=True))
    assert [r["bytes"]["down"] for r in whole.records[:2]] == [r["bytes"]["down"] for r in plain.records]
    left = rounds(tiny_config, {**coded, "output": str(tmp_path / "left")})
    next(left)
    left.close()
    assert without_times(fedelta.run(resume=tmp_path / "left").records) == without_times(whole.records)
    with pytest.raises(ConfigError, match=r"federation\.channel cannot change"):
        fedelta.run(overrides={"federation.channel": []}, resume=tmp_path / "left")


def test_a_run_says_once_why_a_diagnostic_has_no_value_resumed_or_not(tiny_config: Config, tmp_path: Path):
    """The records stay null; flexlora at unequal ranks has nulls of every kind, in the table by layer too."""
    changes = {"method": "flexlora", "lora.rank": [2, 4, 4], "federation.rounds": 3}
    whole = fedelta.run(tiny_config, changes | {"output": str(tmp_path / "whole")})
    found = [r["diagnostics"] for r in whole.records]
    assert found[0]["aggregation_error_reason"] == "unequal ranks: factors cannot be averaged"
    assert all(d["aggregation_error"] is None for d in found)
    assert not [n for d in found[1:] for n in (*d, *d["layers"]) if n.endswith("_reason")]
    records = rounds(tiny_config, changes | {"output": str(tmp_path / "stopped")})
    next(records)
    records.close()
    assert without_times(fedelta.run(resume=tmp_path / "stopped").records) == without_times(whole.records)


def test_a_run_that_is_left_early_goes_on(tiny_config: Config, tmp_path: Path):
    folder = tmp_path / "run"
    records = rounds(tiny_config, {"output": str(folder), "federation.rounds": 3})
    next(records)
    records.close()
    assert (folder / "curves.png").exists()
    assert [r["t"] for r in fedelta.run(resume=folder).records] == [0, 1, 2]


def test_what_a_kill_left_half_written_is_gone_after_a_resume(tiny_config: Config, tmp_path: Path):
    folder = tmp_path / "run"
    fedelta.run(tiny_config, {"output": str(folder)})
    before = sorted(p.relative_to(folder) for p in folder.rglob("*"))
    (folder / "adapters/.last.a1_b2c3d").mkdir()
    (folder / "adapters/.last.a1_b2c3d/adapter_config.json").write_text("{")
    (folder / ".rounds.jsonl.tmp").write_text("{")
    with (folder / "rounds.jsonl").open("a") as log:
        log.write('{"t": 2, "train_loss"')
    result = fedelta.run(resume=folder)
    assert sorted(p.relative_to(folder) for p in folder.rglob("*")) == before
    assert [r["t"] for r in result.records] == [0, 1]


def test_a_run_that_goes_on_with_other_threads_says_so(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    fedelta.run(tiny_config, {"output": str(tmp_path / "run")})
    now = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: now + 1)
    fedelta.run(overrides={"federation.rounds": 3}, resume=tmp_path / "run")
    assert f"threads {now} -> {now + 1}" in caplog.text


def test_a_resumed_run_cannot_become_another(tiny_config: Config, tmp_path: Path):
    fedelta.run(tiny_config, {"output": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match=r"training\.learning_rate cannot change"):
        fedelta.run(overrides={"training.learning_rate": 0.5}, resume=tmp_path / "run")


def test_a_run_in_a_folder_that_is_in_use_is_refused_before_anything_is_loaded(tiny_config: Config, tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds notes\.txt, which no run wrote: move that elsewhere, or give another"):
        fedelta.run(tiny_config, {"output": str(tmp_path), "model.name": "nowhere"})
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("ranks", [4, 8, [4, 8, 16]])
def test_a_run_starts_from_an_adapter(ranks: Any, tiny_config: Config, tmp_path: Path):
    """With a learning rate near zero it ends where the first run ended, at every rank that can hold that."""
    first = fedelta.run(tiny_config, {"output": str(tmp_path / "first"), "training.learning_rate": 0.05, "lora.rank": 4})
    again = {"lora.start": str(tmp_path / "first/adapters/last"), "lora.rank": ranks, "training.learning_rate": 1e-9}
    same = fedelta.run(tiny_config, again | {"output": str(tmp_path / "second"), "federation.rounds": 1})
    assert same.final["test"]["loss"] == pytest.approx(first.final["test"]["loss"], abs=1e-4)
    assert same.final["test"]["loss"] != pytest.approx(0.6931, abs=1e-3), "nothing was learned, so nothing was compared"


def test_an_adapter_of_another_base_is_no_start(tiny_config: Config, tmp_path: Path):
    fedelta.run(tiny_config, {"output": str(tmp_path / "first")})
    extra = tmp_path / "first/adapters/last/fedelta.json"
    extra.write_text(json.dumps(json.loads(extra.read_text()) | {"base": "0123"}))
    changes = {"output": str(tmp_path / "second"), "lora.start": str(tmp_path / "first/adapters/last"), "lora.rank": 4}
    with pytest.raises(ValueError, match="base"):
        fedelta.run(tiny_config, changes)
