"""A client may send anything: whatever it is, the round ends with its sender left out by name, or with a finite state.

Real uploads of a toy federation are changed at random, by a seed, for every method. `FEDELTA_MUTANTS` tries more of them.
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from fedelta import topology, tree
from fedelta.client import Training
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.method import Client, ClientState, Method
from fedelta.methods import get_method, list_methods
from fedelta.models.toy import toy_federation
from fedelta.optim import SGD
from fedelta.testing.scene import score
from fedelta.tree import Message

MUTANTS = int(os.environ.get("FEDELTA_MUTANTS", "24"))

SHORT = Training(local_steps=1, batch_size=4, learning_rate=0.05, optimizer=SGD())

VARIANTS: dict[str, dict[str, Any]] = {
    "fedgalore, server's basis": {"name": "fedgalore", "basis": "server_basis", "refresh_rounds": 1},
    "fedgalore, means of blocks": {"name": "fedgalore", "state_sync": "block_mean"},
    "hetlora by layer": {"name": "hetlora", "level": "layer", "gamma": 0.6},
    "tad_lora, frozen head": {"name": "tad_lora", "freeze_head": True},
    "lora_a2, all components": {"name": "lora_a2", "budget": 3},
    "scaffold over rolora": {"name": "compose", "server": "rolora", "local": ["scaffold"], "optimizer": "fedadam"},
}

METHODS: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name in list_methods() if name != "centralised"},  # it has one client, whom nobody replaces
    **VARIANTS,
}

Tensors = dict[str, Tensor]
Mutation = Callable[[random.Random, Tensors, Any], Any]
"""(draw, tensors, structure), as `tree.flatten` has them -> the changed structure; the tensors are changed in place."""


def lying(method: Method, mutate: Callable[[int, Message], Any]) -> Method:
    """The method, whose client 1 sends what `mutate` makes of (round, upload)."""
    kind = type(method)

    def local_update(
        self: Method, t: int, down: Message, client_state: ClientState, client: Client
    ) -> tuple[Message, ClientState]:
        up, kept = kind.local_update(self, t, down, client_state, client)
        return (mutate(t, up) if client.peer.id == 1 else up), kept

    liar = type(kind.__name__, (kind,), {"local_update": local_update})
    return liar(**{f.name: getattr(method, f.name) for f in fields(method)})


# --- mutations -------------------------------------------------------------------------------------------------------


def nodes(structure: Any) -> Iterator[Any]:
    """Every node of a structure, the root first."""
    yield structure
    (kind, inner), *_ = structure.items()
    if kind == "m":
        for _, value in inner:
            yield from nodes(value)
    elif kind in "lp":
        for value in inner:
            yield from nodes(value)
    elif kind == "c":
        yield from nodes(structure["f"])


def replaced(structure: Any, old: Any, new: Any) -> Any:
    if structure is old:
        return new
    (kind, inner), *_ = structure.items()
    if kind == "m":
        return {"m": [[k, replaced(v, old, new)] for k, v in inner]}
    if kind in "lp":
        return {kind: [replaced(v, old, new) for v in inner]}
    return {**structure, "f": replaced(structure["f"], old, new)} if kind == "c" else structure


def entry(value: float) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x.flatten()[:1] = value
        return x.reshape(-1).index_fill(0, torch.tensor([0]), value).view(x.shape) if x.numel() else x

    return change


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "NaN": entry(float("nan")),
    "Inf": entry(float("-inf")),
    "huge entry": entry(1e300),
    "zero": torch.zeros_like,
    "negative": torch.neg,
    "all negative": lambda x: -x.abs() - 1,
    "times 1e30": lambda x: x * 1e30,
    "times 1e4": lambda x: x * 1e4,
    "times 1e-300": lambda x: x * 1e-300,
    "integers": lambda x: x.long(),
    "truth values": lambda x: x.bool(),
    "half": lambda x: x.half(),
    "single": lambda x: x.float(),
    "complex": lambda x: x.to(torch.complex128),
    "transposed": lambda x: x.mT if x.ndim == 2 else x[None],
    "flat": torch.flatten,
    "one more axis": lambda x: x[None],
    "a row less": lambda x: x[:-1],
    "a column less": lambda x: x[..., :-1],
    "a row more": lambda x: torch.cat([x, x[:1]]),
    "a column more": lambda x: torch.cat([x, x[..., :1]], -1),
    "empty": lambda x: x.new_zeros(0),
    "no columns": lambda x: x[..., :0],
    "no rows": lambda x: x[:0],
    "a number": lambda x: x.sum(),
    "sparse": lambda x: x.to_sparse(),
    "nowhere": lambda x: x.to("meta"),
}

VALUES: Sequence[Any] = (None, "hello", "", True, False, 0, -1, 3, 10**30, 0.5, -2.5, 1e300, float("nan"))


def a_tensor(draw: random.Random, tensors: Tensors, structure: Any) -> Any:
    if tensors:
        name, change = draw.choice(sorted(tensors)), TENSORS[draw.choice(sorted(TENSORS))]
        tensors[name] = change(tensors[name])
    return structure


def all_tensors(draw: random.Random, tensors: Tensors, structure: Any) -> Any:
    change = TENSORS[draw.choice(sorted(TENSORS))]
    tensors.update({name: change(x) for name, x in tensors.items()})
    return structure


def a_node(draw: random.Random, tensors: Tensors, structure: Any) -> Any:
    node = draw.choice([*nodes(structure)])
    other = draw.choice([*nodes(structure)])
    new = draw.choice([{"v": draw.choice(VALUES)}, {"m": []}, {"l": []}, {"m": [["inner", node]]}, {"l": [node]}, other])
    return replaced(structure, node, new)


def a_key(draw: random.Random, tensors: Tensors, structure: Any) -> Any:
    node = draw.choice([n for n in nodes(structure) if n.get("m")] or [{"m": []}])
    items = [list(item) for item in node["m"]]
    at = draw.randrange(len(items)) if items else 0
    match draw.choice(["drop", "rename", "extra", "double", "another"]) if items else "extra":
        case "drop":
            items.pop(at)
        case "rename":
            items[at][0] = draw.choice(["adapter", "A", "B", "dense", "", "kept", "second_moment", "sketch", "bias"])
        case "double":
            items.append([draw.choice(["adapter", "sketch", "second_moment", "kept", "parts", "num_steps"]), items[at][1]])
        case "another":
            items[at][1] = draw.choice(items)[1]
        case _:
            items.append(["more", {"v": draw.choice(VALUES)}])
    return replaced(structure, node, {"m": items})


def a_number(draw: random.Random, tensors: Tensors, structure: Any) -> Any:
    numbers = [n for n in nodes(structure) if isinstance(n.get("v"), int | float)]
    return replaced(structure, draw.choice(numbers), {"v": draw.choice(VALUES)}) if numbers else {"v": None}


def ranks(draw: random.Random, tensors: Tensors, structure: Any) -> Any:
    """Other ranks, alike in all that belongs together: of factors in an adapter, and of what lies bare."""
    rank = draw.choice([0, 1, 2, 3, 7])

    def resized(x: Tensor, axis: int) -> Tensor:
        at = torch.arange(rank) % max(1, x.shape[axis])
        return x.index_select(axis, at) if x.shape[axis] else x

    def visit(node: Any, name: str) -> None:
        (kind, inner), *_ = node.items()
        if kind == "t" and tensors[inner].ndim == 2:
            tensors[inner] = resized(tensors[inner], 0 if name == "A" else 1)
        for key, value in inner if kind == "m" else []:
            visit(value, key if key in ("A", "B", "coordinates", "second_moment") else name)
        if kind == "c":
            visit(node["f"], name)

    visit(structure, "")
    return structure


MUTATIONS: Sequence[Mutation] = (a_tensor, a_tensor, all_tensors, a_node, a_key, a_key, a_number, ranks)

WHOLE: Sequence[Any] = ({}, None, "hello", [], 3, {"adapter": None}, {"": {}}, {"B": {}, "A": {}, "dense": {}})


def mutant(seed: int, upload: Message) -> Any:
    """A changed upload; the first are no longer like any."""
    if seed < len(WHOLE):
        return WHOLE[seed]
    draw = random.Random(seed)
    tensors, structure = tree.flatten(upload)
    for _ in range(draw.choice([1, 1, 1, 2])):
        structure = draw.choice(MUTATIONS)(draw, tensors, structure)
    return tree.unflatten(tensors, structure)


# --- what they must come to ------------------------------------------------------------------------------------------


def clients_for(method: Method) -> list[Any]:
    return toy_federation((1, 2, 3) if method.hetero_rank else (2, 2, 2), lora_alpha=4.0, training=SHORT)


def finite(done: Round) -> bool:
    return all(bool(torch.isfinite(x).all()) for _, x in tree.named_tensors(done.state))


@pytest.mark.parametrize("name", METHODS)
def test_a_mutant_is_left_out_by_name_or_leads_to_a_finite_state(name: str) -> None:
    method = get_method(**METHODS[name])
    clients, before = clients_for(method), 2
    options: dict[str, Any] = {"score": score, "engine": "sequential"}
    start = [*federate(method, clients, rounds=before, **options)][-1].snapshot
    left_out = 0
    for seed in range(MUTANTS):
        liar = lying(method, lambda t, up, seed=seed: mutant(seed, up) if t == before else up)
        done, after = federate(liar, clients, rounds=before + 2, start=start, **options)
        assert {*done.dropped} <= {1}, (seed, done.dropped)
        assert finite(done), seed
        assert finite(after), seed
        assert not after.dropped, (seed, done.dropped, after.dropped)
        left_out += len(done.dropped)
    assert left_out or name == "local_only"  # of which nothing is read


@pytest.mark.parametrize("name", [n for n in METHODS if get_method(**METHODS[n]).decentralised])
def test_a_mutant_hurts_no_node(name: str) -> None:
    method = get_method(**METHODS[name])
    clients, before = clients_for(method), 1
    options: dict[str, Any] = {"score": score, "mixing": topology.complete(3), "engine": "sequential"}
    start = [*gossip(method, clients, rounds=before, **options)][-1].snapshot
    for seed in range(MUTANTS // 2):
        liar = lying(method, lambda t, up, seed=seed: mutant(seed, up) if t == before else up)
        done, after = gossip(liar, clients, rounds=before + 2, start=start, quorum=1, **options)
        assert {*done.dropped} <= {1}, (seed, done.dropped)
        assert finite(done), seed
        assert finite(after), seed
