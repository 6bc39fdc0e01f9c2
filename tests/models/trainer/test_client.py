"""TrainerClient: the numbers of the library's own loop by a user's Trainer, and no trace of a round in the next."""

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.trainer.client import TrainerClient
from fedelta.peers import Peer, template_for
from fedelta.tree import Adapter, BaseDelta


def close(x: Adapter, y: Adapter, tolerance: float = 1e-6) -> None:
    mine, other = tree.parameters(x), tree.parameters(y)
    assert mine.keys() == other.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, other[name], atol=tolerance, rtol=0)


def same(x: Adapter, y: Adapter) -> bool:
    mine, other = tree.parameters(x), tree.parameters(y)
    return mine.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in mine.items())


def trained_like(adapter: Adapter, seed: int = 1) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    values = {n: 0.1 * torch.randn(x.shape, generator=generator) for n, x in tree.parameters(adapter).items()}
    return tree.with_parameters(adapter, values)


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 3])
def test_with_the_same_batches_it_trains_as_a_local_client(site, t):
    client = replace(site, epochs=2).client(Peer(0, 4, 12, lora_alpha=16.0))
    start = trained_like(client.template)
    mine = client.train(t, start)
    local = site.local(client, local_epochs=2)
    theirs = local.train(t, replace(start, base=local.model.fingerprint))
    assert mine.num_steps == theirs.num_steps == 6
    assert mine.loss == pytest.approx(theirs.loss, abs=1e-6)
    assert mine.learning_rate == theirs.learning_rate == 1e-2
    close(mine.adapter, theirs.adapter)
    assert not same(mine.adapter, start)


def test_gradients_that_it_accumulates_are_those_of_one_larger_batch(classifier):
    once = replace(classifier, kind="llama", epochs=1)
    halves = replace(once, options={**once.options, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2})
    one, two = once.client(), halves.client()
    assert one.num_steps == two.num_steps == 3
    close(one.train(0, one.template).adapter, two.train(0, two.template).adapter)


def test_its_template_is_the_one_that_other_clients_of_the_seed_draw(site):
    client = site.client(Peer(0, 3, 12, lora_alpha=16.0), seed=5)
    adapted = site.local(client).model
    initial = adapted.initial(client.peer, seed=5)
    assert same(client.template, initial)
    assert client.template.base == adapted.fingerprint


def test_a_peer_is_read_from_the_trainer(site):
    site.lora = {"use_rslora": True, "alpha_pattern": {"0.*query": 3}} if site.kind == "bert" else {}
    peer = site.client(7).peer
    assert (peer.id, peer.rank, peer.num_examples, peer.lora_alpha) == (7, 4, 12, 16)
    assert peer.rslora == (site.kind == "bert")


def test_a_trained_adapter_in_the_model_is_what_all_begin_from(site):
    site.model = site.fresh()
    for name, x in site.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(x)
    clients = [site.client(k) for k in range(2)]
    for name, x in clients[0].template.layers.items():
        layer = site.model.get_base_model().get_submodule(name)
        assert torch.equal(x.B, layer.lora_B["default"].weight)
    [done] = federate(get_method("fedavg"), clients, rounds=1, debug=True)
    assert len(done.updates) == 2
    assert same(site.client(2).template, clients[0].template)  # a round leaves the model as it began


@pytest.mark.parametrize("trainable", ["A", "B", "mapping"])
def test_what_is_frozen_keeps_its_bits(site, trainable):
    client = site.client()
    start = trained_like(client.template)
    layers = list(start.layers)
    chosen: Any = {layers[0]: None, layers[1]: "A", **dict.fromkeys(start.dense)} if trainable == "mapping" else trainable
    after = tree.parameters(client.train(0, start, trainable=chosen).adapter)
    before = tree.parameters(start)
    moved = {name for name, x in after.items() if not torch.equal(x, before[name])}
    factors = {f"{n}.lora_{which}" for n in layers for which in ("AB" if trainable == "mapping" else trainable)}
    if trainable == "mapping":
        factors -= {f"{layers[0]}.lora_A", f"{layers[0]}.lora_B", f"{layers[1]}.lora_B"}
    assert moved == factors | (set() if trainable == "mapping" else set(start.dense))


def test_a_frozen_factor_that_moved_all_the_same_is_refused(classifier):
    class Rude(TrainerCallback):
        def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **rest: Any) -> None:
            with torch.no_grad():
                next(x for n, x in model.named_parameters() if "lora_A" in n).add_(1)

    classifier.trainer = {"callbacks": [Rude()]}
    client = classifier.client()
    with pytest.raises(RuntimeError, match=r"client 0: the Trainer changed '.*lora_A', which stays as it is"):
        client.train(0, client.template, trainable="B")


def test_steps_and_learning_rate_follow_the_method(classifier):
    client = classifier.client()
    assert client.num_steps == 3
    result = client.train(0, client.template, num_steps=5, lr_scale=0.5)
    assert (result.num_steps, result.learning_rate) == (5, 5e-3)
    assert client.train(1, client.template).learning_rate == 1e-2


def test_arguments_that_a_user_keeps_are_not_changed(classifier):
    kept = classifier.arguments()
    classifier.arguments = lambda: kept
    client = classifier.client()
    client.train(0, client.template, num_steps=2, lr_scale=0.5)
    assert (kept.learning_rate, kept.max_steps, kept.seed) == (1e-2, -1, 42)


def test_a_schedule_reports_the_rate_of_its_last_step(classifier):
    classifier.options = {"lr_scheduler_type": "linear"}
    client = classifier.client()
    assert client.train(0, client.template).learning_rate == pytest.approx(1e-2 / 3)


# --- rounds ----------------------------------------------------------------------------------------------------------


def test_a_turn_is_the_same_whenever_it_is_trained_and_another_one_in_each_round(site):
    client, again = site.client(), site.client()
    first = client.train(0, client.template).adapter
    second = client.train(1, client.template).adapter
    assert same(again.train(1, again.template).adapter, second)
    assert same(client.train(0, client.template).adapter, first)
    assert not same(first, second)  # another order of examples
    assert len({turn.seed for turn in site.made}) == 2
    other = site.client(1)
    assert not same(other.train(0, other.template).adapter, first)


def test_a_round_leaves_the_global_generators_as_they_were(classifier):
    client = classifier.client()
    before = random.getstate(), legacy_state(), torch.get_rng_state()
    client.train(0, client.template)
    assert random.getstate() == before[0]
    assert legacy_state() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def legacy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - what a Trainer seeds


def test_clients_of_unequal_ranks_share_one_model(site):
    def rounds(shared: bool) -> list[Any]:
        model = site.fresh() if shared else None
        clients = []
        for k, rank in enumerate((2, 4, 4)):
            peer = Peer(k, rank, 12, lora_alpha=16.0)
            clients.append(replace(site, model=model, rank=4 if shared else rank).client(peer))
        return list(federate(get_method("flexlora"), clients, rounds=2, debug=True))

    together, apart = rounds(True), rounds(False)
    for a, b in zip(together, apart, strict=True):
        close(a.state["adapter"], b.state["adapter"])
    sent = together[-1].updates[0].content["adapter"]
    assert {x.rank for x in sent.layers.values()} == {2}


@pytest.mark.parametrize("method", ["flexlora", "raflora", "rolora", "fedsa_lora", "fedex_lora", "flora"])
def test_rounds_of_a_method_are_those_on_local_clients(classifier, method):
    site = replace(classifier, epochs=1)
    clients = [site.client(Peer(k, 4, 12, lora_alpha=16.0)) for k in range(2)]
    local = [classifier.local(c) for c in clients]
    mine = list(federate(get_method(method), clients, rounds=2, debug=True))[-1]
    theirs = list(federate(get_method(method), local, rounds=2, debug=True, engine="sequential"))[-1]
    for a, b in zip(mine.updates, theirs.updates, strict=True):
        mine_sent, their_sent = dict(tree.named_tensors(a.content)), dict(tree.named_tensors(b.content))
        assert mine_sent.keys() == their_sent.keys()
        for name, x in mine_sent.items():
            torch.testing.assert_close(x, their_sent[name], atol=2e-6, rtol=0)


def test_clients_on_one_model_each_follow_the_base(classifier):
    def last(model: Any) -> Adapter:
        clients = [replace(classifier, model=model).client(Peer(k, 4, 12, lora_alpha=16.0)) for k in range(3)]
        run = federate(
            get_method("fedex_lora"), clients, rounds=3, cohort=lambda t, *_: [[0, 1], [1, 2], [0, 2]][t], debug=True
        )
        message = [*run][-1].participant_model(clients[0].peer)
        return tree.effective(message["adapter"], message.get("base"))

    expected, found = last(None), last(classifier.fresh())
    for name, x in expected.layers.items():
        torch.testing.assert_close(found.layers[name].dense(), x.dense(), atol=1e-6, rtol=0)


def test_the_base_is_part_of_what_trains(classifier):
    client = classifier.client()
    name, x = next(iter(client.template.layers.items()))
    moved = BaseDelta(1, {name: [torch.full(x.shape, 0.5)]})
    assert not same(client.train(0, client.template, base=moved).adapter, client.train(0, client.template).adapter)


def test_heads_travel(classifier):
    clients = [classifier.client(Peer(k, 4, 12, lora_alpha=16.0)) for k in range(2)]
    [done] = federate(get_method("fedavg"), clients, rounds=1, debug=True)
    sent = done.updates[0].content["adapter"].dense
    assert sorted(sent) == ["classifier.bias", "classifier.weight"]
    assert not torch.equal(sent["classifier.weight"], clients[0].template.dense["classifier.weight"])


# --- what a Trainer does beside --------------------------------------------------------------------------------------


def test_a_shared_model_trains_in_the_precision_of_each_trainer(classifier):
    model = classifier.fresh()
    half, full = (replace(classifier, options={"bf16": on}) for on in (True, False))
    kept = [replace(site, model=model).client() for site in (half, full)]
    for t in range(2):
        for shared, fresh in zip(kept, (half.client(), full.client()), strict=True):
            assert same(shared.train(t, shared.template).adapter, fresh.train(t, fresh.template).adapter)
            assert not {"forward", "_original_forward"} & vars(model).keys()
    assert not same(kept[0].train(0, kept[0].template).adapter, kept[1].train(0, kept[1].template).adapter)


def test_a_base_in_half_precision_trains_factors_in_float32(classifier):
    shared = replace(classifier, model=classifier.fresh().to(torch.bfloat16), kind="bert", lora={"modules_to_save": None})
    shared.lora = {}
    client = shared.client()
    assert {x.dtype for x in tree.parameters(client.template).values()} == {torch.float32}
    step = client.train(0, client.template, lr_scale=1e-6).adapter
    assert not same(step, client.template)


def test_early_stopping_evaluation_and_logs_go_on(classifier):
    seen: list[str] = []

    class Stop(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            seen.append("evaluated")
            control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
            seen.extend(logs)

    classifier.options = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, "num_train_epochs": 5}
    classifier.trainer = {"eval_dataset": classifier.data(), "callbacks": [Stop()]}
    client = classifier.client()
    assert client.num_steps == 15
    assert client.train(0, client.template).num_steps == 2
    assert {"loss", "eval_loss", "evaluated"} <= set(seen)


def test_the_best_checkpoint_is_what_travels_where_the_trainer_loads_it(classifier):
    classifier.options = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss", "learning_rate": 30.0,
    }  # fmt: skip
    classifier.trainer = {"eval_dataset": classifier.data(), "callbacks": [EarlyStoppingCallback(1)]}
    client = classifier.client()
    result = client.train(0, client.template)
    assert {p.name for p in classifier.folder.iterdir()} >= {"checkpoint-1"}
    assert result.num_steps >= 1


def test_a_trainer_that_raises_costs_its_client_the_round_and_leaves_the_model_clean(classifier, caplog):
    class Broken(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            raise OSError("the disk is full")

    model = classifier.fresh()
    bad = replace(classifier, model=model, trainer={"callbacks": [Broken()]}, options={"bf16": True})
    clients = [s.client(Peer(k, 4, 12, lora_alpha=16.0)) for k, s in enumerate([bad, replace(classifier, model=model)])]
    [done] = federate(get_method("fedavg"), clients, rounds=1)
    assert done.dropped == {0: "local update: OSError: the disk is full"}
    assert list(model.peft_config) == ["default"]
    assert "forward" not in vars(model)
    assert all(x.requires_grad for n, x in model.named_parameters() if "lora_" in n)


def test_a_trainer_that_cannot_be_made_leaves_a_kept_model_clean(classifier):
    model = classifier.fresh()

    def make(turn: Any) -> Trainer:
        if turn.t == 1:
            model.add_adapter("ref", model.peft_config["default"])
            raise OSError("no such rows")
        return replace(classifier, model=model)(turn)

    client = TrainerClient(Peer(0, 4, 12, lora_alpha=16.0), make)
    with pytest.raises(OSError, match="no such rows"):
        client.train(1, client.template)
    assert list(model.peft_config) == ["default"]
    assert client.train(2, client.template).num_steps


def test_what_trains_beside_another_adapter_is_found_whatever_its_name(classifier):
    model = classifier.fresh()
    model.add_adapter("b", model.peft_config["default"])  # as the beginning of `base_layer`
    base = next(x for n, x in model.named_parameters() if n.endswith(".base_layer.weight"))
    base.requires_grad_(True)
    with pytest.raises(ValueError, match=r"also trains '.*base_layer\.weight'"):
        replace(classifier, model=model).client()


def test_other_adapters_are_left_out_and_removed(classifier):
    class Referring(Trainer):
        def __init__(self, model: Any, *args: Any, **rest: Any) -> None:
            model.add_adapter("ref", model.peft_config["default"])
            for name, x in model.named_parameters():
                if ".ref." in name:
                    source = model.get_parameter(name.replace(".ref.", ".default."))
                    references.append(source.detach().clone())
                    x.data.copy_(source)
            super().__init__(model, *args, **rest)

    references: list[Any] = []
    model = classifier.fresh()

    def make(turn: Any) -> Trainer:
        trainer = classifier(turn)
        return Referring(model, trainer.args, train_dataset=trainer.train_dataset, data_collator=trainer.data_collator)

    clients = [TrainerClient(Peer(k, rank, 12, lora_alpha=16.0), make) for k, rank in enumerate((2, 4))]
    references.clear()
    rounds = list(federate(get_method("flexlora"), clients, rounds=2, debug=True))
    assert list(model.peft_config) == ["default"]
    assert len(rounds[-1].updates) == 2
    # each round's reference is what its client began with: with B = 0, so that it is the base
    assert references
    wanted = {tuple(x.shape) for c in clients for x in tree.parameters(c.template).values()}
    assert {tuple(x.shape) for x in references} <= wanted | {(3, 16), (3,)}
    assert not any(x.any() for x in references if x.ndim == 2 and x.shape[1] in (2, 4) and x.shape[0] > 4)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fedprox", "subspace_reg", "scaffold", "fedlada", "hetlora", "fedgalore"])
def test_a_method_that_a_trainer_cannot_serve_is_refused_before_anything_trains(classifier, method):
    client = classifier.client()
    calls = len(classifier.made)
    with pytest.raises(ValueError, match="client 0, a TrainerClient, cannot do"):
        federate(get_method(method), [client, classifier.client(1)], rounds=1)
    assert len(classifier.made) == calls + 1


@pytest.mark.parametrize("name", ["penalty", "gradient", "optimizer"])
def test_so_is_a_request_that_no_engine_saw(classifier, name):
    client = classifier.client()
    with pytest.raises(ValueError, match=f"takes no {name}"):
        client.train(0, client.template, **{name: lambda *_: None})
    with pytest.raises(ValueError, match="gives no gradient without a step"):
        client.gradient(client.template, 1)


def test_centralised_cannot_pool_what_a_trainer_reads(classifier):
    with pytest.raises(TypeError, match="TrainerClient has no method `pool`"):
        federate(get_method("centralised"), [classifier.client(0), classifier.client(1)], rounds=1)


def refused(make: Any, match: str, peer: Any = 0, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=match):
        TrainerClient(peer, make)


def test_what_cannot_be_is_refused_when_the_client_is_made(classifier):
    refused(5, "make_trainer should be a function that takes a turn and returns a Trainer, got 5", kind=TypeError)
    refused(lambda turn: "a trainer", "client 0: make_trainer returned a str", kind=TypeError)
    plain = replace(classifier, model=classifier.fresh().unload())
    refused(plain, "is a BertForSequenceClassification, without an adapter", kind=TypeError)
    refused(classifier, r"layer .*query.*: client 0 has scale 1 at rank 4, the Trainer's model 4: .*lora_alpha", Peer(0, 4, 12))
    refused(replace(classifier, lora={"use_dora": True}), "use_dora")
    loose = classifier.fresh()
    next(p for n, p in loose.named_parameters() if n.endswith("pooler.dense.bias")).requires_grad_(True)
    refused(replace(classifier, model=loose), r"also trains '.*pooler.dense.bias'.*modules_to_save")
    named = classifier.fresh()
    named.add_adapter("mine", classifier.config())
    named.set_adapter("mine")
    refused(replace(classifier, model=named), "'mine' is active.*called 'default'")


def test_other_layers_than_those_of_the_federation_are_refused(classifier):
    other = replace(classifier, lora={"target_modules": ["value"]})
    clients = [classifier.client(0), other.client(1)]
    with pytest.raises(ValueError, match=r"client 1 .*layers"):
        federate(get_method("fedavg"), clients, rounds=1)


def test_a_template_of_another_model_is_refused(site, classifier):
    if site.kind == "bert":
        pytest.skip("the same model")
    template = site.client().template
    with pytest.raises(ValueError, match="the template"):
        classifier.client(0, template=template)


def test_a_base_with_weights_that_are_drawn_anew_is_refused(classifier):
    def make(turn: Any) -> Trainer:
        made = classifier(turn)
        torch.manual_seed(turn.t)
        nn.init.normal_(made.model.get_base_model().bert.pooler.dense.weight)
        return made

    client = TrainerClient(0, make)
    client.train(0, client.template)
    with pytest.raises(ValueError, match="has other weights than that of its first"):
        client.train(1, client.template)


def test_an_optimiser_of_other_tensors_is_refused(classifier):
    def make(turn: Any) -> Trainer:
        classifier.trainer = {"optimizers": (torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), None)}
        return classifier(turn)

    client = TrainerClient(0, make)
    with pytest.raises(ValueError, match=r"optimiser does not hold .*optimizer_cls_and_kwargs"):
        client.train(0, client.template)


def test_an_optimiser_of_the_models_own_tensors_trains(classifier):
    def make(turn: Any) -> Trainer:
        model = classifier.fresh()
        classifier.model = model
        own = [x for x in model.parameters() if x.requires_grad]
        classifier.trainer = {"optimizers": (torch.optim.SGD(own, lr=0.1), None)}
        return classifier(turn)

    client = TrainerClient(0, make)
    assert not same(client.train(0, client.template).adapter, client.template)
    with pytest.raises(ValueError, match="learning rate cannot be scaled"):
        client.train(0, client.template, lr_scale=0.5)


def test_data_without_a_length_need_max_steps_and_a_peer(classifier):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(classifier.data())

    def make(turn: Any) -> Trainer:
        made = classifier(turn)
        return Trainer(made.model, made.args, train_dataset=Stream(), data_collator=made.data_collator)

    classifier.options = {"max_steps": 2}
    refused(make, "has no length: give a Peer")
    client = TrainerClient(Peer(0, 4, 12, lora_alpha=16.0), make)
    assert client.train(0, client.template).num_steps == client.num_steps == 2


def test_training_that_blows_up_is_said_by_name(classifier):
    classifier.options = {"learning_rate": 1e30}
    client = classifier.client()
    with pytest.raises(FloatingPointError, match="client 0: what its Trainer trained is not finite"):
        client.train(0, client.template)


def test_a_trainer_that_takes_no_step_is_said_by_name(classifier):
    client = classifier.client()
    classifier.__class__ = type("Idle", (type(classifier),), {"__call__": idle_of(type(classifier))})
    with pytest.raises(ValueError, match="client 0: its Trainer ended without a step"):
        client.train(0, client.template)


def idle_of(kind: Any) -> Any:
    def make(self: Any, turn: Any) -> Trainer:
        made = kind.__call__(self, turn)
        made.train = lambda **_: SimpleNamespace(global_step=0, training_loss=0.0)
        return made

    return make


def test_a_smaller_rank_than_the_models_is_the_peers(classifier):
    client = classifier.client(Peer(0, 2, 12, lora_alpha=16.0))
    result = client.train(0, client.template)
    assert {x.rank for x in result.adapter.layers.values()} == {2}
    assert {x.scale for x in result.adapter.layers.values()} == {8.0}
    assert template_for(client.peer, client.template).layers.keys() == result.adapter.layers.keys()
