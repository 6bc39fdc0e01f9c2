"""The upper and the lower line take the compute of what they bound: the steps of a cohort, and the steps of a client."""

from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import pytest

from fedelta import sampling
from fedelta.client import Training
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.toy import toy_federation

RANKS = (2,) * 10
FIXED, EPOCHS = Training(batch_size=4, local_steps=3), Training(batch_size=4)


def steps(method: str, training: Training, cohort: Any, rounds: int = 30) -> tuple[Mapping[int, int], int]:
    """Returns the optimiser steps of a run by client, and in all."""
    by_client: Counter[int] = Counter()
    clients = toy_federation(RANKS, training=training)
    for done in federate(get_method(method), clients, rounds=rounds, cohort=cohort, seed=1, weights="uniform"):
        assert not done.dropped
        by_client.update({u.sender.id: int(u.metrics["num_steps"]) for u in done.updates})
    return by_client, by_client.total()


@pytest.mark.parametrize("cohort", [sampling.uniform(0.4), sampling.uniform(4), sampling.round_robin(4), sampling.everyone])
def test_centralised_takes_the_steps_of_the_cohort(cohort: Any):
    assert steps("centralised", FIXED, cohort)[1] == steps("fedavg", FIXED, cohort)[1]


def test_centralised_takes_the_mean_where_clients_take_unequal_steps():
    _, upper = steps("centralised", EPOCHS, sampling.uniform(0.4), rounds=1)
    mean = Fraction(sum(c.num_steps for c in toy_federation(RANKS, training=EPOCHS)) * 4, len(RANKS))
    assert len({c.num_steps for c in toy_federation(RANKS, training=EPOCHS)}) > 1
    assert abs(upper - mean) <= Fraction(1, 2)


@pytest.mark.parametrize("participation", [0.1, 0.4, 1.0])
def test_pooled_clients_of_a_small_cohort_train_at_all(participation: float):
    one = Training(batch_size=64, local_steps=1)
    assert steps("centralised", one, sampling.uniform(participation), rounds=2)[1] == 2 * round(10 * participation)


def test_nobody_misses_a_quorum_who_stands_for_all():
    clients = toy_federation(RANKS, training=FIXED)
    run = federate(get_method("centralised"), clients, rounds=1, cohort=sampling.uniform(4), quorum=3)
    assert [len(done.updates) for done in run] == [1]


@pytest.mark.parametrize("training", [FIXED, EPOCHS])
def test_local_only_takes_of_each_client_what_a_federation_asks_of_it(training: Training):
    cohort = sampling.uniform(0.4)
    assert steps("local_only", training, cohort) == steps("fedavg", training, cohort)
