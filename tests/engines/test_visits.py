"""The seam: what crosses it is bytes, and neither side needs anything else of the other."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, get_type_hints

import pytest
import torch

from fedelta import tree
from fedelta.engines.federation import Federation
from fedelta.engines.gossip import gossip
from fedelta.engines.letters import Letter, Reply, Visit
from fedelta.engines.rounds import Round
from fedelta.engines.runners.batched import Batched
from fedelta.engines.runners.sequential import Sequential
from fedelta.engines.server import federate
from fedelta.engines.settings import CHECKS, RunSettings
from fedelta.engines.visits import answer, receive, refuse, send
from fedelta.exchange import wire
from fedelta.exchange.channel import OWN, Channel, Stage
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods import get_method, list_methods
from fedelta.methods.fedavg import FedAvg
from fedelta.methods.fedsa_lora import FedSALoRA
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer
from fedelta.runs.config import Federation as FederationConfig
from fedelta.runs.config import RunConfig
from fedelta.sampling import uniform
from fedelta.topology import ring
from fedelta.tree import Message


@dataclass
class OnBytes:
    """An engine whose letters, replies and memories exist as bytes alone, as between real sites.

    It keeps the memory of each round apart, and goes by what the letter says is remembered.
    """

    sites: dict[tuple[int, int | None], bytes] = field(default_factory=dict)
    replies: dict[tuple[int, int], bytes] = field(default_factory=dict)

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        return [self._visit(federation, t, state, k) for k, state in states.items()]

    def _visit(self, federation: Federation, t: int, state: State, k: int) -> Visit:
        letter = send(federation, t, state, k)
        arrived = replace(letter, message=wire.decode(wire.encode(letter.message)))
        try:
            reply, memory = self.site(federation.method, federation, k, arrived)
        except Exception as error:
            return refuse(federation, t, letter, "local update", error)
        self.sites[k, t] = memory
        self.replies[k, t] = reply
        content = wire.decode(reply)
        return receive(federation, t, state, letter, Reply(content["content"], content["metrics"], content["version"]))

    def site(self, method: Method, federation: Federation, k: int, letter: Letter) -> tuple[bytes, bytes]:
        held = self.sites.get((k, letter.remembered))
        memory = {} if held is None else wire.decode(held)
        reply, memory = answer(method, federation.clients[k], federation.channel, letter, memory)
        sent = {"content": reply.content, "metrics": reply.metrics, "version": reply.base_version}
        return wire.encode(sent), wire.encode(memory)


def run(method: Method, engine: Any, **settings: Any) -> list[Round]:
    ranks = (2, 4, 3) if method.hetero_rank else (3, 3, 3)
    options = {"rounds": 3, "seed": 3, "engine": engine, "score": lambda adapter, base: {"accuracy": 0.5, "loss": 1.0}}
    return list(federate(method, toy_federation(ranks, seed=5), **(options | settings)))


def same(x: Round, y: Round) -> None:
    assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
    assert x.bytes == y.bytes
    assert x.dropped == y.dropped


def built(name: str) -> Method:
    return get_method(name, local=["fedprox", "scaffold"], optimizer="fedavgm") if name == "compose" else get_method(name)


NAMES = [name for name in list_methods() if name != "centralised"]  # pools data, which no site gives away


@pytest.mark.parametrize("name", NAMES)
def test_eng_1_every_method_lives_on_encoded_bytes_alone(name: str) -> None:
    method, cohort = built(name), uniform(2)
    for direct, encoded in zip(run(method, "sequential", cohort=cohort), run(method, OnBytes(), cohort=cohort), strict=True):
        same(direct, encoded)


@pytest.mark.parametrize("name", NAMES)
def test_eng_1_no_byte_of_a_sent_reply_comes_from_a_memory(name: str) -> None:
    """A note that lies in a memory beside the method's own entries is in no reply."""
    engine = Noting()
    run(built(name), engine)
    assert engine.replies
    for (k, t), reply in engine.replies.items():
        assert set(wire.decode(reply)) == {"content", "metrics", "version"}
        assert NOTE.numpy().tobytes() not in reply, f"client {k}, round {t}"


def test_eng_1_a_method_that_sends_its_memory_is_found_out() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Leaking(FedSALoRA):
        def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
            up, kept = super().local_update(t, down, client_state, client)
            return {**up, "spare": dict(client_state)}, kept

    engine = Noting()
    run(Leaking(), engine)
    assert any(NOTE.numpy().tobytes() in reply for reply in engine.replies.values())


@pytest.mark.parametrize("name", ["fedsa_lora", "scaffold", "feddyn"])
def test_eng_1_what_is_sent_has_the_names_of_an_upload_and_no_others(name: str) -> None:
    """The factors that stay at a client, and its control variates, are not sent under another name either."""
    engine = OnBytes()
    rounds = run(built(name), engine)
    for reply in engine.replies.values():
        content = wire.decode(reply)["content"]
        own = set(dict(tree.named_tensors({n: x for n, x in content.items() if n != "parts"})))
        assert own == set(dict(tree.named_tensors(rounds[0].method.upload(rounds[0].template))))


NOTE = torch.tensor([0.123456789, -9.87654321, 3.14159265358979], dtype=torch.float64)


@dataclass
class Noting(OnBytes):
    """Puts a note of known bytes into every memory before it is used."""

    def site(self, method: Method, federation: Federation, k: int, letter: Letter) -> tuple[bytes, bytes]:
        held = self.sites.get((k, letter.remembered))
        memory = {} if held is None else wire.decode(held)
        if memory:  # an empty one says that the client begins
            self.sites[k, letter.remembered] = wire.encode({**memory, "note": NOTE})
        return super().site(method, federation, k, letter)


@pytest.mark.parametrize("name", ["scaffold", "fedsa_lora", "hetlora", "flora", "fedgalore"])
def test_eng_1_the_batched_engine_keeps_its_memories_apart_from_the_server(name: str) -> None:
    method = built(name)
    for x, y in zip(run(method, "batched"), run(method, OnBytes()), strict=True):
        assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})


def test_eng_2_a_server_of_remote_clients_loads_neither_transformers_nor_peft() -> None:
    code = (
        "import sys, json\n"
        "import fedelta.engines.federation, fedelta.engines.visits, fedelta.engines.guards, fedelta.engines.rounds\n"
        "import fedelta.engines.server, fedelta.engines.gossip, fedelta.engines.checkpoint, fedelta.engines.choice\n"
        "from fedelta.models.toy import toy_federation\n"
        "from fedelta import federate, get_method\n"
        "class Remote:\n"
        "    def __init__(self, client):\n"
        "        self.peer, self.template, self.num_steps, self.train = client.peer, client.template, 1, client.train\n"
        "list(federate(get_method('flexlora'), [Remote(c) for c in toy_federation((2, 3))], rounds=1))\n"
        "print(json.dumps([m for m in ('transformers', 'peft') if m in sys.modules]))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == []


def test_a_memory_counts_only_if_its_answer_did() -> None:
    """The site of a refused answer goes on from the memory of the last answer that counted."""
    engine = OnBytes()

    class Once(Stage):
        def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
            if (t, peer.id) == (1, 0):
                raise ValueError("cut short")
            return content

    seen: list[int | None] = []
    site = engine.site

    def watched(method: Method, federation: Federation, k: int, letter: Letter) -> tuple[bytes, bytes]:
        if k == 0:
            seen.append(letter.remembered)
        return site(method, federation, k, letter)

    engine.site = watched  # type: ignore[method-assign]
    rounds = run(get_method("scaffold"), engine, channel=Channel((Once(),)), rounds=4)
    assert list(rounds[1].dropped) == [0]
    assert seen == [None, 0, 0, 2]


@pytest.mark.parametrize("claim", [-1, 7, "3", None])
def test_a_base_version_that_was_never_sent_counts_as_none(claim: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A client that lies about what it holds gets the whole base next."""

    @dataclass
    class Lying(OnBytes):
        def _visit(self, federation: Federation, t: int, state: State, k: int) -> Visit:
            letter = send(federation, t, state, k)
            reply, _ = answer(federation.method, federation.clients[k], federation.channel, letter, {})
            return receive(federation, t, state, letter, replace(reply, base_version=claim if k == 0 else reply.base_version))

    done = run(get_method("flora"), Lying())[-1]
    assert done.snapshot.base_versions.get(0, 0) == 0 < done.snapshot.base_versions[1]
    assert "client 0 says that it holds version" in caplog.text


@dataclass(frozen=True)
class Halved(Stage):
    """Sends half of every number, and remembers how often it did."""

    def encode(
        self, t: int, peer: Peer, down: Message, content: Message, memory: Mapping[str, Any]
    ) -> tuple[Message, Mapping[str, Any]]:
        return tree.map_tensors(lambda x: x / 2, content), {"times": memory.get("times", 0) + 1}

    def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
        return tree.map_tensors(lambda x: x * 2, content)


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_a_stage_is_undone_before_the_server_looks_and_keeps_its_own_memory(engine: str) -> None:
    plain, halved = run(get_method("scaffold"), engine), run(get_method("scaffold"), engine, channel=Channel((Halved(),)))
    for x, y in zip(plain, halved, strict=True):
        assert wire.encode({"state": x.state}) == wire.encode({"state": y.state})
    assert [state[OWN] for state in halved[-1].client_states.values()] == [{"Halved": {"times": 3}}] * 3
    assert all(OWN not in state for state in plain[-1].client_states.values())


def test_stages_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        Channel((Halved(), Halved()))


def test_an_unknown_engine_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'bached'.*did you mean 'batched'"):
        federate(get_method("fedavg"), toy_federation((2, 2)), rounds=1, engine="bached")


CONFIGURED = {"rounds", "weights", "max_share", "quorum", "engine", "token_budget", "spool", "link_drop"}
"""Options that a config's section `federation` has under the same name."""

OWN_DEFAULT = {"rounds": 10, "weights": "examples"}
"""What a config says where Python demands a number, or takes None for it."""


def test_one_set_of_options_for_python_and_for_a_config() -> None:
    settings, types = {entry.name for entry in fields(RunSettings)}, get_type_hints(RunSettings)
    defaults = vars(RunSettings(rounds=1))
    spelled = set()
    for function in (federate, gossip):
        hints = get_type_hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            if name in ("method", "clients", "template", "mixing"):
                continue
            spelled.add(name)
            assert types[name] == hints[name] or name == "engine", name  # the settings know of an engine that it is called
            if name != "rounds":
                assert parameter.default == defaults[name], name
    assert spelled == settings
    for name in CONFIGURED:
        assert FederationConfig.model_fields[name].default == OWN_DEFAULT.get(name, defaults[name]), name
    FederationConfig(**{name: OWN_DEFAULT.get(name, defaults[name]) for name in CONFIGURED})  # of a type that it takes
    assert RunConfig.model_fields["seed"].default == defaults["seed"]


def test_a_round_copies_no_memories_when_nobody_remembers_anything_new() -> None:
    engine = Batched()
    clients = toy_federation((2, 2, 2))
    rounds = list(federate(get_method("fedavg"), clients, rounds=3, engine=engine))
    assert rounds[0].snapshot.client_states is rounds[2].snapshot.client_states


def test_a_snapshot_stays_what_it_was() -> None:
    clients = toy_federation((2, 2, 2))
    rounds = federate(get_method("scaffold"), clients, rounds=3)
    first = next(rounds).snapshot
    before: Mapping[int, ClientState] = {k: wire.decode(wire.encode(x)) for k, x in first.client_states.items()}
    list(rounds)
    assert {k: wire.encode(x) for k, x in first.client_states.items()} == {k: wire.encode(x) for k, x in before.items()}


def test_nodes_of_a_graph_live_on_bytes_too() -> None:
    def nodes(engine: Any) -> list[Round]:
        return list(gossip(get_method("fedsa_lora"), toy_federation((2, 2, 2, 2)), rounds=3, mixing=ring(4), engine=engine))

    for x, y in zip(nodes("sequential"), nodes(OnBytes()), strict=True):
        same(x, y)


@pytest.mark.parametrize("engine", [Sequential, Batched])
def test_an_engine_that_is_used_again_remembers_nothing_of_the_run_before(engine: Any) -> None:
    used = engine()
    first, second = (run(get_method("scaffold"), used) for _ in range(2))
    assert wire.encode({"state": first[-1].state}) == wire.encode({"state": second[-1].state})


def test_an_engine_that_leaves_a_client_out_in_silence_is_refused() -> None:
    def forgetful(federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        return Sequential()(federation, t, states)[1:]

    with pytest.raises(ValueError, match=r"visited clients \[1, 2\], where the cohort is \[0, 1, 2\]"):
        run(get_method("fedavg"), forgetful)


@dataclass(frozen=True)
class Wrapped(Stage):
    """Sends everything one entry deeper."""

    def down(self, t: int, peer: Peer, message: Message) -> Message:
        return {"wrapped": wire.encode(message).hex()}

    def arrived(self, t: int, peer: Peer, message: Message) -> Message:
        return wire.decode(bytes.fromhex(message["wrapped"]))


def test_a_stage_that_hides_a_base_delta_does_not_hide_its_version(caplog: pytest.LogCaptureFixture) -> None:
    plain, wrapped = (run(get_method("flora"), "sequential", channel=Channel(stages)) for stages in ((), (Wrapped(),)))
    assert dict(plain[-1].snapshot.base_versions) == dict(wrapped[-1].snapshot.base_versions)
    assert "says that it holds version" not in caplog.text


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_a_client_with_a_bad_row_is_left_out_in_every_engine(engine: str) -> None:
    clients = toy_federation((2, 2, 2))

    def damaged(rows: Any) -> Any:
        raise ValueError("row 3 is damaged")

    clients[1].collate = damaged
    (done,) = federate(get_method("fedavg"), clients, rounds=1, engine=engine)
    assert list(done.dropped) == [1]
    assert "row 3 is damaged" in done.dropped[1]


IMPOSSIBLE: list[tuple[str, Any]] = [
    ("quorum", 7.5),
    ("quorum", 0),
    ("quorum", "half"),
    ("quorum", True),
    ("quorum", None),
    ("max_share", 2.0),
    ("max_share", "0.5"),
    ("token_budget", 0),
    ("token_budget", "many"),
    ("token_budget", 2.5),
    ("spool", 3),
    ("spool", "yes"),
    ("rounds", "3"),
    ("rounds", 2.5),
    ("rounds", float("nan")),
    ("rounds", -1),
    ("rounds", True),
    ("seed", "0"),
    ("seed", 0.5),
    ("seed", True),
    ("cohort", 3),
    ("weights", "size"),
    ("weights", 1),
    ("score", 0.5),
    ("start", {"t": 1}),
    ("debug", 1),
    ("engine", 5),
    ("channel", None),
    ("channel", ()),
]


@pytest.mark.parametrize(("option", "value"), IMPOSSIBLE)
def test_an_option_that_cannot_be_is_refused_at_the_call(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option} (must|= )"):
        federate(get_method("fedavg"), toy_federation((2, 2)), **{"rounds": 1, option: value})


@pytest.mark.parametrize("value", ["0.1", 1.5, -0.1, float("nan"), True, None])
def test_a_probability_that_cannot_be_is_refused_at_the_call(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^link_drop must"):
        gossip(get_method("fedavg"), toy_federation((2, 2)), rounds=1, mixing=ring(2), link_drop=value)


def test_every_option_has_a_check() -> None:
    assert {entry.name for entry in fields(RunSettings)} == set(CHECKS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "fedavg"}, r"method must be a method, not 'fedavg': get_method\('fedavg'\) makes one"),
        ({"method": FedAvg}, r"method must be a method, not the class FedAvg: get_method\('fedavg'\), or FedAvg\(\)"),
        ({"method": None}, r'method must be a method, not None: get_method\("fedavg"\)'),
        ({"clients": None}, "clients must be a list of clients, or ClientsOnDemand, not None"),
        ({"clients": [1]}, "clients must be clients, each with its `peer`, but one is 1"),
        ({"clients": "all"}, "clients must be a list"),
        ({"template": {}}, "template must be an Adapter, or None"),
    ],
)
def test_what_is_of_another_kind_is_refused_at_the_call(given: dict[str, Any], message: str) -> None:
    kinds: dict[str, Any] = {"method": get_method("fedavg"), "clients": toy_federation((2, 2)), **given}
    with pytest.raises(TypeError, match=message):
        federate(**kinds, rounds=1)
    with pytest.raises(TypeError, match=message):
        gossip(**kinds, rounds=1, mixing=ring(2))


# --- engines of one's own ------------------------------------------------------------------------------------------------


ANSWERS: dict[str, tuple[Any, str]] = {
    "None": (lambda visits: None, "the engine returned None"),
    "a generator": (lambda visits: (x for x in visits), "the engine returned <generator"),
    "a text": (lambda visits: "visits", "the engine returned 'visits'"),
    "a mapping": (lambda visits: {x.peer.id: x for x in visits}, "the engine returned {0: Visit"),
    "a None visit": (lambda visits: [None, *visits[1:]], r"the engine returned \[None"),
    "updates": (lambda visits: [x.update for x in visits], r"the engine returned \[ClientUpdate"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_no_list_of_visits_is_refused_by_what_it_is(answer: str) -> None:
    change, message = ANSWERS[answer]
    with pytest.raises(TypeError, match=message):
        run(get_method("fedavg"), lambda *asked: change(Sequential()(*asked)))


def swapped(visits: list[Visit]) -> list[Visit]:
    return [replace(visits[0], update=visits[1].update), replace(visits[1], update=visits[0].update), *visits[2:]]


def doubled(visits: list[Visit]) -> list[Visit]:
    return [replace(visit, update=visits[0].update) for visit in visits]


@pytest.mark.parametrize("change", [swapped, doubled])
def test_an_update_of_another_client_is_refused(change: Any) -> None:
    with pytest.raises(ValueError, match=r"round 0: the engine returned for client \d an update of client \d"):
        run(get_method("fedavg"), lambda *asked: change(Sequential()(*asked)))


@pytest.mark.parametrize(
    ("field", "value"), [("down", None), ("down", -1), ("down", 1.5), ("down", True), ("up", -1), ("up", "9"), ("up", 2.0)]
)
def test_bytes_that_are_no_number_are_refused(field: str, value: Any) -> None:
    def engine(*asked: Any) -> list[Visit]:
        return [replace(visit, **{field: value}) for visit in Sequential()(*asked)]

    with pytest.raises(ValueError, match=f"round 0: the engine returned for client 0 a visit whose {field} must be"):
        run(get_method("fedavg"), engine)


def test_memories_without_the_methods_of_memories_are_refused_by_name() -> None:
    class Half:
        memories: ClassVar[dict[int, Any]] = {}

        def __call__(self, *asked: Any) -> list[Visit]:
            return Sequential()(*asked)

    with pytest.raises(TypeError, match=r"`memories` of the engine Half lacks offer, restore, rounds, settle, states"):
        run(get_method("fedavg"), Half())
