"""FedGaLore: clients train in a gradient subspace, the server averages in full space and aligns the optimisers' states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.merging import ClientUpdate, in_order, merge
from fedelta.method import Client, ClientState, Method, State, check_count
from fedelta.methods._fedgalore.bases import RULES, BasisName, BasisRule, LocalStart
from fedelta.methods._fedgalore.galore import Side
from fedelta.methods._fedgalore.moments import StateSync, Synchroniser, shares
from fedelta.methods._fedgalore.projection import Projection, check_sketch
from fedelta.methods._shared.base_delta import BaseAccount, advance, base_for, open_base, step_entries
from fedelta.numerics.ajive import Ajive, read_settings
from fedelta.optim import WarmAdam
from fedelta.peers import Peer, at_largest, kinds_of
from fedelta.tree import Adapter, BaseDelta, Message, Tensors


class FedGaLoreState(BaseAccount):
    """The server's memory.

    Attributes:
        adapter: coordinates zero on the basis Q, and the head.
        seed: of the run, from which bases are drawn.
        rank: the largest of all, at which they are drawn.
        second_moment: nu by layer, and of the head; empty before the first synchronisation.
        joint_ranks: by layer, those that AJIVE found last.
        epoch: the number of refreshes so far.
        began: the first round on the present basis.
        refresh_rounds: rounds on one basis; None until "auto" knows the steps of a round.
    """

    adapter: Adapter
    seed: int
    rank: int
    second_moment: Tensors
    joint_ranks: Mapping[str, int]
    epoch: int
    began: int
    refresh_rounds: int | None


@dataclass(frozen=True, kw_only=True)
class FedGaLore(Method):
    """GaLore at the clients, a mean in full space, and second moments of which the shared signal is kept.

    Algorithm:
        layer           a weight W (o, i) with o > i; for o < i with P on the left and A trained
        init            Q (i, r), orthonormal, drawn from the seed; no moments nu
        client k        brings its base W up to date; C_k = 0, mu = 0, nu as received, or 0 in the first round; K steps of Adam
                        on C_k and the head in  W + scale C_k Q^T;   v_k: its second moments after them
        server          W <- W + scale sum_k p_k C_k Q_k^T,   head <- sum_k p_k head_k;
                        J_k = the part of sqrt(v_k) that AJIVE finds in those of all clients;
                        nu <- (sum_k p_k max(J_k, 0))^2, and sum_k p_k v_k where AJIVE finds nothing
        refresh         after `refresh_rounds` rounds another Q, and nu is transported to it
        travels         up: C_k, v_k, head. Down: what the base lacks, nu, head, and Q unless it is drawn from the seed
        scale           `scale` at every layer; lora_alpha plays no part

    This is LoRA with one factor frozen to an orthonormal basis and merged after every round, which gives the weights and the
    moments of GaLore with a fixed basis. The local optimiser is the Adam above, at the configured learning rate, whatever
    `training.optimizer` says; moments are of gradients of C_k over `scale`, and eps counts times it. Weight decay would leave
    the subspace, and is not offered.

    Args:
        basis: "shared_seed" as above. "server_basis": the leading singular vectors of the mean gradient, for which clients send
            an approximation of theirs of rank r, P and Z, before each refresh; the first round uses a drawn one.
        refresh_rounds: rounds on one Q; "auto" is 200 / K, at least 1.
        side: "galore" projects the shorter side of a weight, "small_state" the longer, so that less is kept and sent.
        scale: GaLore's alpha, 0.25 in its pre-training: a factor on the learning rate of projected weights.
        betas: decay of Adam's first and second moments.
        eps: Adam's, added to the root of the second moment after its bias correction. GaLore's own AdamW adds its 1e-6 before:
            in step k of a cold start that eps counts 1 / sqrt(1 - b2^k) times as much as one of the same size here.
        state_sync: "ajive" as above. "mean": nu <- sum_k p_k v_k. "block_mean": the same of the mean of v over r, so that
            o numbers travel in place of o r. "none": GaLore at each client without synchronisation. The last three are the
            ablations.
        ajive: settings of AJIVE, as a mapping in a config.
        power_iterations: those of the randomised SVD of a gradient, which takes 2 + 2 power_iterations minibatches.

    Unequal ranks are ours: client k has the first r_k columns of Q; the other columns of C_k count as zero, and a column of nu
    is that of the clients who have it. The joint ranks are in the state, by layer.

    Source: Peng, Yu, Li and Yang, "Rethinking LoRA for Data Heterogeneous Federated Learning: Subspace and State Alignment",
    arXiv 2602.01746. Only the abstract and the first page were available, and no code: everything beyond "projected steps,
    a mean in full space, and AJIVE on projected second moments" is our reading.
    """

    basis: BasisName = "shared_seed"
    refresh_rounds: int | Literal["auto"] = "auto"
    side: Side = "galore"
    scale: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    state_sync: StateSync = "ajive"
    ajive: Ajive = field(default_factory=Ajive)
    power_iterations: int = 1

    paper = "Peng et al. 2026, FedGaLore, arXiv 2602.01746"
    follows = "the abstract"
    reported = "none available to us: no figure in what could be read (the abstract, the first page, a topic page)"
    hetero_rank = True
    coordinates = "base"
    asks = frozenset({"base", "trainable", "optimizer"})
    one_shot = False
    travels = "up: coordinates, second moments, head; down: base delta, second moments, head"

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))  # a config file's list could not be hashed
        object.__setattr__(self, "ajive", read_settings(self.ajive))
        self._check_numbers()

    def _check_numbers(self) -> None:
        if self.refresh_rounds != "auto" and not _at_least_one(self.refresh_rounds):
            raise ValueError(
                f"refresh_rounds must be 'auto' or at least 1, got {self.refresh_rounds!r}: within a round the basis stays, "
                "since what travels is coordinates on it"
            )
        if not all(0 <= b < 1 for b in self.betas) or self.power_iterations < 0:
            raise ValueError(
                f"FedGaLore needs betas in [0, 1) and power_iterations >= 0, got {self.betas} and {self.power_iterations}"
            )
        if not (self.scale > 0 and self.eps > 0):
            raise ValueError(f"FedGaLore needs scale > 0 and eps > 0, got {self.scale} and {self.eps}")

    @property
    def projection(self) -> Projection:
        """Returns the projection of each layer onto its basis."""
        return Projection(self.side, self.scale)

    @property
    def rule(self) -> BasisRule:
        """Returns the source of the basis."""
        return RULES[self.basis](self.projection, self.power_iterations)

    @property
    def sync(self) -> Synchroniser:
        """Returns the rule that synchronises second moments."""
        return Synchroniser(self.state_sync, self.ajive)

    def init(self, template: Adapter, peers: Sequence[Peer], *, seed: int = 0) -> State:
        full = at_largest(template, peers)
        rank = max(x.rank for x in full.layers.values())
        state: FedGaLoreState = {
            "adapter": self.projection.zero_coordinates(full, self.projection.draw_bases(full, seed, 0, rank)),
            "seed": seed,
            "rank": rank,
            "second_moment": {},
            "joint_ranks": {},
            "epoch": 0,
            "began": 0,
            "refresh_rounds": self._given_rounds(),
            **open_base(template.layers),
        }
        return state

    def _given_rounds(self) -> int | None:
        return None if self.refresh_rounds == "auto" else self.refresh_rounds

    def broadcast(self, t: int, state: State, to: Peer) -> Message:
        nothing = tree.map(lambda x: lr.components(x, 0, 0), state["adapter"])
        return {"adapter": nothing, "base": base_for(state, to), "seed": state["seed"], **self.rule.broadcast(t, state, to)}

    def upload(self, adapter: Adapter) -> Message:
        return {"adapter": adapter}

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        start = self.rule.local_start(t, down, replace(client.template, dense=down["adapter"].dense), client)
        adam, trained = self._adam(start), self.projection.factors(start.adapter)
        result = client.train(t, start.adapter, base=down["base"], trainable=trained, optimizer=adam)
        moments = self.projection.from_parameters(adam.estimates(result.optimizer_state), start.adapter)
        up = {"coordinates": self.projection.coordinates(result.adapter), "dense": result.adapter.dense}
        return {**up, **self.sync.upload(moments, trained), **start.extra, "num_steps": result.num_steps}, client_state

    def _adam(self, start: LocalStart) -> WarmAdam:
        eps = {f"{n}.lora_{which}": self.eps * self.scale for n, which in self.projection.factors(start.adapter).items()}
        warm = self.projection.to_parameters(start.moments, start.adapter)
        return WarmAdam(betas=self.betas, eps=self.eps, eps_of=eps, second_moment=warm)

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        content, who = update.content, f"client {update.sender.id}"
        if "adapter" in content:
            return content["adapter"], state["base"]
        if "coordinates" not in content:
            raise KeyError(f"the update of {who} has no 'adapter' and no 'coordinates', only {sorted(content)}")
        return self.projection.project_back(content, state["adapter"], who), state["base"]

    def check_upload(self, t: int, state: State, update: ClientUpdate) -> None:
        super().check_upload(t, state, update)
        content, who = update.content, f"client {update.sender.id}"
        adapter, _ = self.position(t, state, update)
        if "second_moment" in content and self.state_sync != "none":
            self.sync.read(update, self.projection.coordinates(adapter), adapter.dense)
        if "num_steps" in content:
            check_count(content["num_steps"], "steps", who)
        if "sketch" in content:
            check_sketch(content["sketch"], state["adapter"], who)

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        updates = in_order(updates)
        adapters = [self.position(t, state, u)[0] for u in updates]
        # Whole adapters are what `upload` makes, for the laws; these lie on no common basis.
        on_one_basis = all("adapter" not in u.content for u in updates)
        rule = self.projection.mean if on_one_basis else lambda weights, xs, _: lr.stack(weights, xs)
        step = merge(rule, updates, state["adapter"], adapters=adapters)
        state = {**state, "adapter": replace(state["adapter"], dense=step.dense), **advance(state, step.layers)}
        return self.rule.refresh(t, self._synchronise(t, state, updates, adapters), updates)

    def _synchronise(self, t: int, state: State, updates: Sequence[ClientUpdate], adapters: Sequence[Adapter]) -> State:
        with_moments = [(u, a) for u, a in zip(updates, adapters, strict=True) if "second_moment" in u.content]
        if not with_moments or self.state_sync == "none":
            return state
        weights = shares([u.weight for u, _ in with_moments])
        sent = [self.sync.read(u, self.projection.coordinates(a), a.dense) for u, a in with_moments]
        nu, joint = self.sync.synchronise(weights, sent, state["second_moment"], state["adapter"], seed=state["seed"], t=t)
        return {**state, "second_moment": nu, "joint_ranks": joint}

    def traffic(self, t: int, template: Adapter, peer: Peer, peers: Sequence[Peer]) -> tuple[int, int]:
        """Counts the numbers down and up; with "server_basis" and refresh_rounds "auto" only the first sketch is counted."""
        own = self.init(template, [peer])["adapter"]
        down, up = self.rule.traffic(t, own, self._given_rounds())
        up += tree.count(self.projection.coordinates(own)) + tree.count(own.dense) + self._moments(own)
        if t == 0:
            return tree.count(own.dense), up
        kinds = kinds_of(peers)
        largest = {n: max(p.rank_of(n) for p in kinds) for n in own.layers}
        ranks = {n: min(largest[n], *x.shape) for n, x in own.layers.items()}
        down += tree.count(own.dense) + step_entries(own, ranks)
        return down + self._moments(own), up

    def _moments(self, adapter: Adapter) -> int:
        return tree.count(self.sync.upload({**self.projection.coordinates(adapter), **adapter.dense}, adapter.layers))


def _at_least_one(value: object) -> bool:
    return isinstance(value, int) and value >= 1  # a config may hold any type
