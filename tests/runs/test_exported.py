"""An exported adapter as its readers use it: the printed lines are executed, the card is read, no training data is there."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import fedelta
from fedelta.models.adapter_files import load_adapter, read_layout, save_adapter
from fedelta.report.model_card import load_lines, serve_line
from fedelta.runs import export as deployment
from fedelta.runs.base import load_adapted, peft_config

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = ["purr the tail", "bark bark fur", "mew"]
EQUALLY_LONG = TEXTS[:2]
"""A language model answers at each token, also at padding, where nothing is to be compared."""

SHORT = {"federation.rounds": 2, "evaluation.diagnostics": False, "training.learning_rate": 0.1}
NASTY = ["cats", "dogs\n```\n# owned", "<b>`|` \x1b[31m", "---\nlicense: none", "'); import os #"]

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"lora.rslora": True},
    "patterns": {"lora.rank_pattern": {"query": 3}, "lora.alpha_pattern": {"layer.1.attention.self.value": 5}},
    "pooler": {"lora.modules_to_save": ["pooler"]},
    "flora": {"method": "flora"},
}

PROGRAM = """
import json, sys, torch
found = {}
for name, lines in json.load(open(sys.argv[1]))["lines"].items():
    scope = {}
    exec(lines, scope)
    tokenizer, model = scope["tokenizer"], scope["model"].eval()
    inputs = tokenizer(json.load(open(sys.argv[1]))["texts"], padding=True, return_tensors="pt")
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.inference_mode():
        found[name] = {"logits": model(**inputs).logits.tolist(), "names": model.config.id2label}
json.dump(found, open(sys.argv[2], "w"))
"""


def cached(home: Path, model: Path, name: str) -> None:
    """Puts a model into the cache that lies in HF_HOME, as if it had been fetched from the Hub."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    shutil.copytree(model, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.fixture(scope="module")
def words(tiny_model: Path) -> Tokenizer:
    names = sorted(PreTrainedTokenizerFast.from_pretrained(tiny_model).get_vocab())
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate([*names, "</s>"])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def saved(model: Any, words: Tokenizer, folder: Path) -> Path:
    """Writes a model whose tokenizer, as those of many language models, has no padding token."""
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that was tuned to tell three classes, in bfloat16."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=words.get_vocab_size(), n_embd=16, n_layer=2, n_head=2, n_positions=64, num_labels=3)
    return saved(GPT2ForSequenceClassification(config).to(torch.bfloat16), words, tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="module")
def llama(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=words.get_vocab_size(), **sizes, num_key_value_heads=2)
    return saved(LlamaForCausalLM(config), words, tmp_path_factory.mktemp("llama"))


def encoder_decoder(kind: str, words: Tokenizer, folder: Path) -> Path:
    """Writes a tiny T5 or BART, whose tokenizer ends each text by its end mark."""
    torch.manual_seed(0)
    end = words.token_to_id("</s>")
    marked = Tokenizer.from_str(words.to_str())
    marked.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    ids = {"vocab_size": words.get_vocab_size(), "d_model": 16, "pad_token_id": 0, "eos_token_id": end}
    if kind == "t5":
        sizes = {"d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        model = T5ForConditionalGeneration(T5Config(**ids, **sizes, decoder_start_token_id=0))
    else:
        sizes = {f"{side}_{of}": n for side in ("encoder", "decoder") for of, n in (("layers", 2), ("attention_heads", 2))}
        model = BartForConditionalGeneration(BartConfig(**ids, **sizes, bos_token_id=0, decoder_start_token_id=end))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=marked, pad_token="[PAD]", unk_token="[UNK]", eos_token="</s>").save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"instruction": "purr the", "response": "tail fur"}, {"instruction": "bark a", "response": "paw"}] * 12
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(source: deployment.Source, texts: list[str] = TEXTS) -> list[list[float]]:
    """What the model that fedelta scores says."""
    config, task = source.config, deployment.task_of(source)
    model, tokenizer = load_adapted(config.model, task, peft_config(config.lora), device="cpu", seed=config.seed)
    model.load(load_adapter(source.adapter))
    model.mode(None)
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    if model.module.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    with torch.inference_mode():
        return model.module(**inputs).logits.tolist()


def executed(lines: dict[str, str], home: Path, tmp_path: Path, cwd: Path, texts: list[str] = TEXTS) -> dict[str, Any]:
    """Runs lines in a new process that knows no fedelta, with a Hub cache of its own."""
    (tmp_path / "asked.json").write_text(json.dumps({"lines": lines, "texts": texts}))
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "asked.json"), str(tmp_path / "found.json")]
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "found.json").read_text())


def block(card: str, language: str) -> list[str]:
    return [found[1] for found in re.findall(rf"^(`{{3,}}){language}\n(.*?)^\1$", card, re.MULTILINE | re.DOTALL)]


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_printed_lines_load_the_model_that_was_scored(
    tiny_config: dict[str, Any], gpt2: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In a process of its own, with nothing but HF_HOME and the exported folder; to 1e-5, and with the right labels."""
    home = tmp_path / "home"
    cached(home, tiny_model, "owner/tiny")
    cached(home, gpt2, "owner/gpt2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    gpt = {"model.name": "owner/gpt2", "lora.target_modules": ["c_attn"]}
    lines, expected = {}, {}
    for name, changes in {**CASES, "gpt2": gpt}.items():
        run, out = tmp_path / "runs" / name, tmp_path / "out" / name
        fedelta.run(tiny_config, {**SHORT, "model.name": "owner/tiny", **changes, "output": str(run)})
        source = deployment.find(run)
        told = deployment.export(source, out)
        lines[name] = "\n".join(load_lines(told, str(out)))
        expected[name] = answers(source)
    card = (tmp_path / "out" / "plain" / "README.md").read_text()
    lines["card"], expected["card"] = "\n".join(block(card, "python")), expected["plain"]
    merged = deployment.export(deployment.find(tmp_path / "runs/rslora"), tmp_path / "out/merged", merged=True)
    lines["merged"], expected["merged"] = "\n".join(load_lines(merged, str(tmp_path / "out/merged"))), expected["rslora"]
    found = executed(lines, home, tmp_path, tmp_path / "out")
    for name, logits in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]["logits"]), torch.tensor(logits), rtol=0, atol=1e-5, msg=name)
        assert found[name]["names"] == {"0": "cats", "1": "dogs"}, name
    for one in ("rslora", "patterns", "pooler"):
        assert torch.tensor(expected[one]).sub(torch.tensor(expected["plain"])).abs().max() > 1e-3, "the cases are one"


def test_a_language_model_loads_by_its_lines_and_is_served_where_it_can_be(
    llama: Path, instructions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    cached(home, llama, "owner/llama")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    config = {
        "device": "cpu",
        "model": {"name": "owner/llama"},
        "lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]},
        "data": {"source": str(instructions), "validation_fraction": 0.2},
        "partition": {"scheme": "iid", "clients": 2},
        "task": {"name": "instruction", "prompt": "{instruction}\n```\n"},
        "evaluation": {"best_by": "loss"},
        "training": {"batch_size": 4, "local_steps": 2, "learning_rate": 0.1},
        "federation": {"rounds": 1},
    }
    lines, expected = {}, {}
    for name, changes in {"same": {}, "patterns": {"lora.rank_pattern": {"q_proj": 2}}}.items():
        fedelta.run(config, {**changes, "output": str(tmp_path / name)})
        source = deployment.find(tmp_path / name)
        told = deployment.export(source, tmp_path / "out" / name)
        lines[name], expected[name] = "\n".join(load_lines(told, str(tmp_path / "out" / name))), answers(source, EQUALLY_LONG)
        served = serve_line(told, "out", "mine")
        assert (served is not None) == (name == "same")
    found = executed(lines, home, tmp_path, tmp_path, EQUALLY_LONG)
    for name, logits in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]["logits"]), torch.tensor(logits), rtol=0, atol=1e-5, msg=name)
    card = (tmp_path / "out/same/README.md").read_text()
    assert "vllm serve owner/llama --enable-lora --lora-modules same=same\n" in card
    assert "````\n{instruction}\n```\n\n````" in card
    assert "several: export it with `--merged`" in (tmp_path / "out/patterns/README.md").read_text()
    assert f"revision='{COMMIT}'" in card


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_is_trained_scored_exported_and_loaded_by_its_lines(
    kind: str, words: Tokenizer, instructions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """From a folder by PEFT's own loader; from the Hub, where a commit is kept, by transformers' at that commit."""
    home, folder = tmp_path / "home", encoder_decoder(kind, words, tmp_path / kind)
    cached(home, folder, "owner/writer")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    data = {"source": str(instructions), "validation_fraction": 0.2, "test_fraction": 0.2}
    config = {
        "device": "cpu",
        "lora": {"rank": [1, 2]},
        "data": data,
        "partition": {"scheme": "iid", "clients": 2},
        "method": "flexlora",
        "task": {"name": "instruction", "prompt": "{instruction}", "metrics": ["loss", "exact_match"], "max_length": 16},
        "evaluation": {"best_by": "loss"},
        "training": {"batch_size": 4, "local_steps": 3, "learning_rate": 0.1},
        "federation": {"rounds": 2},
    }
    lines, expected = {}, {}
    for name, base in {"folder": str(folder), "hub": "owner/writer"}.items():
        result = fedelta.run(config, {"model": base, "output": str(tmp_path / name)})
        source = deployment.find(tmp_path / name, which="last")
        assert deployment.score(source) == pytest.approx({"examples": 5, **result.final["test"]}, rel=1e-6)
        told = deployment.export(source, tmp_path / "out" / name)
        lines[name], expected[name] = "\n".join(load_lines(told, str(tmp_path / "out" / name))), answers(source, EQUALLY_LONG)
        assert serve_line(told, "out", "mine") is None
    assert "AutoPeftModelForSeq2SeqLM.from_pretrained(" in lines["folder"]
    assert f"AutoModelForSeq2SeqLM.from_pretrained('owner/writer', revision='{COMMIT}')" in lines["hub"]
    merged = deployment.export(deployment.find(tmp_path / "folder", which="last"), tmp_path / "out/merged", merged=True)
    lines["merged"] = "\n".join(load_lines(merged, str(tmp_path / "out/merged")))
    expected["merged"] = expected["folder"]
    card = (tmp_path / "out/folder/README.md").read_text()
    lines["card"], expected["card"] = "\n".join(block(card, "python")), expected["folder"]
    found = executed(lines, home, tmp_path, tmp_path / "out", EQUALLY_LONG)
    for name, logits in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]["logits"]), torch.tensor(logits), rtol=0, atol=1e-5, msg=name)
    assert front_matter(card)["pipeline_tag"] == "text2text-generation"
    again = deployment.find(tmp_path / "out/folder")
    assert set(deployment.score(again, str(instructions))) == {"examples", "loss", "perplexity", "accuracy"}


def test_neither_evaluate_nor_export_needs_the_training_data(tiny_config: dict[str, Any], rows_file: Path, tmp_path: Path):
    """The labels lie with the adapter, in the order of the head's outputs and as the rows spell them."""
    source, test = tmp_path / "train.jsonl", tmp_path / "few.jsonl"
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    spelt = [{**row, "label": {"cats": 3, "dogs": 1}[row["label"]]} for row in rows]
    source.write_text("".join(json.dumps(row) + "\n" for row in spelt))
    test.write_text("".join(json.dumps(row) + "\n" for row in spelt if row["label"] == 3))
    fedelta.run(tiny_config, {**SHORT, "data.source": str(source), "output": str(tmp_path / "run")})
    before = deployment.score(deployment.find(tmp_path / "run"), str(test))
    source.unlink()
    assert deployment.score(deployment.find(tmp_path / "run"), str(test)) == before
    told = deployment.export(deployment.find(tmp_path / "run"), tmp_path / "out")
    assert told.labels == (1, 3)
    deployment.export(deployment.find(tmp_path / "run"), tmp_path / "merged", merged=True)
    assert json.loads((tmp_path / "merged/config.json").read_text())["id2label"] == {"0": "1", "1": "3"}
    # The exported folder belongs to no run any more, and the rows have one of the two labels only.
    assert deployment.score(deployment.find(tmp_path / "out"), str(test)) == before


def test_labels_are_kept_by_whatever_is_written_like_an_adapter(tmp_path: Path, tiny_config: dict[str, Any]):
    fedelta.run(tiny_config, {**SHORT, "output": str(tmp_path / "run")})
    best = tmp_path / "run/adapters/best"
    save_adapter(load_adapter(best), tmp_path / "again", like=best)
    assert read_layout(tmp_path / "again").labels == ("cats", "dogs")


def test_the_card_tells_what_the_run_was(tiny_config: dict[str, Any], tmp_path: Path):
    result = fedelta.run(tiny_config, {**SHORT, "output": str(tmp_path / "run")})
    deployment.export(deployment.find(tmp_path / "run", which="last"), tmp_path / "mine")
    card = (tmp_path / "mine/README.md").read_text()
    for told in (
        "- Method: `flexlora`",
        "- Clients: `3`",
        "- Rounds: `2`",
        "- Longest input in tokens: `128`",
        "- 1: `'dogs'`",
    ):
        assert told in card
    assert "Of this model after round 1, counted from 0." in card
    accuracy, loss = (result.final["test"][metric] for metric in ("accuracy", "loss"))
    assert re.search(rf"^\| test \| {accuracy:.4f} \|.*{loss:.4f} \|$", card, re.MULTILINE)
    assert front_matter(card)["pipeline_tag"] == "text-classification"
    assert "base_model" not in front_matter(card), "a folder is no Hub id"
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "mine").pad_token == "[PAD]"


def test_the_scores_are_those_of_the_round_that_is_exported(tiny_config: dict[str, Any], tmp_path: Path):
    fedelta.run(tiny_config, {**SHORT, "output": str(tmp_path / "run")})
    log = tmp_path / "run/rounds.jsonl"
    records: Sequence[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    for record, accuracy in zip(records, (0.75, 0.25), strict=True):
        record["validation"]["accuracy"] = record["test"]["accuracy"] = accuracy
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    for which, t, accuracy in (("best", 0, 0.75), ("last", 1, 0.25)):
        told = deployment.export(deployment.find(tmp_path / "run", which=which), tmp_path / which)
        assert (told.round, told.scores["test"]["accuracy"]) == (t, accuracy)
    told = deployment.export(deployment.find(tmp_path / "run", rank=1), tmp_path / "rank")
    assert told.scored == "the server's model, at the largest rank,"


def test_a_strangers_texts_mean_nothing_in_a_card(tiny_config: dict[str, Any], tmp_path: Path):
    rows = [{"text": "purr mew", "label": label} for label in NASTY] * 6
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {**SHORT, "data.source": str(tmp_path / "rows.jsonl"), "data.stratify": "label", "output": str(tmp_path / "run")}
    fedelta.run(tiny_config, changes)
    log = tmp_path / "run/rounds.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    records[-1]["test"] = {"<script>|`": 0.5, **records[-1]["test"]}
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    told = deployment.export(deployment.find(tmp_path / "run", which="last"), tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        "# `out`", "## Training", "## Scores", "## Labels", "## Use"
    ]  # fmt: skip
    assert set(front_matter(card)) == {"library_name", "pipeline_tag", "tags"}
    assert all(c.isprintable() or c == "\n" for c in card)
    outside = re.sub(r"(?s)^(`{3,}).*?^\1$", "", card, flags=re.MULTILINE)
    outside = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    assert "<" not in outside
    call = block(card, "python")[0].split("model = ")[1].splitlines()[0]
    given = {word.arg: ast.literal_eval(word.value) for word in ast.parse(call, mode="eval").body.keywords}
    assert list(given["id2label"].values()) == sorted(NASTY) == list(told.labels)


def test_an_adapter_whose_base_is_not_here_is_exported_without_tokenizer(
    tiny_config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fedelta.run(tiny_config, {**SHORT, "output": str(tmp_path / "run")})
    told = deployment.export(deployment.find(tmp_path / "run", ["model.name=owner/gone"]), tmp_path / "out")
    assert not told.tokenizer
    assert "its tokenizer is left out" in caplog.text
    assert "tokenizer = AutoTokenizer.from_pretrained" in "\n".join(load_lines(told, "out"))


def test_the_licence_is_that_of_the_bases_card(tiny_config: dict[str, Any], tiny_model: Path, tmp_path: Path):
    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "base/README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Base\n")
    fedelta.run(tiny_config, {**SHORT, "model.name": str(tmp_path / "base"), "output": str(tmp_path / "run")})
    deployment.export(deployment.find(tmp_path / "run"), tmp_path / "out")
    assert front_matter((tmp_path / "out/README.md").read_text())["license"] == "mit"
    for text in ("no front matter", "---\nlicense: [a, b]\n---\n", "---\nlicense: 'x: <b>'\n---\n", "---\n{{{\n---\n"):
        (tmp_path / "base/README.md").write_text(text)
        out = tmp_path / f"out{len(text)}"
        deployment.export(deployment.find(tmp_path / "run"), out)
        assert "license" not in front_matter((out / "README.md").read_text())


def test_a_folder_is_exported_though_its_tasks_file_may_not_run(
    tiny_config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fedelta.run(tiny_config, {**SHORT, "output": str(tmp_path / "run")})
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    settings = ["task={path: " + str(tmp_path / "mine.py") + "}"]
    told = deployment.export(deployment.find(tmp_path / "run", settings), tmp_path / "out")
    assert "cannot tell of the task" in caplog.text
    assert (told.labels, told.max_length) == (("cats", "dogs"), None)
    with pytest.raises(ValueError, match=r"mine\.py"):
        deployment.export(deployment.find(tmp_path / "run", settings), tmp_path / "merged", merged=True)


def test_without_rows_the_runs_own_test_rows_are_scored(tiny_config: dict[str, Any], rows_file: Path, tmp_path: Path):
    result = fedelta.run(tiny_config, {**SHORT, "output": str(tmp_path / "run")})
    found = deployment.score(deployment.find(tmp_path / "run", which="last"))
    assert {**found, "examples": 0} == pytest.approx({**result.final["test"], "examples": 0}, abs=1e-6)
    assert found["examples"] == 18
    fedelta.run(tiny_config, {**SHORT, "data.test_fraction": 0, "output": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="kept no test rows: give the rows to score on"):
        deployment.score(deployment.find(tmp_path / "none"))
    deployment.export(deployment.find(tmp_path / "run"), tmp_path / "out")
    with pytest.raises(ValueError, match="belongs to no run"):
        deployment.score(deployment.find(tmp_path / "out"))


def test_a_test_file_of_its_own_is_enough(tiny_config: dict[str, Any], rows_file: Path, tmp_path: Path):
    lines = rows_file.read_text().splitlines(keepends=True)
    parts = {name: tmp_path / f"{name}.jsonl" for name in ("a", "b", "test")}
    for k, path in enumerate(parts.values()):
        path.write_text("".join(lines[k * 30 : (k + 1) * 30]))
    config = {key: value for key, value in tiny_config.items() if key not in ("data", "partition")}
    data = {"clients": [str(parts["a"]), str(parts["b"])], "test": str(parts["test"])}
    changes = {**SHORT, "lora.rank": [2, 4], "output": str(tmp_path / "run")}
    result = fedelta.run({**config, "data": data}, changes)
    for name in ("a", "b"):
        parts[name].unlink()
    found = deployment.score(deployment.find(tmp_path / "run", which="last"))
    assert found["loss"] == pytest.approx(result.final["test"]["loss"], abs=1e-6)
