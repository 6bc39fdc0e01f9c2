"""Laws of functions: no hidden state, no order, nothing that cannot be stored, the dtype that came in."""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fedelta.engines import checkpoint
from fedelta.engines.federation import largest_template
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.testing.reports import Violation, law
from fedelta.testing.scene import Scene, clone, demand_same_bits, deployed, score
from fedelta.tree import Adapter, find, parameters

DTYPES = (torch.bfloat16, torch.float32, torch.float64)


def trains_only(scene: Scene) -> str | None:
    """Returns why laws of aggregation say nothing about a baseline; None for other methods."""
    return None if scene.sends else "nothing travels, so there is nothing to aggregate"


@law("own generators", first=True)
def own_generators(scene: Scene) -> None:
    """A run draws from generators of its own seed, never from a global one."""
    before = _global_generators()
    scene.play(rounds=1)
    moved = [name for name, state in _global_generators().items() if state != before[name]]
    if moved:
        raise Violation(f"a round drew from {' and '.join(moved)}: use fedelta.seeding.generator(seed, t, peer, purpose)")


def _global_generators() -> dict[str, Any]:
    return {
        "torch's global generator": bytes(torch.get_rng_state().numpy()),
        "numpy's global generator": repr(np.random.get_state()),  # noqa: NPY002 - to see whether somebody used it
        "random's global generator": random.getstate(),
    }


@law("pure", first=True)
def pure(scene: Scene) -> None:
    """The same call gives the same bits again, and changes nothing that it was given."""
    method = scene.served()
    for done in scene.rounds:
        peer, given = done.peers[0], (done.before, [u.content for u in done.updates])
        untouched = clone(given)
        calls = {
            "aggregate": lambda done=done: method.aggregate(done.t, done.before, done.updates),
            "broadcast": lambda done=done, peer=peer: method.broadcast(done.t, done.before, peer),
        }
        for name, call in calls.items():
            first = clone(call())
            demand_same_bits(call(), first, f"a second {name} with the same arguments gives another result")
            demand_same_bits(given, untouched, f"{name} changes its arguments")
    _pure_at_the_client(scene)


def _pure_at_the_client(scene: Scene) -> None:
    method, done = scene.served(), scene.rounds[-1]
    client = method.population(scene.clients(lora_alpha=8.0))[0]
    down = method.broadcast(done.t, done.before, replace(done.peers[0], base_version=0))
    memory = done.client_states.get(0, {})
    untouched = clone((down, memory))
    first = clone(method.local_update(done.t, down, memory, client))
    again = method.local_update(done.t, down, memory, client)
    demand_same_bits(again, first, "a second local_update with the same arguments gives another result")
    demand_same_bits((down, memory), untouched, "local_update changes its arguments")


@law("deterministic", first=True)
def deterministic(scene: Scene) -> None:
    """Two runs with one seed agree to the bit."""
    again = scene.play(lora_alpha=8.0)
    for done, other in zip(scene.rounds, again, strict=True):
        demand_same_bits(dict(other.state), dict(done.state), f"the state after round {done.t} of a second run")


@law("order-free", silent=trains_only)
def order_free(scene: Scene) -> None:
    """The order in which updates arrive does not change a bit of the next state."""
    for done in scene.rounds:
        forward = scene.served().aggregate(done.t, done.before, done.updates)
        backward = scene.served().aggregate(done.t, done.before, done.updates[::-1])
        demand_same_bits(backward, forward, f"updates of round {done.t} in the opposite order")


@law("serialisable", first=True)
def serialisable(scene: Scene) -> None:
    """State, memories and messages are made of what can be sent and stored, and survive it to the bit."""
    done = scene.rounds[-1]
    memories = {f"the memory of client {k}": x for k, x in done.client_states.items()}
    downs = {f"the message to client {p.id}": done.method.broadcast(done.t, done.before, p) for p in done.peers}
    ups = {f"the message of client {u.sender.id}": u.content for u in done.updates}
    for what, value in {"the state": done.state, **memories, **downs, **ups}.items():
        demand_same_bits(wire.decode(wire.encode(value)), dict(value), f"{what}, written and read")


@law("resumable")
def resumable(scene: Scene) -> None:
    """A run that stops after a round goes on from its checkpoint as if it had not stopped."""
    done = scene.rounds[-1]
    clients = scene.clients(lora_alpha=8.0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, scene.rounds[0].snapshot)
        start = checkpoint.load(folder)
    resumed = list(federate(scene.fresh(), clients, rounds=2, seed=scene.seed, score=score, start=start, debug=True))
    demand_same_bits(dict(resumed[-1].state), dict(done.state), "the round after a checkpoint")


@law("dtype")
def dtype(scene: Scene) -> None:
    """Models and messages have the dtype of the base: bfloat16, float32 or float64."""
    for kind in DTYPES:
        for done in scene.play(dtype=kind):
            adapters = {
                f"the adapter that client {u.sender.id} sends": a for u in done.updates for a in find(u.content, Adapter)
            }
            adapters |= {f"what client {u.sender.id} sends, as a model": done.position(u)[0] for u in done.updates}
            for peer in done.peers:
                adapters[f"what client {peer.id} runs"] = done.participant_model(peer)["adapter"]
            for what, adapter in adapters.items():
                other = {str(x.dtype) for x in parameters(adapter).values() if x.dtype != kind}
                if other:
                    raise Violation(f"{what} has {sorted(other)} in a model of {kind}: cast results to the input's dtype")


@law("no dead component")
def no_dead_component(scene: Scene) -> None:
    """Nobody is ever sent a component with both factors zero, which could never train."""
    clients, method = scene.clients(), scene.served()
    template = largest_template(method.population(clients))
    few = federate(
        method, clients, rounds=3, seed=scene.seed, score=score, debug=True, cohort=lambda t, peers, seed: [peers[0].id]
    )
    for done in few:
        for peer in done.peers:
            message = method.broadcast(done.t + 1, done.state, peer)
            model = deployed(method, done.t + 1, done.state, peer, template)
            for adapter in (*find(message, Adapter), model["adapter"]):
                _demand_alive(adapter, f"client {peer.id} after round {done.t}, in which only client 0 took part")


def _demand_alive(adapter: Adapter, who: str) -> None:
    for layer, x in adapter.layers.items():
        dead = (~(x.B.any(dim=0) | x.A.any(dim=1))).nonzero()[:, 0].tolist()
        if dead:
            raise Violation(
                f"{who}: components {dead} of layer {layer!r} have B = 0 and A = 0; lowrank.pad gives them a live row of A"
            )
