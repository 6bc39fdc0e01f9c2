"""Federated averaging of a LoRA adapter with pfl-research's simulator, its algorithm and backend: one process a core.

    torchrun --nproc-per-node CORES pfl_fedavg.py FOLDER

The clients of a round are dealt out to the processes evenly. pfl's step of training is its own; the model, the optimiser and
the batches are those of the bare loop. Nothing is evaluated.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUntypedFunctionDecorator=false
# It runs in an environment of its own: see rivals/make_envs.py.

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDatasetBase
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from rivals import bare
from rivals.work import Batch, Work
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Classifier(nn.Module):
    """A PEFT model with the two methods that pfl asks for."""

    def __init__(self, peft: Any) -> None:
        super().__init__()
        self.peft = peft.eval()

    def loss(self, labels: Tensor, **inputs: Tensor) -> Tensor:
        return F.cross_entropy(self.peft(**inputs).logits, labels)

    def metrics(self, **batch: Tensor) -> dict[str, Weighted]:
        return {"nothing": Weighted(0, 1)}  # pfl evaluates before the first round whatever it is told: at no cost


class ClientData(Dataset):
    """A client's batches of one round."""

    def __init__(self, work: Work, t: int, client: int) -> None:
        super().__init__(raw_data=[work.labels[client]], user_id=str(client))
        self.work, self.t, self.client = work, t, client

    def iter(self, batch_size: int | None) -> Iterator[Batch]:
        return self.work.batches(self.t, self.client)


class AllClients(FederatedDatasetBase):
    """Every client in every round; each process has its share of them."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.work, self.t = work, 0

    def get_cohort(self, cohort_size: int) -> Iterator[tuple[ClientData, int]]:
        t, self.t = self.t, self.t + 1
        return ((ClientData(self.work, t, k), 0) for k in range(RANK, cohort_size, WORLD))

    def __next__(self) -> Any:
        raise NotImplementedError("clients are asked for by the cohort")


class Stamps(TrainingProcessCallback):
    """When the rounds began, and when the last one ended."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, *, model: Any) -> Metrics:
        self.seconds.append(time.perf_counter())
        return Metrics()

    def after_central_iteration(self, *args: Any, **named: Any) -> tuple[bool, Metrics]:
        self.seconds.append(time.perf_counter())
        return False, Metrics()


def trained_only(parameters: Iterator[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in parameters if p.requires_grad]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    work, peft, stamps = Work.load(folder), bare.load_model(folder), Stamps()
    classifier = Classifier(peft)
    model = PyTorchModel(
        classifier,
        lambda parameters, lr: torch.optim.AdamW(trained_only(parameters), lr=lr, weight_decay=0.0),
        torch.optim.SGD(trained_only(classifier.parameters()), lr=1.0),  # x <- x + mean difference
    )
    data = AllClients(work)
    steps, batch_size = work.order.shape[2:]
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds + 1,
            train_cohort_size=work.clients,
            val_cohort_size=None,
        ),
        SimulatedBackend(data, data),
        model,
        NNTrainHyperParams(
            local_batch_size=batch_size, local_num_epochs=None, local_num_steps=steps, local_learning_rate=work.learning_rate
        ),
        callbacks=[stamps],
        send_metrics_to_platform=False,
    )
    if RANK == 0:
        save_file(bare.state_of(peft), folder / "pfl.safetensors")
        (folder / "pfl.json").write_text(json.dumps({"stamps": stamps.seconds}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
