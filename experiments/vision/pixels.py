"""Scores logistic regression on the pixels of the rows that `small.yaml` deals to its clients, pooled at one place.

python experiments/vision/pixels.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fedelta.data.rows import Row
from fedelta.runs.config.checks import check
from fedelta.runs.config.read import load_config
from fedelta.runs.config.yaml_text import load_yaml
from fedelta.runs.deal import deal

HERE = Path(__file__).parent
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Factors of the squared weights in the loss; the validation rows choose among them."""


def main() -> None:
    base = load_yaml((HERE / "small.yaml").read_text(encoding="utf-8"))["base"]
    base["data"]["path"] = str(HERE / base["data"]["path"])
    config = load_config(base, {"method": "flexlora"})  # any method of unequal ranks: the rows are the same
    dealt = deal(config, check(config).task)
    parts = [dealt.splits.train, dealt.splits.validation, dealt.splits.test]
    labels = sorted({str(row["label"]) for row in dealt.splits.train})
    train, validation, test = ((pixels(rows), positions(rows, labels)) for rows in parts)
    fits = [fitted(*train, len(labels), strength) for strength in STRENGTHS]
    best = max(range(len(fits)), key=lambda k: accuracy(fits[k], *validation))
    found = {"strength": STRENGTHS[best], "validation": accuracy(fits[best], *validation), "test": accuracy(fits[best], *test)}
    print(json.dumps({"rows": [len(rows) for rows in parts], **found}))


def pixels(rows: Sequence[Row]) -> Tensor:
    """Returns the rows' images as (n, 785) in float64: levels from 0 to 1, and a one for the bias."""
    levels = torch.from_numpy(np.stack([row["image"] for row in rows]).astype(np.float64)).flatten(1) / 255
    return torch.cat([levels, torch.ones(len(levels), 1, dtype=levels.dtype)], dim=1)


def positions(rows: Sequence[Row], labels: Sequence[str]) -> Tensor:
    """Returns the position of each row's label."""
    return torch.tensor([labels.index(str(row["label"])) for row in rows])


def fitted(x: Tensor, y: Tensor, classes: int, strength: float) -> Tensor:
    """Returns the weights (785, classes) of the least regularised loss, found by L-BFGS from zero."""
    weights = torch.zeros(x.shape[1], classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weights, y) + strength * weights[:-1].square().sum()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return weights.detach()


def accuracy(weights: Tensor, x: Tensor, y: Tensor) -> float:
    """Returns the share of rows whose label has the highest score."""
    return round(float(((x @ weights).argmax(1) == y).double().mean()), 4)


if __name__ == "__main__":
    main()
