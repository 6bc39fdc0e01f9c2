"""What can be wrong with an input, and what is said about it: one table, from a bad number to a client without data.

A message names the thing (client, layer, file or key) and the remedy, and comes before any work is lost.
"""

import json
import logging
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification

import fedelta
from fedelta import lowrank as lr
from fedelta import tree
from fedelta.client import LocalClient
from fedelta.lowrank import LoRA
from fedelta.models.toy import random_adapter, toy_federation, with_peer
from fedelta.runs.export import export, find
from fedelta.tree import Adapter

LAYER = "hidden"


def with_layer(change: Callable[[LoRA], LoRA]) -> Callable[[Adapter], Adapter]:
    return lambda x: replace(x, layers={**x.layers, LAYER: change(x.layers[LAYER])})


def filled(value: float) -> Callable[[Adapter], Adapter]:
    def change(x: LoRA) -> LoRA:
        B: Tensor = x.B.clone()
        B[0, 0] = value
        return LoRA(B, x.A, x.scale)

    return with_layer(change)


ADAPTERS: dict[str, tuple[Callable[[Adapter], Adapter], str]] = {
    "NaN": (filled(float("nan")), "hidden/B holds 1 NaN or Inf .* lower the learning rate"),
    "Inf": (filled(float("inf")), "hidden/B holds 1 NaN or Inf .* lower the learning rate"),
    "wrong shape": (with_layer(lambda x: LoRA(x.B[:-1], x.A, x.scale)), r"layer 'hidden': .* \(5, 5\).* must adapt the same"),
    "wrong rank": (with_layer(lambda x: lr.pad(x, x.rank + 1)), "layer 'hidden'.* rank"),
    "another base": (lambda x: replace(x, base="other"), "base other.* different base models cannot be merged"),
    "a layer less": (lambda x: replace(x, layers={LAYER: x.layers[LAYER]}), "lacks .'output'.* one LoRA configuration"),
    "another head": (lambda x: replace(x, dense={"bias": torch.zeros(7)}), "'bias'.* same head"),
}


@pytest.mark.parametrize("fault", ADAPTERS)
def test_a_bad_adapter_is_not_merged(fault: str):
    spoil, message = ADAPTERS[fault]
    with pytest.raises(ValueError, match=message):
        fedelta.aggregate([random_adapter(2, seed=0), spoil(random_adapter(2, seed=1))])


class Spoiled:
    """A client whose training returns a spoiled adapter."""

    def __init__(self, client: LocalClient, spoil: Callable[[Adapter], Adapter]) -> None:
        self.peer, self.template, self.num_steps = client.peer, client.template, client.num_steps
        self._client, self._spoil = client, spoil

    def train(self, t: int, start: Adapter, **request: Any) -> Any:
        result = self._client.train(t, start, **request)
        return replace(result, adapter=self._spoil(result.adapter))

    def gradient(self, start: Adapter, num_batches: int) -> Adapter:
        return self._client.gradient(start, num_batches)


@pytest.mark.parametrize("fault", ADAPTERS)
def test_a_client_that_sends_it_is_left_out_by_name_and_the_others_go_on(fault: str, caplog: pytest.LogCaptureFixture):
    spoil, message = ADAPTERS[fault]
    clients: list[Any] = list(toy_federation((2, 2, 2)))
    clients[1] = Spoiled(clients[1], spoil)
    with caplog.at_level(logging.WARNING, logger="fedelta"):
        (done,) = fedelta.federate(fedelta.get_method("fedavg"), clients, rounds=1, quorum=2)
    assert list(done.dropped) == [1]
    assert [u.sender.id for u in done.updates] == [0, 2]
    assert sum(u.weight for u in done.updates) == pytest.approx(1)
    assert "client 1 is left out of round 0" in caplog.text
    assert re.search(message, done.dropped[1])


def broken_file(folder: Path, content: Callable[[bytes], bytes]) -> Path:
    fedelta.save_adapter(random_adapter(2, seed=0, dtype=torch.float32), folder)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    return folder


def test_a_truncated_file_is_said_to_be_cut(tmp_path: Path):
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        fedelta.load_adapter(broken_file(tmp_path / "a", lambda data: data[: len(data) // 2]))


def test_a_pickle_is_not_opened(tmp_path: Path):
    with pytest.raises(ValueError, match="pickle"):
        fedelta.load_adapter(broken_file(tmp_path / "a", lambda data: pickle.dumps({"weight": 1})))


def test_an_unknown_key_is_answered_with_the_nearest(tiny_config: dict[str, Any]):
    with pytest.raises(ValueError, match=r"unknown key 'federation\.round'; did you mean 'federation\.rounds'"):
        fedelta.run(tiny_config | {"federation": {"round": 3}})


def test_a_client_without_examples_is_refused_before_the_first_round():
    clients = toy_federation((2, 2))
    clients[0].examples = []
    clients[0] = with_peer(clients[0], num_examples=0)
    with pytest.raises(ValueError, match=r"clients \[0\] have no training examples.*leave them out"):
        fedelta.federate(fedelta.get_method("fedavg"), clients, rounds=1)


def test_an_empty_client_of_a_split_is_refused_with_the_remedies(tiny_config: dict[str, Any], tmp_path: Path):
    changes = {"output": str(tmp_path / "run"), "partition.clients": 80, "lora.rank": 2}
    with pytest.raises(ValueError, match="clients"):
        fedelta.run(tiny_config, changes)
    assert not (tmp_path / "run").exists()


def test_a_saved_head_of_other_size_gives_way_in_a_run_and_in_its_export(
    tiny_config: dict[str, Any], rows_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The model's folder has a head of two outputs."""
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    rows = [row | {"label": "birds"} if k % 9 == 0 else row for k, row in enumerate(rows)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = fedelta.run(tiny_config, {"output": str(tmp_path / "run"), "data.source": str(source), "federation.rounds": 1})
    assert "has 2 outputs, the task 3 labels" in caplog.text
    assert result.adapter
    export(find(tmp_path / "run"), tmp_path / "merged", merged=True)
    exported = BertForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(exported.classifier.weight, result.adapter.dense["classifier.weight"])


def test_clients_of_one_class_each_train_and_are_scored(tiny_config: dict[str, Any], tmp_path: Path):
    changes = {"output": str(tmp_path / "run"), "partition.scheme": "natural", "partition.by": "label"}
    result = fedelta.run(tiny_config, changes | {"partition.clients": None, "lora.rank": 2})
    assert result.final["cohort"] == [0, 1]
    assert all(0 <= value <= 1 for value in (result.final["test"]["accuracy"], result.final["test"]["macro_f1"]))
    assert tree.parameters(result.adapter) if result.adapter else False
