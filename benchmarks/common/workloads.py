"""Models, data and clients of the benchmarks."""

from __future__ import annotations

import copy
import logging
import warnings
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import transformers
from peft import LoraConfig
from rivals.work import Work
from torch import Tensor
from transformers import RobertaConfig, RobertaForSequenceClassification

from fedelta import save_adapter
from fedelta.client import LocalClient, Training
from fedelta.models.clients import clients_on
from fedelta.models.loading import load_model
from fedelta.models.lora_peers import config_for
from fedelta.models.passes import Backend
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Classification

RANK, LEARNING_RATE = 8, 1e-3
TASK = Classification(labels=tuple(range(6)))
LORA = LoraConfig(r=RANK, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")

MODELS = ("tiny", "minilm")
RAGGED = "ragged"
Length: TypeAlias = int | Literal["ragged"]
Gemm: TypeAlias = Backend | Literal["auto"]

# Tokens of TREC's 5,452 training questions under MiniLM's tokenizer, at every 5 %.
TREC_QUANTILES = (5, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 16, 17, 18, 19, 22, 41)


@dataclass(frozen=True)
class Shape:
    """Of the batch of a client's step."""

    batch: int
    length: Length

    @classmethod
    def read(cls, text: str) -> Shape:
        """From "4x16" or "4xragged".

        Raises:
            ArgumentTypeError: for another text.
        """
        batch, _, length = text.partition("x")
        if not batch.isdecimal() or not (length.isdecimal() or length == RAGGED):
            raise ArgumentTypeError(f"a shape is like 4x16 or 4x{RAGGED}, not {text!r}")
        return cls(int(batch), RAGGED if length == RAGGED else int(length))

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


def hush() -> None:
    """Keeps the libraries' warnings and progress bars out of the tables."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    transformers.utils.logging.disable_progress_bar()


def base_model(name: str) -> Any:
    """The frozen model: "minilm" with its published weights, or "tiny", a RoBERTa of 4 layers of 128 with random ones."""
    if name == "minilm":
        return load_model("minilm", TASK, device="cpu")[0]
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=1000,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=130,
        **TASK.model_kwargs(),
    )
    return RobertaForSequenceClassification(config)


def adapted_model(name: str, gemm: Gemm = "default", compact: bool = True) -> PeftAdaptedModel:
    """The model with a place for adapters. "auto" is for the number of threads that torch has now."""
    model = base_model(name)
    return PeftAdaptedModel(model, config_for(TASK, LORA, model), gemm=gemm, compact=compact)


def random_rows(rows: int, length: Length, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (rows, longest), lengths (rows,) and labels (rows,). Ragged rows are as long as TREC's questions."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 1000, (rows, 64 if length == RAGGED else length), generator=generator)
    if length == RAGGED:
        places = torch.rand(rows, generator=generator).numpy() * (len(TREC_QUANTILES) - 1)
        lengths = torch.from_numpy(np.interp(places, np.arange(len(TREC_QUANTILES)), TREC_QUANTILES).round().astype(np.int64))
    else:
        lengths = torch.full((rows,), length)
    return tokens, lengths, torch.arange(rows) % len(TASK.labels)


def examples(tokens: Tensor, lengths: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """The same as encoded examples."""
    whole = zip(tokens.tolist(), lengths.tolist(), labels.tolist(), strict=True)
    return [{"input_ids": row[:n], "attention_mask": [1] * n, "label": label} for row, n, label in whole]


def make_clients(
    adapted: PeftAdaptedModel, count: int, *, batch: int, length: Length, steps: int, own_rows: int | None = None
) -> list[LocalClient]:
    """Clients with as many random rows as a round takes.

    Args:
        own_rows: of these clients alone the rows differ; the others have theirs again.
    """
    kinds = [examples(*random_rows(batch * steps, length, seed)) for seed in range(min(count, own_rows or count))]
    training = Training(local_steps=steps, batch_size=batch, learning_rate=LEARNING_RATE)
    return clients_on(adapted, TASK, [kinds[k % len(kinds)] for k in range(count)], LORA, [RANK] * count, training)


def work_of(clients: Sequence[LocalClient], length: Length, rounds: int = 1) -> Work:
    """What these clients, as `make_clients` made them, do in so many rounds."""
    drawn = [random_rows(len(client.examples), length, seed) for seed, client in enumerate(clients)]
    tokens, lengths, labels = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    order = [[torch.stack(list(_rows_of_batches(client, t))) for client in clients] for t in range(rounds)]
    return Work(tokens, lengths, labels, torch.stack([torch.stack(by_client) for by_client in order]), LEARNING_RATE)


def _rows_of_batches(client: LocalClient, t: int) -> Iterator[Tensor]:
    """The rows of each batch of a round: what the client draws if its examples are numbers."""
    numbered = copy.copy(client)
    numbered.examples = [{"row": row} for row in range(len(client.examples))]
    numbered.collate = lambda rows: {"rows": torch.tensor([row["row"] for row in rows])}
    return (batch["rows"] for batch in islice(numbered.batches(t), client.num_steps))


def write_start(folder: Path, name: str, clients: Sequence[LocalClient]) -> None:
    """Writes `base/` and `adapter/`, for programs that know neither fedelta nor how it draws."""
    adapted: Any = clients[0].model
    base_model(name).save_pretrained(folder / "base")
    save_adapter(clients[0].template, folder / "adapter", like=adapted.layout)
