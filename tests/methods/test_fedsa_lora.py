"""FedSA-LoRA: what leaves the client and what never does, the mean over owners, a model for each client."""

from dataclasses import replace

import pytest
import torch

from fedelta import tree
from fedelta.engines.server import federate
from fedelta.merging import ClientUpdate
from fedelta.methods import get_method
from fedelta.models.toy import random_adapter, toy_federation, toy_template
from fedelta.peers import Peer


def test_B_and_head_never_leave_the_client_hetero_SA1() -> None:
    for done in federate(get_method("fedsa_lora"), toy_federation((2, 4, 3), lora_alpha=8.0), rounds=2):
        for update in done.updates:
            assert set(update.content) == {"A"}
            assert set(done.method.broadcast(done.t, done.before, update.sender)) == {"A"}
            mine = done.client_states[update.sender.id]
            assert all(B.any() for B in mine["B"].values())
            assert mine["dense"]["bias"].any()
        assert not any(x.B.any() for x in done.state["adapter"].layers.values())
        assert not done.state["adapter"].dense["bias"].any()


@pytest.mark.parametrize("scales", [{}, {"lora_alpha": 8.0}, {"lora_alpha": 8.0, "rslora": True}], ids=str)
def test_rows_of_A_are_their_owners_mean_hetero_SA1(scales: dict) -> None:
    done = next(iter(federate(get_method("fedsa_lora"), toy_federation((2, 4, 3), **scales), rounds=1)))
    weights = [u.weight for u in done.updates]
    for n, x in done.state["adapter"].layers.items():
        for i in range(4):
            owners = [(w, u.content["A"][n][i]) for w, u in zip(weights, done.updates, strict=True) if u.sender.rank > i]
            expected = sum(w * row for w, row in owners) / sum(w for w, _ in owners)
            torch.testing.assert_close(x.A[i], expected, rtol=1e-12, atol=1e-14)


def test_rows_without_an_owner_in_the_round_stay() -> None:
    clients, method = toy_federation((2, 4)), get_method("fedsa_lora")
    done = next(iter(federate(method, clients, rounds=1, cohort=lambda t, peers, seed: [0])))
    for n, x in done.state["adapter"].layers.items():
        assert torch.equal(x.A[2:], done.before["adapter"].layers[n].A[2:])
        assert not torch.equal(x.A[:2], done.before["adapter"].layers[n].A[:2])


def test_a_client_goes_on_from_its_own_B_on_the_common_A() -> None:
    method, starts = get_method("fedsa_lora"), {}
    clients = toy_federation((2, 2))
    for client in clients:
        plain = client.train

        def train(t, start, client=client, plain=plain, **request):
            starts[t, client.peer.id] = start
            return plain(t, start, **request)

        client.train = train
    first, _ = federate(method, clients, rounds=2)
    for k in (0, 1):
        for n, x in starts[1, k].layers.items():
            assert torch.equal(x.A, first.state["adapter"].layers[n].A)
            assert torch.equal(x.B, first.client_states[k]["B"][n])
        assert torch.equal(starts[1, k].dense["bias"], first.client_states[k]["dense"]["bias"])


def test_participants_run_models_of_their_own_on_a_common_A() -> None:
    *_, done = federate(get_method("fedsa_lora"), toy_federation((2, 4), lora_alpha=8.0), rounds=2)
    models = [done.participant_model(peer)["adapter"] for peer in done.peers]
    for n, x in models[0].layers.items():
        assert torch.equal(x.A, models[1].layers[n].A[:2])
        assert not torch.equal(x.B, models[1].layers[n].B[:, :2])
        assert (x.scale, models[1].layers[n].scale) == (4.0, 2.0)
    stranger = done.method.deploy(done.method.broadcast(2, done.state, done.peers[0]), {}, toy_template(2))["adapter"]
    assert not any(x.B.any() for x in stranger.layers.values())
    with pytest.raises(ValueError, match="never sends B: pass the participant's template"):
        done.method.deploy({"A": {}}, {})


def aggregate(**changes: object) -> None:
    method, peers = get_method("fedsa_lora"), [Peer(0, 3), Peer(1, 3)]
    updates = [ClientUpdate(p, 0.5, method.upload(random_adapter(3, seed=p.id))) for p in peers]
    updates[0] = replace(updates[0], **changes)
    method.aggregate(0, method.init(toy_template(3), peers), updates)


def test_uploads_that_do_not_fit_are_refused() -> None:
    A = tree.factors(random_adapter(3, seed=0), "A")
    aggregate()
    with pytest.raises(KeyError, match="client 0 has no 'A'"):
        aggregate(content={})
    with pytest.raises(ValueError, match="client 0 and the server do not adapt the same layers"):
        aggregate(content={"A": {"hidden": A["hidden"]}})
    with pytest.raises(ValueError, match="client 0: hidden/A holds 15 NaN or Inf"):
        aggregate(content={"A": {**A, "hidden": A["hidden"] * float("nan")}})
    with pytest.raises(ValueError, match="weights must be non-negative with sum 1"):
        aggregate(weight=0.9)


def test_the_order_of_updates_changes_no_bit_and_nothing_given_is_changed() -> None:
    """The law's clients cannot tell the order: their sums of A have the same bits either way."""
    method, peers = get_method("fedsa_lora"), [Peer(k, 2 + k) for k in range(3)]
    state = method.init(toy_template(4), peers)
    updates = [ClientUpdate(p, 1 / 3, method.upload(random_adapter(p.rank, seed=p.id))) for p in peers]
    copies = [tree.map_tensors(torch.clone, u.content) for u in updates]
    one, other = (method.aggregate(0, state, x)["adapter"] for x in (updates, updates[::-1]))
    for n, x in one.layers.items():
        assert torch.equal(x.A, other.layers[n].A)
        assert all(torch.equal(u.content["A"][n], c["A"][n]) for u, c in zip(updates, copies, strict=True))
