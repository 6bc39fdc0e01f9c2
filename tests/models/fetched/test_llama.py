"""A small Llama, written as GGUF and made into a folder, is the one that transformers had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedelta.models.fetched.llama import HEADS, INSIDE, tokenizer, write_llama

WIDTH, HEADS_OF_QUERIES, HEADS_OF_KEYS = 64, 4, 2

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "Ġt", "he", "Ġthe"]
MERGES = ["Ġ t", "h e", "Ġt he"]

FACTS: dict[str, Any] = {
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.attention.head_count": HEADS_OF_QUERIES,
    "llama.attention.head_count_kv": HEADS_OF_KEYS,
    "llama.context_length": 128,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
    "llama.vocab_size": len(TOKENS),
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3] * 3 + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.chat_template": "{{ messages[0]['content'] }}",
}


def side_by_side(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows in GGUF: row k of a head's first half, then row k of its second half."""
    halves = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.concatenate([np.stack([first, second], axis=1).reshape(-1, weight.shape[1]) for first, second in halves])


@pytest.fixture
def original(tmp_path: Path, write_gguf: Callable[..., None]) -> Any:
    """A Llama whose weights are multiples of an eighth, with its GGUF file at x.gguf."""
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS_OF_QUERIES,
        num_key_value_heads=HEADS_OF_KEYS,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-8, 8, p.shape) / 8)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    tensors = {
        "token_embd.weight": (state["model.embed_tokens.weight"], "Q8_0"),
        "output_norm.weight": (state["model.norm.weight"], "F32"),
    }
    for layer in range(2):
        for ours, theirs in INSIDE.items():
            value = state[f"model.layers.{layer}.{theirs}.weight"]
            if ours in HEADS:
                value = side_by_side(value, FACTS[HEADS[ours]])
            tensors[f"blk.{layer}.{ours}.weight"] = value, "F32" if value.ndim == 1 else "Q4_1"
    write_gguf(tmp_path / "x.gguf", FACTS, tensors)
    return model


def test_the_folder_gives_the_logits_of_the_original(original: Any, tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_llama(tmp_path / "x.gguf", folder, torch.float32)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(0, len(TOKENS), (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, original(ids).logits, rtol=0, atol=0)


def test_bfloat16_on_the_disk_is_float32_rounded(original: Any, tmp_path: Path):
    for dtype in (torch.float32, torch.bfloat16):
        (tmp_path / str(dtype)).mkdir()
        write_llama(tmp_path / "x.gguf", tmp_path / str(dtype), dtype)
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / str(d), dtype=torch.bfloat16) for d in (torch.float32, torch.bfloat16)
    )
    assert all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))
    sizes = [(tmp_path / str(dtype) / "model.safetensors").stat().st_size for dtype in (torch.float32, torch.bfloat16)]
    assert sizes[0] > 1.8 * sizes[1]


def test_the_tokenizer_reads_and_writes_text(original: Any, tmp_path: Path):
    folder = tmp_path / "folder"
    folder.mkdir()
    write_llama(tmp_path / "x.gguf", folder, torch.float32)
    read = AutoTokenizer.from_pretrained(folder)
    text = "of the 2024 — ünder<|im_end|>"
    ids = read(text)["input_ids"]
    assert read.decode(ids) == text
    assert ids[-1] == read.eos_token_id == read.pad_token_id == 2
    assert TOKENS.index("Ġthe") in ids  # by two merges
    assert [TOKENS[k] for k in ids if TOKENS[k] in "0124"] == ["2", "0", "2", "4"]  # each digit by itself
    assert read.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False) == "Hello"


def test_a_tokenizer_of_another_kind_is_refused():
    with pytest.raises(ValueError, match=r"kind \('gpt2', 'llama-bpe'\), and only \('gpt2', 'smollm'\) is read"):
        tokenizer({**FACTS, "tokenizer.ggml.pre": "llama-bpe"})
