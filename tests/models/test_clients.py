"""Clients on a Hugging Face model: the same numbers as a bare PEFT loop, one model and one start for all."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional as F

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.adapter_files import save_adapter
from fedelta.models.clients import hf_clients
from fedelta.models.export import merge_into
from fedelta.models.toy import toy_federation
from fedelta.tasks import Classification, MultipleChoice

ROWS = [{"text": f"{k % 7} {chr(97 + k % 5)} " * (1 + k % 3), "label": "xyz"[k % 3]} for k in range(20)]
SETTINGS = {"batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture
def make(linear, tokenizer):
    def build(parts=(ROWS,), ranks=4, **settings):
        lora = linear.lora(**settings.pop("lora", {}))
        return hf_clients(linear.model(), tokenizer, list(parts), lora, ranks, device="cpu", **{**SETTINGS, **settings})

    return build


@pytest.mark.parametrize("max_grad_norm", [None, 0.05])
def test_training_equals_a_bare_peft_loop(linear, make, max_grad_norm):
    client = make(local_steps=12, max_grad_norm=max_grad_norm, lora={"use_rslora": True})[0]
    result = client.train(3, client.template)

    model = get_peft_model(linear.model(), linear.lora(use_rslora=True))
    layers = {n: model.get_base_model().get_submodule(n) for n in client.template.layers}
    with torch.no_grad():
        for name, layer in layers.items():
            layer.lora_A["default"].weight.copy_(client.template.layers[name].A)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    model.eval()
    batches, losses = client.batches(3), []
    for _ in range(12):
        batch = next(batches)
        loss = F.cross_entropy(model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        losses.append(loss.item())

    assert result.num_steps == 12
    assert result.loss == pytest.approx(sum(losses) / 12, abs=1e-6)
    for name, layer in layers.items():
        x = result.adapter.layers[name]
        assert x.scale == layer.scaling["default"]
        torch.testing.assert_close(x.A, layer.lora_A["default"].weight.detach(), atol=1e-6, rtol=0)
        torch.testing.assert_close(x.B, layer.lora_B["default"].weight.detach(), atol=1e-6, rtol=0)
    head = model.get_base_model().classifier.modules_to_save["default"].weight.detach()
    torch.testing.assert_close(result.adapter.dense["classifier.weight"], head, atol=1e-6, rtol=0)


class _Elsewhere:
    """A hook that asks for gradients at an offset, keeps what it is given, and goes on with the gradients there."""

    def __init__(self, offset):
        self.asked, self.seen, self._offset = [], [], offset

    def offset(self, gradients, parameters, step):
        self.asked.append((step, gradients, {n: x.detach().clone() for n, x in parameters.items()}))
        return self._offset(gradients, step)

    def __call__(self, gradients, parameters, step):
        self.seen.append((step, gradients, {n: x.detach().clone() for n, x in parameters.items()}))
        return gradients


def test_a_hook_gets_the_gradients_where_it_asks_for_them_on_the_same_batch():
    client = toy_federation((3,))[0]
    hook = _Elsewhere(lambda grads, step: {n: 0.1 * g for n, g in grads.items()} if step != 2 else None)
    client.train(0, client.template, gradient=hook)
    batches = client.batches(0)
    for (step, first, x), (again, second, y) in zip(hook.asked, hook.seen, strict=True):
        assert step == again
        assert all(torch.equal(x[n], y[n]) for n in x), "the parameters are put back to the bit"
        at = {n: x[n] + 0.1 * g for n, g in first.items()} if step != 2 else x
        client.model.load(tree.with_parameters(client.template, at))
        leaves = tree.parameters(client.model.live())
        for p in leaves.values():
            p.requires_grad_()
        expected = torch.autograd.grad(client.loss(client.model.module, next(batches)), list(leaves.values()))
        for n, g in zip(leaves, expected, strict=True):
            torch.testing.assert_close(second[n], g, rtol=1e-12, atol=1e-14)


def test_a_hook_that_asks_for_nothing_changes_no_bit():
    results = []
    for hook in (None, _Elsewhere(lambda grads, step: None), lambda grads, params, step: grads):
        client = toy_federation((3,))[0]
        results.append(tree.parameters(client.train(0, client.template, gradient=hook).adapter))
    assert all(torch.equal(x, result[n]) for result in results[1:] for n, x in results[0].items())


@pytest.mark.parametrize("offset", [{"nothing": torch.zeros(2)}, {"bias": torch.zeros(2)}])
def test_an_offset_that_does_not_fit_is_refused_before_anything_is_moved(offset):
    client = toy_federation((3,))[0]
    hook = _Elsewhere(lambda grads, step: {"hidden.lora_A": torch.ones_like(grads["hidden.lora_A"]), **offset})
    with pytest.raises(ValueError, match=f"an offset is asked for at '{next(iter(offset))}'.*by the names, and of the shapes"):
        client.train(0, client.template, gradient=hook)
    assert torch.equal(client.model.live().layers["hidden"].A, client.template.layers["hidden"].A)


def test_clients_share_one_model_and_one_start(make):
    clients = make([ROWS[:4], ROWS[4:9], ROWS[9:]], [2, 8, 4])
    assert len({id(c.model) for c in clients}) == 1
    assert [(c.peer.id, c.peer.rank, c.peer.num_examples) for c in clients] == [(0, 2, 4), (1, 8, 5), (2, 4, 11)]
    for name, widest in clients[1].template.layers.items():
        for c in clients:
            x = c.template.layers[name]
            assert (x.rank, x.scale) == (c.peer.rank, 16 / c.peer.rank)
            assert torch.equal(x.A, widest.A[: x.rank])


def test_who_trained_before_does_not_matter(make):
    """One model in memory serves clients of unequal ranks, with dropout, in any order."""
    clients = make([ROWS[:8], ROWS[8:]], [2, 5], local_steps=3, lora={"lora_dropout": 0.3})
    forward = [c.train(1, c.template).adapter for c in clients]
    backward = [c.train(1, c.template).adapter for c in reversed(clients)][::-1]
    for one, other in zip(forward, backward, strict=True):
        for name, value in tree.parameters(one).items():
            assert torch.equal(value, tree.parameters(other)[name])


def test_labels_are_read_from_all_clients_and_patterns_reach_the_peers(make):
    clients = make([ROWS[:1], ROWS[1:3]], lora={"rank_pattern": {"query": 3}, "alpha_pattern": {"query": 5}})
    assert [e["label"] for c in clients for e in c.examples] == [0, 1, 2]
    layer = "bert.encoder.layer.0.attention.self.query"
    assert clients[0].peer.rank_of(layer) == 3
    assert clients[0].template.layers[layer].scale == 5 / 3


def test_a_hugging_face_dataset_will_do(make):
    datasets = pytest.importorskip("datasets")
    listed, loaded = make([ROWS])[0], make([datasets.Dataset.from_list(ROWS)])[0]
    assert listed.examples == loaded.examples


def test_a_head_that_peft_does_not_know_trains_too(choice_model, linear, tokenizer):
    rows = [{"context": "1 2", "choices": ["a", "b", "c"], "label": k % 3} for k in range(6)]
    lora = linear.lora(task_type=None)
    client = hf_clients(choice_model, tokenizer, [rows], lora, 2, task=MultipleChoice(), device="cpu", **SETTINGS)[0]
    trained = client.train(0, client.template, num_steps=2).adapter
    assert sorted(trained.dense) == ["classifier.bias", "classifier.weight"]
    assert not torch.equal(trained.dense["classifier.weight"], client.template.dense["classifier.weight"])


def test_a_causal_model_without_a_padding_token(conv1d, tokenizer):
    tokenizer.pad_token = None
    rows = [{"instruction": "1 2 3", "response": "a b"}, {"instruction": "4", "response": "c"}]
    client = hf_clients(conv1d.model(), tokenizer, [rows], conv1d.lora(), 2, task="instruction", device="cpu", **SETTINGS)[0]
    assert client.model.module.config.pad_token_id == tokenizer.eos_token_id
    assert client.train(0, client.template, num_steps=1).num_steps == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parts": []}, "no data sets: give one for each client"),
        ({"ranks": [2, 4]}, "2 ranks for 1 data sets"),
        ({"ranks": 0}, "ranks must be at least 1"),
        ({"ranks": True}, r"ranks must be at least 1, and whole, got \[True\]"),
        ({"ranks": [2.5]}, r"ranks must be at least 1, and whole, got \[2.5\]"),
        ({"learning_rat": 1.0}, "no training setting is called 'learning_rat'; did you mean 'learning_rate'"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"local_steps": 10**30}, r"local_steps must be 1e\+12 or less"),
        ({"optimizer": "adamw"}, "optimizer must be an optimizer such as AdamW\\(\\), got 'adamw'"),
        ({"local_steps": 2.5}, "local_steps must be a whole number, got 2.5"),
        ({"local_epochs": None}, "local_epochs must be a whole number, got None"),
        ({"batch_size": True}, "batch_size must be a whole number, got True"),
        ({"learning_rate": True}, "learning_rate must be a number, got True"),
        ({"learning_rate": "0.1"}, "learning_rate must be a number, got '0.1'"),
        ({"learning_rate": float("inf")}, "learning_rate must be a finite number, got inf"),
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"parts": ROWS}, "the data set of client 0 holds 'text', not rows with fields by name"),
        ({"parts": [[{"txt": "1", "label": k} for k in "xyz"]]}, "text"),
        ({"parts": [ROWS[:2]]}, "the task has 2 labels, the model 3 outputs; load the model with num_labels=2"),
    ],
)
def test_wrong_arguments_are_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_cut_and_empty_texts_of_all_clients_are_counted_once(make, caplog):
    cut = {"text": " ".join(["1"] * 40), "label": "x"}
    make([ROWS[:3], [cut, cut], [cut]], task=Classification(labels=("x", "y", "z"), max_length=30))
    assert caplog.messages == ["data sets: 3 of 6 rows are cut to task.max_length = 30 tokens"]


def test_a_loaded_model_needs_its_tokenizer(linear):
    with pytest.raises(ValueError, match="a loaded model needs its tokenizer"):
        hf_clients(linear.model(), None, [ROWS], linear.lora(), 4)


@pytest.mark.parametrize("method", ["flexlora", "zeropad", "flora", "fedex_lora", "svd_redistribution"])
def test_a_federation_ends_in_a_model_that_peft_and_transformers_load(make, linear, logits, ids, tmp_path, method):
    """After rounds with unequal ranks, a base that moved, and a client that sat out: live, folder and merged model agree."""
    ranks = 3 if method in ("fedex_lora", "svd_redistribution") else [1, 3, 4]
    clients = make([ROWS[:6], ROWS[6:12], ROWS[12:]], ranks, local_steps=2)
    cohorts = {0: [0, 1, 2], 1: [0, 2], 2: [1, 2]}
    rule = get_method(method)
    *_, last = federate(rule, clients, rounds=3, cohort=lambda t, peers, seed: cohorts[t], debug=True)
    deployed = last.global_model()
    adapter, base = deployed["adapter"], deployed.get("base")
    assert (base is not None) == (method in ("flora", "fedex_lora"))
    model = clients[0].model
    model.load(adapter, base)
    model.mode(None)
    expected = logits(model.module, ids)
    save_adapter(tree.effective(adapter, base), tmp_path / "peft", like=model.layout)
    theirs = PeftModel.from_pretrained(linear.model(), tmp_path / "peft").eval()
    torch.testing.assert_close(logits(theirs, ids), expected, atol=2e-6, rtol=0)
    torch.testing.assert_close(logits(merge_into(linear.model(), adapter, base), ids), expected, atol=2e-6, rtol=0)
    assert not torch.allclose(expected, logits(linear.model(), ids), atol=1e-3)


def test_minilm_by_name(minilm, linear):
    """The packaged encoder is found by its alias, gets a head for the labels, and its loss falls."""
    lora = linear.lora(target_modules=["query", "value"])
    settings = {"batch_size": 8, "learning_rate": 3e-3, "device": "cpu"}
    clients = hf_clients("minilm", None, [ROWS, ROWS[:5]], lora, [2, 4], **settings)
    client = clients[0]
    assert client.template.dense["classifier.weight"].shape == (3, 384)
    again = hf_clients("minilm", None, [ROWS], lora, 2, **settings)[0]
    assert torch.equal(again.template.dense["classifier.weight"], client.template.dense["classifier.weight"])
    assert again.template.base == client.template.base
    assert client.train(0, client.template, num_steps=12).loss < client.train(0, client.template, num_steps=1).loss


def test_a_client_says_what_the_folder_of_its_adapter_needs(make, tmp_path):
    client = make()[0]
    save_adapter(client.template, tmp_path / "client", like=client)
    save_adapter(client.template, tmp_path / "layout", like=client.model.layout)
    written = [(tmp_path / name / "adapter_config.json").read_text() for name in ("client", "layout")]
    assert written[0] == written[1]
    assert '"modules_to_save": [\n    "classifier"\n  ]' in written[0]


def test_a_client_without_a_model_of_peft_is_refused_as_a_layout(tmp_path):
    client = toy_federation((2,))[0]
    with pytest.raises(TypeError, match=r"client 0 has a ToyModel, not a model of PEFT; give a LoraConfig"):
        save_adapter(client.template, tmp_path / "out", like=client)


def test_one_scale_serves_every_rank(make, linear, tmp_path):
    parts, ranks = [ROWS[:8], ROWS[8:16], ROWS[4:12]], [1, 2, 4]
    clients = make(parts, ranks, scale=2.0, lora={"rank_pattern": {"query": 3}})
    done = list(federate(get_method("flexlora"), clients, rounds=2))[-1]

    for client in clients:
        assert {x.scale for x in client.template.layers.values()} == {2.0}
        assert {client.peer.scale_of(name, r) for name in client.template.layers for r in (1, 2, 7)} == {2.0}
    assert {x.scale for update in done.updates for x in update.content["adapter"].layers.values()} == {2.0}
    save_adapter(done.participant_model(clients[0].peer)["adapter"], tmp_path, like=clients[0])
    saved = PeftModel.from_pretrained(linear.model(), tmp_path)
    assert {m.scaling["default"] for m in saved.modules() if hasattr(m, "lora_A")} == {2.0}


def test_one_scale_equals_the_lora_alpha_that_gives_it(make):
    by_alpha = make([ROWS, ROWS], 8, lora={"lora_alpha": 16})
    by_scale = make([ROWS, ROWS], 8, scale=2.0)
    first, second = (list(federate(get_method("fedavg"), clients, rounds=2))[-1].state for clients in (by_alpha, by_scale))
    for name, value in tree.parameters(first["adapter"]).items():
        assert torch.equal(value, tree.parameters(second["adapter"])[name])


@pytest.mark.parametrize("lora", [{"use_rslora": True}, {"alpha_pattern": {"query": 4}}])
def test_one_scale_beside_another_rule_is_refused(make, lora):
    with pytest.raises(ValueError, match="scale is one for every layer and rank"):
        make(scale=2.0, lora=lora)
