"""Tiny random Hugging Face models of each kind of layer, built from configs: no download, a few milliseconds."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedelta.models.lora_peers import peers_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.peers import Peer
from fedelta.tree import Adapter, parameters, with_parameters

VOCABULARY = 50


@dataclass(frozen=True)
class Case:
    """A kind of model with a LoRA configuration that fits it."""

    build: Callable[[], Any]
    config: Mapping[str, Any]

    def model(self, seed: int = 0) -> Any:
        """A new model; the same weights for the same seed."""
        torch.manual_seed(seed)
        return self.build().eval()

    def lora(self, **settings: Any) -> LoraConfig:
        return LoraConfig(**{"r": 4, "lora_alpha": 16, **self.config, **settings})

    def adapted(self, seed: int = 0, **settings: Any) -> PeftAdaptedModel:
        return PeftAdaptedModel(self.model(seed), self.lora(**settings))

    def peer(self, rank: int, **settings: Any) -> Peer:
        return peers_for([rank], self.lora(**settings), [1], list(self.adapted(**settings).adapted_layers))[0]


def bert(**settings: Any) -> Any:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            num_labels=3,
            pad_token_id=0,
            **settings,
        )
    )


def gpt2() -> Any:
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32))


def llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
        )
    )


CASES = {
    "linear": Case(bert, {"target_modules": ["query", "intermediate.dense"], "task_type": "SEQ_CLS"}),
    "conv1d": Case(gpt2, {"target_modules": ["c_attn", "c_proj"], "task_type": "CAUSAL_LM", "fan_in_fan_out": True}),
    "llama": Case(llama, {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}),
    "embedding": Case(bert, {"target_modules": ["word_embeddings", "value"], "task_type": "SEQ_CLS"}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def linear() -> Case:
    return CASES["linear"]


@pytest.fixture
def conv1d() -> Case:
    return CASES["conv1d"]


@pytest.fixture(name="llama")
def llama_case() -> Case:
    return CASES["llama"]


@pytest.fixture
def embedding() -> Case:
    return CASES["embedding"]


@pytest.fixture
def choice_model() -> Any:
    return BertForMultipleChoice(bert().config)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(1, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of single digits and letters."""
    words = ["[PAD]", "[UNK]", "[SEP]", *map(str, range(10)), *map(chr, range(ord("a"), ord("z") + 1))]
    backend = Tokenizer(models.WordLevel({w: k for k, w in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")


@pytest.fixture
def randomised() -> Callable[..., Adapter]:
    """An adapter of random values in the shape of a given one: as if it were trained."""

    def make(adapter: Adapter, seed: int = 0, size: float = 0.3) -> Adapter:
        generator = torch.Generator().manual_seed(seed)
        return with_parameters(
            adapter, {n: size * torch.randn(t.shape, generator=generator).to(t) for n, t in parameters(adapter).items()}
        )

    return make


@pytest.fixture
def logits() -> Callable[..., Tensor]:
    def run(model: Any, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    return run


@pytest.fixture
def edit_json() -> Callable[..., None]:
    def edit(path: Any, **values: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit
