"""FedSVD: the SVD keeps dW and the span of A; under SGD it is FFA-LoRA from an orthonormal A, and under Adam it is not."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.client import LocalClient, Training
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.optim import SGD, AdamW
from fedelta.peers import Peer, template_for
from fedelta.tree import Adapter


def spans(A: torch.Tensor) -> torch.Tensor:
    """The projector on the rows of A."""
    return torch.linalg.pinv(A) @ A


def orthonormal(x: Adapter) -> Adapter:
    return tree.map(lambda y: lr.with_factor(y, "A", torch.linalg.qr(y.A.mT).Q.mT), x)


def from_template(template: Adapter, training: Training) -> list[LocalClient]:
    """A toy federation that starts from `template`."""
    made = toy_federation((3, 3, 3), training=training, disagreement=1.0)
    return [
        LocalClient(c.peer, template_for(c.peer, template), c.model, c.examples, c.collate, c.loss, c.training) for c in made
    ]


@pytest.mark.parametrize("rank", [3, 2, 0])
@pytest.mark.parametrize("shape", [(7, 6), (3, 9)])
def test_orthonormal_rows_keep_dW_and_span_sub_T2(shape: tuple[int, int], rank: int) -> None:
    """For dW of full rank, of a lower one, and zero; with more rows than d_out too."""
    draw = torch.Generator().manual_seed(rank)
    A = torch.randn(4, shape[1], generator=draw).double()
    B = torch.randn(shape[0], rank, generator=draw).double() @ torch.randn(rank, 4, generator=draw).double()
    x = LoRA(B, A, 0.5)
    y = lr.orthonormal_rows(x)
    assert (y.scale, y.rank) == (0.5, 4)
    torch.testing.assert_close(y.dense(), x.dense(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y.A @ y.A.mT, torch.eye(4).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(spans(y.A), spans(A), rtol=0, atol=1e-10)
    gram = y.B.mT @ y.B
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-10)
    assert bool((gram.diagonal().diff() <= 1e-12).all())


def test_orthonormal_rows_are_those_of_truncate_at_full_rank() -> None:
    x = random_adapter(3, seed=0).layers["hidden"]
    found, expected = lr.orthonormal_rows(x), lr.truncate(x, 3, sigma_on="B")
    torch.testing.assert_close(found.A, expected.A, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.B, expected.B, rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match="6 rows of length 5 cannot be orthonormal"):
        lr.orthonormal_rows(random_adapter(6, seed=0).layers["hidden"])


def test_the_server_keeps_the_product_and_makes_A_orthonormal_hetero_FS1() -> None:
    for done in federate(get_method("fedsvd"), toy_federation((3, 3, 3), lora_alpha=6.0), rounds=3):
        exact = tree.mean_deltas([u.weight for u in done.updates], [done.position(u)[0] for u in done.updates])
        for n, x in done.state["adapter"].layers.items():
            torch.testing.assert_close(x.dense(), exact.layers[n].dense(), rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(x.A @ x.A.mT, torch.eye(3).double(), rtol=0, atol=1e-12)


def test_clients_train_B_on_one_A_and_send_it_alone_hetero_SH1() -> None:
    for done in federate(get_method("fedsvd"), toy_federation((3, 3, 3)), rounds=3):
        for update in done.updates:
            assert set(update.content) == {"B", "dense"}
            for n, x in done.position(update)[0].layers.items():
                assert torch.equal(x.A, done.before["adapter"].layers[n].A)
                assert not torch.equal(x.B, done.before["adapter"].layers[n].B)
        assert done.bytes.up[0] < done.bytes.down[0]


def test_the_rows_of_A_never_leave_their_first_span_sub_T2() -> None:
    first = toy_template(3)
    for done in federate(get_method("fedsvd"), toy_federation((3, 3, 3)), rounds=6):
        for n, x in done.state["adapter"].layers.items():
            assert float((spans(x.A) - spans(first.layers[n].A)).norm()) < 1e-6


@pytest.mark.parametrize("alive", [0, 1])
def test_nor_after_an_update_of_low_rank_sub_T2(alive: int) -> None:
    peer, method, template = Peer(0, 3), get_method("fedsvd"), toy_template(3)
    sent = tree.map(lambda x: lr.with_factor(x, "B", x.B * (torch.arange(3) < alive)), random_adapter(3, seed=0))
    state = method.aggregate(0, method.init(template, [peer]), [ClientUpdate(peer, 1.0, method.upload(sent))])
    for n, x in state["adapter"].layers.items():
        assert float((spans(x.A) - spans(template.layers[n].A)).norm()) < 1e-6
        torch.testing.assert_close(x.A @ x.A.mT, torch.eye(3).double(), rtol=0, atol=1e-12)


def gap(optimizer: SGD | AdamW, template: Adapter, max_grad_norm: float | None = None) -> float:
    """The largest relative difference of the server's deltas between fedsvd and ffa_lora over 8 rounds."""
    training = Training(local_steps=4, batch_size=8, learning_rate=0.05, optimizer=optimizer, max_grad_norm=max_grad_norm)
    runs = [
        federate(get_method(name), from_template(template, training), template, rounds=8) for name in ("fedsvd", "ffa_lora")
    ]
    worst = 0.0
    for a, b in zip(*runs, strict=True):
        pairs = [(x.dense(), b.state["adapter"].layers[n].dense()) for n, x in a.state["adapter"].layers.items()]
        worst = max(worst, *(float((x - y).norm() / y.norm()) for x, y in pairs))
    return worst


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9)], ids=["sgd", "momentum"])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_under_sgd_it_is_ffa_lora_from_an_orthonormal_A_sub_T3(optimizer: SGD, max_grad_norm: float | None) -> None:
    assert gap(optimizer, orthonormal(toy_template(3)), max_grad_norm) < 1e-11


def test_under_adam_or_from_another_A_it_is_not_sub_T3() -> None:
    assert gap(AdamW(), orthonormal(toy_template(3))) > 0.01
    assert gap(SGD(), toy_template(3)) > 0.01


@pytest.mark.parametrize(("warmup", "rounds"), [(0, [3, 6, 9]), (1, [3, 6, 9]), (3, [6, 9]), (4, [6, 9])])
def test_the_period_counts_from_the_first_round_as_the_authors_have_it(warmup: int, rounds: Sequence[int]) -> None:
    method = get_method("fedsvd", period=3, warmup_rounds=warmup)
    assert [t + 1 for t in range(9) if method.orthogonalises(t)] == rounds


def test_a_cap_holds_for_each_layer_of_the_mean() -> None:
    """Two clients, of which one alone is above the cap, and the mean of one layer below it."""
    peers, template = [Peer(0, 3), Peer(1, 3)], toy_template(3)
    sent = [tree.map(lambda x, y: LoRA(x.B, y.A), random_adapter(3, seed=k), template) for k in (0, 1)]
    sent[0] = tree.map_named(lambda n, x: lr.with_factor(x, "B", (0.01 if n == "output" else 1) * x.B), sent[0])

    def played(cap: float | None) -> Adapter:
        method = get_method("fedsvd", norm_cap=cap)
        updates = [ClientUpdate(p, w, method.upload(a)) for p, w, a in zip(peers, (0.9, 0.1), sent, strict=True)]
        return method.aggregate(0, method.init(template, peers), updates)["adapter"]

    free, held = played(None), played(1.0)
    norms = {n: float(lr.norm(x)) for n, x in free.layers.items()}
    assert norms["output"] < 1 < min(norms["hidden"], float(lr.norm(sent[1].layers["output"])))
    torch.testing.assert_close(held.layers["output"].dense(), free.layers["output"].dense(), rtol=0, atol=0)
    x = held.layers["hidden"]
    torch.testing.assert_close(x.dense(), free.layers["hidden"].dense() / norms["hidden"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(x.A @ x.A.mT, torch.eye(3).double(), rtol=0, atol=1e-12)


def test_warm_up_is_ffa_lora() -> None:
    assert all(get_method("fedsvd").orthogonalises(t) for t in range(3))
    warm = federate(get_method("fedsvd", warmup_rounds=3), toy_federation((3, 3)), rounds=3)
    for a, b in zip(warm, federate(get_method("ffa_lora"), toy_federation((3, 3)), rounds=3), strict=True):
        for n, x in a.state["adapter"].layers.items():
            assert torch.equal(x.B, b.state["adapter"].layers[n].B)
            assert torch.equal(x.A, b.state["adapter"].layers[n].A)


def test_a_receiver_keeps_orthonormal_rows_at_its_own_scale() -> None:
    method, peers = get_method("fedsvd"), [Peer(0, 3, lora_alpha=6.0), Peer(1, 3, lora_alpha=1.5)]
    template = tree.map(lambda x: replace(x, scale=2.0), toy_template(3))
    sent = tree.map(lambda x, y: LoRA(x.B, y.A, 2.0), random_adapter(3, seed=0), template)
    state = method.aggregate(0, method.init(template, peers), [ClientUpdate(peers[0], 1.0, method.upload(sent))])
    for peer in peers:
        for n, x in method.broadcast(1, state, peer)["adapter"].layers.items():
            torch.testing.assert_close(x.A @ x.A.mT, torch.eye(3).double(), rtol=0, atol=1e-12)
            torch.testing.assert_close(x.dense(), sent.layers[n].dense(), rtol=1e-12, atol=1e-12)


def refused(ranks: Sequence[int] = (3, 3), **hyper: int) -> None:
    list(federate(get_method("fedsvd", **hyper), toy_federation(ranks), rounds=1))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="norm_cap must be positive"):
        get_method("fedsvd", norm_cap=0.0)
    for hyper in ({"period": 0}, {"warmup_rounds": -1}):
        with pytest.raises(ValueError, match="FedSVD needs period >= 1 and warmup_rounds >= 0"):
            refused(**hyper)
    with pytest.raises(ValueError, match="layer 'hidden': fedsvd needs a rank of at most d_in = 5, got 6"):
        refused((6, 6))
