"""One seed for all that is drawn, or one for each kind of draw, which then moves that kind alone."""

from collections.abc import Mapping
from typing import Any

import pytest

from fedelta import tree
from fedelta.runs.config import ConfigError, RunConfig, dump_config, load_config, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.config.resume import demand_same_run, fixed_values
from fedelta.runs.config.seeds import Seeds
from fedelta.runs.experiment import build

KINDS = ("data", "partition", "schedule", "start")


def test_a_number_is_all_four_and_stays_a_number():
    config = read_config({"seed": 7})
    assert config.seed == 7
    assert config.seeds() == Seeds(data=7, partition=7, schedule=7, start=7)
    assert "\nseed: 7\n" in dump_config(config)


def test_four_equal_ones_are_the_number_and_what_is_left_out_is_zero():
    assert read_config({"seed": dict.fromkeys(KINDS, 7)}) == read_config({"seed": 7})
    assert read_config({"seed": {}}).seed == 0
    assert read_config({"seed": {"start": 2}}).seeds() == Seeds(data=0, partition=0, schedule=0, start=2)


def test_what_is_written_is_read_as_the_same_seeds():
    config = read_config({"seed": {"data": 1, "start": 2}})
    assert load_config(read_config(config)) == config
    assert read_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ({"shedule": 1}, "unknown key 'seed.shedule'; did you mean 'seed.schedule'?"),
        ({"data": 1.5}, "seed.data: must be a whole number, such as 10, but is 1.5"),
        ("one", "seed: must be a whole number, such as 10, but is 'one'"),
        ({"data": True}, "seed.data: must not be true or false, but is True"),
        ([1, 2], "seed: must be a whole number"),
    ],
)
def test_a_wrong_seed_is_named(seed: Any, message: str):
    with pytest.raises(ConfigError) as caught:
        read_config({"seed": seed})
    assert message in str(caught.value)


def test_no_seed_may_change_when_a_run_is_taken_up():
    fixed = fixed_values(read_config({"seed": {"schedule": 1}}))
    demand_same_run(fixed, read_config({"seed": {"schedule": 1}}))
    with pytest.raises(ConfigError, match=r"seed\.start cannot change .*seed\.start was 0, is 3"):
        demand_same_run(fixed, read_config({"seed": {"schedule": 1, "start": 3}}))
    with pytest.raises(ConfigError, match=r"seed.* cannot change"):
        demand_same_run(fixed, read_config({"seed": 1}))


def drawn(config: RunConfig) -> Mapping[str, Any]:
    """Returns what a config draws, by the kind of seed that it should depend on."""
    built = build(config, check(config))
    dealt, client = built.deal, built.clients[0]
    # In positions, since the rows that a client gets are other ones when other rows are carved.
    split = [sorted(p for part in (dealt.parts[k], dealt.held_out[k]) for p in part.tolist()) for k in range(len(dealt.parts))]
    batch: Any = next(client.batches(0))
    order = [built.settings.cohort(t, [c.peer for c in built.clients], built.settings.seed) for t in range(8)]
    adapter = {name: x.tolist() for name, x in tree.parameters(built.template).items()}
    return {
        "data": (dealt.splits.test, dealt.splits.validation),
        "partition": (split, list(dealt.ranks)),
        "schedule": (order, client.dropout(0).initial_seed()),
        "batches": batch["input_ids"].tolist(),
        "start": adapter,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_each_seed_moves_what_it_draws_and_nothing_else(kind: str, tiny_config: dict[str, Any]):
    # The ranks are drawn, but of the largest there is one at least: the start is drawn at that rank, and then cut.
    ranks = {"choices": [2, 4], "shares": [1, 2]}
    config = {**tiny_config, "federation": {"rounds": 2, "participation": 0.34}}
    config |= {"lora": {**tiny_config["lora"], "rank": ranks}, "partition": {"scheme": "iid", "clients": 6}}
    before, after = (drawn(read_config({**config, "seed": {kind: seed}})) for seed in (0, 5))
    moved = {name for name in KINDS if before[name] != after[name]}
    assert moved == {kind}
    same_batches = {"start"}  # other rows, another split and another order all make another batch
    assert (before["batches"] == after["batches"]) == (kind in same_batches)
