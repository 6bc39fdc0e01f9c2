"""Base deltas on the one shared base: versions, steps, orientations, and the two ways to apply them."""

import pytest
import torch
from torch import nn

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.methods._shared.qr import leading_qr
from fedelta.models.base_store import BaseStore
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tree import Adapter, BaseDelta

LAYER = "layer"


def term(rank: int, seed: int, shape: tuple[int, int] = (6, 5), scale: float = 0.5) -> LoRA:
    generator = torch.Generator().manual_seed(seed)
    return LoRA(torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator), scale)


@pytest.fixture
def layer() -> nn.Linear:
    return nn.Linear(5, 6)


@pytest.fixture(params=[False, True], ids=["weight", "hook"])
def store(request, layer) -> BaseStore:
    return BaseStore({LAYER: layer}, hook=request.param)


def shown(layer: nn.Linear) -> torch.Tensor:
    """The matrix that the layer applies, whichever way the delta is added."""
    with torch.no_grad():
        return (layer(torch.eye(5)) - layer.bias).T


def test_a_whole_sum_replaces_and_none_restores(store, layer):
    pristine, kept = shown(layer), layer.weight.clone()
    for version, x in ((1, term(2, 0)), (2, term(3, 1)), (7, torch.ones(6, 5))):
        store.apply(BaseDelta(version, {LAYER: [x]}))
        torch.testing.assert_close(shown(layer), pristine + tree.dense(x))
    store.apply(None)
    assert torch.equal(layer.weight, kept)
    assert torch.equal(shown(layer), pristine)


def test_steps_are_replayed_with_the_servers_bits(store):
    steps = [term(1, k) for k in range(6)]  # 6 components of 11 numbers exceed 30: the sum becomes dense on the way
    server = steps[0]
    store.apply(BaseDelta(1, {LAYER: [steps[0]]}))
    for version, step in enumerate(steps[1:], start=2):
        server = tree.add(server, step)
        store.apply(BaseDelta(version, {LAYER: [step]}, since=version - 1))
    assert isinstance(server, torch.Tensor)
    assert torch.equal(tree.dense(store.total[LAYER]), server)


def test_steps_that_are_held_already_are_skipped(store, layer):
    pristine, steps = shown(layer), [term(1, k) for k in range(3)]
    store.apply(BaseDelta(1, {LAYER: steps[:1]}))
    store.apply(BaseDelta(2, {LAYER: steps[1:2]}, since=1))
    store.apply(BaseDelta(3, {LAYER: steps[1:]}, since=1))
    torch.testing.assert_close(shown(layer), pristine + sum(s.dense() for s in steps))
    assert store.version == 3


def test_a_look_at_the_pristine_base_does_not_lose_the_history(store, layer):
    pristine, steps = shown(layer), [term(1, k) for k in range(2)]
    store.apply(BaseDelta(1, {LAYER: steps[:1]}))
    first = BaseDelta(1, {LAYER: steps[:1]})
    for base in (BaseDelta(0, {}), None):
        store.apply(base)
        assert torch.equal(shown(layer), pristine)
        store.apply(first)
        torch.testing.assert_close(shown(layer), pristine + steps[0].dense())
    store.apply(None)
    store.apply(BaseDelta(2, {LAYER: steps[1:]}, since=1))
    torch.testing.assert_close(shown(layer), pristine + sum(s.dense() for s in steps))


def test_the_pretrained_weight_can_be_read_whatever_is_shown(store, layer):
    pristine = layer.weight.detach().clone()
    for base in (None, BaseDelta(1, {LAYER: [term(2, 0)]}), BaseDelta(2, {LAYER: [term(2, 1)]}, since=1), None):
        store.apply(base)
        assert torch.equal(store.pristine(LAYER), pristine)
        assert not store.pristine(LAYER).requires_grad


def test_steps_from_a_version_that_is_not_held_are_refused(store):
    store.apply(BaseDelta(1, {LAYER: [term(1, 0)]}))
    with pytest.raises(ValueError, match="from version 3 to 4, but this model holds version 1; report base_version 0"):
        store.apply(BaseDelta(4, {LAYER: [term(1, 1)]}, since=3))
    store.apply(BaseDelta(9, {LAYER: [term(1, 0)]}))
    with pytest.raises(ValueError, match="holds version 9; report base_version 0"):
        store.apply(BaseDelta(4, {LAYER: [term(1, 1)]}, since=3))


def test_a_new_run_may_reuse_a_version_number(store, layer):
    pristine = shown(layer)
    for seed in (0, 1):
        store.apply(BaseDelta(1, {LAYER: [term(2, seed)]}))
        torch.testing.assert_close(shown(layer), pristine + term(2, seed).dense())


def test_a_layer_that_a_later_sum_lacks_is_restored(layer):
    other = nn.Linear(5, 6)
    kept = other.weight.clone()
    store = BaseStore({LAYER: layer, "other": other})
    store.apply(BaseDelta(1, {LAYER: [term(1, 0)], "other": [term(1, 1)]}))
    assert not torch.equal(other.weight, kept)
    store.apply(BaseDelta(2, {LAYER: [term(1, 0)]}))
    assert torch.equal(other.weight, kept)


def test_the_version_that_is_shown_costs_nothing(store, monkeypatch):
    base = BaseDelta(1, {LAYER: [term(2, 0)]})
    store.apply(base)
    for name in store._writers:
        monkeypatch.setitem(store._writers, name, lambda _: pytest.fail("written again"))
    store.apply(base)
    store.apply(BaseDelta(1, {LAYER: [term(2, 0)]}))  # the same values off the wire


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (BaseDelta(1, {"elsewhere": [term(1, 0)]}), "names layer 'elsewhere', which carries no adapter here"),
        (
            BaseDelta(1, {LAYER: [term(1, 0, shape=(5, 6))]}),
            r"'layer': the base delta has \(d_out, d_in\) = \(5, 6\), the layer",
        ),
    ],
)
def test_a_delta_that_does_not_fit_is_refused(store, base, message):
    with pytest.raises(ValueError, match=message):
        store.apply(base)


# --- in a model -------------------------------------------------------------------------------------------------------


def delta_like(adapter: Adapter, dense: bool = False) -> BaseDelta:
    generator = torch.Generator().manual_seed(7)
    terms = {n: 0.05 * torch.randn(x.shape, generator=generator) for n, x in adapter.layers.items()}
    return BaseDelta(1, {n: [t if dense else lr.from_dense(t)] for n, t in terms.items()})


@pytest.mark.parametrize("how", ["weight", "hook"])
@pytest.mark.parametrize("dense", [False, True])
def test_moving_the_adapter_into_the_base_keeps_the_forward(case, randomised, logits, ids, how, dense):
    """hetero-F5, hetero-FX3, hetero-G14: the base plus dW answers as the adapter dW did, on every kind of layer."""
    adapted = PeftAdaptedModel(case.model(), case.lora(), base_delta=how)
    adapter = randomised(adapted.initial(case.peer(3)))
    adapted.load(adapter)
    adapted.mode(None)
    expected = logits(adapted.module, ids)
    terms = {n: [x.dense() if dense else x] for n, x in adapter.layers.items()}
    empty = tree.map(lambda x: LoRA(torch.zeros_like(x.B), x.A, x.scale), adapter)
    adapted.load(empty)
    assert not torch.allclose(logits(adapted.module, ids), expected, atol=1e-3)
    adapted.load(empty, BaseDelta(1, terms))
    torch.testing.assert_close(logits(adapted.module, ids), expected, atol=1e-5, rtol=1e-5)


def test_slices_of_the_base_that_are_taken_off_it_keep_the_forward(case, logits, ids):
    """drift-IL1 on every kind of layer: what the base loses, an adapter cut from its own weights gives back."""
    adapted = PeftAdaptedModel(case.model().double(), case.lora())
    initial = adapted.initial(case.peer(3))
    adapted.load(initial)
    adapted.mode(None)
    expected = logits(adapted.module, ids)
    cut = {n: leading_qr(adapted.base_weight(n), x.rank) for n, x in initial.layers.items()}
    start = Adapter({n: LoRA(x.B, x.A, 0.5) for n, x in cut.items()}, initial.dense, initial.base)
    less = BaseDelta(2, {n: [LoRA(-x.B, x.A, x.scale)] for n, x in start.layers.items()})
    adapted.load(initial, less)
    assert not torch.allclose(logits(adapted.module, ids), expected, rtol=0, atol=1e-8)
    adapted.load(start, less)
    torch.testing.assert_close(logits(adapted.module, ids), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dense", [False, True])
def test_both_ways_agree_in_forward_and_gradient(case, randomised, ids, dense):
    results = []
    for how in ("weight", "hook"):
        adapted = PeftAdaptedModel(case.model().double(), case.lora(), base_delta=how)
        adapter = randomised(adapted.initial(case.peer(3)))
        adapted.load(adapter, delta_like(adapter, dense))
        adapted.mode(None)
        out = adapted.module(input_ids=ids).logits
        grads = torch.autograd.grad(out.square().sum(), list(tree.parameters(adapted.live()).values()))
        results.append([out.detach(), *grads])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5 * float(x.abs().max()), rtol=1e-5)


def test_unload_gives_back_the_pristine_weights(case):
    model = case.model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    adapted = PeftAdaptedModel(model, case.lora())
    initial = adapted.initial(case.peer(2))
    adapted.load(initial, delta_like(initial))
    adapted.unload()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name])


def test_a_quantised_weight_stays_as_it_is():
    """Packed weights are recognised by not being a plain matrix; the delta then goes through the forward pass."""

    class Packed(nn.Linear):
        """A layer whose weight is stored as integers, as quantised layers do."""

        def __init__(self) -> None:
            super().__init__(5, 6, bias=False)
            self.factor = 0.01
            self.weight = nn.Parameter(torch.randint(-100, 100, (30, 1), dtype=torch.int8), requires_grad=False)

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input @ (self.weight.reshape(6, 5) * self.factor).T

    layer = Packed()
    before, pristine = layer.weight.clone(), layer(torch.eye(5)).T
    store = BaseStore({LAYER: layer})
    store.apply(BaseDelta(1, {LAYER: [term(2, 0)]}))
    torch.testing.assert_close(layer(torch.eye(5)).T, pristine + term(2, 0).dense())
    assert torch.equal(layer.weight, before)
    with pytest.raises(ValueError, match=r"'layer': its weight is quantised or packed"):
        store.pristine(LAYER)


def test_a_half_precision_weight_is_summed_wide(layer):
    """The sum is rounded once: adding a hundred small steps to a bfloat16 weight one by one would lose them."""
    layer.to(torch.bfloat16)
    pristine, small = layer.weight.float(), LoRA(torch.full((6, 1), 1e-4), torch.ones(1, 5))
    store = BaseStore({LAYER: layer})
    store.apply(BaseDelta(1, {LAYER: [small]}))
    for version in range(2, 101):
        store.apply(BaseDelta(version, {LAYER: [small]}, since=version - 1))
    assert torch.equal(layer.weight, (pristine + tree.dense(store.total[LAYER])).to(torch.bfloat16))
    torch.testing.assert_close(layer.weight.float(), pristine + 0.01, atol=2e-3, rtol=1e-2)
