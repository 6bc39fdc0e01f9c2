"""Tiny models behind plain Trainers, and the LocalClient that should compute the same."""

import gc
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from fedelta import seeding
from fedelta.client import LocalClient, Training
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.trainer.client import TrainerClient
from fedelta.models.trainer.turn import Turn
from fedelta.peers import Peer

VOCABULARY, LENGTH = 50, 6


def bert() -> Any:
    """A classifier, with a head that trains."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, num_labels=3, **sizes, **dropout))


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, intermediate_size=24, **sizes))


MODELS = {
    "bert": (
        bert,
        {"target_modules": ["query", "intermediate.dense"], "task_type": "SEQ_CLS", "modules_to_save": ["classifier"]},
    ),
    "llama": (llama, {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}),
}


def examples_of(kind: str, count: int, seed: int = 0) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[dict[str, Tensor]] = []
    for _ in range(count):
        ids = torch.randint(1, VOCABULARY, (LENGTH,), generator=generator)
        labels = ids % 3 if kind == "bert" else ids
        rows.append({"input_ids": ids, "labels": labels[0] if kind == "bert" else labels})
    return rows


@dataclass
class Site:
    """Makes Trainers of one kind of model; `options` goes into their arguments.

    `model` is shared by all Trainers, where it is given; else each gets a fresh one. With `epochs` the examples come in the
    order in which a LocalClient goes through them in so many epochs of a round.
    """

    folder: Path
    kind: str = "bert"
    rank: int = 4
    examples: Sequence[dict[str, Tensor]] | None = None
    model: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    lora: dict[str, Any] = field(default_factory=dict)
    epochs: int = 0
    made: list[Turn] = field(default_factory=list)

    def config(self) -> LoraConfig:
        return LoraConfig(r=self.rank, lora_alpha=16, **{**MODELS[self.kind][1], **self.lora})

    def fresh(self) -> Any:
        return get_peft_model(MODELS[self.kind][0](), self.config())

    def data(self) -> Sequence[dict[str, Tensor]]:
        return examples_of(self.kind, 12) if self.examples is None else self.examples

    def in_order(self, turn: Turn) -> Sequence[dict[str, Tensor]]:
        data, generator = self.data(), seeding.generator(0, turn.t, turn.id, "batches")
        order = [k for _ in range(self.epochs) for k in torch.randperm(len(data), generator=generator).tolist()]
        return [data[k] for k in order] or data

    def arguments(self) -> TrainingArguments:
        options: dict[str, Any] = {
            "output_dir": str(self.folder),
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "max_grad_norm": 0.0,
            "num_train_epochs": 1,
            "train_sampling_strategy": "sequential" if self.epochs else "random",
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        return TrainingArguments(**{**options, **self.options})

    def __call__(self, turn: Turn) -> Trainer:
        self.made.append(turn)
        model = self.fresh() if self.model is None else self.model
        data: Any = list(self.in_order(turn))
        return Trainer(model, self.arguments(), train_dataset=data, data_collator=default_data_collator, **self.trainer)

    def client(self, peer: Peer | int = 0, **options: Any) -> TrainerClient:
        return TrainerClient(peer, self, **options)

    def local(self, client: TrainerClient, **training: Any) -> LocalClient:
        """Returns the client of the library's own loop with the same model, template and examples."""
        adapted = PeftAdaptedModel(MODELS[self.kind][0](), self.config())
        settings = Training(**{"batch_size": 4, "learning_rate": 1e-2, **training})
        template = replace(client.template, base=adapted.fingerprint)
        return LocalClient(
            client.peer, template, adapted, self.data(), lambda rows: dict(default_data_collator(list(rows))), _loss, settings
        )


def _loss(module: Any, batch: dict[str, Tensor]) -> Tensor:
    return module(**batch).loss


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> Generator[None]:
    """Spares the collections of garbage that every Trainer begins with the objects that are there already."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=["bert", "llama"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Site:
    return Site(tmp_path / "out", request.param)


@pytest.fixture
def classifier(tmp_path: Path) -> Site:
    return Site(tmp_path / "out", "bert")
