"""Tiny random models of several families, and clients of unequal ranks, sizes and lengths on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from fedelta.client import LocalClient, Training
from fedelta.models.lora_peers import peers_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.peers import template_for
from fedelta.tasks.task import IGNORED, pad_examples
from fedelta.tree import map_tensors, parameters, with_parameters

VOCABULARY, LABELS = 40, 3
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": LABELS,
}
DECODER = {**SMALL, "num_key_value_heads": 1}


def classes(module: Any, batch: Any) -> torch.Tensor:
    """The loss of a classifier."""
    inputs = {n: v for n, v in batch.items() if n != "labels"}
    return F.cross_entropy(module(**inputs).logits, batch["labels"])


def next_tokens(module: Any, batch: Any) -> torch.Tensor:
    """The loss of a language model."""
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    target = torch.where(batch["attention_mask"] > 0, batch["input_ids"], IGNORED)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def text(length: int, draw: np.random.Generator) -> Mapping[str, Any]:
    ids = draw.integers(3, VOCABULARY, length).tolist()
    return {"input_ids": ids, "attention_mask": [1] * length, "label": int(draw.integers(LABELS))}


def image(length: int, draw: np.random.Generator) -> Mapping[str, Any]:
    return {"pixel_values": torch.from_numpy(draw.normal(size=(3, 8, 8))), "labels": torch.tensor(int(draw.integers(LABELS)))}


def pad(examples: Sequence[Any]) -> Any:
    return pad_examples(examples, pad_token_id=1)


def stack(dtype: torch.dtype, examples: Sequence[Any]) -> Any:
    batch = {n: torch.stack([e[n] for e in examples]) for n in examples[0]}
    return {**batch, "pixel_values": batch["pixel_values"].to(dtype)}


@dataclass(frozen=True)
class Family:
    """A kind of model, with what of it is adapted and what it is asked."""

    build: Callable[[], Any]
    targets: Sequence[str]
    heads: Sequence[str] | None = None
    loss: Callable[[Any, Any], torch.Tensor] = classes
    example: Callable[[int, np.random.Generator], Mapping[str, Any]] = text

    def adapted(self, dtype: torch.dtype = torch.float64, **settings: Any) -> tuple[PeftAdaptedModel, LoraConfig]:
        """The model with adapters, always of the same weights."""
        torch.manual_seed(0)
        model = self.build().to(dtype).eval()
        base_delta = settings.pop("base_delta", "auto")
        config = LoraConfig(lora_alpha=8, target_modules=list(self.targets), modules_to_save=self.heads, **settings)
        return PeftAdaptedModel(model, config, base_delta=base_delta), config


@dataclass(frozen=True)
class Setting:
    """A federation whose clients differ in all that they may differ in."""

    family: Family
    ranks: Sequence[int] = (2, 4, 1, 3)
    sizes: Sequence[int] = (4, 1, 5, 3)
    dtype: torch.dtype = torch.float64
    lora: Mapping[str, Any] = field(default_factory=dict[str, Any])
    training: Training = field(default_factory=lambda: Training(batch_size=2, learning_rate=0.005))

    def clients(self) -> list[LocalClient]:
        """On a model of their own."""
        model, config = self.family.adapted(self.dtype, **self.lora)
        peers = peers_for(self.ranks, config, self.sizes, list(model.adapted_layers))
        common = trained(model.initial(max(peers, key=lambda p: p.rank)))
        collate = partial(stack, self.dtype) if self.family.example is image else pad
        return [
            LocalClient(p, template_for(p, common), model, self.examples(p.id), collate, self.family.loss, self.training)
            for p in peers
        ]

    def examples(self, client: int) -> list[Mapping[str, Any]]:
        """Client k's are of 2 to 5 + k tokens."""
        draw = np.random.default_rng(client)
        return [self.family.example(int(draw.integers(2, 6 + client)), draw) for _ in range(self.sizes[client])]


def trained(adapter: Any) -> Any:
    """The adapter with B unlike zero, so that no gradient is."""
    generator = torch.Generator().manual_seed(3)
    moved = {
        n: 0.1 * torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for n, t in parameters(adapter).items()
    }
    values = {n: t + moved[n] for n, t in parameters(adapter).items()}
    return map_tensors(torch.clone, with_parameters(adapter, values))


FAMILIES = {
    "bert": Family(
        lambda: BertForSequenceClassification(BertConfig(**SMALL, pad_token_id=1)),
        ["query", "value", "intermediate.dense"],
        ["classifier"],
    ),
    "roberta": Family(
        lambda: RobertaForSequenceClassification(RobertaConfig(**SMALL, pad_token_id=1)), ["query", "key"], ["classifier"]
    ),
    "distilbert": Family(
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=24, num_labels=LABELS)
        ),
        ["q_lin", "lin2"],
        ["pre_classifier", "classifier"],
    ),
    "gpt2": Family(
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
        ["c_attn", "c_proj"],
        loss=next_tokens,
    ),
    "llama": Family(lambda: LlamaForCausalLM(LlamaConfig(**DECODER)), ["q_proj", "v_proj", "down_proj"], loss=next_tokens),
    "qwen": Family(lambda: Qwen2ForCausalLM(Qwen2Config(**DECODER)), ["q_proj", "up_proj"], ["norm"], loss=next_tokens),
    "vit": Family(
        lambda: ViTForImageClassification(
            ViTConfig(**{n: v for n, v in SMALL.items() if n != "vocab_size"}, image_size=8, patch_size=4)
        ),
        ["q_proj", "fc1"],
        ["classifier"],
        example=image,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def families() -> Mapping[str, Family]:
    return FAMILIES


@pytest.fixture
def bert() -> Family:
    return FAMILIES["bert"]


@pytest.fixture
def llama() -> Family:
    return FAMILIES["llama"]


@pytest.fixture(scope="session")
def setting() -> type[Setting]:
    """`Setting`: four clients on a family of models."""
    return Setting
