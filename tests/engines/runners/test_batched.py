"""The batched engine gives the numbers of the sequential one, for every method and family, and hides no client's fault."""

import threading
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

import fedelta
from fedelta import topology, tree
from fedelta.client import Request, Training
from fedelta.engines.choice import choose
from fedelta.engines.gossip import gossip
from fedelta.engines.runners import batched
from fedelta.engines.runners._joint import each_clipped, train_together
from fedelta.engines.runners.batched import Batched, packed
from fedelta.engines.server import federate
from fedelta.methods import get_method, method_class
from fedelta.methods.fedavg import FedAvg
from fedelta.models.toy import toy_federation
from fedelta.optim import SGD, AdamW
from fedelta.tasks import ChoiceByLikelihood, Instruction
from fedelta.tasks.task import IGNORED

SMALL_BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
HYPER = {"replication": {"low_rank": 1}}
EXACT = 1e-9


@pytest.fixture
def passes(monkeypatch):
    """The ids of the clients of each joint pass."""
    seen = []

    def spy(clients, requests):
        seen.append([c.peer.id for c in clients])
        return train_together(clients, requests)

    monkeypatch.setattr(batched, "train_together", spy)
    return seen


def run(setting, engine, method="flexlora", rounds=3, **options):
    method = get_method(method, **HYPER.get(method, {})) if isinstance(method, str) else method
    score = lambda adapter, base: {"loss": sum(float(x.B.norm()) for x in adapter.layers.values())}  # noqa: E731
    return list(federate(method, setting.clients(), rounds=rounds, engine=engine, **{"debug": True, "score": score, **options}))


def error(found, expected):
    """The largest relative difference of any tensor, by its norm."""
    pairs = list(zip(tree.named_tensors(found), tree.named_tensors(expected), strict=True))
    assert [a for (a, _), _ in pairs] == [b for _, (b, _) in pairs]
    gaps = [float((x - y).norm() / y.norm().clamp(min=1e-12)) for (_, x), (_, y) in pairs if x.is_floating_point()]
    return max(gaps, default=0.0)


def assert_same(found, expected, tolerance=EXACT):
    for one, other in zip(found, expected, strict=True):
        assert [u.sender for u in one.updates] == [u.sender for u in other.updates]
        assert one.dropped == other.dropped
        assert one.bytes == other.bytes
        for u, v in zip(one.updates, other.updates, strict=True):
            assert u.metrics == pytest.approx(v.metrics, rel=tolerance)
            assert error(u.content, v.content) <= tolerance
    assert error(found[-1].state, expected[-1].state) <= tolerance
    assert error(found[-1].client_states, expected[-1].client_states) <= tolerance


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_every_family_trains_as_it_does_alone(family, dropout, setting, passes, caplog):
    clients = setting(family, lora={"lora_dropout": dropout})
    assert_same(run(clients, "batched"), run(clients, "sequential"))
    assert [sorted(ids) for ids in passes] == [[0, 1, 2, 3]] * 3
    assert "one after another" not in caplog.text


@pytest.mark.parametrize("method", fedelta.list_methods())
def test_every_method_trains_as_it_does_alone(method, bert, setting, passes, caplog):
    clients = setting(bert, **({} if method_class(method).hetero_rank else {"ranks": (2, 2, 2, 2)}))
    assert_same(run(clients, "batched", method), run(clients, "sequential", method))
    # One client alone has nobody to share with, nor have clients each of whose ranks has a frozen part of its own.
    assert bool(passes) == (method not in ("centralised", "ilora"))
    assert "one after another" not in caplog.text


@pytest.mark.parametrize("options", [{}, {"control": True}, {"fixed_start": False}])
def test_clients_of_one_rank_share_the_part_of_the_base_that_is_frozen_for_it(options, bert, setting, passes):
    clients = setting(bert, ranks=(1, 3, 1, 3))
    assert_same(*(run(clients, engine, get_method("ilora", **options)) for engine in ("batched", "sequential")))
    assert [sorted(ids) for ids in passes] == [[0, 2], [1, 3]] * 3


@pytest.mark.parametrize("method", ["scaffold", "fedsmoo", "fedglomo", "fedlada"])
def test_a_pass_that_fails_late_leaves_nothing_in_hooks_and_optimisers(method, bert, setting, monkeypatch):
    def fail(clients, requests):
        train_together(clients, requests)
        raise RuntimeError("after the last step")

    clients = setting(bert, ranks=(2, 2, 2, 2))
    expected = run(clients, "sequential", method)
    monkeypatch.setattr(batched, "train_together", fail)
    assert_same(run(clients, "batched", method), expected, 0)


def test_nodes_of_a_graph_train_as_they_do_alone(bert, setting, passes):
    clients, options = setting(bert, ranks=(2, 2, 2, 2)), {"rounds": 3, "mixing": topology.ring(4), "debug": True}
    one, other = (
        list(gossip(get_method("tad_lora", interval=1), clients.clients(), engine=engine, **options))
        for engine in ("batched", "sequential")
    )
    assert_same(one, other)
    assert passes


@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_a_base_delta_in_the_forward_pass_is_followed(method, bert, setting, passes):
    clients = setting(bert, ranks=(2, 2, 2, 2), lora={"base_delta": "hook"})
    assert_same(run(clients, "batched", method), run(clients, "sequential", method))
    assert passes


def test_float32_agrees_to_its_own_precision(bert, setting):
    clients = setting(bert, dtype=torch.float32)
    assert_same(run(clients, "batched"), run(clients, "sequential"), 1e-5)


def test_a_half_precision_base_agrees_to_its_precision(family, setting, passes):
    clients = setting(family, dtype=torch.bfloat16)
    one, other = (run(clients, engine, rounds=1)[0].updates for engine in ("batched", "sequential"))
    assert passes
    for u, v in zip(one, other, strict=True):
        assert {t.dtype for _, t in tree.named_tensors(u.content)} == {torch.float32}
        assert u.metrics["loss"] == pytest.approx(v.metrics["loss"], rel=2e-2)


@pytest.mark.parametrize("optimizer", [AdamW(weight_decay=0.1), SGD(momentum=0.9)])
def test_clipping_is_by_each_clients_own_norm(optimizer, bert, setting):
    training = Training(batch_size=2, learning_rate=0.005, max_grad_norm=0.3, optimizer=optimizer)
    clients = setting(bert, training=training)
    assert_same(run(clients, "batched"), run(clients, "sequential"))


def test_the_order_of_clients_does_not_change_a_bit(bert, setting):
    method, clients = get_method("flexlora"), setting(bert)
    one, other = (
        list(federate(method, given, rounds=2, engine="batched", debug=True))[-1]
        for given in (clients.clients(), clients.clients()[::-1])
    )
    assert error(one.state, other.state) == 0


def test_small_passes_give_the_same_numbers(bert, setting, passes):
    assert_same(run(setting(bert), "batched", token_budget=20), run(setting(bert), "sequential"))
    assert all(len(p) == 2 for p in passes)


def square(adapter):
    return 0.1 * sum(x.B.square().sum() for x in adapter.layers.values())


def halved(grads, params, step):
    return {n: g * 0.5 ** (step + 1) + 0.01 * params[n] for n, g in grads.items()}


class Ascending:
    """A hook that takes gradients a little uphill, but in the steps that it leaves out."""

    def __init__(self, without=()):
        self.without = without

    def offset(self, grads, params, step):
        return None if step in self.without else {n: 0.5 * g for n, g in grads.items()}

    def __call__(self, grads, params, step):
        return {n: g + 0.01 * params[n] for n, g in grads.items()}


LAYER = "bert.encoder.layer.0.attention.self.query"
OWN_WISHES = [
    {"penalty": square, "num_steps": 1},
    {"gradient": halved, "trainable": "B"},
    {"trainable": {LAYER: "A", "classifier.bias": None}, "lr_scale": 0.5},
    {"optimizer": SGD(momentum=0.5), "num_steps": 4, "trainable": {LAYER: None}},
]


OFFSETS = [
    {"gradient": Ascending(), "num_steps": 2},
    {"gradient": Ascending(without=(1,)), "trainable": "B"},
    {"gradient": halved, "penalty": square},
    {"num_steps": 4},
]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_at_an_offset_are_those_that_each_client_takes_alone(dropout, bert, setting):
    clients = setting(bert, lora={"lora_dropout": dropout}).clients()
    alone = [c.train(1, c.template, **w) for c, w in zip(clients, OFFSETS, strict=True)]
    plain = clients[0].train(1, clients[0].template, gradient=lambda g, p, k: Ascending()(g, p, k), num_steps=2)
    together = train_together(clients, [Request(1, c.template, **w) for c, w in zip(clients, OFFSETS, strict=True)])
    for one, other in zip(together, alone, strict=True):
        assert error(one.adapter, other.adapter) < EXACT
        assert one.loss == pytest.approx(other.loss, rel=EXACT)
    assert error(plain.adapter, alone[0].adapter) > 1e-4, "an offset makes a difference"


class Standing(Ascending):
    """A hook that asks for the gradients where they were taken already, and keeps both."""

    def __init__(self):
        self.first, self.second = [], []

    def offset(self, grads, params, step):
        self.first.append({n: g.clone() for n, g in grads.items()})
        return {n: torch.zeros_like(g) for n, g in grads.items()}

    def __call__(self, grads, params, step):
        self.second.append({n: g.clone() for n, g in grads.items()})
        return grads


def test_both_gradients_of_a_step_are_under_the_same_adapter_dropout(bert, setting):
    """Else the difference of the two, on one batch, would be that of two draws."""
    clients = setting(bert, lora={"lora_dropout": 0.5}).clients()
    alone, together = ([Standing() for _ in clients] for _ in range(2))
    for client, hook in zip(clients, alone, strict=True):
        client.train(1, client.template, gradient=hook, num_steps=2)
    train_together(
        clients, [Request(1, c.template, gradient=hook, num_steps=2) for c, hook in zip(clients, together, strict=True)]
    )
    for hook in (*alone, *together):
        for first, second in zip(hook.first, hook.second, strict=True):
            assert error(first, second) < 1e-12
        assert error(hook.first[0], hook.first[1]) > 1e-3, "the next step has draws of its own"


@pytest.mark.parametrize("wishes", [OWN_WISHES, [{"penalty": square}] * 4, [{"trainable": "A"}] * 4, [{"num_steps": 2}] * 4])
def test_each_request_is_answered_as_its_client_would(wishes, bert, setting):
    clients = setting(bert).clients()
    alone = [c.train(1, c.template, **w) for c, w in zip(clients, wishes, strict=True)]
    together = train_together(clients, [Request(1, c.template, **w) for c, w in zip(clients, wishes, strict=True)])
    for one, other in zip(together, alone, strict=True):
        assert error(one.adapter, other.adapter) < EXACT
        assert (one.num_steps, one.learning_rate) == (other.num_steps, other.learning_rate)
        assert one.loss == pytest.approx(other.loss, rel=EXACT)
        assert error(one.optimizer_state, other.optimizer_state) < 1e-7


def test_the_model_is_left_as_it_was(bert, setting):
    clients = setting(bert).clients()
    model, before = clients[0].model, clients[0].template
    model.load(before)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    expected = model.module(**inputs).logits
    replaced = [name for name, layer in model.module.named_modules() if "forward" in vars(layer)]  # frozen products
    train_together(clients, [Request(0, c.template) for c in clients])
    model.load(before)
    assert torch.equal(model.module(**inputs).logits, expected)
    assert [name for name, layer in model.module.named_modules() if "forward" in vars(layer)] == replaced


def test_each_clipped_scales_only_what_is_too_large():
    grads = {"a": torch.tensor([[3.0, 0.0], [0.3, 0.0]]), "b": torch.tensor([[[4.0]], [[0.4]]])}
    found = each_clipped(grads, 1.0)
    torch.testing.assert_close(found["a"], torch.tensor([[0.6, 0.0], [0.3, 0.0]]))
    torch.testing.assert_close(found["b"], torch.tensor([[[0.8]], [[0.4]]]))


# --- logits of answers only ------------------------------------------------------------------------------------------


INSTRUCTION = Instruction()


@pytest.fixture
def answering(setting):
    """Clients that train on the last tokens of each text, from one token of each to all but one."""

    def build(family, loss=INSTRUCTION.loss, **options):
        clients = setting(replace(family, loss=loss), **options).clients()
        for c in clients:
            c.examples = [_labelled(example, 1 + i + c.peer.id) for i, example in enumerate(c.examples)]
        return SimpleNamespace(clients=lambda: clients)

    return build


def _labelled(example, answer):
    ids = example["input_ids"]
    prompt = max(len(ids) - answer, 1)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "token_labels": [IGNORED] * prompt + ids[prompt:]}


def from_all_logits(module, batch):
    """The loss of `Instruction`, with the logits of every position."""
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["token_labels"][:, 1:].flatten(), ignore_index=IGNORED)


class NormedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.decoder = nn.LayerNorm(16), nn.Linear(16, 40)

    def forward(self, hidden):
        return self.decoder(self.norm(hidden))


class ScaledHead(nn.Module):
    """A head with a tensor of its own around a module with others."""

    def __init__(self):
        super().__init__()
        self.scale, self.decoder = nn.Parameter(torch.ones(16)), nn.Linear(16, 3)

    def forward(self, hidden):
        return self.decoder(hidden * self.scale)


class BertWithScaledHead(BertForSequenceClassification):
    def __init__(self, config):
        super().__init__(config)
        self.classifier = ScaledHead()


class LlamaWithNormedHead(LlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.lm_head = NormedHead()

    def get_output_embeddings(self):
        return self.lm_head.decoder


def like_llama(kind):
    return kind(LlamaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24))


HEADS = {
    "frozen": {},
    "adapted": {"targets": ["q_proj", "lm_head"]},
    "trained": {"heads": ["lm_head"]},
    "trained inside another module": {"build": partial(like_llama, LlamaWithNormedHead), "heads": ["lm_head"]},
}


@pytest.mark.parametrize("head", HEADS)
def test_answers_train_as_they_do_alone_and_from_all_logits(head, llama, answering, passes, caplog):
    family = replace(llama, **HEADS[head])
    together = run(answering(family), "batched", rounds=2)
    assert_same(together, run(answering(family), "sequential", rounds=2))
    assert [sorted(ids) for ids in passes] == [[0, 1, 2, 3]] * 2
    assert "one after another" not in caplog.text
    assert_same(together, run(answering(family, from_all_logits), "sequential", rounds=2))


def test_endings_train_as_they_do_alone(llama, answering, passes):
    task, found = ChoiceByLikelihood(), {}
    for engine in ("batched", "sequential"):
        clients = answering(llama, task.loss)
        for c in clients.clients():
            c.examples = [_of_two(example, c.examples[0]) for example in c.examples]
            c.collate = partial(task.collate, pad_token_id=1)
        found[engine] = run(clients, engine, rounds=2)
    assert_same(found["batched"], found["sequential"])
    assert len(passes) == 2


def _of_two(*endings):
    return {name: [ending[name] for ending in endings] for name in endings[0]} | {"label": 0}


def test_a_joint_pass_computes_the_logits_of_answers_only(llama, answering):
    clients = answering(llama).clients()
    rows = []
    handle = clients[0].model.module.lm_head.register_forward_hook(lambda _, args, output: rows.append(output[..., 0].numel()))
    train_together(clients, [Request(0, c.template, num_steps=1) for c in clients])
    handle.remove()
    assert rows == [sum(int((next(c.batches(0))["token_labels"] != IGNORED).sum()) for c in clients)]


def test_a_client_without_answers_hurts_no_other(llama, answering):
    found = {}
    for engine in ("batched", "sequential"):
        clients = answering(llama)
        silent = clients.clients()[1]
        silent.examples = [_labelled(e, 0) for e in silent.examples]
        found[engine] = run(clients, engine, debug=False)
    assert_same(found["batched"], found["sequential"])
    assert [list(round.dropped) for round in found["batched"]] == [[1]] * 3


# --- faults ----------------------------------------------------------------------------------------------------------


def spoil(clients, k):
    """Client k's start is fine, but its loss is NaN."""
    original = clients[k].loss
    clients[k].loss = lambda module, batch: original(module, batch) * float("nan")


def refuse(clients, k):
    """Client k's loss raises."""

    def loss(module, batch):
        raise RuntimeError("no such column")

    clients[k].loss = loss


@pytest.mark.parametrize("fault", [spoil, refuse])
def test_a_clients_fault_names_it_and_hurts_no_other(fault, bert, setting, caplog):
    found = {}
    for engine in ("batched", "sequential"):
        clients = setting(bert).clients()
        fault(clients, 2)
        found[engine] = list(federate(get_method("flexlora"), clients, rounds=2, engine=engine))
    assert_same(found["batched"], found["sequential"])
    assert list(found["batched"][0].dropped) == [2]
    assert any(r.message.startswith("client 2 is left out of round 0: local update") for r in caplog.records)


def test_debug_raises_with_client_round_and_stage_and_leaves_no_thread(bert, setting):
    clients = setting(bert).clients()
    refuse(clients, 1)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="no such column") as caught:
        list(federate(get_method("flexlora"), clients, rounds=1, engine="batched", debug=True))
    assert caught.value.__notes__ == ["client 1, round 0, stage: local update"]
    assert threading.active_count() == before


def test_what_cannot_share_a_pass_trains_alone_and_is_said_once(caplog):
    rounds = [
        list(federate(get_method("fedavg"), toy_federation(), rounds=3, engine=e, debug=True))
        for e in ("batched", "sequential")
    ]
    assert error(rounds[0][-1].state, rounds[1][-1].state) == 0
    assert [r.message for r in caplog.records] == [
        "some clients train one after another: a ToyModel holds one adapter at a time"
    ]


def test_a_trained_module_inside_another_trains_alone(bert, setting, passes, caplog):
    build = lambda: BertWithScaledHead(BertConfig(**SMALL_BERT))  # noqa: E731
    nested = setting(replace(bert, build=build), sizes=(4, 4, 4, 4), training=Training(batch_size=4, learning_rate=0.005))
    assert_same(run(nested, "batched", rounds=1), run(nested, "sequential", rounds=1), 0)
    assert "a trained module with tensors of its own holds another" in caplog.text
    assert not passes


def test_inputs_that_do_not_join_train_alone(bert, setting, caplog):
    def loss(module, batch):
        return bert.loss(module, {n: v for n, v in batch.items() if n != "attention_mask"})

    blind = setting(replace(bert, loss=loss))
    assert_same(run(blind, "batched", rounds=1), run(blind, "sequential", rounds=1), 0)
    assert "no attention_mask that could hide their padding" in caplog.text


def test_a_method_may_ask_for_gradients_and_train_twice(bert, setting, passes):
    clients = setting(bert, ranks=(2, 2, 2, 2))
    assert_same(run(clients, "batched", "lora_a2", rounds=2), run(clients, "sequential", "lora_a2", rounds=2))
    assert len(passes) >= 4


# --- planning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "groups"),
    [
        ([(4, 0, 10), (4, 1, 10), (5, 2, 10)], [[0, 1, 2]]),
        ([(4, 0, 10), (4, 1, 10), (5, 2, 11)], [[0, 1], [2]]),
        ([(4, 3, 50), (4, 1, 10)], [[3], [1]]),
        ([], []),
    ],
)
def test_groups_stay_within_the_budget(sizes, groups):
    assert packed(sizes, 30) == groups


def test_no_batch_is_made_twice(bert, setting):
    def noted(collate, seen, examples):
        seen.append([e["input_ids"] for e in examples])
        return collate(examples)

    made = {"batched": [], "sequential": []}
    for engine, seen in made.items():
        clients = setting(bert).clients()
        for c in clients:
            c.collate = partial(noted, c.collate, seen)
        list(federate(get_method("flexlora"), clients, rounds=2, engine=engine, token_budget=30))
    assert sorted(made["batched"]) == sorted(made["sequential"])


def test_clients_of_like_length_share_a_pass(bert, setting):
    clients = setting(bert, sizes=(2, 2, 2, 2)).clients()
    asked = [(c, Request(0, c.template)) for c in clients]
    for c, size in zip(clients, (3, 9, 3, 9), strict=True):
        c.examples = [{**e, "input_ids": [5] * size, "attention_mask": [1] * size} for e in c.examples]
    assert Batched(40)._groups(asked) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(("budget", "engine"), [(None, "batched"), (8, "sequential")])
def test_auto_batches_where_two_clients_fit(budget, engine, bert, setting):
    assert choose("auto", setting(bert).clients(), budget).engine == engine


def test_a_model_is_asked_once_if_its_clients_can_share_a_pass(bert, setting, monkeypatch):
    """It looks at all of its layers to tell."""
    clients, asked = setting(bert).clients(), []
    (model,) = {c.model for c in clients}
    monkeypatch.setattr(model, "joint_refusal", lambda: asked.append(model))
    assert choose("auto", clients).engine == "batched"
    assert len(asked) == 1
    Batched()._groups([(c, Request(0, c.template)) for c in clients])
    assert len(asked) == 2


def test_auto_is_sequential_for_models_that_hold_one_adapter():
    assert choose("auto", toy_federation()).engine == "sequential"


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match="no engine is called 'quick'; there are auto, batched, sequential"):
        choose("quick", toy_federation())
    with pytest.raises(ValueError, match="token_budget must be 1 or more, got 0"):
        federate(FedAvg(), toy_federation(), rounds=1, token_budget=0)
