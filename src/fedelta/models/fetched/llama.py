"""Makes a folder for transformers of a Llama in a GGUF file: config, tokenizer, and weights in one precision."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from fedelta.models.fetched.gguf import Gguf

OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's weights in GGUF, and in transformers."""

CONTROL = 3
"""The type of a token that stands for no text."""

SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""By the name of a special token in transformers, its name in GGUF."""

HEADS = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
"""The weights whose rows GGUF turns, and the fact that says how many heads they have."""


def write_llama(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Writes config.json, the tokenizer and model.safetensors.

    Args:
        source: a GGUF file of a Llama whose head is its embedding.
        folder: that exists.
        dtype: of the weights on the disk.
    """
    gguf = Gguf(source)
    _write(folder / "config.json", llama_config(gguf.facts, dtype))
    _write(folder / "generation_config.json", _ends(gguf.facts))
    _write(folder / "tokenizer.json", tokenizer(gguf.facts))
    _write(folder / "tokenizer_config.json", _tokenizer_config(gguf.facts))
    weights = dict(_weight(gguf, name, dtype) for name in gguf.stored)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def llama_config(facts: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Returns config.json as transformers has it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": facts["llama.embedding_length"],
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": facts["llama.attention.head_count"],
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": float(f"{facts['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # the file has it in float32
        "rope_theta": facts["llama.rope.freq_base"],
        "vocab_size": facts["llama.vocab_size"],
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "dtype": str(dtype).removeprefix("torch."),
        **_ends(facts),
    }


def _ends(facts: Mapping[str, Any]) -> dict[str, int]:
    """Returns the numbers of the tokens by which a text begins, ends and is filled up."""
    return {f"{name}_token_id": facts[f"tokenizer.ggml.{SPECIAL[name]}_token_id"] for name in ("bos", "eos", "pad")}


def _tokenizer_config(facts: Mapping[str, Any]) -> dict[str, Any]:
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    named = {f"{name}_token": tokens[facts[f"tokenizer.ggml.{key}_token_id"]] for name, key in SPECIAL.items()}
    return {
        # Takes tokenizer.json as it is; a class for one kind of model would put pieces of its own into it.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": facts["tokenizer.chat_template"],
        **named,
    }


def tokenizer(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns tokenizer.json: pairs of bytes, and each digit by itself, as the model's own has it.

    Raises:
        ValueError: for a tokenizer of another kind.
    """
    kind = facts["tokenizer.ggml.model"], facts["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"the tokenizer is of kind {kind}, and only ('gpt2', 'smollm') is read")
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    control = [k for k, sort in enumerate(facts["tokenizer.ggml.token_type"]) if sort == CONTROL]
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": k, "content": tokens[k], **plain} for k in control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, by_bytes]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: k for k, token in enumerate(tokens)},
            "merges": facts["tokenizer.ggml.merges"],
        },
    }


def _weight(gguf: Gguf, name: str, dtype: torch.dtype) -> tuple[str, Tensor]:
    """Returns one weight under the name, and in the order of rows, that transformers has."""
    value = gguf.tensor(name)
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if layer is None:
        return f"{OUTSIDE[name.removesuffix('.weight')]}.weight", torch.from_numpy(value).to(dtype)
    part = layer[2]
    if part in HEADS:
        value = turned_back(value, gguf.facts[HEADS[part]])
    return f"model.layers.{layer[1]}.{INSIDE[part]}.weight", torch.from_numpy(value).to(dtype)


def turned_back(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Returns a weight of queries or keys with the rows as transformers has them.

    GGUF has the two rows of each rotated pair side by side; transformers has all first ones of a head, then all second ones.

    Args:
        weight: (o, i).
        heads: into which its rows are divided.
    """
    by_pair = weight.reshape(heads, -1, 2, weight.shape[1])
    return np.ascontiguousarray(by_pair.swapaxes(1, 2)).reshape(weight.shape)
