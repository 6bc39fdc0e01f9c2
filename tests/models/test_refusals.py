"""Models that a task cannot train are refused by name, before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig
from tokenizers.processors import TemplateProcessing

import fedelta
from fedelta import tree
from fedelta.client import Request
from fedelta.engines.runners._joint import train_together
from fedelta.method import TrainResult
from fedelta.models.clients import hf_clients
from fedelta.models.loading import drawn_of, load_model
from fedelta.tasks import get_task, task_class

SIZES = {"vocab_size": 40, "d_model": 16, "decoder_layers": 1, "encoder_layers": 1}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
MARKS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 8,
    "patch_size": 4,
}

BERT = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}

KINDS: dict[str, tuple[type[Any], Any]] = {
    "bart": (hf.BartForConditionalGeneration, hf.BartConfig(**SIZES, **HEADS, **MARKS)),
    "t5": (
        hf.T5ForConditionalGeneration,
        hf.T5Config(**T5, decoder_start_token_id=0),
    ),
    "vit": (hf.ViTForImageClassification, hf.ViTConfig(**VIT)),
    "whisper": (hf.WhisperForConditionalGeneration, hf.WhisperConfig(**SIZES, **HEADS, **MARKS, num_mel_bins=8)),
    "oneformer": (hf.BertModel, hf.OneFormerConfig()),
}
ENCODER_DECODER = "is an encoder-decoder, but task '{task}' trains a causal language model"
TEXT = "task '{task}' gives text, but model .* takes {what}"


def refusal(kind: str, task: str) -> str:
    what = {"vit": "images", "whisper": "sound", "oneformer": "images"}.get(kind)
    shown = task_class(task).__name__
    return TEXT.format(task=shown, what=what) if what else ENCODER_DECODER.format(task=shown)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        *((kind, "choice_likelihood") for kind in ("bart", "t5")),
        *((kind, task) for kind in ("vit", "whisper") for task in ("instruction", "classification")),
    ],
)
def test_a_loaded_model_of_another_kind_is_refused_before_it_is_touched(kind: str, task: str, tokenizer: Any) -> None:
    build, config = KINDS[kind]
    model = build(config)
    before = {n: p.clone() for n, p in model.named_parameters()}
    rows = [{"text": "1 2", "label": "a", "instruction": "1", "response": "2"}] * 2
    with pytest.raises(ValueError, match=refusal(kind, task)):
        hf_clients(model, tokenizer, [rows], LoraConfig(target_modules=["q_proj"]), 2, task=task, device="cpu")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("bart", "choice_likelihood"),
        ("t5", "choice_likelihood"),
        ("vit", "choice_likelihood"),
        ("whisper", "instruction"),
        ("oneformer", "instruction"),
    ],
)
def test_a_model_by_name_is_refused_before_its_weights_are_read(kind: str, task: str, tmp_path: Path) -> None:
    """There are none in the folder, nor a tokenizer."""
    KINDS[kind][1].save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=refusal(kind, task)):
        load_model(str(tmp_path), get_task(task), device="cpu")


def test_a_deeply_nested_config_of_a_model_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_model(str(tmp_path), get_task("instruction"), device="cpu")


def with_end_mark(tokenizer: Any) -> Any:
    """The same tokenizer, which now ends each text by its end mark, as those of T5 and BART do."""
    marks = [("[SEP]", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A [SEP]", special_tokens=marks)
    return tokenizer


def classifier(kind: str, **settings: Any) -> Any:
    """A tiny classifier whose end mark is the tokenizer's."""
    ids = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "num_labels": 2, **settings}
    if kind == "t5":
        return hf.T5ForSequenceClassification(hf.T5Config(**T5, **ids))
    return hf.BartForSequenceClassification(hf.BartConfig(**SIZES, **HEADS, **{**MARKS, **ids}))


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_encoder_decoder_may_classify(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    classifier(kind).save_pretrained(tmp_path)
    with_end_mark(tokenizer).save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), get_task("classification", labels=["a", "b"]), device="cpu")
    assert type(model) is type(classifier(kind))


@pytest.mark.parametrize("kind", ["bart", "t5"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_encoder_decoders_that_classify_train_together_as_they_do_alone(kind: str, dropout: float, tokenizer: Any) -> None:
    torch.manual_seed(0)
    model, marked = classifier(kind).double().eval(), with_end_mark(tokenizer)
    texts = [["1 2 3", "4", "5 6", "a b c d e"], ["7 8 9 1 2 3 4", "x y"]]
    rows = [[{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(part)] for part in texts]
    lora = LoraConfig(lora_alpha=8, lora_dropout=dropout)
    clients = hf_clients(model, marked, rows, lora, [1, 2], device="cpu", batch_size=2, local_steps=3, learning_rate=0.01)
    assert clients[0].model.joint_refusal() is None
    requests = [Request(0, client.template) for client in clients]
    alone = [client.train(0, client.template) for client in clients]
    for found, expected in zip(train_together(clients, requests), alone, strict=True):
        assert isinstance(found, TrainResult)
        assert found.loss == pytest.approx(expected.loss, rel=1e-9)
        for name, value in tree.parameters(found.adapter).items():
            torch.testing.assert_close(value, tree.parameters(expected.adapter)[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_encoder_decoder_does_not_classify_by_an_end_mark_that_texts_lack(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    """Transformers would raise an error in the first step, of a number of <eos> tokens."""
    model, lora = classifier(kind), LoraConfig()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = (
        r"last end mark \(eos_token_id = 2 in its config\), but its tokenizer ends a text by \d+: give the tokenizer a template"
    )
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path), get_task("classification", labels=["a", "b"]), device="cpu")
    with pytest.raises(ValueError, match=message):
        hf_clients(model, tokenizer, [ROWS[:2]], lora, 2, device="cpu")


def test_an_encoder_decoder_may_classify_where_a_language_stands_behind_the_end_mark(tokenizer: Any) -> None:
    marks = [("[SEP]", tokenizer.eos_token_id), ("[LANGUAGE]", 5)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A [SEP] [LANGUAGE]", special_tokens=marks)
    (client,) = hf_clients(classifier("bart"), tokenizer, [ROWS[:2]], LoraConfig(), 2, device="cpu", local_steps=1)
    assert client.train(0, client.template).num_steps == 1


def test_an_encoder_decoder_does_not_classify_by_the_padding(tokenizer: Any) -> None:
    marked = with_end_mark(tokenizer)
    marked.pad_token = marked.eos_token
    with pytest.raises(ValueError, match=r"pads with that very token \(2\), so that it would read padding"):
        hf_clients(classifier("bart"), marked, [ROWS[:2]], LoraConfig(), 2, device="cpu")


# --- encoder-decoders that write -------------------------------------------------------------------------------------

WRITE = [{"instruction": "1 2", "response": "3"}, {"instruction": "4", "response": "5 6"}]


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_the_models_config_says_that_it_reads_and_writes_apart(kind: str, tokenizer: Any, tmp_path: Path) -> None:
    build, config = KINDS[kind]
    torch.manual_seed(0)
    written = build(config)
    written.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = load_model(str(tmp_path), get_task("instruction"), device="cpu")
    assert type(model) is build
    before = dict(written.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not drawn_of(model)
    (client,) = hf_clients(str(tmp_path), None, [WRITE], LoraConfig(), 2, task="instruction", device="cpu")
    targets = {name.rpartition(".")[2] for name in client.template.layers}
    assert targets == ({"q", "v"} if kind == "t5" else {"q_proj", "v_proj"})
    assert client.train(0, client.template).loss > 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
            r"\(t5\) is an encoder-decoder whose config names no decoder_start_token_id, from which it would write",
        ),
        (
            lambda: hf.EncoderDecoderModel(
                hf.EncoderDecoderConfig.from_encoder_decoder_configs(hf.BertConfig(**BERT), hf.BertConfig(**BERT))
            ),
            r"cannot make its decoder's inputs of an answer \(.*\): set decoder_start_token_id and pad_token_id",
        ),
        (
            lambda: hf.BlenderbotForConditionalGeneration(hf.BlenderbotConfig(**SIZES, **HEADS, **MARKS)),
            "does not say how its decoder's inputs are made of an answer .*: choose a model that does, such as T5",
        ),
        (
            lambda: hf.T5Model(hf.T5Config(**T5, decoder_start_token_id=0)),
            r"a model ForSeq2SeqLM, but the loaded one is a T5Model, without such a head: load it by AutoModelForSeq2SeqLM",
        ),
    ],
    ids=["no start", "no start of another kind", "no inputs", "no head"],
)
def test_an_encoder_decoder_that_cannot_write_is_refused_by_name(build: Any, message: str, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=message):
        hf_clients(build(), tokenizer, [WRITE], LoraConfig(target_modules=["q"]), 2, task="instruction", device="cpu")


def test_an_encoder_decoder_without_any_padding_token_is_refused(tokenizer: Any) -> None:
    """With an end mark the tokenizer pads by that, as anywhere; here there is neither."""
    tokenizer.pad_token = tokenizer.eos_token = None
    model = hf.T5ForConditionalGeneration(hf.T5Config(**{**T5, "decoder_start_token_id": 3, "pad_token_id": None}))
    with pytest.raises(ValueError, match=r"cannot make its decoder's inputs .*pad_token_id.* give its tokenizer a pad token"):
        hf_clients(model, tokenizer, [WRITE], LoraConfig(), 2, task="instruction", device="cpu")


def test_the_decoder_alone_of_an_encoder_decoder_is_taken(tokenizer: Any) -> None:
    rows = [{"instruction": "1 2", "response": "3"}] * 2
    model = hf.BartForCausalLM(hf.BartConfig(**SIZES, **HEADS, **MARKS))
    lora = LoraConfig(target_modules=["q_proj"])
    (client,) = hf_clients(model, tokenizer, [rows], lora, 2, task="instruction", device="cpu")
    assert client.peer.num_examples == 2


@pytest.mark.parametrize(
    ("build", "task", "wanted"),
    [
        (lambda: KINDS["t5"][0](KINDS["t5"][1]), "classification", "ForSequenceClassification"),
        (lambda: hf.BertModel(hf.BertConfig(**BERT)), "classification", "ForSequenceClassification"),
        (lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)), "multiple_choice", "ForMultipleChoice"),
        (lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT)), "instruction", "ForCausalLM"),
    ],
)
def test_a_loaded_model_without_the_tasks_head_is_refused_by_its_class(
    build: Any, task: str, wanted: str, tokenizer: Any
) -> None:
    rows = [{"text": "1 2", "label": k, "instruction": "1", "response": "2"} for k in "ab"]
    rows = [{**row, "question": "1", "choices": ["1", "2"], "label": 0} for row in rows] if task == "multiple_choice" else rows
    model = build()
    found, shown = type(model).__name__, task_class(task).__name__
    message = rf"task '{shown}' trains a model {wanted}, but the loaded one is a {found}, .* AutoModel{wanted}\."
    with pytest.raises(ValueError, match=message):
        hf_clients(model, tokenizer, [rows], LoraConfig(target_modules=["query"]), 2, task=task, device="cpu")


def test_a_class_of_ones_own_is_taken_at_its_word(linear: Any, tokenizer: Any) -> None:
    class Own(hf.BertForSequenceClassification):
        pass

    clients = hf_clients(Own(linear.model().config), tokenizer, [ROWS], linear.lora(), 2, device="cpu")
    assert len(clients) == 1


def test_an_encoder_decoder_without_a_start_token_does_not_classify(tokenizer: Any, tmp_path: Path) -> None:
    model = hf.T5ForSequenceClassification(hf.T5Config(**T5, num_labels=2))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    message = r"\(t5\) is an encoder-decoder whose config names no decoder_start_token_id"
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path), get_task("classification", labels=["a", "b"]), device="cpu")
    with pytest.raises(ValueError, match=message):
        hf_clients(model, tokenizer, [ROWS[:2]], LoraConfig(target_modules=["q"]), 2, device="cpu")
    hf_clients(classifier("t5"), with_end_mark(tokenizer), [ROWS[:2]], LoraConfig(target_modules=["q"]), 2, device="cpu")


# --- dtypes and ranks -------------------------------------------------------------------------------------------------

ROWS = [{"text": "1 2", "label": k} for k in "xyz"]


def test_a_float16_base_is_not_trained_and_bfloat16_is_named(linear: Any, tokenizer: Any) -> None:
    """On a tiny BERT 45 % of the entries of B's gradient are exactly zero in it."""
    with pytest.raises(ValueError, match=r"base model is in float16.* train on bfloat16"):
        hf_clients(linear.model().half(), tokenizer, [ROWS], linear.lora(), 2, device="cpu")
    hf_clients(linear.model().bfloat16(), tokenizer, [ROWS], linear.lora(), 2, device="cpu")


def test_a_run_in_float16_is_refused_before_data_are_read(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    changes = {"model.dtype": "float16", "data.source": "missing.csv", "output": str(tmp_path / "run")}
    with pytest.raises(ValueError, match=r"model\.dtype = float16 .*: set bfloat16 or float32"):
        fedelta.run(tiny_config, changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has the device")
def test_a_device_that_is_not_here_is_refused_before_data_are_read(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    changes = {"device": "cuda:7", "data.source": "missing.csv", "output": str(tmp_path / "run")}
    with pytest.raises(ValueError, match="device cuda:7 is not available here"):
        fedelta.run(tiny_config, changes)


def test_a_rank_that_no_delta_has_is_refused_before_texts_are_encoded(
    linear: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf_clients(linear.model(), tokenizer, [ROWS, ROWS], linear.lora(), [2, 16], device="cpu")
    monkeypatch.setattr("fedelta.tasks.Classification.encode", None)
    with pytest.raises(ValueError, match=r"layer 'bert.*' is 16 x 16, .* a rank above 16, but rank 17 is asked for"):
        hf_clients(linear.model(), tokenizer, [ROWS, ROWS], linear.lora(), [2, 17], device="cpu")
    lora = linear.lora(rank_pattern={"intermediate.dense": 20})
    with pytest.raises(ValueError, match=r"layer 'bert\.encoder.*intermediate\.dense' is 24 x 16, .* rank 20 is asked for"):
        hf_clients(linear.model(), tokenizer, [ROWS], lora, 2, device="cpu")


def test_a_run_at_a_rank_that_no_delta_has_is_refused(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedelta.tasks.Classification.encode", None)
    with pytest.raises(ValueError, match=r"is 16 x 16, .* but rank 32 is asked for"):
        fedelta.run(tiny_config, {"lora.rank": [1, 2, 32], "output": str(tmp_path / "run")})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ["query", "valeu"]},
            r"target_modules: 'valeu' is the name of no layer; did you mean 'value'\? There",
        ),
        ({"target_modules": ["query", "layer.7.value"]}, "target_modules: 'layer.7.value' is the name of no layer"),
        ({"rank_pattern": {"qurey": 2}}, r"rank_pattern: 'qurey' is the name of no layer; did you mean 'query'\?"),
        (
            {"rank_pattern": {"query": 2, "dense": 3}, "target_modules": ["query"]},
            "rank_pattern: 'dense' is the name of no layer",
        ),
        ({"alpha_pattern": {r"layer\.7\..*": 2}}, r"alpha_pattern: 'layer\\\\.7.*' is the name of no layer"),
        ({"alpha_pattern": {"query": 0}}, "alpha_pattern: 'query' must be above 0, got 0"),
        ({"alpha_pattern": {"query": -1.0}}, "alpha_pattern: 'query' must be above 0, got -1.0"),
    ],
)
def test_a_name_of_no_layer_is_refused_with_the_nearest(
    settings: dict[str, Any], message: str, linear: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedelta.tasks.Classification.encode", None)
    with pytest.raises(ValueError, match=message):
        hf_clients(linear.model(), tokenizer, [ROWS], linear.lora(**settings), 2, device="cpu")


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["query", "attention.self.value", "bert.encoder.layer.0.intermediate.dense"]},
        {"target_modules": r".*\.(query|value)", "rank_pattern": {r"layer\.0\..*": 2, "query|key": 1}},
        {"target_modules": "all-linear", "alpha_pattern": {"^bert.encoder.layer.0.attention.self.query": 4}},
        {"target_modules": ["query", "classifier"], "rank_pattern": {"self.query": 2}},
    ],
)
def test_names_that_layers_have_in_part_or_by_pattern_are_taken(settings: dict[str, Any], linear: Any, tokenizer: Any) -> None:
    assert hf_clients(linear.model(), tokenizer, [ROWS], linear.lora(**settings), 2, device="cpu")


def test_a_run_with_the_name_of_no_layer_is_refused_before_texts_are_encoded(
    tiny_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedelta.tasks.Classification.encode", None)
    with pytest.raises(ValueError, match=r"rank_pattern: 'qurey' is the name of no layer; did you mean 'query'"):
        fedelta.run(tiny_config, {"lora.rank_pattern": {"qurey": 1}, "output": str(tmp_path / "run")})
