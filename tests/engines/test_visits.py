"""The seam: what crosses it is bytes, and neither side needs anything else of the other."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pytest
import torch

from fedelta import tree
from fedelta.engines.federation import Federation
from fedelta.engines.gossip import gossip
from fedelta.engines.letters import Letter, Reply, Visit
from fedelta.engines.rounds import Round
from fedelta.engines.runners.batched import Batched
from fedelta.engines.server import federate
from fedelta.engines.settings import RunSettings
from fedelta.engines.visits import answer, receive, refuse, send
from fedelta.exchange import wire
from fedelta.exchange.channel import OWN, Channel, Stage
from fedelta.method import ClientState, Method, State
from fedelta.methods import get_method, list_methods
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer
from fedelta.runs.config import Federation as FederationConfig
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
    """A mark in every tensor of a memory that the method does not send itself never turns up in what is sent."""
    engine = OnBytes()
    list(run(built(name), engine))
    for (k, t), reply in engine.replies.items():
        entries = wire.decode(reply)
        assert set(entries) == {"content", "metrics", "version"}
        own = dict(tree.named_tensors(wire.decode(engine.sites[k, t])))
        sent = dict(tree.named_tensors(entries["content"]))
        private = {n: x for n, x in own.items() if x.numel() > 1 and x.is_floating_point() and bool(x.any())}
        # what a method both keeps and sends, such as a personal adapter's shared factor, is in its upload by its own rule
        leaked = [n for n, x in private.items() if not _is_sent(x, sent) and x.contiguous().numpy().tobytes() in reply]
        assert not leaked, f"client {k}, round {t}: {leaked} is in the reply's bytes"


def _is_sent(x: torch.Tensor, sent: Mapping[str, torch.Tensor]) -> bool:
    return any(x.shape == y.shape and torch.equal(x, y) for y in sent.values())


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
        def decode(self, t: int, peer: Peer, content: Message) -> Message:
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

    def decode(self, t: int, peer: Peer, content: Message) -> Message:
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


def test_one_set_of_options_for_python_and_for_a_config() -> None:
    settings = {entry.name: entry for entry in fields(RunSettings)}
    defaults = vars(RunSettings(rounds=1))
    spelled = set()
    for function in (federate, gossip):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in ("method", "clients", "template", "mixing"):
                continue
            spelled.add(name)
            assert settings[name].type == parameter.annotation or name == "engine", name
            if name != "rounds":
                assert parameter.default == defaults[name], name
    assert spelled == set(settings)
    for name in {"max_share", "quorum", "engine", "token_budget", "spool", "link_drop"}:
        assert FederationConfig.model_fields[name].default == defaults[name], name


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
