"""Clients of unequal ranks have unequal scales, and yet begin from the same A (hetero-G20)."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fedelta import federate, tree
from fedelta import lowrank as lr
from fedelta.client import LocalClient
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Method, State
from fedelta.methods import get_method, list_methods, method_class
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer, template_for
from fedelta.tree import Adapter

OF_THEIR_OWN = {
    "flora": "a fresh A for every client and round",
    "florist": "as flora",
    "fedgalore": "a basis from the seed or from gradients",
    "local_only": "no server",
}
"""Methods that do not start from the common A."""

COMMON = [n for n in list_methods() if method_class(n).hetero_rank and n not in OF_THEIR_OWN]
PRODUCT = {
    "flexlora": {},
    "raflora": {},
    "svd_redistribution": {"rescale": False},  # with it a cut delta has the norm of the whole one, on purpose
    "subspace_reg": {"mu": 0.0, "alpha": 0.0, "lam": 0.0},
    "decaf": {},
}
"""Methods that factorise the mean of the deltas, without what they add to it."""

RANKS = (4, 16, 64)
PEERS = [Peer(k, r, lora_alpha=16.0) for k, r in enumerate(RANKS)]


def template() -> Adapter:
    """One layer in which rank 64 is a rank, at B = 0 and a scale that is no client's."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(64, 80, generator=generator, dtype=torch.float64)
    return Adapter({"w": LoRA(torch.zeros(70, 64, dtype=torch.float64), A, 0.7)})


def held(method: Method, state: State) -> list[LoRA]:
    """What each client has before it trains."""
    downs = [method.broadcast(0, state, p) for p in PEERS]
    runs = [method.deploy(down, {}, template_for(p, template())) for p, down in zip(PEERS, downs, strict=True)]
    return [run["adapter"].layers["w"] for run in runs]


def sent_back(method: Method, state: State, sent: Sequence[LoRA]) -> State:
    """The state after a round whose uploads are `sent`."""
    share, scores = 1 / len(PEERS), {"validation_loss": 1.0}
    updates = [ClientUpdate(p, share, method.upload(Adapter({"w": x})), scores) for p, x in zip(PEERS, sent, strict=True)]
    return method.aggregate(0, state, updates)


@pytest.mark.parametrize("name", COMMON)
def test_the_first_broadcast_has_the_template_s_rows_of_A_hetero_G20(name: str) -> None:
    method = get_method(name)
    for x in held(method, method.init(template(), PEERS, seed=0)):
        assert torch.equal(x.A, template().layers["w"].A[: x.rank])
        assert not x.B.any()


@pytest.mark.parametrize("ranks", [(1, 2, 5), RANKS], ids=str)
def test_the_first_uploads_do_not_depend_on_the_method_hetero_G20(ranks: Sequence[int]) -> None:
    uploads: dict[str, list[Adapter]] = {}
    for name, hyper in PRODUCT.items():
        clients = toy_federation(ranks, lora_alpha=16.0)
        first = next(iter(federate(get_method(name, **hyper), clients, rounds=1)))
        uploads[name] = [u.content["adapter"] for u in first.updates]
    for name, adapters in uploads.items():
        for x, y in zip(adapters, uploads["flexlora"], strict=True):
            flat, expected = tree.parameters(x), tree.parameters(y)
            assert all(torch.equal(v, expected[n]) for n, v in flat.items()), name


@pytest.mark.parametrize("live", [False, True], ids=["first round", "live B"])
@pytest.mark.parametrize("name", COMMON)
def test_clients_that_send_back_what_they_got_move_nothing_that_all_hold_hetero_G20(name: str, live: bool) -> None:
    method = get_method(name, **PRODUCT.get(name, {}))
    state = method.init(template(), PEERS, seed=0)
    if live:
        generator = torch.Generator().manual_seed(1)
        drawn = torch.randn(70, 64, generator=generator, dtype=torch.float64)
        trained = [replace(x, B=drawn[:, : x.rank] + 0.1 * k) for k, x in enumerate(held(method, state))]
        state = sent_back(method, state, trained)
    before = held(method, state)
    after = held(method, sent_back(method, state, before))
    for x, y in zip(before, after, strict=True):
        old, new = (lr.components(z, 0, min(RANKS)) for z in (x, y))
        if name not in PRODUCT:
            assert torch.equal(new.A, old.A)
        if name != "lora_fair":  # which moves B so that it makes up for what ranks cut off
            torch.testing.assert_close(new.dense(), old.dense(), rtol=1e-9, atol=1e-10)


def by_roots(x: LoRA, scale: float, **_: object) -> LoRA:
    """The rule that was: the root of the ratio on each factor."""
    ratio = x.scale / scale
    return x if scale == x.scale else LoRA(x.B * ratio**0.5, x.A * ratio**0.5, scale)


@pytest.mark.parametrize("name", [n for n in list_methods() if n not in ("centralised", "compose", "replication")])
def test_at_equal_ranks_the_rule_moves_no_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def play(clients: Sequence[LocalClient]) -> dict[str, torch.Tensor]:
        *_, last = federate(get_method(name), clients, rounds=3, seed=0)
        return tree.flatten(last.state)[0]

    one, other = (toy_federation((3, 3, 3), lora_alpha=16.0) for _ in range(2))
    ours = play(one)
    monkeypatch.setattr(lr, "rescale", by_roots)
    before = play(other)
    assert ours.keys() == before.keys()
    assert all(torch.equal(x, before[n]) for n, x in ours.items())
