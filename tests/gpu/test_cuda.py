"""What has to hold on a CUDA device: the numbers of a CPU, of the sequential engine and of full passes, within memory."""

import pytest
import torch
from peft import LoraConfig

import fedelta
from fedelta import tree
from fedelta.client import Request, Training
from fedelta.engines.runners._joint import train_together
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.methods import get_method, method_class
from fedelta.models.clients import clients_on
from fedelta.optim import SGD, AdamW
from fedelta.tasks import Classification, Instruction
from fedelta.tree import Adapter

pytestmark = pytest.mark.gpu

HYPER = {"replication": {"low_rank": 1}}
FAMILIES = ["bert", "llama"]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
ONCE = ["fedavg", "zeropad", "flexlora", "flora", "fedex_lora", "raflora", "florist"]


def run(clients, engine, method="flexlora", rounds=3):
    score = lambda adapter, base: {"loss": sum(float(x.B.norm()) for x in adapter.layers.values())}  # noqa: E731
    given = {"rounds": rounds, "engine": engine, "debug": True, "score": score}
    return list(federate(get_method(method, **HYPER.get(method, {})), clients, **given))


def error(found, expected):
    """The largest relative difference of any tensor, by its norm."""
    pairs = list(zip(tree.named_tensors(found), tree.named_tensors(expected), strict=True))
    gaps = [float((x.cpu() - y.cpu()).norm() / y.norm().clamp(min=1e-12)) for (_, x), (_, y) in pairs if x.is_floating_point()]
    return max(gaps, default=0.0)


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        for u, v in zip(one.updates, other.updates, strict=True):
            assert u.metrics == pytest.approx(v.metrics, rel=tolerance)
            assert error(u.content, v.content) <= tolerance
    assert error(found[-1].state, expected[-1].state) <= tolerance


def no_client_trains_alone(caplog):
    return "one after another" not in caplog.text


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cohort_trains_as_its_clients_do_alone(family, dtype, dropout, device, make_clients, caplog):
    steady = AdamW(eps=1e-3)  # of a gradient that is all but zero AdamW would make a step as large as any, by its rounding
    given = {"lora": {"lora_dropout": dropout}, "training": Training(batch_size=2, learning_rate=0.005, optimizer=steady)}
    found, expected = (run(make_clients(family, device, dtype, **given), engine) for engine in ("batched", "sequential"))
    assert_same(found, expected, TOLERANCE[dtype])
    assert no_client_trains_alone(caplog)


@pytest.mark.parametrize("method", fedelta.list_methods())
def test_every_method_gives_the_numbers_of_a_cpu(method, device, make_clients):
    ranks = (2, 4, 1, 3) if method_class(method).hetero_rank else (2, 2, 2, 2)
    there = run(make_clients("bert", device, torch.float64, ranks=ranks), "batched", method, rounds=2)
    here = run(make_clients("bert", "cpu", torch.float64, ranks=ranks), "sequential", method, rounds=2)
    assert_same(there, here, 1e-8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bfloat16_base_agrees_to_its_precision(family, device, make_clients, caplog):
    training = Training(batch_size=2, learning_rate=1.0, local_steps=1, optimizer=SGD())  # a step is the gradient
    one, other = (
        run(make_clients(family, device, torch.bfloat16, training=training), engine, "flora", rounds=1)[0].updates
        for engine in ("batched", "sequential")
    )
    for u, v in zip(one, other, strict=True):
        assert u.metrics["loss"] == pytest.approx(v.metrics["loss"], rel=2e-2)
        assert error(u.content, v.content) < 5e-2
    assert no_client_trains_alone(caplog)


@pytest.mark.parametrize("where", ["weight", "hook"])
@pytest.mark.parametrize("method", ["flora", "fedex_lora"])
def test_a_moving_base_is_followed(method, where, device, make_clients):
    made = [make_clients("bert", device, torch.float64, ranks=(2,) * 4, lora={"base_delta": where}) for _ in range(2)]
    assert_same(run(made[0], "batched", method), run(made[1], "sequential", method), 1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_compact_passes_train_as_full_ones_do(family, device, make_clients):
    one, other = (
        run(make_clients(family, device, torch.float64, lora={"compact": compact}), "batched") for compact in (True, False)
    )
    assert_same(one, other, 1e-9)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_layers_draw_the_same_dropout_twice(family, device, make_clients):
    """The way back runs in a thread of its own here. The kinds of passes are alike: neither is compact."""
    found = []
    for checkpointed in (True, False):
        clients = make_clients(family, device, torch.float64, lora={"lora_dropout": 0.3, "compact": False})
        if checkpointed:
            clients[0].model.module.gradient_checkpointing_enable()
        found.append(run(clients, "batched"))
    assert_same(*found, 1e-9)


# --- steps and batches -----------------------------------------------------------------------------------------------


def test_a_fused_step_is_that_of_a_cpu(device):
    optimizer, found = AdamW(weight_decay=0.1), {}
    for place in ("cpu", device):
        draw = torch.Generator().manual_seed(0)
        params = {"w": torch.randn(4, 30, 20, generator=draw).to(place)}
        state = optimizer.init(params)
        for _ in range(5):
            optimizer.update(params, {"w": torch.randn(4, 30, 20, generator=draw).to(place)}, state, 0.01)
        found[str(place)] = params["w"].cpu()
    torch.testing.assert_close(found["cuda"], found["cpu"], rtol=1e-5, atol=1e-7)


def test_batches_arrive_as_they_were_made(device, make_clients):
    there, here = (make_clients("bert", place)[2].batches(0) for place in (device, "cpu"))
    for _ in range(6):
        one, other = next(there), next(here)
        assert {x.device.type for x in one.values()} == {"cuda"}
        assert all(torch.equal(one[name].cpu(), other[name]) for name in other)


def test_a_result_is_on_the_cpu(device, make_clients):
    (client, *_) = make_clients("bert", device)
    result = client.train(0, client.template, optimizer=AdamW())
    places = {x.device.type for _, x in tree.named_tensors(result.adapter)}
    places |= {x.device.type for slot in result.optimizer_state.values() for x in slot.values()}
    assert places == {"cpu"}


# --- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_planned_pass_fits(family, device, make_model):
    sizes = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
    model = make_model(family, device, torch.float32, **sizes)
    free, _ = torch.cuda.mem_get_info(device)
    clients = crowd(model, family, model.pass_tokens())
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    answers = train_together(clients, [Request(0, c.template) for c in clients])
    used = torch.cuda.max_memory_allocated(device) - before
    assert not any(isinstance(answer, Exception) for answer in answers)
    assert 0.05 * free < used < 0.9 * free


def crowd(model, family, budget, count=8, length=128):
    """Clients whose batches together are a pass of this many tokens."""
    rows = budget // (count * length)
    labels = {"label": 0} if family == "bert" else {"token_labels": [-100] * (length - 8) + [5] * 8}
    row = {"input_ids": [5] * length, "attention_mask": [1] * length, **labels}
    task = Classification(labels=(0, 1, 2)) if family == "bert" else Instruction()
    training = Training(batch_size=rows, local_steps=1)
    clients = clients_on(model, task, [[row] * rows] * count, LoraConfig(lora_alpha=8), [4] * count, training)
    assert budget // 2 < sum(model.tokens(c.first_batch(0)) for c in clients) <= budget
    return clients


# --- aggregation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ONCE)
def test_an_aggregation_on_the_device_is_that_of_a_cpu(method, device):
    draw = torch.Generator().manual_seed(0)
    random = lambda *shape: torch.randn(*shape, generator=draw)  # noqa: E731
    given = [Adapter({n: LoRA(random(64, 4), random(4, 48), 2.0) for n in ("a", "b")}, {"head": random(3)}) for _ in range(3)]
    here = fedelta.aggregate(given, method=method)
    there = fedelta.aggregate([tree.map_tensors(lambda x: x.to(device), a) for a in given], method=method)
    for one, other in zip(there, here, strict=True):
        assert {x.device.type for _, x in tree.named_tensors(one)} == {"cuda"}
        for name, x in other.layers.items():
            torch.testing.assert_close(one.layers[name].dense().cpu(), x.dense(), rtol=1e-5, atol=1e-5)
