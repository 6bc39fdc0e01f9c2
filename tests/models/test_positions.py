"""Texts longer than a model has positions for are refused before anything trains, with the model's limit and the remedy."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig

from fedelta.models.clients import hf_clients
from fedelta.models.positions import Places, check_lengths, places_of
from fedelta.runs.config import ConfigError, load_config
from fedelta.runs.config.checks import check
from fedelta.runs.experiment import build
from fedelta.tasks import get_task
from fedelta.tasks.task import Task

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
BART = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 20,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
CLASSES, WRITES = get_task("classification", labels=["a", "b"]), get_task("instruction")
LED = {"max_encoder_position_embeddings": 32, "max_decoder_position_embeddings": 20, "attention_window": 4}


def bert_like(kind: str, **settings: Any) -> Any:
    return getattr(hf, f"{kind}ForSequenceClassification")(getattr(hf, f"{kind}Config")(**SMALL, **settings))


MODELS: dict[str, tuple[Any, Task, int]] = {
    "bert": (lambda: bert_like("Bert"), CLASSES, 20),
    "roberta": (lambda: bert_like("Roberta", pad_token_id=1), CLASSES, 18),
    "mpnet": (lambda: bert_like("MPNet", pad_token_id=1), CLASSES, 18),
    "electra": (lambda: bert_like("Electra", embedding_size=16), CLASSES, 20),
    "distilbert": (
        lambda: hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=20)
        ),
        CLASSES,
        20,
    ),
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=20)),
        WRITES,
        20,
    ),
    "gptj": (
        lambda: hf.GPTJForCausalLM(hf.GPTJConfig(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=20, rotary_dim=4)),
        WRITES,
        20,
    ),
    "opt": (
        lambda: hf.OPTForCausalLM(hf.OPTConfig(**{**SMALL, "word_embed_proj_dim": 16, "ffn_dim": 24, "pad_token_id": 1})),
        WRITES,
        20,
    ),
    "bart that classifies": (lambda: hf.BartForSequenceClassification(hf.BartConfig(**BART)), CLASSES, 20),
}


def passes(model: Any, length: int, **more: Any) -> bool:
    ids = torch.full((1, length), 3)
    ids[0, -1] = 2
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids), **more)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", MODELS)
def test_the_limit_is_the_last_length_at_which_a_model_answers(name: str) -> None:
    make, task, most = MODELS[name]
    model = make().eval()
    assert places_of(model, task).reads == most
    assert passes(model, most)
    assert not passes(model, most + 1)


@pytest.mark.parametrize(
    ("make", "reads", "writes"),
    [
        (lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)), 20, 20),
        (lambda: hf.LEDForConditionalGeneration(hf.LEDConfig(**{**BART, **LED})), 32, 20),
        (lambda: hf.MarianMTModel(hf.MarianConfig(**BART)), 20, 20),
    ],
    ids=["bart", "led", "marian"],
)
def test_an_encoder_decoder_has_a_limit_for_each_of_its_parts(make: Any, reads: int, writes: int) -> None:
    model = make().eval()
    places = places_of(model, WRITES.for_encoder_decoder())
    assert places == Places(reads, writes)
    assert passes(model, reads, decoder_input_ids=torch.full((1, writes), 3))
    assert not passes(model, reads + 1, decoder_input_ids=torch.full((1, writes), 3)) or reads == 32  # LED pads by itself
    assert not passes(model, reads, decoder_input_ids=torch.full((1, writes + 1), 3))


def test_relative_positions_have_no_limit() -> None:
    t5 = hf.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=0)
    assert places_of(hf.T5ForConditionalGeneration(t5), WRITES.for_encoder_decoder()) == Places()
    assert places_of(hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)), WRITES) == Places(trained=20)


def test_a_table_that_carries_an_adapter_counts_the_same() -> None:
    from fedelta.models.peft import PeftAdaptedModel

    adapted = PeftAdaptedModel(bert_like("Bert"), LoraConfig(target_modules=["position_embeddings"], task_type="SEQ_CLS"))
    assert places_of(adapted.module, CLASSES).reads == 20


def clients(model: Any, rows: list[dict[str, str]], tokenizer: Any, task: str, targets: list[str], **settings: Any) -> Any:
    made = get_task(task, **settings)
    return hf_clients(model, tokenizer, [rows], LoraConfig(target_modules=targets), 2, task=made, device="cpu")


LONG = " ".join(["1"] * 30)
REMEDY = "tokens in the longest, but 20 positions: set task.max_length = 20 or less"


def test_texts_that_an_encoder_has_no_positions_for_are_refused(tokenizer: Any) -> None:
    rows = [{"text": LONG, "label": "a"}, {"text": "1", "label": "b"}]
    with pytest.raises(ValueError, match=rf"^data sets: 1 of 2 texts are longer than the model .* 30 {REMEDY}"):
        clients(bert_like("Bert"), rows, tokenizer, "classification", ["query"])
    clients(bert_like("Bert"), rows, tokenizer, "classification", ["query"], max_length=20)


def test_prompts_with_answers_that_a_decoder_has_no_positions_for_are_refused(tokenizer: Any) -> None:
    rows = [{"instruction": LONG, "response": "2"}]
    with pytest.raises(ValueError, match=r"data sets: 1 of 1 prompts with their answers are longer .*max_length = 20"):
        clients(MODELS["gpt2"][0](), rows, tokenizer, "instruction", ["c_attn"])


@pytest.mark.parametrize(("field", "kind"), [("instruction", "prompts"), ("response", "answers")])
def test_each_part_of_an_encoder_decoder_is_named(field: str, kind: str, tokenizer: Any) -> None:
    rows = [{"instruction": "1", "response": "2"} | {field: LONG}]
    model = hf.BartForConditionalGeneration(hf.BartConfig(**BART))
    with pytest.raises(ValueError, match=rf"data sets: 1 of 1 {kind} are longer"):
        clients(model, rows, tokenizer, "instruction", ["q_proj"], prompt="{instruction}")


def test_padding_to_a_multiple_counts() -> None:
    task, examples = get_task("classification", pad_to_multiple=8), [{"input_ids": [3] * 19, "label": 0}]
    with pytest.raises(
        ValueError, match=r"19 tokens in the longest, 24 as task.pad_to_multiple = 8 pads it, .*max_length = 16"
    ):
        check_lengths(Places(20), task, examples, "rows")
    assert not Places(20).suffice(get_task("classification", pad_to_multiple=8, max_length=20))


def test_what_a_model_can_read_but_has_not_learned_to_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fedelta"):
        check_lengths(Places(trained=20), CLASSES, [{"input_ids": [3] * 21}, {"input_ids": [3]}], "train rows")
    assert "train rows: 1 of 2 texts are longer than the 20 tokens that the model's config names" in caplog.text


@pytest.mark.parametrize("scored", [True, False], ids=["to run", "to rehearse"])
@pytest.mark.parametrize("where", ["train", "validation"])
def test_a_run_is_refused_before_its_first_round(
    tiny_config: dict[str, Any], tiny_model: Path, tmp_path: Path, where: str, scored: bool
) -> None:
    rows = [json.dumps({"text": "purr", "label": label}) for label in ("cats", "dogs") * 20]
    for part in ("train", "validation", "test"):
        long = [json.dumps({"text": "purr " * 600, "label": "cats"})] if part == where else []
        (tmp_path / f"{part}.jsonl").write_text("\n".join([*rows, *long]))
    data = {"source": str(tmp_path), "train": "train.jsonl", "validation": "validation.jsonl", "test": "test.jsonl"}
    config = load_config({**tiny_config, "data": data, "task": {"name": "classification", "max_length": 700}})
    with pytest.raises((ValueError, ConfigError), match=rf"{where} rows: 1 of 41 texts are longer .*max_length = 512"):
        build(config, check(config), scored=scored)
