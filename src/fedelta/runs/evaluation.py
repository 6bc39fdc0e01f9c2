"""Scores the models of a round: on common rows, and on each client's own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedelta.client import AdaptedModel
from fedelta.engines.rounds import Round
from fedelta.tasks.metrics import LOWER_IS_BETTER, is_better
from fedelta.tasks.task import Example, Task, evaluate
from fedelta.tree import Message

Scores = Mapping[str, float]


@dataclass(frozen=True)
class Evaluator:
    """Scores deployed models on encoded examples.

    Args:
        task: what is scored, and by which metrics.
        model: the one model in memory; a deployed message is loaded into it.
        pad_token_id: for batches.
        batch_size: examples in a forward pass.
    """

    task: Task
    model: AdaptedModel
    pad_token_id: int
    batch_size: int = 64

    def score(self, deployed: Message, examples: Sequence[Example]) -> dict[str, float]:
        """Returns the task's metrics of one deployed model."""
        self.model.load(deployed["adapter"], deployed.get("base"))
        self.model.mode(None)
        return evaluate(
            self.task,
            self.model.module,
            examples,
            batch_size=self.batch_size,
            device=self.model.device,
            pad_token_id=self.pad_token_id,
        )

    def common(self, done: Round, examples: Sequence[Example]) -> dict[str, float]:
        """Returns metrics on rows that nobody owns, after a round.

        The model is the server's, at the largest ranks. Where participants run different models it is the mean over theirs.
        """
        if not done.personal:
            return self.score(done.global_model(), examples)
        return mean(self.by_peer(done, examples))

    def by_peer(self, done: Round, examples: Sequence[Example]) -> dict[int, dict[str, float]]:
        """Returns metrics of each participant's own model on the same rows, by its id."""
        return {peer.id: self.score(done.participant_model(peer), examples) for peer in done.peers}

    def by_client(self, done: Round, tests: Mapping[int, Sequence[Example]]) -> dict[int, dict[str, float]]:
        """Returns metrics of each participant's own model on its own rows, by id; leaves out clients without test rows."""
        return {p.id: self.score(done.participant_model(p), tests[p.id]) for p in done.peers if tests.get(p.id)}


def mean(scores: Mapping[int, Scores]) -> dict[str, float]:
    """Returns the mean over clients of each metric."""
    return {name: math.fsum(values.values()) / len(values) for name, values in by_metric(scores).items()}


def fairness(scores: Mapping[int, Scores]) -> dict[str, dict[str, float]]:
    """Returns for each metric the mean over clients, the worst client's value and id, and the spread.

    The spread is the standard deviation over all clients: they are no sample of more.
    """
    return {name: _spread(values, name in LOWER_IS_BETTER) for name, values in by_metric(scores).items()}


def by_metric(scores: Mapping[int, Scores]) -> dict[str, dict[int, float]]:
    """Returns for each metric its value at each client, by id."""
    found: dict[str, dict[int, float]] = {}
    for k, own in scores.items():
        for name, value in own.items():
            found.setdefault(name, {})[k] = value
    return found


def _spread(values: Mapping[int, float], lower_is_better: bool) -> dict[str, float]:
    mean = math.fsum(values.values()) / len(values)
    pick = max if lower_is_better else min
    worst = pick(sorted(values), key=lambda k: values[k])
    variance = math.fsum((v - mean) ** 2 for v in values.values()) / len(values)
    return {"mean": mean, "worst": values[worst], "worst_client": worst, "spread": math.sqrt(variance)}


def best_round(records: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    """Returns the first round with the best value of a metric on validation data; None if it was never measured."""
    found = [(r["t"], r["validation"][metric]) for r in records if (r.get("validation") or {}).get(metric) is not None]
    best: tuple[int, float] | None = None
    for t, value in found:
        if best is None or is_better(value, best[1], metric):
            best = (t, value)
    return None if best is None else best[0]
