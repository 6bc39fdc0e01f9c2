"""The work that all programs do: which rows each client sees in which step, and how they become a batch.

It is given as tensors, and written to a folder for programs that live in other environments, which need torch and safetensors.

    base/               the frozen model, as `save_pretrained` writes it
    adapter/            the adapter to start from, as PEFT writes it
    work.safetensors    rows and their order
    work.json           the learning rate
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Work:
    """Federated averaging of a LoRA adapter, to the last batch.

    Attributes:
        input_ids: (clients, rows, longest), padded on the right.
        lengths: (clients, rows), in tokens.
        labels: (clients, rows).
        order: (rounds, clients, steps, batch size), the rows of each batch.
        learning_rate: of AdamW without weight decay; constant.
    """

    input_ids: Tensor
    lengths: Tensor
    labels: Tensor
    order: Tensor
    learning_rate: float

    @property
    def clients(self) -> int:
        return len(self.labels)

    @property
    def rounds(self) -> int:
        return len(self.order)

    def batches(self, t: int, client: int) -> Iterator[Batch]:
        """A client's batches of a round, each padded to its own longest row as a data collator does."""
        for rows in self.order[t, client]:
            yield self.batch(client, rows)

    def batch(self, client: int, rows: Tensor) -> Batch:
        """`input_ids` and `attention_mask` (n, length), `labels` (n,)."""
        lengths = self.lengths[client, rows]
        longest = int(lengths.max())
        return {
            "input_ids": self.input_ids[client, rows, :longest],
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
            "labels": self.labels[client, rows],
        }

    def save(self, folder: Path) -> None:
        """Writes rows, order and learning rate."""
        save_file({name: x for name, x in vars(self).items() if isinstance(x, Tensor)}, folder / "work.safetensors")
        (folder / "work.json").write_text(json.dumps({"learning_rate": self.learning_rate}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Work:
        """Reads what `save` wrote."""
        settings = json.loads((folder / "work.json").read_text(encoding="utf-8"))
        return cls(**load_file(folder / "work.safetensors"), **settings)
