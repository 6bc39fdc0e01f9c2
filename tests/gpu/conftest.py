"""Clients on small random models on a CUDA device; without one every test here is skipped."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from fedelta.client import LocalClient, Training
from fedelta.models.clients import clients_on
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Classification, Instruction
from fedelta.tree import map_tensors

LABELS, VOCABULARY = 3, 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "pad_token_id": 0,
}
TASKS = {"bert": Classification(labels=tuple(range(LABELS))), "llama": Instruction()}


def bert(**sizes: Any) -> Any:
    return BertForSequenceClassification(BertConfig(**{**SIZES, "num_labels": LABELS, **sizes}))


def llama(**sizes: Any) -> Any:
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **sizes}))


FAMILIES: Mapping[str, tuple[Callable[..., Any], Mapping[str, Any]]] = {
    "bert": (bert, {"target_modules": ["query", "value", "intermediate.dense"], "modules_to_save": ["classifier"]}),
    "llama": (llama, {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
}


@pytest.fixture(autouse=True)
def device() -> Iterator[torch.device]:
    """The CUDA device, with float32 products in float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = before


def example(length: int, draw: torch.Generator) -> Mapping[str, Any]:
    ids = torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()
    labels = {"label": int(torch.randint(LABELS, (), generator=draw)), "token_labels": [-100, *ids[1:]]}
    return {"input_ids": ids, "attention_mask": [1] * length, **labels}


def examples(family: str, count: int, longest: int, seed: int) -> list[Mapping[str, Any]]:
    """Of 2 tokens to `longest`, with what the family's task asks for."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=draw).tolist()
    left_out = "token_labels" if family == "bert" else "label"
    return [{n: v for n, v in example(length, draw).items() if n != left_out} for length in lengths]


@pytest.fixture
def make_model() -> Callable[..., PeftAdaptedModel]:
    """A model of a family with adapters, always of the same weights."""

    def make(
        family: str, place: torch.device | str, dtype: torch.dtype = torch.float32, lora: Any = None, **sizes: Any
    ) -> PeftAdaptedModel:
        torch.manual_seed(0)
        build, config = FAMILIES[family]
        settings = dict(lora or {})
        options = {name: settings.pop(name) for name in ("base_delta", "compact") if name in settings}
        return PeftAdaptedModel(
            build(**sizes).to(place, dtype).eval(), LoraConfig(**config, lora_alpha=8, **settings), **options
        )

    return make


@pytest.fixture
def make_clients(make_model: Callable[..., PeftAdaptedModel]) -> Callable[..., list[LocalClient]]:
    """Four clients of unequal ranks, sizes and lengths."""

    def make(
        family: str,
        place: torch.device | str,
        dtype: torch.dtype = torch.float32,
        *,
        ranks: tuple[int, ...] = (2, 4, 1, 3),
        lora: Any = None,
        training: Training | None = None,
    ) -> list[LocalClient]:
        model = make_model(family, place, dtype, lora)
        parts = [examples(family, count, 6 + 3 * k, seed=k) for k, count in enumerate((4, 1, 5, 3)[: len(ranks)])]
        config = LoraConfig(lora_alpha=8, target_modules=FAMILIES[family][1]["target_modules"])
        training = training or Training(batch_size=2, learning_rate=0.005)
        clients = clients_on(model, TASKS[family], parts, config, ranks, training)
        draw = torch.Generator().manual_seed(3)
        moved = map_tensors(lambda x: 0.1 * torch.randn(x.shape, generator=draw).to(x), clients[1].template)
        return clients_on(model, TASKS[family], parts, config, ranks, training, start=moved)

    return make
