"""More architectures than the families of `conftest`: whatever shares a pass gets the numbers that it gets alone."""

from dataclasses import replace

import pytest
import torch
import transformers as hf
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from fedelta import tree
from fedelta.engines.runners import batched
from fedelta.engines.runners._joint import train_together
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.cohort.joint_batch import join, parts_of
from fedelta.tasks import Instruction
from fedelta.tasks.task import IGNORED

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 1,
}
GROUPED = {**SMALL, "num_key_value_heads": 1}
DEBERTA = {**SMALL, "relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"], "share_att_key": True}

CLASSIFIERS = {
    "albert": (hf.AlbertConfig, {**SMALL, "embedding_size": 16}, ["query", "ffn"]),  # one layer, seen twice
    "deberta": (hf.DebertaV2Config, DEBERTA, ["value_proj"]),
    "electra": (hf.ElectraConfig, {**SMALL, "embedding_size": 16}, ["query", "value"]),
    "fnet": (hf.FNetConfig, SMALL, ["intermediate.dense"]),
    "modernbert": (hf.ModernBertConfig, {**SMALL, "global_attn_every_n_layers": 2, "local_attention": 4}, ["Wqkv", "Wo"]),
    "mpnet": (hf.MPNetConfig, SMALL, ["q", "v"]),
}
GENERATORS = {
    "bloom": (hf.BloomConfig, {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2}, ["query_key_value"]),
    "falcon": (hf.FalconConfig, SMALL, ["query_key_value"]),
    "gemma3": (hf.Gemma3TextConfig, {**GROUPED, "head_dim": 8, "sliding_window": 3}, ["q_proj", "v_proj"]),
    "gpt_neox": (hf.GPTNeoXConfig, SMALL, ["query_key_value"]),
    "mamba": (hf.MambaConfig, {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, ["x_proj"]),
    "mistral": (hf.MistralConfig, {**GROUPED, "sliding_window": 3}, ["q_proj", "v_proj"]),
    "mixtral": (hf.MixtralConfig, {**GROUPED, "num_local_experts": 4, "experts_implementation": "eager"}, ["q_proj"]),
    "opt": (hf.OPTConfig, {**SMALL, "ffn_dim": 24, "word_embed_proj_dim": 16}, ["q_proj", "fc1"]),  # flattens sequences
    "phi": (hf.PhiConfig, SMALL, ["q_proj", "fc1"]),
}
REFUSED = {"fnet"}

START = {"decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, **START}
SIDES = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("attention_heads", 2))}
BART = {"vocab_size": 40, "d_model": 16, **SIDES, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, **START}
WRITERS = {
    "t5": (hf.T5Config, T5, ["q", "v", "wi"]),  # all layers share the first one's relative positions
    "t5_gated": (hf.T5Config, {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, ["q", "wi_0", "wo"]),
    "umt5": (hf.UMT5Config, T5, ["q", "v"]),
    "longt5": (hf.LongT5Config, {**T5, "local_radius": 3}, ["q", "v"]),
    "bart": (hf.BartConfig, BART, ["q_proj", "v_proj", "fc1"]),
    "mbart": (hf.MBartConfig, BART, ["q_proj", "v_proj"]),
    "marian": (hf.MarianConfig, {**BART, "decoder_vocab_size": 40}, ["q_proj", "v_proj"]),
    "pegasus": (hf.PegasusConfig, BART, ["q_proj", "v_proj"]),
}


def prompt_and_answer(length, draw):
    """A prompt of so many tokens, and an answer that is longer or shorter."""
    ids, answer = draw.integers(3, 40, length).tolist(), draw.integers(3, 40, int(draw.integers(1, 9))).tolist()
    return {"input_ids": ids, "attention_mask": [1] * length, "token_labels": [*answer, 2]}


def written(module, batch):
    """The loss of an encoder-decoder, as the task computes it."""
    return Instruction().for_encoder_decoder().loss(module, batch)


def written_by_labels(module, batch):
    """The same by the `labels=` of transformers, and all logits, as a task of one's own may do it."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    scores = module(**inputs, labels=batch["token_labels"]).logits
    return F.cross_entropy(scores.flatten(0, 1), batch["token_labels"].flatten(), ignore_index=IGNORED)


@pytest.mark.parametrize("name", [*CLASSIFIERS, *GENERATORS])
def test_clients_train_as_they_do_alone(name, bert, llama, setting, monkeypatch, caplog):
    config, sizes, targets = {**CLASSIFIERS, **GENERATORS}[name]
    auto, like = (AutoModelForSequenceClassification, bert) if name in CLASSIFIERS else (AutoModelForCausalLM, llama)
    labels = {"num_labels": 3} if name in CLASSIFIERS else {}
    build = lambda: auto.from_config(config(**sizes, **labels))  # noqa: E731
    clients = setting(replace(like, build=build, targets=targets), lora={"lora_dropout": 0.2})
    together = []
    monkeypatch.setattr(batched, "train_together", lambda *args: together.append(len(args[0])) or train_together(*args))
    found, expected = (
        list(federate(get_method("flexlora"), clients.clients(), rounds=2, engine=engine, debug=True))[-1]
        for engine in ("batched", "sequential")
    )
    assert together == ([] if name in REFUSED else [4, 4])
    assert ("one after another" in caplog.text) == (name in REFUSED)
    for (_, x), (_, y) in zip(tree.named_tensors(found.state), tree.named_tensors(expected.state), strict=True):
        assert float((x - y).norm()) <= 1e-9 * float(y.norm())


@pytest.mark.parametrize("loss", [written, written_by_labels])
@pytest.mark.parametrize("name", WRITERS)
def test_encoder_decoders_train_as_they_do_alone(name, loss, llama, setting, monkeypatch, caplog):
    """Prompts and answers are of other lengths at each client, and adapter dropout is drawn for each one's own."""
    config, sizes, targets = WRITERS[name]
    build = lambda: AutoModelForSeq2SeqLM.from_config(config(**sizes))  # noqa: E731
    family = replace(llama, build=build, targets=targets, loss=loss, example=prompt_and_answer)
    clients = setting(family, lora={"lora_dropout": 0.2})
    together = []
    monkeypatch.setattr(batched, "train_together", lambda *args: together.append(len(args[0])) or train_together(*args))
    found, expected = (
        list(federate(get_method("flexlora"), clients.clients(), rounds=2, engine=engine, debug=True))[-1]
        for engine in ("batched", "sequential")
    )
    assert together == [4, 4]
    assert "one after another" not in caplog.text
    for (_, x), (_, y) in zip(tree.named_tensors(found.state), tree.named_tensors(expected.state), strict=True):
        assert float((x - y).norm()) <= 1e-9 * float(y.norm())


def test_what_is_read_and_what_is_written_are_told_apart_by_their_lengths():
    """Even where the longest prompt and the longest answer of a pass are equally long."""
    ones = lambda *shape: torch.ones(shape, dtype=torch.long)  # noqa: E731
    parts = [
        {"input_ids": ones(2, prompt), "attention_mask": ones(2, prompt), "labels": ones(2, answer)}
        for prompt, answer in ((5, 3), (2, 5))
    ]
    joint, rows = join(parts, pad_token_id=7)
    assert {name: x.shape[1] for name, x in joint.items()} == {"input_ids": 5, "attention_mask": 5, "labels": 6}
    assert [rows.own_lengths(n) for n in (5, 6, 4)] == [(5, 2), (3, 5), (4, 4)]
    assert joint["input_ids"][2].tolist() == [1, 1, 7, 7, 7]
    assert joint["labels"][0].tolist() == [1, 1, 1, IGNORED, IGNORED, IGNORED]
    answers = {"logits": torch.zeros(4, 6, 9), "encoder_last_hidden_state": torch.zeros(4, 5, 8)}
    shapes = [{name: tuple(x.shape) for name, x in vars(part).items()} for part in parts_of(answers, [2, 2], rows)]
    assert shapes == [
        {"logits": (2, 3, 9), "encoder_last_hidden_state": (2, 5, 8)},
        {"logits": (2, 5, 9), "encoder_last_hidden_state": (2, 2, 8)},
    ]


def test_padding_that_no_mask_hides_is_refused_whatever_the_input_is_called():
    parts = [{"codes": torch.ones(1, length, dtype=torch.long)} for length in (3, 5)]
    with pytest.raises(ValueError, match="no attention_mask"):
        join(parts)
