"""Laws of values: what must come out whatever the formula is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.client import Training
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Method
from fedelta.methods.centralised import Centralised
from fedelta.models.toy import random_adapter, toy_template
from fedelta.optim import SGD
from fedelta.peers import Peer, template_for
from fedelta.testing.purity import trains_only
from fedelta.testing.reports import Violation, law
from fedelta.testing.scene import Scene, demand_near, demand_same_bits, dense, deployed, same_content
from fedelta.tree import Adapter

CONVENTIONS: dict[str, list[dict[str, Any]]] = {
    "scale 1 of all": [{}, {}, {}],
    "lora_alpha / r": [{"lora_alpha": 8.0}] * 3,
    "lora_alpha / sqrt(r)": [{"lora_alpha": 4.0, "rslora": True}] * 3,
    "alpha_pattern": [{"lora_alpha": 8.0, "alpha_pattern": {"output": 3.0}}] * 3,
    "another lora_alpha at each client": [{"lora_alpha": 3.0 + k} for k in range(3)],
}
"""The fields of three peers that make each rule of scales."""

BRISK = Training(local_steps=4, batch_size=40, learning_rate=0.2, optimizer=SGD())
"""Training that shows within few rounds: full batches at a high rate."""


@law("fixed point", silent=trains_only)
def fixed_point(scene: Scene) -> None:
    """Identical updates at equal ranks are their own mean: bit for bit where factors are averaged."""
    done = replace(scene, ranks=(3, 3, 3)).rounds[-1]
    one = [replace(done.updates[0], weight=1.0)]
    once, thrice = (scene.served().aggregate(done.t, done.before, u) for u in (one, same_content(done.updates)))
    for peer in done.peers:
        alone, among = (deployed(done.method, done.t + 1, s, peer, done.template) for s in (once, thrice))
        demand_near(dense(among), dense(alone), f"client {peer.id} among three identical updates")
        if done.method.coordinates == "factors":
            demand_same_bits(among["adapter"], alone["adapter"], "the factors of three identical updates and of one")


def _one_model(scene: Scene) -> str | None:
    if scene.method.personal:
        return "participants run models of their own, which no message holds"
    return trains_only(scene)


@law("one client", silent=_one_model)
def one_client(scene: Scene) -> None:
    """A client alone gets back what it sent; with plain training on factors, that is centralised training."""
    alone = scene.play(ranks=(3,))
    for done in alone:
        meant = tree.effective(*done.position(done.updates[0]))
        sent = {n: x.dense() for n, x in meant.layers.items()}
        got = dense(deployed(done.method, done.t + 1, done.state, done.peers[0], done.template, done.client_states.get(0)))
        demand_near(got, sent, f"a client alone after round {done.t}, beside what it sent")
    if type(scene.method).local_update is Method.local_update and scene.method.coordinates == "factors":
        pooled = list(federate(Centralised(), scene.clients((3,)), rounds=2, seed=scene.seed))
        expected = dense(pooled[-1].participant_model(pooled[-1].peers[0]))
        demand_near(dense(alone[-1].participant_model(alone[-1].peers[0])), expected, "one client beside centralised training")


@law("scale", silent=_one_model)
def scale(scene: Scene) -> None:
    """Clients that send one delta at different scales all get it back: under alpha/r, rsLoRA, patterns, unequal alphas."""
    for rule, fields in CONVENTIONS.items():
        _Planted.plant(scene, fields).demand_return(scene.served(), f"with {rule}")


@dataclass(frozen=True)
class _Planted:
    """One delta, as each of three peers writes it."""

    peers: list[Peer]
    template: Adapter
    sent: list[Adapter]

    @classmethod
    def plant(cls, scene: Scene, fields: list[dict[str, Any]]) -> _Planted:
        # A mean of factors is exact where factors are common, hence at equal ranks; a mean of deltas is at any.
        any_rank = scene.method.hetero_rank and scene.method.coordinates != "factors" and not scene.common_A
        peers = [Peer(k, r, **f) for (k, r), f in zip(enumerate((2, 3, 4) if any_rank else (4, 4, 4)), fields, strict=True)]
        common = random_adapter(2, seed=scene.seed + 3)
        template = replace(toy_template(4, seed=scene.seed), dense=common.dense)

        def write(layer: str, x: LoRA, peer: Peer) -> LoRA:
            rank = peer.rank_of(layer)
            rows = template.layers[layer].A[:rank] if scene.common_A else lr.pad(x, rank).A
            return lr.rescale(LoRA(lr.pad(x, rank).B, rows, x.scale), peer.scale_of(layer, rank))

        return cls(peers, template, [tree.map_named(lambda n, x, p=p: write(n, x, p), common) for p in peers])

    def demand_return(self, method: Method, when: str) -> None:
        state = method.init(self.template, self.peers)
        updates = [ClientUpdate(p, 1 / 3, method.upload(a)) for p, a in zip(self.peers, self.sent, strict=True)]
        state = method.aggregate(0, state, updates)
        for peer, adapter in zip(self.peers, self.sent, strict=True):
            model = method.deploy(method.broadcast(1, state, peer), {}, template_for(peer, self.template))
            who = f"{when}, client {peer.id} (rank {peer.rank}, scale {adapter.layers['output'].scale:.4g} at 'output')"
            demand_near(dense(model), {n: x.dense() for n, x in adapter.layers.items()}, who)


@law("learns")
def learns(scene: Scene) -> None:
    """Clients that agree, and train for eight rounds, lower their loss by a tenth at least."""
    rounds = scene.play(8, disagreement=0.0, num_examples=[40] * len(scene.ranks), training=BRISK)
    first, last = rounds[0].loss, rounds[-1].loss
    if first is None or last is None:
        raise Violation("some client reports no loss: train with client.train")
    if not last < 0.9 * first:
        raise Violation(f"the training loss went from {first:.4g} to {last:.4g} in 8 rounds")
