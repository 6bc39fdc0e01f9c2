"""A tiny random Llama and its tokenizer with a chat template, made on the spot: the examples with TRL download nothing."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = ["name", "say", "a", "an", "is", "colour", "animal", "fruit", "user", "assistant", "system"]
THINGS = ["red", "green", "blue", "cat", "dog", "fox", "plum", "pear", "fig"]

TEMPLATE = (
    "{% for message in messages %}<turn>{{ message['role'] }} "
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<end>{% endgeneration %}"
    "{% else %}{{ message['content'] }}<end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant {% endif %}"
)


@cache
def load_tokenizer() -> PreTrainedTokenizerFast:
    """Returns a tokenizer of whole words."""
    names = ["<pad>", "<unk>", "<end>", "<turn>", *WORDS, *THINGS]
    backend = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<turn>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def load_model() -> LlamaForCausalLM:
    """Returns the model; the same weights in every call, as a checkpoint has them."""
    tokenizer = load_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)
