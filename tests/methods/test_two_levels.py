"""Two levels of servers: regions put their clients together, and a root puts the regions together.

What comes of it is the flat result where a method needs a weighted mean of summands and no more, to rounding; where it needs
the mean of the deltas, as long as a region's stack is passed on whole, in as few components as it has. A region that keeps
fewer errs by what it leaves out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.lowrank import LoRA
from fedelta.merging import ClientUpdate
from fedelta.method import Method
from fedelta.methods import get_method, list_methods
from fedelta.models.toy import toy_federation
from fedelta.tree import Tensors

SUMMED = [name for name in list_methods() if name != "compose" and get_method(name).sums == "exact"]
REGIONS = ((0, 4), (1, 2, 6), (3, 5))
SIZES = (12, 40, 7, 25, 31, 18, 22)


def rounds_of(method: Method, dtype: torch.dtype) -> list[Round]:
    ranks = (2, 4, 3, 4, 1, 2, 3) if method.hetero_rank else (3,) * 7
    clients = toy_federation(ranks, num_examples=SIZES, lora_alpha=8.0, dtype=dtype)
    return list(federate(method, clients, rounds=4, debug=True))


def summand(done: Round, update: ClientUpdate) -> Tensors:
    ranks = {n: x.rank for n, x in done.before["adapter"].layers.items()}
    down = done.method.broadcast(done.t, done.before, update.sender)
    return done.method.summand(done.t, down, update.content, update.sender, ranks)


def region_mean(done: Round, updates: Sequence[ClientUpdate]) -> tuple[float, Tensors]:
    """What a region sends to the root: the weight of its clients, and the mean of their summands."""
    weight = sum(u.weight for u in updates)
    return weight, tree.mean([u.weight / weight for u in updates], [summand(done, u) for u in updates])


def largest_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Relative to the largest entry of each tensor, or to 1 where that is smaller."""
    got, want = dict(tree.named_tensors(found)), dict(tree.named_tensors(expected))
    assert got.keys() == want.keys()
    return max(float((got[n] - x).abs().max() / x.abs().max().clamp(min=1)) for n, x in want.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", SUMMED)
def test_a_tree_of_sums_is_the_flat_result_to_rounding(name: str, dtype: torch.dtype) -> None:
    for done in rounds_of(get_method(name), dtype):
        members = [[u for u in done.updates if u.sender.id in region] for region in REGIONS]
        weights, means = zip(*(region_mean(done, updates) for updates in members), strict=True)
        tree_of_sums = done.method.from_mean(done.t, done.before, tree.mean(weights, means))
        # a sum of seven terms in another order, and a difference that is added back: some units in the last place
        assert largest_difference(tree_of_sums, done.state) <= 32 * torch.finfo(dtype).eps


def test_most_methods_that_average_factors_can_be_summed() -> None:
    assert {"fedavg", "zeropad", "ffa_lora", "rolora", "fedsa_lora", "fedprox"} <= set(SUMMED)


# --- the mean of the deltas ------------------------------------------------------------------------------------------


def stacks(count: int = 12, rank: int = 3, o: int = 40, i: int = 30, decay: float = 1.0) -> tuple[list[float], list[LoRA]]:
    """Weights and deltas of one layer; the components of each fade as 1, decay, decay^2, ..."""
    generator = torch.Generator().manual_seed(3)
    fade = decay ** torch.arange(rank, dtype=torch.float64)
    drawn = [torch.randn(o + i, rank, generator=generator, dtype=torch.float64) for _ in range(count)]
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    return (weights / weights.sum()).tolist(), [
        LoRA(x[:o] * fade, x[o:].mT.contiguous(), 0.5 + k / 10) for k, x in enumerate(drawn)
    ]


def of_regions(weights: Sequence[float], xs: Sequence[LoRA], keep: int | None) -> tuple[list[float], list[LoRA], float]:
    """Regions of four clients: their weights, what they send with `keep` components (all that there are: None), and an error.

    The error is the root's bound on its own stack: sum_g W_g times the norm of the singular values that region g leaves out.
    """
    shares, sent, error = list[float](), list[LoRA](), 0.0
    for at in range(0, len(xs), 4):
        share = sum(weights[at : at + 4])
        stack = lr.stack([w / share for w in weights[at : at + 4]], xs[at : at + 4])
        S = lr.svd(stack)[1]
        kept = len(S) if keep is None else keep
        shares.append(share)
        sent.append(lr.truncate(stack, kept))
        error += share * float(S[kept:].norm())
    return shares, sent, error


def norm(x: Tensor) -> float:
    return float(torch.linalg.matrix_norm(x))


@pytest.mark.parametrize("rank", [3, 9], ids=["a thin stack", "a stack wider than the layer"])
def test_a_tree_of_whole_stacks_is_the_flat_mean_of_the_deltas(rank: int) -> None:
    """Thin QR of a region's stack loses nothing, and a stack wider than the layer comes out as thin as the layer."""
    weights, xs = stacks(rank=rank)
    shares, sent, error = of_regions(weights, xs, None)
    flat, root = lr.stack(weights, xs), lr.stack(shares, sent)
    assert error == 0
    assert max(x.rank for x in sent) == min(4 * rank, 30)
    assert norm(root.dense() - flat.dense()) <= 1e-14 * norm(flat.dense())
    one, other = lr.truncate(root, 3), lr.truncate(flat, 3)
    assert norm(one.B - other.B) + norm(one.A - other.A) <= 1e-12 * norm(other.B)


@pytest.mark.parametrize("keep", [3, 6, 9])
def test_a_stack_that_is_cut_short_errs_by_what_it_leaves_out_and_no_more(keep: int) -> None:
    weights, xs = stacks(decay=0.3)
    shares, sent, bound = of_regions(weights, xs, keep)
    flat, root = lr.stack(weights, xs).dense(), lr.stack(shares, sent)
    error, size = norm(root.dense() - flat), norm(flat)
    assert 1e-3 * size < error <= bound * (1 + 1e-12)
    # the root's own truncation is worse than the best by at most twice the error of what it was sent
    best = norm(lr.truncate(lr.stack(weights, xs), 3).dense() - flat)
    assert best < norm(lr.truncate(root, 3).dense() - flat) <= best + 2 * error


def test_factors_that_share_A_stack_to_the_rank_of_one_client() -> None:
    """Where A is frozen and common a region's stack has the rank of a client: the tree is exact at the price of one."""
    weights, xs = stacks()
    common = [LoRA(x.B, xs[0].A, x.scale) for x in xs]
    shares, sent, bound = of_regions(weights, common, 3)
    flat = lr.stack(weights, common).dense()
    assert bound <= 1e-12 * norm(flat)
    assert norm(lr.stack(shares, sent).dense() - flat) <= 1e-13 * norm(flat)
