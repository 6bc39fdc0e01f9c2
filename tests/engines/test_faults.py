"""A client that fails is left out by name, the others go on, and below the quorum the run stops and says why."""

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from fedelta import lowrank as lr
from fedelta import topology, tree
from fedelta.client import LocalClient, Request
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import DivergedError, QuorumError, Round
from fedelta.engines.runners import batched
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Client, ClientState, State, TrainResult
from fedelta.methods import get_method
from fedelta.methods.fedavg import FedAvg
from fedelta.methods.fedgalore import FedGaLore
from fedelta.methods.ffa_lora import FFALoRA
from fedelta.models.toy import random_adapter, toy_federation
from fedelta.tree import Adapter, BaseDelta, Message

Damage = Callable[[Adapter], Any]


class Faulty:
    """A client whose trained adapter is damaged, in rounds that `when` names."""

    def __init__(self, client: LocalClient, damage: Damage, when: Callable[[int], bool] = lambda t: True) -> None:
        self._client, self._damage, self._when = client, damage, when

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        result = self._client.train(t, start, **request)
        return replace(result, adapter=self._damage(result.adapter)) if self._when(t) else result


@dataclass(frozen=True, kw_only=True)
class Sends(FedAvg):
    """FedAvg whose client 1 sends something else."""

    content: Any = None

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        up, state = super().local_update(t, down, client_state, client)
        return (self.content, state) if client.peer.id == 1 else (up, state)


def at_hidden(change: Callable[[LoRA], LoRA]) -> Damage:
    return lambda a: tree.map_named(lambda n, x: change(x) if n == "hidden" else x, a)


def with_entry(value: float) -> Damage:
    def change(x: LoRA) -> LoRA:
        B = x.B.clone()
        B[1, 0] = value
        return lr.with_factor(x, "B", B)

    return at_hidden(change)


def raising(error: BaseException) -> Damage:
    def damage(adapter: Adapter) -> Adapter:
        raise error

    return damage


BROKEN: dict[str, tuple[Damage, str]] = {
    "raises": (raising(RuntimeError("out of memory")), "local update: RuntimeError: out of memory"),
    "NaN": (with_entry(float("nan")), "hidden/B holds 1 NaN or Inf of 12 values"),
    "Inf": (with_entry(float("inf")), "hidden/B holds 1 NaN or Inf of 12 values"),
    "NaN in the head": (
        lambda a: replace(a, dense={"bias": a.dense["bias"] * float("nan")}),
        "bias holds 4 NaN or Inf of 4 values",
    ),
    "shape": (at_hidden(lambda x: LoRA(x.B[:-1], x.A, x.scale)), r"layer 'hidden': client 1 has \(d_out, d_in\) = \(5, 5\)"),
    "head": (lambda a: replace(a, dense={"bias": torch.zeros(9)}), r"dense tensor 'bias': client 1 has shape \(9,\)"),
    "rank": (at_hidden(lambda x: lr.pad(x, 3)), "layer 'hidden': client 1 sent rank 3, above its capacity of 2"),
    "layers": (lambda a: replace(a, layers={"hidden": a.layers["hidden"]}), r"client 1 lacks \['output'\]"),
    "extra": (lambda a: replace(a, layers={**a.layers, "more": a.layers["hidden"]}), r"adds \['more'\]"),
    "base": (lambda a: replace(a, base="other"), "client 1 was trained on base other"),
    "integers": (lambda a: tree.map_tensors(lambda x: x.long(), a), "hidden.lora_A holds torch.int64"),
    "scale": (at_hidden(lambda x: replace(x, scale=float("nan"))), "the scale of a delta must be a finite number, got nan"),
    "sign": (at_hidden(lambda x: replace(x, scale=-1.0)), "client 1 sent scale -1.0, where its own is 1.0"),
    "fewer": (at_hidden(lambda x: lr.components(x, 0, 1)), "client 1 sent rank 1 of its 2, but this method needs equal ranks"),
    "complex": (lambda a: tree.map_tensors(lambda x: x.to(torch.complex128), a), "complex128"),
}


def play(damage: Damage, name: str = "fedavg", **options: Any) -> list[Round]:
    clients: list[Any] = toy_federation((2, 2, 2, 2))
    clients[1] = Faulty(clients[1], damage)
    return list(federate(get_method(name), clients, rounds=2, **options))


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_update_is_left_out_with_its_reason(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    damage, reason = BROKEN[kind]
    with caplog.at_level(logging.WARNING, "fedelta"):
        done = play(damage)[0]
    assert list(done.dropped) == [1]
    assert re.search(reason, done.dropped[1])
    assert "client 1 is left out of round 0" in caplog.messages[0]
    assert done.dropped[1] in caplog.messages[0]


@pytest.mark.parametrize("kind", ["raises", "NaN", "rank"])
def test_the_others_go_on_as_if_it_had_not_been_asked(kind: str) -> None:
    done = play(BROKEN[kind][0])[-1]
    others = list(federate(FedAvg(), toy_federation((2, 2, 2, 2)), rounds=2, cohort=lambda t, peers, seed: [0, 2, 3]))[-1]
    assert [u.weight for u in done.updates] == [u.weight for u in others.updates] == pytest.approx([12 / 56, 20 / 56, 24 / 56])
    assert wire.encode(done.state) == wire.encode(others.state)


def test_the_ledger_has_what_was_sent_to_it_and_what_arrived() -> None:
    raised, rejected = play(BROKEN["raises"][0])[0], play(BROKEN["NaN"][0])[0]
    assert set(raised.bytes.down) == set(rejected.bytes.down) == {0, 1, 2, 3}
    assert set(raised.bytes.up) == {0, 2, 3}
    assert set(rejected.bytes.up) == {0, 1, 2, 3}


@pytest.mark.parametrize("kind", ["NaN", "shape"])
@pytest.mark.parametrize("name", ["ffa_lora", "flora", "fedex_lora", "flexlora", "zeropad", "hetlora"])
def test_every_kind_of_message_is_guarded(name: str, kind: str) -> None:
    assert list(play(BROKEN[kind][0], name)[-1].dropped) == [1]


def test_bare_factors_above_the_capacity_are_refused() -> None:
    clients: list[Any] = toy_federation((4, 2, 2))
    clients[1] = Faulty(clients[1], at_hidden(lambda x: lr.pad(x, 3)))
    done = next(iter(federate(get_method("ffa_lora"), clients, rounds=1)))
    assert "client 1 sent rank 3, above its capacity of 2" in done.dropped[1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "a mapping of named entries"),
        ({"adaptor": 1}, "KeyError: 'adapter'"),
        ({"adapter": object()}, "a object cannot travel"),
        ({"adapter": "hello"}, "client 1 sent a str where an Adapter was expected"),
        (
            {"adapter": random_adapter(2, seed=0), "extra": [torch.tensor([1.0, float("nan")])]},
            "extra[0] holds 1 NaN or Inf of 2",
        ),
    ],
)
def test_a_message_that_is_none_is_left_out(content: Any, reason: str) -> None:
    done = next(iter(federate(Sends(content=content), toy_federation(), rounds=1)))
    assert reason in done.dropped[1]


@pytest.mark.parametrize("name", ["flora", "fedex_lora", "flexlora", "zeropad", "hetlora"])
@pytest.mark.parametrize("rank", [0, 1])
def test_fewer_components_than_the_capacity_are_fine_under_unequal_ranks(name: str, rank: int) -> None:
    for done in play(at_hidden(lambda x: lr.components(x, 0, rank)), name, debug=True):
        assert done.updates[1].content["adapter"].layers["hidden"].rank == rank


def test_fedex_is_exact_with_fewer_components_than_it_averages() -> None:
    done = play(at_hidden(lambda x: lr.components(x, 0, 1)), "fedex_lora", debug=True)[0]
    mean = sum(u.weight * u.content["adapter"].layers["hidden"].dense() for u in done.updates)
    torch.testing.assert_close(tree.effective(**done.global_model()).layers["hidden"].dense(), mean)


def test_no_graph_of_a_client_lives_on_in_the_state() -> None:
    done = play(lambda a: tree.map_tensors(lambda x: x.clone().requires_grad_() * 1.0, a))[-1]
    assert not any(x.requires_grad for _, x in tree.named_tensors([u.content for u in done.updates]))
    assert not any(x.requires_grad for _, x in tree.named_tensors(done.state))


def test_what_a_message_means_is_guarded_beside_what_it_holds() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Partial(Sends):
        def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
            adapter = update.content["adapter"]
            return replace(adapter, layers={n: adapter.layers[n] for n in update.content.get("means", adapter.layers)}), None

    content = {"adapter": random_adapter(2, seed=0), "means": ["output"]}
    done = next(iter(federate(Partial(content=content), toy_federation(), rounds=1)))
    assert "client 1 lacks ['hidden']" in done.dropped[1]


def test_a_client_left_out_keeps_its_state_and_gets_the_whole_base_next() -> None:
    clients: list[Any] = toy_federation((2, 2))
    clients[1] = Faulty(clients[1], raising(OSError("gone")), when=lambda t: t == 2)
    run = list(federate(get_method("flora"), clients, rounds=4))
    assert [[p.base_version for p in r.peers] for r in run] == [[0, 0], [1, 1], [2, 0], [3, 3]]

    clients = toy_federation((2, 2))
    clients[1] = Faulty(clients[1], raising(OSError("gone")), when=lambda t: t == 1)
    first, second = federate(get_method("local_only"), clients, rounds=2)
    assert second.client_states[1] is first.client_states[1]
    assert second.snapshot.client_rounds == {0: 1, 1: 0}


def test_a_method_without_messages_survives_a_fault() -> None:
    assert list(play(BROKEN["raises"][0], "local_only")[0].dropped) == [1]


@pytest.mark.parametrize(("quorum", "enough"), [(1, True), (3, True), (4, False), (0.75, True), (0.76, False), (1.0, False)])
def test_the_quorum_is_a_number_or_a_fraction(quorum: float, enough: bool) -> None:
    if enough:
        assert len(play(BROKEN["raises"][0], quorum=quorum)) == 2
    else:
        with pytest.raises(
            QuorumError, match=r"round 0: 3 of 4 updates can be used, the quorum is 4\n  client 1: .*out of memory"
        ):
            play(BROKEN["raises"][0], quorum=quorum)


def test_below_the_quorum_all_are_named() -> None:
    clients = [Faulty(c, BROKEN[kind][0]) for c, kind in zip(toy_federation((2, 2)), ("NaN", "raises"), strict=True)]
    with pytest.raises(QuorumError) as error:
        next(iter(federate(FedAvg(), clients, rounds=1)))
    assert "0 of 2" in str(error.value)
    assert "client 0: upload: NotFiniteError" in str(error.value)
    assert "client 1: local update: RuntimeError" in str(error.value)
    assert not isinstance(error.value, DivergedError)


def test_a_round_in_which_nothing_is_finite_says_so_with_what_was_sent() -> None:
    clients = [Faulty(c, BROKEN["NaN"][0]) for c in toy_federation((2, 2))]
    with pytest.raises(DivergedError, match="0 of 2 updates can be used") as error:
        next(iter(federate(FedAvg(), clients, rounds=1)))
    assert (error.value.t, list(error.value.cohort), list(error.value.left_out)) == (0, [0, 1], [0, 1])
    assert error.value.sent.total_down > 0
    assert error.value.sent.total_up > 0
    assert "it diverged in the first round: look at the method, if it is your own" in str(error.value)


@pytest.mark.parametrize("graph", [False, True])
def test_a_state_that_is_not_finite_says_so_with_what_was_sent(graph: bool) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Overflows(FedAvg):
        def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
            return tree.map_tensors(lambda x: x * float("inf"), super().aggregate(t, state, updates))

    clients, whole = toy_federation((2, 2)), toy_federation((2, 2))
    mixing = topology.complete(2)
    rounds = gossip(Overflows(), clients, rounds=1, mixing=mixing) if graph else federate(Overflows(), clients, rounds=1)
    usual = gossip(FedAvg(), whole, rounds=1, mixing=mixing) if graph else federate(FedAvg(), whole, rounds=1)
    with pytest.raises(DivergedError, match="the updates cannot be aggregated") as error:
        next(iter(rounds))
    assert error.value.sent == next(iter(usual)).bytes


def test_a_method_that_returns_no_state_is_named() -> None:
    class Forgetful(FedAvg):
        def aggregate(self, t: int, state: State, updates: Any) -> Any:
            super().aggregate(t, state, updates)

    with pytest.raises(QuorumError, match=r"Forgetful.aggregate must return the next state, .* but returned None"):
        list(federate(Forgetful(), toy_federation((2, 2, 2)), rounds=1))


def test_an_impossible_quorum_is_refused_before_anyone_trains() -> None:
    with pytest.raises(ValueError, match="quorum = 5 must be between 1 and the 4"):
        play(raising(AssertionError("trained")), quorum=5, debug=True)


def test_debug_raises_with_client_round_and_stage() -> None:
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        play(BROKEN["raises"][0], debug=True)
    assert raised.value.__notes__ == ["client 1, round 0, stage: local update"]
    with pytest.raises(ValueError, match="NaN") as rejected:
        play(BROKEN["NaN"][0], debug=True)
    assert rejected.value.__notes__ == ["client 1, round 0, stage: upload"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_swallowed(error: type[BaseException]) -> None:
    with pytest.raises(error):
        play(raising(error()))


class Unreadable(Exception):
    """An error without a text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_a_reason_is_short_and_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    text = "\x1b[31mred\nclient 0 is left out\r\u202e\x00" + "x" * 10**6
    with caplog.at_level(logging.WARNING, "fedelta"):
        reason = play(raising(RuntimeError(text)))[0].dropped[1]
    assert reason.startswith("local update: RuntimeError: \\x1b[31mred\\nclient 0 is left out\\r\\u202e\\x00xxx")
    assert reason.endswith("more characters)")
    assert len(reason) < 600
    assert caplog.messages[0].isprintable()


def test_a_reason_keeps_other_alphabets() -> None:
    assert play(raising(ValueError("größer als 三 – ещё")))[0].dropped[1] == "local update: ValueError: größer als 三 – ещё"


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_an_error_that_has_no_text_is_a_reason_too(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "fedelta"):
        done = play(raising(Unreadable()), engine=engine)[-1]
    assert done.dropped == {1: "local update: Unreadable, whose text cannot be read (RuntimeError)"}


def test_a_joint_pass_survives_an_error_that_has_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise Unreadable

    monkeypatch.setattr(batched, "train_together", broken)
    clients = toy_federation((2, 2))
    asked: list[Any] = [(c, Request(0, c.template)) for c in clients]
    answers = batched.Batched()._train(asked)
    assert [answer.num_steps for answer in answers if isinstance(answer, TrainResult)] == [4, 4]


def test_an_empty_upload_is_refused_by_name() -> None:
    done = next(iter(federate(Sends(content={}), toy_federation(), rounds=1)))
    assert done.dropped[1] == "upload: ValueError: client 1 sent an empty message, where A, B, head should travel"


def test_a_method_checks_what_only_its_aggregate_reads() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Picky(FedAvg):
        def check_upload(self, t: int, state: State, update: ClientUpdate) -> None:
            super().check_upload(t, state, update)
            if update.sender.id == 2:
                raise LookupError("no ticket")

    done = next(iter(federate(Picky(), toy_federation(), rounds=1)))
    assert done.dropped == {2: "upload: LookupError: no ticket"}


MOMENTS: dict[str, tuple[Callable[[Message], Message], str]] = {
    "none for a layer": (lambda m: {**m, "second_moment": {}}, "second moments"),
    "below zero": (lambda m: {**m, "second_moment": tree.map_tensors(lambda x: -x - 1, m["second_moment"])}, "below 0"),
    "another shape": (lambda m: {**m, "second_moment": tree.map_tensors(lambda x: x[:1], m["second_moment"])}, "sent shape"),
    "no number of steps": (lambda m: {**m, "num_steps": -1}, "claims -1 steps"),
    "a sketch of a layer": (lambda m: {**m, "sketch": {"hidden": m["sketch"]["hidden"]}}, "lacks"),
    "a sketch transposed": (
        lambda m: {**m, "sketch": {n: LoRA(x.A.mT, x.B.mT) for n, x in m["sketch"].items()}},
        "sent no sketch of a gradient of shape",
    ),
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_fedgalore_checks_its_own_messages(kind: str) -> None:
    change, reason = MOMENTS[kind]

    @dataclass(frozen=True, kw_only=True)
    class Changed(FedGaLore):
        def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
            up, state = super().local_update(t, down, client_state, client)
            return (change(up) if client.peer.id == 1 else up), state

    done = next(iter(federate(Changed(basis="server_basis"), toy_federation(), rounds=1)))
    assert reason in done.dropped[1]


def test_bare_factors_are_held_to_the_capacity_beside_a_good_adapter() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Decoy(FFALoRA):
        def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
            up, state = super().local_update(t, down, client_state, client)
            wide = {n: torch.cat([x, x], 1) for n, x in up["B"].items()}
            return ({**up, "B": wide, "adapter": client.template} if client.peer.id == 1 else up), state

    done = next(iter(federate(Decoy(), toy_federation((4, 2, 2)), rounds=1)))
    assert "client 1 sent rank 4, above its capacity of 2" in done.dropped[1]


def test_factors_of_two_dtypes_are_refused() -> None:
    done = play(at_hidden(lambda x: LoRA(x.B.half(), x.A, x.scale)))[0]
    assert "client 1 sent A of torch.float64 and B of torch.float16" in done.dropped[1]
