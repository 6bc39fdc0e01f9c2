"""What a method excludes by its claims is told apart from a fault of the config."""

from typing import Any

import pytest

from fedelta.runs.config import ConfigError, RefusedByClaim, load_config

GRAPH = {"federation": {"topology": "ring"}}
UNEQUAL = {"lora": {"rank": {"choices": [2, 4]}}}


@pytest.mark.parametrize(
    ("raw", "claim", "sentence"),
    [
        ({"method": "fedavg", **UNEQUAL}, "hetero_rank", "method 'fedavg' needs equal ranks, but lora.rank gives [2, 4]"),
        ({"method": "flora", **GRAPH}, "coordinates", "method 'flora' moves the base model, which nodes without a server"),
        ({"method": "centralised", **GRAPH}, "population", "method 'centralised' trains on the data of all clients together"),
    ],
)
def test_what_a_claim_excludes_is_refused_by_its_name_and_a_whole_sentence(raw: dict[str, Any], claim: str, sentence: str):
    with pytest.raises(RefusedByClaim) as caught:
        load_config(raw)
    assert caught.value.claim == claim
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    "raw",
    [
        {"method": "fedavgg"},
        {"method": {"name": "fedprox", "mu": "much"}},
        {"lora": {"rank": [2, 4]}},
        {"method": "fedavg", **UNEQUAL, "evaluation": {"best_by": "rouge"}},
        {"federation": {"topology": "ring", "channel": ["top_k", {"name": "ef21", "share": 0.1}]}},
        {"federation": {"topology": "ring", "participation": 0.5}},
    ],
)
def test_any_other_fault_is_no_refusal_by_a_claim_even_beside_one(raw: dict[str, Any]):
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    assert not isinstance(caught.value, RefusedByClaim)


@pytest.mark.parametrize("raw", [{"method": "flexlora", **UNEQUAL}, {"method": "rolora", **GRAPH}, {"method": "local_only"}])
def test_what_a_method_claims_to_serve_is_taken(raw: dict[str, Any]):
    load_config(raw)
