"""Runners ask of a model what `fedelta.adapted` offers, and nothing else."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.adapted import AdaptedModel, JointPass
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.toy import toy_federation


class Narrow:
    """A model, or a pass of it, of which the protocol's names alone can be used."""

    def __init__(self, whole: Any, protocol: type, asked: set[str]) -> None:
        self._whole, self._protocol, self._asked = whole, protocol, asked

    def __getattr__(self, name: str) -> Any:
        if name not in vars(self._protocol):
            raise AssertionError(f"{name!r} is not in {self._protocol.__name__}")
        self._asked.add(name)
        return getattr(self._whole, name)

    @property
    def module(self) -> Any:
        """To be called by a loss, not to be looked into."""
        whole = self._whole.module
        return lambda **inputs: whole(**inputs)

    def joint(self, *args: Any) -> Any:
        self._asked.add("joint")
        return Narrow(self._whole.joint(*args), JointPass, self._asked)

    def __enter__(self) -> Any:
        self._whole.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._whole.__exit__(*error)


def values(rounds: Iterable[Any]) -> list[torch.Tensor]:
    return [x for r in rounds for part in (r.state, *(u.content for u in r.updates)) for _, x in tree.named_tensors(part)]


def run(clients: Any, engine: str) -> list[torch.Tensor]:
    return values(federate(get_method("flexlora"), clients, rounds=2, engine=engine, debug=True))


@pytest.mark.parametrize("engine", ["sequential", "batched", "auto"])
def test_a_model_that_offers_the_protocol_alone_gives_the_same_bits(engine, bert, setting, caplog):
    expected, clients, asked = run(setting(bert).clients(), engine), setting(bert).clients(), set()
    narrow = Narrow(clients[0].model, AdaptedModel, asked)
    for client in clients:
        client.model = narrow
    assert all(map(torch.equal, run(clients, engine), expected))
    assert ("losses" in asked) == (engine != "sequential")
    assert "train one after another" not in caplog.text


def test_the_toy_model_offers_it_and_says_why_it_trains_alone():
    [client, *_] = toy_federation()
    batch = client.first_batch(0)
    assert client.model.tokens(batch) == 8 <= client.model.pass_tokens()
    assert client.model.longest(batch) == 1
    assert client.model.joint_refusal() == "a ToyModel holds one adapter at a time"
    with pytest.raises(ValueError, match="a ToyModel holds one adapter at a time"):
        client.model.joint([client.template], [None], [client.dropout(0)])
