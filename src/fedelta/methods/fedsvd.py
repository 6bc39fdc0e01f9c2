"""FedSVD: B trained on a frozen A that the server turns into orthonormal rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.merging import ClientUpdate
from fedelta.method import Client, ClientState, Method, State
from fedelta.methods._shared.energy import capped, check_cap
from fedelta.methods._shared.one_factor import averaged, completed, only
from fedelta.methods._shared.sums import added, summand_of
from fedelta.peers import Peer, kinds_of
from fedelta.tree import Adapter, BaseDelta, Message, Tensors


@dataclass(frozen=True, kw_only=True)
class FedSVD(Method):
    """FFA-LoRA whose A follows the singular vectors of what was learned.

    Algorithm:
        init            A random and common to all, B = 0, one rank r
        client k        trains B (and the head) from what it got; A stays as it is
        server          B <- sum_k p_k B_k,   head <- sum_k p_k head_k;   B <- B min(1, c / ||s B A||_F);
                        in a round that re-orthogonalises:  U S V^T = SVD(B A),  B = U S,  A = V^T
        travels         B and head up; A, B and head down
        scale           s_k on B alone, so that A stays common: B <- sum_k p_k (s_k / s) B_k

    The SVD changes the factors and not dW, whose rank is at most r. Two facts follow, and both are tested. The rows of A span
    the same subspace for ever, the first, random one: A is turned within it. And once A has orthonormal rows, local SGD gives
    the very deltas of `ffa_lora` on that A, clipping by the global norm included; so under SGD what is gained over `ffa_lora`
    comes from making the first A orthonormal. Under Adam, whose steps depend on coordinates, the two part.

    Args:
        period: rounds from one SVD to the next, counted from the first round of the run, as in the authors' code.
        warmup_rounds: first rounds without any SVD, which are plain `ffa_lora`.
        norm_cap: c, per layer, on the mean; None for no cap. The authors have none: it belongs to the baseline of this name in
            the code released with Subspace-Reg, which has 15 or 25.

    Where B A has a lower rank than r, the other rows of A stay in the old span here; a dense SVD would give arbitrary ones.
    The authors keep the head frozen at random; to do so, leave it out of modules_to_save.

    Source: Lee et al., "FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA", arXiv 2505.12805
    (NeurIPS 2025). The full text was not available: this follows the abstract and the authors' published code. Its privacy
    accounting is not part of this.
    """

    period: int = 1
    warmup_rounds: int = 0
    norm_cap: float | None = None

    paper = "Lee et al. 2025, FedSVD, arXiv 2505.12805"
    follows = "the authors' code"
    reported = (
        "mean accuracy without privacy over SNLI, MNLI, SST-2, QQP, QNLI: 86.18 against FFA-LoRA 84.57, FedAvg 75.51, "
        "FLoRA 57.09. Second-hand, unverified: another note has about +1.3 over FFA-LoRA"
    )
    sums = "exact"
    travels = "up: B, head; down: A, B, head"
    asks = frozenset({"trainable"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_cap(self.norm_cap)
        if self.period < 1 or self.warmup_rounds < 0:
            raise ValueError(
                f"FedSVD needs period >= 1 and warmup_rounds >= 0, got period {self.period} and "
                f"warmup_rounds {self.warmup_rounds}"
            )

    def check(self, template: Adapter, peers: Sequence[Peer]) -> None:
        super().check(template, peers)
        for layer, x in template.layers.items():
            rank = max(p.rank_of(layer) for p in kinds_of(peers))
            if rank > x.shape[1]:
                raise ValueError(f"layer {layer!r}: fedsvd needs a rank of at most d_in = {x.shape[1]}, got {rank}")

    def upload(self, adapter: Adapter) -> Message:
        return only("B", adapter)

    def local_update(self, t: int, down: Message, client_state: ClientState, client: Client) -> tuple[Message, ClientState]:
        return self.upload(client.train(t, down["adapter"], trainable="B").adapter), client_state

    def orthogonalises(self, t: int) -> bool:
        """Returns True if round t ends with an SVD."""
        done = t + 1
        return done > self.warmup_rounds and done % self.period == 0

    def aggregate(self, t: int, state: State, updates: Sequence[ClientUpdate]) -> State:
        return self._turned(t, averaged("B", updates, state["adapter"], equal_ranks=True))

    def _turned(self, t: int, mean: Adapter) -> State:
        """Returns the next state from the mean: capped, and in some rounds with orthonormal rows of A."""
        mean = tree.map(lambda x: capped(x, self.norm_cap), mean)
        return {"adapter": tree.map(lr.orthonormal_rows, mean) if self.orthogonalises(t) else mean}

    def summand(self, t: int, down: Message, up: Message, peer: Peer, ranks: Mapping[str, int] | None = None) -> Tensors:
        return summand_of(down, up, peer, ranks)

    def from_mean(self, t: int, state: State, mean: Tensors) -> State:
        return self._turned(t, added(state["adapter"], mean))

    def position(self, t: int, state: State, update: ClientUpdate) -> tuple[Adapter, BaseDelta | None]:
        return completed("B", update, state["adapter"]), None
