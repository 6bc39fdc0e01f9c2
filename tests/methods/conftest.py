"""Rounds of random updates, and what a message means as dense matrices."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.client import displaced
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Displacing, Method, TrainResult
from fedelta.models.toy import random_adapter, toy_template
from fedelta.optim import SGD
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message

SCALES: dict[str, dict[str, Any]] = {
    "constant": {},
    "alpha/r": {"lora_alpha": 16.0},
    "alpha/sqrt(r)": {"lora_alpha": 4.0, "rslora": True},
    "patterns": {"lora_alpha": 8.0, "rank_pattern": {"hidden": 5}, "alpha_pattern": {"output": 3.0}},
}
"""The fields of `Peer` that make each rule of scales."""


def weights_for(count: int, seed: int) -> list[float]:
    """Random weights with sum one."""
    drawn = np.random.default_rng(seed).uniform(0.2, 1.0, count)
    return list(drawn / drawn.sum())


@dataclass(frozen=True)
class FakeRound:
    """Peers, the template at their largest ranks, one trained adapter for each peer, and peers that do not take part."""

    peers: Sequence[Peer]
    template: Adapter
    adapters: Sequence[Adapter]
    weights: Sequence[float]
    absent: Sequence[Peer] = ()

    @classmethod
    def draw(
        cls,
        ranks: Sequence[int] = (2, 4, 5),
        *,
        scales: str = "alpha/r",
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        common_A: bool = False,
    ) -> "FakeRound":
        """Unequal ranks where `rank_pattern` leaves them so; `common_A` gives all the template's leading rows."""
        peers = [Peer(k, r, **SCALES[scales]) for k, r in enumerate(ranks)]
        template = toy_template(max(max(ranks), 5), seed=seed, dtype=dtype)
        top = {n: max(p.rank_of(n) for p in peers) for n in template.layers}
        template = tree.map_named(lambda n, x: LoRA(x.B[:, : top[n]], x.A[: top[n]], x.scale), template)
        adapters = [cls._trained(p, template, 100 * seed + p.id, dtype, common_A) for p in peers]
        return cls(peers, template, adapters, weights_for(len(peers), seed))

    @classmethod
    def write(cls, *layers: LoRA, weights: Sequence[float], absent: Sequence[Peer] = (), **scales: Any) -> "FakeRound":
        """One layer, "w", with a delta for each client; the template's rows of A are those of the widest."""
        peers = [Peer(k, x.rank, **scales) for k, x in enumerate(layers)]
        widest, top = max(layers, key=lambda x: x.rank), max([*peers, *absent], key=lambda p: p.rank)
        start = lr.pad(LoRA(torch.zeros_like(widest.B), widest.A), top.rank)
        template = Adapter({"w": LoRA(start.B, start.A, top.scale_of("w", top.rank))})
        return cls(peers, template, [Adapter({"w": x}) for x in layers], weights, absent)

    @staticmethod
    def _trained(peer: Peer, template: Adapter, seed: int, dtype: torch.dtype, common_A: bool) -> Adapter:
        ranks = {n: peer.rank_of(n) for n in template.layers}
        drawn = random_adapter(ranks, seed=seed, dtype=dtype)

        def finish(n: str, x: LoRA) -> LoRA:
            A = template.layers[n].A[: x.rank] if common_A else x.A
            return LoRA(x.B, A, peer.scale_of(n, x.rank))

        return tree.map_named(finish, drawn)

    def updates(self, method: Method) -> list[ClientUpdate]:
        triples = zip(self.peers, self.weights, self.adapters, strict=True)
        return [ClientUpdate(p, w, method.upload(a)) for p, w, a in triples]

    def run(self, method: Method, *, seed: int = 0) -> Mapping[str, Any]:
        """The state after one aggregation."""
        state = method.init(self.template, [*self.peers, *self.absent], seed=seed)
        return method.aggregate(0, state, self.updates(method))

    def received(self, method: Method, state: Mapping[str, Any], to: Peer) -> dict[str, np.ndarray]:
        """What a peer without history then runs: dW by layer, base delta included."""
        template = tree.map_named(
            lambda n, x: LoRA(x.B[:, : to.rank_of(n)], x.A[: to.rank_of(n)], to.scale_of(n, to.rank_of(n))), self.template
        )
        return dense_model(method.deploy(method.broadcast(1, state, replace(to, base_version=0)), {}, template))


def dense_model(model: Message) -> dict[str, np.ndarray]:
    """dW of every layer in float64: adapter plus base delta."""
    base = tree.total(model["base"]) if "base" in model else {}
    result = {}
    for name, x in model["adapter"].layers.items():
        term = base.get(name)
        extra = 0.0 if term is None else term.to(torch.float64).dense() if isinstance(term, LoRA) else term.double()
        result[name] = (x.to(torch.float64).dense() + extra).numpy()
    return result


@pytest.fixture(scope="session")
def written_round() -> Callable[..., FakeRound]:
    """`FakeRound.write`."""
    return FakeRound.write


@pytest.fixture(scope="session")
def fake_round() -> Callable[..., FakeRound]:
    """`FakeRound.draw`."""
    return FakeRound.draw


# --- clients whose losses are quadratic: every optimum is known -------------------------------------------------------


class QuadraticClient:
    """f(w) = (w - b)^T H (w - b) / 2 on one dense tensor w, trained with plain gradient descent, or as it is asked."""

    def __init__(self, peer: Peer, H: torch.Tensor, b: torch.Tensor, num_steps: int, learning_rate: float) -> None:
        self.peer, self.H, self.b, self.num_steps, self.learning_rate = peer, H, b, num_steps, learning_rate
        self.template = Adapter({}, {"w": torch.zeros_like(b)})

    def slope(self, t: int, step: int, w: torch.Tensor) -> torch.Tensor:
        """The gradient at w on the batch of a round and step."""
        return self.H @ (w - self.b)

    def train(
        self, t: int, start: Adapter, *, gradient: Any = None, optimizer: Any = None, num_steps: int | None = None, **_: Any
    ) -> TrainResult:
        params, steps, optimizer = {"w": start.dense["w"].clone()}, num_steps or self.num_steps, optimizer or SGD()
        state = optimizer.init(params)
        for step in range(steps):
            grads = {"w": self.slope(t, step, params["w"])}
            offset = gradient.offset(grads, params, step) if isinstance(gradient, Displacing) else None
            if offset is not None:
                with displaced(params, offset):
                    grads = {"w": self.slope(t, step, params["w"])}
            grads = gradient(grads, params, step) if gradient is not None else grads
            optimizer.update(params, grads, state, self.learning_rate)
        return TrainResult(replace(start, dense=params), steps, 0.0, self.learning_rate, state)


def quadratic_clients(
    count: int = 5, *, steps: int | Sequence[int] = 20, learning_rate: float = 0.05, alike: bool = False
) -> list[QuadraticClient]:
    """Clients with random curvatures and optima, all the same if `alike`; in float64."""
    generator = torch.Generator().manual_seed(0)
    clients: list[QuadraticClient] = []
    for k in range(count):
        root, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4, 4), (4,)))
        H = root @ root.mT / 4 + 0.5 * torch.eye(4, dtype=torch.float64)
        if alike and clients:
            H, b = clients[0].H, clients[0].b
        own = steps if isinstance(steps, int) else steps[k]
        clients.append(QuadraticClient(Peer(k, 1), H, b, own, learning_rate))
    return clients


def quadratic_optimum(clients: Sequence[QuadraticClient]) -> torch.Tensor:
    """Where the mean of the clients' losses is smallest."""
    H = torch.stack([c.H for c in clients]).sum(0)
    return torch.linalg.solve(H, torch.stack([c.H @ c.b for c in clients]).sum(0))


@pytest.fixture(scope="session")
def quadratics() -> Callable[..., list[QuadraticClient]]:
    """`quadratic_clients`."""
    return quadratic_clients


@pytest.fixture(scope="session")
def quadratic() -> type[QuadraticClient]:
    """`QuadraticClient`."""
    return QuadraticClient


def bare_rounds(method: Method, clients: Sequence[Any], rounds: int) -> tuple[Mapping[str, Any], list[ClientUpdate]]:
    """The state before the last of many rounds, and that round's updates: the verbs without an engine, at equal weights."""
    peers = [client.peer for client in clients]
    state, memories, updates = method.init(clients[0].template, peers), [{} for _ in clients], []
    for t in range(rounds):
        state, updates = method.aggregate(t - 1, state, updates) if updates else state, []
        for k, client in enumerate(clients):
            up, memories[k] = method.local_update(t, method.broadcast(t, state, client.peer), memories[k], client)
            updates.append(ClientUpdate(client.peer, 1 / len(clients), up))
    return state, updates


@pytest.fixture(scope="session")
def played() -> Callable[..., Any]:
    """`bare_rounds`."""
    return bare_rounds


@pytest.fixture(scope="session")
def optimum() -> Callable[..., torch.Tensor]:
    """`quadratic_optimum`."""
    return quadratic_optimum
