"""Gradient checkpointing changes what is kept and not what is computed, adapter dropout included, in both engines."""

import pytest
import torch

from fedelta import tree
from fedelta.client import Request
from fedelta.engines.runners._joint import train_together
from fedelta.models import peft
from fedelta.models.checkpointing import Recomputed, recompute
from fedelta.models.cohort import cohort

LAYERS = {
    "bert": "bert.encoder.layer.1.output.dense",
    "llama": "model.layers.1.mlp.up_proj",
    "gpt2": "transformer.h.1.mlp.c_fc",
}


def results(clients, engine):
    if engine == "batched":
        return train_together(clients, [Request(0, c.template, num_steps=2) for c in clients])
    return [c.train(0, c.template, num_steps=2) for c in clients]


def runs_of(layer, action):
    """What an action gives, and how often it runs a layer."""
    seen = []
    handle = layer.register_forward_pre_hook(lambda *_: seen.append(1))
    found = action()
    handle.remove()
    return found, len(seen)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("engine", ["sequential", "batched"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_run_twice_with_the_same_draws(name, engine, dropout, families, setting, monkeypatch):
    found = {}
    for checkpointed in (True, False):
        clients = setting(families[name], lora={"lora_dropout": dropout}).clients()
        module = clients[0].model.module
        module.gradient_checkpointing_enable()  # without it passes are compact, and the last layer draws for fewer rows
        if not checkpointed:
            for user in (peft, cohort):
                monkeypatch.setattr(user, "recompute", lambda *_: None)
        found[checkpointed] = runs_of(module.get_submodule(LAYERS[name]), lambda given=clients: results(given, engine))
        assert not any(m.training for m in module.modules()) or engine == "sequential"
        clients[0].model.mode(None)
        assert not any(m.training for m in module.modules())
    (once, count), (twice, double) = found[False], found[True]
    assert double == 2 * count
    for one, other in zip(twice, once, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-12)
        for (_, x), (_, y) in zip(tree.named_tensors(one.adapter), tree.named_tensors(other.adapter), strict=True):
            torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("base_in_training", [False, True])
def test_the_base_stays_in_its_mode_while_a_layer_runs(base_in_training, bert):
    module = bert.adapted()[0].module.train(base_in_training)
    module.gradient_checkpointing_enable()
    recompute(module, list)
    seen, layer = [], module.bert.encoder.layer[0]
    layer.attention.register_forward_pre_hook(lambda *_: seen.append(layer.training))
    module(input_ids=torch.tensor([[5, 6]]))
    assert seen == [base_in_training]
    assert layer.training


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_unload_gives_the_layers_back_what_ran_them_before(engine, bert, setting):
    clients = setting(bert).clients()
    model = clients[0].model
    model.module.gradient_checkpointing_enable()
    layer = model.module.bert.encoder.layer[0]
    before = layer._gradient_checkpointing_func
    results(clients, engine)
    results(clients, engine)
    assert isinstance(layer._gradient_checkpointing_func, Recomputed)
    model.unload()
    assert layer._gradient_checkpointing_func is before
    assert layer.gradient_checkpointing
