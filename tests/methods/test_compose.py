"""Compose: what it is without parts, what parts add to messages and memories, and what it refuses."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fedelta
from fedelta import topology, tree
from fedelta.engines import checkpoint
from fedelta.engines.gossip import gossip
from fedelta.engines.server import federate
from fedelta.exchange.wire import encode
from fedelta.method import Method
from fedelta.methods import (
    Compose,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedNova,
    FedProx,
    FFALoRA,
    FlexLoRA,
    Scaffold,
    get_method,
    method_class,
)
from fedelta.methods._compose.composition import Composite
from fedelta.models.toy import toy_federation
from fedelta.runs.config import ConfigError, load_config
from fedelta.runs.config.choices import choices_of
from fedelta.testing import check_method

COMPOSITES = [n for n in fedelta.list_methods() if issubclass(method_class(n), Composite)]
SERVERS = [n for n in fedelta.list_methods() if n not in COMPOSITES]
EVERYTHING: dict[str, Any] = {
    "name": "compose",
    "local": [{"name": "scaffold"}, {"name": "fedprox", "mu": 0.1}, "fednova"],
    "server": {"name": "rolora"},
    "optimizer": {"name": "fedadam", "learning_rate": 0.01},
}


def mixed(**federation: Any) -> list[Any]:
    return toy_federation((3, 3, 3), lora_alpha=6.0, **federation)


def test_without_parts_it_is_fedavg_drift_17() -> None:
    for done, reference in zip(*(federate(m, mixed(), rounds=2) for m in (Compose(), FedAvg())), strict=True):
        assert encode(done.state) == encode(reference.state)
        assert done.bytes == reference.bytes


@pytest.mark.parametrize("server", [n for n in SERVERS if n != "centralised" and not method_class(n).needs_validation])
def test_around_any_method_nothing_is_changed_but_the_gradients(server: str) -> None:
    """With a pull of zero strength, every method runs as it does alone: states, memories and bytes."""
    runs = [federate(m, mixed(), rounds=2) for m in (Compose(local=FedProx(0.0), server=server), get_method(server))]
    for done, reference in zip(*runs, strict=True):
        assert encode(done.state) == encode(reference.state)
        assert {k: encode(x) for k, x in done.client_states.items()} == {
            k: encode(x) for k, x in reference.client_states.items()
        }
        assert done.bytes == reference.bytes


def test_every_part_finds_its_own_messages_once_and_no_others_drift_17() -> None:
    first, second = federate(Compose(local=[Scaffold(), FedProx(0.1)], server="hetlora"), mixed(), rounds=2)
    for done in (first, second):
        for update in done.updates:
            assert update.content.keys() == {"adapter", "parts"}
            assert update.content["parts"].keys() == {"Scaffold"}
            assert update.content["parts"]["Scaffold"].keys() == {"dc"}
            assert set(done.client_states[update.sender.id]) == {"ranks", "parts"}
            numbers = tree.count(update.content["adapter"])
            assert tree.count(update.content) == 2 * numbers
            down = done.method.broadcast(done.t, done.before, update.sender)
            assert tree.count(down) == (2 * numbers if done.t else numbers)
            assert done.method.traffic(done.t, done.template, update.sender, done.peers) == (
                tree.count(down),
                tree.count(update.content),
            )


def test_a_clients_part_is_pure_drift_17() -> None:
    method = get_method(**EVERYTHING)
    *_, done = federate(method, mixed(), rounds=3)
    for client in mixed():
        down = method.broadcast(3, done.state, client.peer)
        memory = done.client_states[client.peer.id]
        before = encode(down), encode(memory)
        torch.manual_seed(1)
        once = method.local_update(3, down, memory, client)
        torch.manual_seed(2)
        again = method.local_update(3, down, memory, client)
        assert [encode(x) for x in once] == [encode(x) for x in again]
        assert before == (encode(down), encode(memory))


def test_the_order_in_which_rules_are_given_does_not_matter() -> None:
    given = [FedProx(0.5), Scaffold(), FedNova()]
    states = [list(federate(Compose(local=x), mixed(), rounds=3))[-1].state for x in (given, given[::-1])]
    assert encode(states[0]) == encode(states[1])


def test_the_control_variate_takes_the_pull_for_a_part_of_the_gradient() -> None:
    """Proximal terms go first: at a pull that is strong, c is the mean of g + mu (x - w_t)."""
    rounds = list(federate(Compose(local=[Scaffold(), FedProx(2.0)]), mixed(), rounds=2))
    start = tree.parameters(rounds[0].before["adapter"])
    for update in rounds[0].updates:
        end = tree.parameters(update.content["adapter"])
        for n, x in update.content["parts"]["Scaffold"]["dc"].items():
            torch.testing.assert_close(x, (start[n] - end[n]) / (4 * 0.05), rtol=1e-9, atol=1e-12)


def test_a_checkpoint_goes_on_to_the_bit_drift_17(tmp_path: Path) -> None:
    method = get_method(**EVERYTHING)
    *_, whole = federate(method, mixed(), rounds=4)
    half = list(federate(method, mixed(), rounds=2))[-1]
    checkpoint.save(tmp_path, half.snapshot)
    *_, resumed = federate(get_method(**EVERYTHING), mixed(), rounds=4, start=checkpoint.load(tmp_path))
    assert encode(resumed.state) == encode(whole.state)


def test_clients_without_memories_go_on_drift_17() -> None:
    *_, done = federate(get_method(**EVERYTHING), mixed(), rounds=2)
    start = replace(done.snapshot, client_states={})
    *_, after = federate(done.method, mixed(), rounds=4, start=start, debug=True)
    assert not after.dropped


def test_claims_are_those_of_the_parts() -> None:
    flex = Compose(local=FedProx(0.1), server=FlexLoRA(sigma_on="both"))
    assert flex.hetero_rank
    assert flex.coordinates == "product"
    assert flex.decentralised
    assert Compose(server="fedsa_lora").personal
    assert Compose(server="replication").needs_validation
    assert not Compose(optimizer=FedAvgM()).decentralised
    assert not Compose(local=Scaffold(), server="zeropad").hetero_rank
    assert Compose(local=Scaffold(), server="ffa_lora").travels == "B, head; control variates both ways"
    assert not flex.one_shot


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_class_claims_what_its_defaults_are(name: str) -> None:
    cls, made = method_class(name), get_method(name)
    for claim, value in made.parts.claims().items():
        assert value == getattr(made, claim)
        assert getattr(cls, claim) == value or (name, claim) == ("compose", "travels")


@pytest.mark.parametrize("name", COMPOSITES)
def test_claims_are_not_written_on_a_frozen_method(name: str) -> None:
    assert set(vars(get_method(name))) == {f.name for f in fields(method_class(name))}


@pytest.mark.parametrize("name", fedelta.list_methods())
def test_a_method_is_at_most_three_classes_deep(name: str) -> None:
    assert sum(issubclass(c, Method) for c in method_class(name).__mro__) <= 3


@pytest.mark.parametrize(
    "method",
    [
        Compose(local=FedProx(0.1), server="flexlora"),
        Compose(local=FedProx(0.1), server="fedex_lora"),
        Compose(local=FedProx(0.1), server="local_only"),
        Compose(local=FedProx(0.1), server="fedsa_lora"),
        Compose(local=FedProx(0.1), server="zeropad"),
    ],
    ids=lambda m: type(m.server).__name__,
)
def test_combinations_keep_the_laws(method: Compose) -> None:
    check_method(method)


def test_values_are_values() -> None:
    written = get_method(**EVERYTHING)
    spoken = Compose(
        local=(FedProx(0.1), Scaffold(), FedNova()), server=get_method("rolora"), optimizer=FedAdam(learning_rate=0.01)
    )
    assert written == spoken
    assert hash(written) == hash(spoken)
    assert replace(written, optimizer=None).parts.optimizer is None
    assert written.parts.optimizer == FedAdam(learning_rate=0.01)


def test_nodes_without_a_server_come_together() -> None:
    method = Compose(local=FedProx(0.1), server="tad_lora")
    *_, done = gossip(method, toy_federation((2, 2, 2, 2)), rounds=4, mixing=topology.ring(4), debug=True)
    assert done.method.parts.server.interval is not None, "the graph is made known to the method in the middle"


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"local": FedAvg()}, "FedAvg is no local rule such as fedprox or scaffold; give it as `server`"),
        ({"server": FedProx(0.1)}, "FedProx is no method for the middle; give it as `local` or `optimizer`"),
        ({"server": Compose()}, "Compose is no method for the middle"),
        ({"optimizer": "fedprox"}, "FedProx is no server optimiser such as fedavgm or fedadam"),
        ({"local": [FedProx(0.1), FedProx(0.2)]}, "each local rule can be there once"),
        ({"local": {"mu": 0.1}}, "`local` needs a name"),
        ({"local": {"name": "fedprox", "nu": 0.1}}, "method 'fedprox' has no hyper-parameter 'nu'; it has mu"),
        ({"local": FedNova(), "server": "flexlora"}, "FedNova needs factors .* factorises the product anew"),
    ],
)
def test_what_cannot_be_combined_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Compose(**parts)


@pytest.mark.parametrize("name", ["feddyn", "fedglomo", "fedlada", "fedsmoo", "scaffold"])
def test_vectors_of_clients_with_other_scales_are_not_added_up(name: str) -> None:
    one, other = (toy_federation((3, 3), lora_alpha=scale) for scale in (3.0, 6.0))
    for method in (get_method(name), Compose(local=name, server="fedrot_lora")):
        with pytest.raises(ValueError, match=r"needs one scale, but layer 'hidden' .* give all clients one lora_alpha"):
            federate(method, [one[0], other[1]], rounds=1)


def test_a_single_aggregation_is_refused() -> None:
    with pytest.raises(ValueError, match="Compose is a way of training"):
        fedelta.aggregate([toy_federation((3,))[0].template], method=Compose(local=FedProx(0.1), server="flexlora"))


# --- in a config -----------------------------------------------------------------------------------------------------


def test_a_config_names_the_parts() -> None:
    config = load_config(
        {"method": EVERYTHING, "lora": {"rank": 4}}, ["method.optimizer.learning_rate=0.5", "method.server=zeropad"]
    )
    assert choices_of(config).method == Compose(
        local=[FedProx(0.1), Scaffold(), FedNova()], server="zeropad", optimizer=FedAdam(learning_rate=0.5)
    )
    with pytest.raises(ConfigError, match=r"needs factors that keep their meaning .* take a server that averages factors"):
        load_config({"method": EVERYTHING}, ["method.server=flexlora"])
    with pytest.raises(ConfigError, match="needs equal ranks"):
        load_config({"method": {**EVERYTHING, "server": "zeropad"}, "lora": {"rank": {"choices": [2, 4]}}})


def test_a_composed_run_goes_on_to_the_same_bytes(tiny_config: dict[str, Any], tmp_path: Path) -> None:
    composed = {"method": EVERYTHING, "lora.rank": 4}
    fedelta.run(tiny_config, composed | {"output": str(tmp_path / "short"), "federation.rounds": 2})
    fedelta.run(overrides={"federation.rounds": 3}, resume=tmp_path / "short")
    fedelta.run(tiny_config, composed | {"output": str(tmp_path / "long"), "federation.rounds": 3})
    for file in ("adapters/last/adapter_model.safetensors", "checkpoint/state-3.safetensors"):
        assert (tmp_path / "short" / file).read_bytes() == (tmp_path / "long" / file).read_bytes()


@pytest.mark.parametrize(
    "method",
    [
        Compose(local=Scaffold()),
        Compose(local=FedProx(0.1), server=FlexLoRA()),
        Compose(local=[FedProx(0.1), Scaffold()], optimizer=FedAdam(learning_rate=0.01)),
        Compose(local=FedNova(), server=FFALoRA()),
    ],
    ids=lambda m: "+".join(type(x).__name__ for x in (*m.local, m.server, m.optimizer) if x is not None),
)
def test_combinations_keep_the_laws_but_those_that_their_parts_are_exempt_from(method: Compose) -> None:
    report = check_method(method)
    exempt = {v.law for v in report.verdicts if v.outcome == "exempt"}
    assert exempt == {law for part in (*method.local, method.server, method.optimizer) if part for law in part.exempt}
