"""`check_aggregator`: a battery against dense float64 for any function that aggregates PEFT state dicts, whoever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.testing.reports import ConformanceError, Law, Report, Violation, examine, law
from fedelta.testing.scene import relative

StateDict: TypeAlias = Mapping[str, Tensor]
"""As in adapter_model.safetensors: `base_model.model.<layer>.lora_A.weight` (r, i) and `.lora_B.weight` (o, r)."""

Aggregator: TypeAlias = Callable[[list[dict[str, Tensor]], list[float], list[int], list[float]], Any]
"""(state dicts, values of lora_alpha, ranks, weights) -> one state dict for all, or a list with one for each client."""

SHAPES = {"encoder.query": (7, 4), "encoder.value": (6, 6), "encoder.dense": (5, 9)}
"""(o, i): one width equals a rank, one layer is square, so that no axis can be guessed by its size."""

TOLERANCE = 1e-6
"""Relative error that is round-off: foreign code may work in float32."""

Deltas: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Battery:
    """A function and what is expected of it.

    Attributes:
        fn: the function.
        exact: whether the mean of the deltas is expected, or that of the factors.
        hetero_ranks: whether it takes unequal ranks.
        scale: (lora_alpha, rank) -> s in dW = s B A.
        seed: of the inputs.
    """

    fn: Aggregator
    exact: bool
    hetero_ranks: bool
    scale: Callable[[float, int], float]
    seed: int

    def draw(self, ranks: Sequence[int], alphas: Sequence[float], dtype: torch.dtype = torch.float64) -> Inputs:
        """Random clients with unequal weights."""
        generator = torch.Generator().manual_seed(self.seed)

        def factor(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        def client(r: int) -> dict[str, LoRA]:
            return {n: LoRA(factor(o, r), factor(r, i)) for n, (o, i) in SHAPES.items()}

        layers = [client(r) for r in ranks]
        weights = torch.arange(1, len(ranks) + 1, dtype=torch.float64)
        return Inputs([_write(x) for x in layers], list(alphas), list(ranks), (weights / weights.sum()).tolist())

    def call(self, x: Inputs) -> list[dict[str, Tensor]]:
        """One result for each client; a single one is everybody's."""
        result = self.fn([dict(s) for s in x.states], list(x.alphas), list(x.ranks), list(x.weights))
        results: list[dict[str, Tensor]] = [dict(result)] * len(x.states) if isinstance(result, Mapping) else list(result)
        if len(results) != len(x.states):
            raise Violation(
                f"{len(results)} results for {len(x.states)} clients: return one state dict, or one for each client"
            )
        for found, sent in zip(results, x.states, strict=True):
            _demand_layout(found, sent)
        return results

    def deltas(self, state: StateDict, lora_alpha: float) -> Deltas:
        """dW by layer, (o, i) in float64, with the scale that PEFT would apply to a state dict of this rank."""
        read = _read(state)
        return {n: self.scale(lora_alpha, x.rank) * x.to(torch.float64).dense() for n, x in read.items()}


@dataclass(frozen=True)
class Inputs:
    """The arguments of an aggregator."""

    states: list[dict[str, Tensor]]
    alphas: list[float]
    ranks: list[int]
    weights: list[float]


def check_aggregator(
    fn: Aggregator,
    *,
    exact: bool = True,
    hetero_ranks: bool = False,
    scale: Callable[[float, int], float] = lambda lora_alpha, rank: lora_alpha / rank,
    seed: int = 0,
    raise_on_failure: bool = True,
) -> Report:
    """Tries an aggregation function on small random adapters and compares with dense computations in float64.

    Args:
        fn: called with lists of state dicts, of lora_alpha, of ranks and of weights that sum to one. It returns one state dict,
            which every client is taken to apply with its own lora_alpha, or a list with one for each client.
        exact: the result should be the mean of the deltas, or its best approximation at the rank of the result; False asks
            for the product of the means of the factors.
        hetero_ranks: whether unequal ranks are tried.
        scale: the convention; lora_alpha / sqrt(rank) for rsLoRA.
        seed: of the inputs.
        raise_on_failure: whether a broken law raises.

    Raises:
        ConformanceError: if a law is broken; the report says which, and by how much.
    """
    report = examine(getattr(fn, "__name__", repr(fn)), Battery(fn, exact, hetero_ranks, scale, seed), AGGREGATOR_LAWS, {})
    if raise_on_failure and not report.ok:
        raise ConformanceError(report)
    return report


# --- laws ----------------------------------------------------------------------------------------------------------------


@law("layout", first=True)
def layout(battery: Battery) -> None:
    """The results have the layers and keys of the inputs: A is (r, i), B is (o, r)."""
    battery.call(battery.draw((3, 3, 3), (6.0, 6.0, 6.0)))


@law("inputs unchanged", first=True)
def inputs_unchanged(battery: Battery) -> None:
    """The function writes into none of its arguments."""
    x, same = (battery.draw((3, 3, 3), (6.0, 6.0, 6.0)) for _ in range(2))
    battery.call(x)
    for k, (now, before) in enumerate(zip(x.states, same.states, strict=True)):
        changed = [n for n in before if not torch.equal(now[n], before[n])]
        if changed:
            raise Violation(
                f"{changed[0]} of client {k} is another after the call, relative change {_gap(now, before, changed[0])}"
            )


@law("dtype")
def dtype(battery: Battery) -> None:
    """Results have the dtype of the inputs: bfloat16, float32 or float64."""
    for kind in (torch.bfloat16, torch.float32, torch.float64):
        for key, value in battery.call(battery.draw((3, 3, 3), (6.0, 6.0, 6.0), kind))[0].items():
            if value.dtype != kind:
                raise Violation(f"{key} is {value.dtype} where the inputs are {kind}")


@law("one client")
def one_client(battery: Battery) -> None:
    """A client alone gets its own delta back."""
    for rank, lora_alpha in ((2, 2.0), (2, 16.0), (3, 16.0)):
        x = battery.draw((rank,), (lora_alpha,))
        _demand(battery, battery.call(x)[0], lora_alpha, battery.deltas(x.states[0], lora_alpha), f"one client of rank {rank}")


@law("identical copies")
def identical_copies(battery: Battery) -> None:
    """Clients that send the same get the same back, whatever their weights."""
    one = battery.draw((3,), (6.0,))
    x = Inputs(one.states * 3, [6.0] * 3, [3] * 3, [0.5, 0.3, 0.2])
    _demand(battery, battery.call(x)[2], 6.0, battery.deltas(one.states[0], 6.0), "three identical clients")


@law("order-free")
def order_free(battery: Battery) -> None:
    """The order of the clients does not matter."""
    x = battery.draw((3, 3, 3), (6.0, 6.0, 6.0))
    back = Inputs(x.states[::-1], x.alphas[::-1], x.ranks[::-1], x.weights[::-1])
    expected = battery.deltas(battery.call(x)[0], 6.0)
    _demand(battery, battery.call(back)[-1], 6.0, expected, "the clients in the opposite order")


@law("weights")
def weights(battery: Battery) -> None:
    """Weights matter, and only their proportions."""
    x = battery.draw((3, 3, 3), (6.0, 6.0, 6.0))
    found = battery.deltas(battery.call(x)[0], 6.0)
    uniform = battery.deltas(battery.call(Inputs(x.states, x.alphas, x.ranks, [1 / 3] * 3))[0], 6.0)
    if all(relative(found[n], uniform[n]) < TOLERANCE for n in found):
        raise Violation("weights (1, 2, 3) / 6 and equal weights give the same result: the weights are not used")
    tenfold = Inputs(x.states, x.alphas, x.ranks, [10 * w for w in x.weights])
    _demand(battery, battery.call(tenfold)[0], 6.0, found, "all weights ten times as large, which sum to 10")


@law("mean")
def mean(battery: Battery) -> None:
    """At equal ranks and scales the result is the mean that is claimed: of deltas, as its rank can hold it, or of factors."""
    x = battery.draw((3, 3, 3), (6.0, 6.0, 6.0))
    result = battery.call(x)[0]
    found = battery.deltas(result, 6.0)
    expected = _expected(battery, x, {n: y.rank for n, y in _read(result).items()})
    worst = max(expected, key=lambda n: relative(found[n], expected[n]))
    error = relative(found[worst], expected[worst])
    if error > TOLERANCE:
        raise Violation(f"{_diagnosis(battery, x, found)}: layer {worst!r} has relative error {error:.3g}")


@law("scale")
def scale(battery: Battery) -> None:
    """Clients that send one delta under unequal lora_alpha all get it back, each under its own."""
    one, alphas = battery.draw((3,), (6.0,)), [6.0, 12.0, 24.0]
    expected = battery.deltas(one.states[0], 6.0)
    x = Inputs([_rescaled(one.states[0], 6.0 / a) for a in alphas], alphas, [3] * 3, [0.5, 0.3, 0.2])
    results = battery.call(x)
    single = all(r is results[0] for r in results)
    for k in range(1 if single else 3):
        _demand(
            battery, results[k], alphas[k], expected, f"one delta under lora_alpha {alphas}, as client {k} applies the result"
        )


@law("first round")
def first_round(battery: Battery) -> None:
    """Before anybody has trained, with B zero, rows of the common A that come back have the size that they had."""
    one, alphas = battery.draw((4,), (8.0,)), [8.0, 16.0, 32.0]
    start = {n: torch.zeros_like(x) if ".lora_B." in n else x for n, x in one.states[0].items()}
    for ranks in ([4, 4, 4], [2, 4, 3]) if battery.hetero_ranks else ([4, 4, 4],):
        states = [{n: x[:, :r] if ".lora_B." in n else x[:r] for n, x in start.items()} for r in ranks]
        results = battery.call(Inputs(states, alphas, ranks, [0.5, 0.3, 0.2]))
        for k, (result, sent) in enumerate(zip(results, states, strict=True)):
            for name in SHAPES:
                times = _times(result[_key(name, "A")], sent[_key(name, "A")])
                if times is not None and abs(times - 1) > TOLERANCE:
                    raise Violation(
                        f"A of layer {name!r} reaches client {k} of ranks {ranks} as {times:.4g} times the common one; no "
                        "delta shows it while B is zero, but all later steps do: put the ratio of scales on B"
                    )


def _times(found: Tensor, sent: Tensor) -> float | None:
    """Returns how many times as large a factor came back; None if it is zero, or no multiple of what was sent."""
    if found.shape != sent.shape:
        return None
    ratio = float((found * sent).sum() / sent.square().sum())
    return ratio if abs(ratio) > TOLERANCE and relative(found, ratio * sent) < TOLERANCE else None


def _takes_unequal(battery: Battery) -> str | None:
    if not battery.hetero_ranks:
        return "unequal ranks are not claimed (hetero_ranks=True claims them)"
    return None if battery.exact else "what a mean of factors is at unequal ranks is each method's own affair"


@law("unequal ranks", silent=_takes_unequal)
def unequal_ranks(battery: Battery) -> None:
    """At unequal ranks each client gets the best approximation of the mean of the deltas that the rank of its result allows."""
    x = battery.draw((2, 4, 3), (8.0, 8.0, 8.0))
    for k, result in enumerate(battery.call(x)):
        expected = _expected(battery, x, {n: y.rank for n, y in _read(result).items()})
        _demand(battery, result, 8.0, expected, f"ranks 2, 4 and 3 at lora_alpha 8, as client {k} applies the result")


AGGREGATOR_LAWS: tuple[Law[Battery], ...] = (
    layout,
    inputs_unchanged,
    dtype,
    one_client,
    identical_copies,
    order_free,
    weights,
    mean,
    scale,
    unequal_ranks,
    first_round,
)


# --- dense oracles -------------------------------------------------------------------------------------------------------


def _expected(battery: Battery, x: Inputs, ranks: Mapping[str, int]) -> Deltas:
    if not battery.exact:
        return _mean_of_factors(battery, x)
    return {n: lr.from_dense(d, rank=min(ranks[n], *d.shape)).dense() for n, d in _mean_of_deltas(battery, x).items()}


def _mean_of_deltas(battery: Battery, x: Inputs, *, scaled: bool = True) -> Deltas:
    all_deltas = [battery.deltas(s, a) for s, a in zip(x.states, x.alphas, strict=True)]
    gains = [w if scaled else w / battery.scale(a, r) for w, a, r in zip(x.weights, x.alphas, x.ranks, strict=True)]
    return {n: _weighted_sum(gains, [d[n] for d in all_deltas]) for n in SHAPES}


def _mean_of_factors(battery: Battery, x: Inputs) -> Deltas:
    keys = x.states[0].keys()
    factors = {k: _weighted_sum(x.weights, [s[k] for s in x.states]) for k in keys}
    return battery.deltas(factors, x.alphas[0])


def _weighted_sum(weights: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    return sum((w * x for w, x in zip(weights, tensors, strict=True)), torch.zeros(()))


def _diagnosis(battery: Battery, x: Inputs, found: Deltas) -> str:
    """The known mistake that explains a result, or that none does."""
    exact, factors = _mean_of_deltas(battery, x), _mean_of_factors(battery, x)
    r = x.ranks[0]

    def best(deltas: Deltas) -> Deltas:
        return {n: lr.from_dense(d, rank=min(r, *d.shape)).dense() for n, d in deltas.items()}

    unscaled, s = best(_mean_of_deltas(battery, x, scaled=False)), battery.scale(x.alphas[0], r)
    uniform = Inputs(x.states, x.alphas, x.ranks, [1 / len(x.ranks)] * len(x.ranks))
    square = "encoder.value"
    known: dict[str, Deltas] = {
        "averages deltas where the mean of the factors is claimed": best(exact),
        "averages factors: the cross terms B_j A_k are in the result": factors,
        "loses the scale: B A is averaged without lora_alpha / r": unscaled,
        "applies the scale twice": {n: s * d for n, d in best(exact).items()},
        "ignores the weights": best(_mean_of_deltas(battery, uniform)),
        "transposes the residual": {square: factors[square] + (exact[square] - factors[square]).mT},
        "transposes the mean": {square: best(exact)[square].mT},
        "loses a square root of the singular values": {n: _rooted(d) for n, d in best(exact).items()},
    }
    for mistake, deltas in known.items():
        if all(relative(found[n], d) < TOLERANCE for n, d in deltas.items()):
            return mistake
    return f"is not the mean of the {'deltas' if battery.exact else 'factors'}, nor a mistake that is known here"


def _rooted(delta: Tensor) -> Tensor:
    """Returns what becomes of a delta whose factors got one square root of the singular values, and not two."""
    U, S, Vh = torch.linalg.svd(delta, full_matrices=False)
    return (U * S.sqrt()) @ Vh


def _demand(battery: Battery, result: StateDict, lora_alpha: float, expected: Deltas, what: str) -> None:
    found = battery.deltas(result, lora_alpha)
    worst = max(expected, key=lambda n: relative(found[n], expected[n]))
    error = relative(found[worst], expected[worst])
    if not error <= TOLERANCE:
        ratio = float((found[worst] * expected[worst]).sum() / expected[worst].square().sum())
        exactly = relative(found[worst], ratio * expected[worst]) < TOLERANCE
        times = f"is {ratio:.4g} times what is right" if exactly else "is wrong"
        raise Violation(f"{what}: dW of layer {worst!r} {times}, relative error {error:.3g}")


# --- PEFT's names --------------------------------------------------------------------------------------------------------


def _key(layer: str, which: str) -> str:
    return f"base_model.model.{layer}.lora_{which}.weight"


def _write(layers: Mapping[str, LoRA]) -> dict[str, Tensor]:
    return {_key(n, w): t for n, x in layers.items() for w, t in (("A", x.A), ("B", x.B))}


def _read(state: StateDict) -> dict[str, LoRA]:
    return {n: LoRA(state[_key(n, "B")], state[_key(n, "A")]) for n in SHAPES}


def _rescaled(state: StateDict, factor: float) -> dict[str, Tensor]:
    """The state with B divided by what another lora_alpha puts on dW; A stays common, as a mean of factors needs it."""
    return {k: x * factor if ".lora_B." in k else x.clone() for k, x in state.items()}


def _demand_layout(found: StateDict, sent: StateDict) -> None:
    if found.keys() != sent.keys():
        odd = sorted(found.keys() ^ sent.keys())[:3]
        raise Violation(f"the result and its input differ in keys {odd}: return the keys of adapter_model.safetensors")
    for n, (o, i) in SHAPES.items():
        B, A = tuple(found[_key(n, "B")].shape), tuple(found[_key(n, "A")].shape)
        if len(B) != 2 or len(A) != 2 or B[0] != o or A[1] != i or B[1] != A[0]:
            raise Violation(f"layer {n!r}: B is {B} and A is {A}, where ({o}, r) and (r, {i}) belong: a factor is transposed")


def _gap(now: StateDict, before: StateDict, key: str) -> str:
    return f"{relative(now[key], before[key]):.3g}"
