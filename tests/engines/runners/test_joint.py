"""More architectures than the families of `conftest`: whatever shares a pass gets the numbers that it gets alone."""

from dataclasses import replace

import pytest
import transformers as hf
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fedelta import tree
from fedelta.engines.runners import batched
from fedelta.engines.runners._joint import train_together
from fedelta.engines.server import federate
from fedelta.methods import get_method

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
