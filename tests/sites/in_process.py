"""A grid in this process that plays SuperLink and SuperNodes: messages cross as the bytes that Flower would send."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedelta.client import LocalClient
from fedelta.engines.census import enrol, survey
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.runners.flower.client import client_app
from fedelta.engines.runners.flower.packing import unpack
from fedelta.engines.runners.flower.sites import FlowerCarrier, FlowerSites
from fedelta.engines.server import federate
from fedelta.engines.site import Site
from fedelta.exchange.channel import Channel
from fedelta.exchange.parcels import Parcel
from fedelta.method import Client, Method, TrainResult
from fedelta.methods.fedavg import FedAvg
from fedelta.models.toy import toy_federation
from fedelta.tree import Adapter

FIRST = 1001
"""The id of the node of client 0."""

Fault = Callable[[int, Parcel], "str | int | Error | None"]
"""(client, what it is asked) -> "silent", the looks for answers that its own is late by, or Flower's error."""


def crossed(message: Message) -> tuple[Message, int]:
    """Returns a message as its receiver has it, and the bytes of all objects that Flower sends for it."""
    contents = {i: x.deflate() for i, x in get_all_nested_objects(message).items()}
    size = sum(map(len, contents.values()))
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived, size


class InProcessGrid(Grid):
    """Plays nodes whose ClientApp is one function; node `FIRST + k` is client k.

    Attributes:
        app: what each node runs.
        here: the nodes that are connected.
        fault: asked before a node works on a message.
        transport: bytes of all objects that crossed, down and up, of messages of type train.
        most_pulled: the most bytes of bodies that one call fetched.
    """

    def __init__(self, app: ClientApp, count: int, fault: Fault | None = None) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.app, self.fault = app, fault or (lambda k, parcel: None)
        self.here = list(range(FIRST, FIRST + count))
        self.transport = {"down": 0, "up": 0}
        self.most_pulled = 0
        self.pushes: list[int] = []
        self._ids = itertools.count()
        self._ready: dict[str, tuple[int, Message]] = {}

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return SimpleNamespace(run_id=1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.here)

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:  # type: ignore[override]
        assert isinstance(messages, list), "Flower sends nothing of a generator"
        self.pushes.append(len(messages))
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found: list[Message] = []
        for i in list(message_ids):
            looks, reply = self._ready.get(i, (1, None))
            if reply is not None and looks == 0:
                found.append(self._ready.pop(i)[1])
            elif reply is not None:
                self._ready[i] = looks - 1, reply
        bodies = [len(unpack(m.content).body) for m in found if m.has_content() and "header" in m.content]
        self.most_pulled = max([self.most_pulled, sum(bodies)])
        return found

    def arrive(self) -> None:
        """Lets all answers that are on their way arrive."""
        self._ready = {i: (0, reply) for i, (_, reply) in self._ready.items()}

    def _push(self, message: Message) -> str | None:
        node = message.metadata.dst_node_id
        if node not in self.here:
            return None
        message.metadata.__dict__["_message_id"] = name = f"m{next(self._ids)}"
        arrived, down = crossed(message)
        fault = self.fault(node - FIRST, unpack(arrived.content))
        if isinstance(fault, str):  # "silent"
            return name
        looks = fault if isinstance(fault, int) else 0
        reply, up = crossed(self._error(arrived, fault) if isinstance(fault, Error) else self._answer(arrived, node))
        if message.metadata.message_type == "train":
            self.transport["down"] += down
            self.transport["up"] += up
        self._ready[name] = looks, reply
        return name

    def _answer(self, message: Message, node: int) -> Message:
        config: dict[str, Any] = {"partition-id": node - FIRST, "num-partitions": len(self.here)}
        context = Context(run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={})
        try:
            return self.app(message, context)
        except Exception as error:  # what a SuperNode makes of it
            return self._error(message, Error(code=2, reason=f"Traceback ...\n{error!r}"))

    def _error(self, message: Message, error: Error) -> Message:
        return Message(error, reply_to=message)


Change = Callable[[int, Parcel, Parcel], Parcel]
"""(client, what it was asked, its answer) -> what it sends in its place."""


def toy_app(
    method: Method,
    clients: Callable[[int], Client],
    folder: Path,
    *,
    channel: Channel = Channel(),  # noqa: B008
    change: Change | None = None,
) -> ClientApp:
    """Returns an app whose site is made anew for every message, as a process of its own would make it."""

    def handle_for(config: Mapping[str, Any], seconds: float) -> Callable[[Parcel], Parcel]:
        k = int(config["partition-id"])
        site = Site(method, clients(k), channel, folder / str(k), about={"name": f"site-{k}"})

        def handle(parcel: Parcel) -> Parcel:
            answer = site.handle(parcel)
            return answer if change is None else change(k, parcel, answer)

        return handle

    return client_app(handle_for)


def quiet() -> None:
    """Keeps Flower's own log out of the tests' output."""
    logging.getLogger("flwr").setLevel(logging.ERROR)


# --- a federation of toys ------------------------------------------------------------------------------------------


def toys(method: Method) -> list[LocalClient]:
    """Returns four fresh toy clients; of unequal ranks where the method can serve such."""
    return toy_federation((2, 4, 5, 3) if method.hetero_rank else (3, 3, 3, 3), lora_alpha=8.0, dtype=torch.float32)


def toy_grid(method: Method, folder: Path, *, fault: Fault | None = None, change: Change | None = None) -> InProcessGrid:
    """Returns a grid of four nodes, each of which builds a model of its own for each message."""
    return InProcessGrid(toy_app(method, lambda k: toys(method)[k], folder, change=change), 4, fault)


def over_flower(
    method: Method, grid: InProcessGrid, *, run: str = "toys", start: Snapshot | None = None, **options: Any
) -> Rounds:
    """Takes a census over a grid and returns the rounds, and the engine that visits."""
    own = {name: options.pop(name) for name in ("deadline", "over_selection") if name in options}
    sites = FlowerSites(FlowerCarrier(grid, poll=0.001), run, **{"deadline": 5.0, **own})
    ask = partial(sites.mailbox.ask, seconds=60.0)
    found = enrol(ask, survey(ask, grid.get_node_ids(), run, {}), run, {})
    rounds = federate(method, found.clients, found.template, engine=sites, start=start, **options)
    return Rounds(rounds, sites)


@dataclass
class Rounds:
    """The rounds of a run over a grid, with the engine that visits."""

    rounds: Iterator[Round]
    sites: FlowerSites

    def __iter__(self) -> Iterator[Round]:
        return self.rounds


def wide_grid(method: Method, folder: Path, *, width: int) -> InProcessGrid:
    """Returns a grid of four nodes whose adapters have a dense tensor of so many numbers."""
    return InProcessGrid(toy_app(method, lambda k: wide(toys(method)[k], width), folder), 4)


def wide(client: LocalClient, width: int) -> Client:
    """Returns a client whose adapter carries a dense tensor that it does not train."""
    return Wide(client, width)


class Wide:
    """A client around another one, with a dense tensor beside its adapter that stays as it is."""

    def __init__(self, client: LocalClient, width: int) -> None:
        self._client = client
        self.peer, self.num_steps = client.peer, client.num_steps
        self.template = self._with(client.template, torch.ones(width))

    def train(self, t: int, start: Adapter, **request: Any) -> TrainResult:
        inner = replace(start, dense={n: x for n, x in start.dense.items() if n != "wide"})
        if request.get("penalty") is not None:
            request["penalty"] = None  # of the tensors that are trained; a ledger needs no right numbers
        result = self._client.train(t, inner, **request)
        return replace(result, adapter=self._with(result.adapter, start.dense["wide"]))

    def gradient(self, start: Adapter, num_batches: int) -> Adapter:
        raise NotImplementedError

    @staticmethod
    def _with(adapter: Adapter, tensor: torch.Tensor) -> Adapter:
        return replace(adapter, dense={**adapter.dense, "wide": tensor})


def many_grid(count: int) -> InProcessGrid:
    """Returns a grid of many nodes that send back the adapter that they got: what a server costs, not what they do."""
    clients = toy_federation([2] * count, lora_alpha=8.0, dtype=torch.float32, num_examples=[8] * count)

    def handle_for(config: Mapping[str, Any], seconds: float) -> Callable[[Parcel], Parcel]:
        site = Site(FedAvg(), clients[int(config["partition-id"])], Channel(), Path("unused"))
        return lambda parcel: _echo(parcel) if parcel.kind == "train" else site.handle(parcel)

    return InProcessGrid(client_app(handle_for), count)


def _echo(parcel: Parcel) -> Parcel:
    header = {"run": parcel.header["run"], "t": parcel.header["t"], "metrics": {"num_steps": 1}, "base_version": 0}
    return Parcel("train", header, parcel.body)
