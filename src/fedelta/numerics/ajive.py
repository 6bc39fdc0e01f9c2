"""AJIVE: what several matrices with common rows share, told from what each has alone and from noise.

Source: Feng, Jiang, Hannig and Marron, "Angle-based joint and individual variation explained", J. Multivariate Analysis 2018,
arXiv 1704.02060. Here n is the number of rows that all blocks have, d_k the columns of block k, K the number of blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedelta.registry import check_settings

ROUND_OFF = 1e-9
"""Of the bounds: on data without noise a joint direction reaches its bound exactly, but for rounding."""


@dataclass(frozen=True, kw_only=True)
class Ajive:
    """Settings.

    Args:
        energy: a block's signal is the fewest leading components with this share of its squared singular values.
        max_rank: the largest signal rank; None is d_k - 1, since a signal that fills its block leaves nothing to tell it by.
        joint_rank: skips the tests and takes so many joint directions, or as many as the blocks' signals allow.
        n_samples: random draws for each of the two bounds.
        percentile: of the draws: the lower one of the Wedin bound, the upper one of the bound of random directions.

    Raises:
        ValueError: naming the setting that makes no sense.
    """

    energy: float = 0.95
    max_rank: int | None = None
    joint_rank: int | None = None
    n_samples: int = 100
    percentile: tuple[float, float] = (5.0, 95.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "percentile", tuple(self.percentile))  # a config file's list could not be hashed
        if not 0 < self.energy <= 1 or len(self.percentile) != 2 or not all(0 <= p <= 100 for p in self.percentile):
            raise ValueError(
                "ajive needs 0 < energy <= 1 and two values of percentile between 0 and 100, "
                f"got energy {self.energy} and percentile {self.percentile}"
            )
        for name, least in (("max_rank", 1), ("joint_rank", 0), ("n_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"ajive needs {name} of at least {least}, got {value}")


def read_settings(given: Ajive | Mapping[str, Any]) -> Ajive:
    """Settings as they are, or from a mapping, as a config file has them.

    Raises:
        ValueError: for an unknown setting, naming the nearest known one.
    """
    if isinstance(given, Ajive):
        return given
    check_settings("ajive", given, [f.name for f in fields(Ajive)])
    return Ajive(**given)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """X_k = J_k + I_k + noise.

    Attributes:
        basis: U_J, float64 (n, joint rank), orthonormal columns: the joint directions.
        ranks: of the blocks' signals.
        thresholds: the singular value below which a block's component counts as noise.
    """

    basis: Tensor
    ranks: tuple[int, ...]
    thresholds: tuple[float, ...]

    @property
    def joint_rank(self) -> int:
        """The number of joint directions."""
        return self.basis.shape[1]

    def joint(self, block: Tensor) -> Tensor:
        """J_k = U_J U_J^T X_k, float64 (n, d_k)."""
        return self.basis @ (self.basis.mT @ block.to(torch.float64))

    def individual(self, k: int, block: Tensor) -> Tensor:
        """I_k: the components of X_k - J_k above the block's threshold, float64 (n, d_k)."""
        U, S, Vh = torch.linalg.svd(block.to(torch.float64) - self.joint(block), full_matrices=False)
        keep = S > self.thresholds[k]
        return U[:, keep] * S[keep] @ Vh[keep]


def decompose(blocks: Sequence[Tensor], settings: Ajive | None = None, *, seed: int = 0) -> Decomposition:
    """The joint directions of the blocks; columns are not centred.

    The leading left singular vectors of each block are stacked; a squared singular value of the stack tells in how many blocks
    a direction lies. Joint are the directions that exceed both what noise of the blocks' size does to K shared directions
    (Wedin) and what random subspaces reach, and that stand out of the noise in every block. So a block of zeros leaves none.

    Args:
        blocks: (n, d_k).
        settings: `Ajive()` by default.
        seed: of the draws; one seed gives one result.

    Cost: a thin SVD of each block, one of the stack (n, R) with R = sum r_k, and `n_samples` eigenvalue problems of size R.
    Random frames are never formed: only the small blocks of them that matter are drawn, from their exact distribution.
    """
    settings = settings or Ajive()
    svds = [torch.linalg.svd(x.to(torch.float64), full_matrices=False) for x in blocks]
    ranks = tuple(_signal_rank(S, x.shape, settings) for (_, S, _), x in zip(svds, blocks, strict=True))
    thresholds = tuple(_threshold(S, r) for (_, S, _), r in zip(svds, ranks, strict=True))
    stack = torch.cat([U[:, :r] for (U, _, _), r in zip(svds, ranks, strict=True)], dim=1)
    U, S, _ = torch.linalg.svd(stack, full_matrices=False)
    candidates = U[:, : min(ranks)]
    if settings.joint_rank is not None:
        return Decomposition(candidates[:, : settings.joint_rank], ranks, thresholds)
    if candidates.shape[1]:
        bound = _bound([S for _, S, _ in svds], [x.shape for x in blocks], ranks, settings, seed)
        candidates = candidates[:, S[: min(ranks)].square() >= bound - ROUND_OFF * len(blocks)]
        for x, threshold in zip(blocks, thresholds, strict=True):
            candidates = candidates[:, (candidates.mT @ x.to(torch.float64)).norm(dim=1) >= threshold * (1 - ROUND_OFF)]
    return Decomposition(candidates, ranks, thresholds)


def _signal_rank(S: Tensor, shape: torch.Size, settings: Ajive) -> int:
    energy = S.square().cumsum(0)
    if not energy.numel() or not energy[-1] > 0:
        return 0
    enough = int((energy < settings.energy * energy[-1] * (1 - ROUND_OFF)).sum()) + 1
    alive = int((S > S[0] * max(shape) * torch.finfo(torch.float64).eps).sum())
    return min(enough, alive, shape[1] - 1 if settings.max_rank is None else settings.max_rank)


def _threshold(S: Tensor, rank: int) -> float:
    """Halfway between the last singular value of the signal and the first of the noise."""
    if not rank:
        return 0.0
    return float(S[rank - 1] + (S[rank] if rank < len(S) else 0.0)) / 2


# --- bounds ----------------------------------------------------------------------------------------------------------


def _bound(spectra: Sequence[Tensor], shapes: Sequence[torch.Size], ranks: Sequence[int], settings: Ajive, seed: int) -> float:
    rng = np.random.default_rng(seed)
    low, high = settings.percentile
    lost = sum(_wedin(rng, settings.n_samples, *block) for block in zip(spectra, shapes, ranks, strict=True))
    by_noise = np.percentile(len(spectra) - np.asarray(lost), low)
    by_chance = np.percentile(chance(rng, settings.n_samples, shapes[0][0], ranks), high)
    return float(max(by_noise, by_chance))


def _wedin(rng: np.random.Generator, draws: int, S: Tensor, shape: torch.Size, rank: int) -> np.ndarray:
    """Squared sines, (draws,), by which noise may turn the signal's left subspace: what random frames in the complements of
    U_k and V_k see of the noise, over the smallest singular value of the signal."""
    noise = S[rank:, None]
    sizes = [torch.zeros(draws, dtype=torch.float64)]
    for length in shape if len(noise) else ():
        tops = frame_tops(rng, draws, len(noise), min(rank, length - rank), length - rank)
        sizes.append(torch.linalg.matrix_norm(noise * tops, ord=2))
    return (torch.stack(sizes).amax(0) / S[rank - 1]).clamp(max=1).square().numpy()


def chance(rng: np.random.Generator, draws: int, n: int, ranks: Sequence[int]) -> np.ndarray:
    """The largest squared singular value, (draws,), of stacked random orthonormal frames (n, r_k)."""
    gram = _wishart(rng, draws, n, sum(ranks))
    blocks = torch.block_diag(*[torch.ones(r, r) for r in ranks]).bool()
    roots = torch.linalg.cholesky(torch.where(blocks, gram, 0.0))  # makes each block's frame orthonormal
    half = torch.linalg.solve_triangular(roots, gram, upper=False)
    return torch.linalg.eigvalsh(torch.linalg.solve_triangular(roots, half.mT, upper=False))[:, -1].numpy()


def frame_tops(rng: np.random.Generator, draws: int, rows: int, columns: int, length: int) -> Tensor:
    """The first `rows` rows of random orthonormal frames (length, columns)."""
    tops = torch.from_numpy(rng.standard_normal((draws, rows, columns)))
    gram = tops.mT @ tops + _wishart(rng, draws, length - rows, columns)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(gram), tops.mT, upper=False).mT


def _wishart(rng: np.random.Generator, draws: int, n: int, size: int) -> Tensor:
    """Z^T Z of standard normal Z (n, size), (draws, size, size); by Bartlett's decomposition where that is smaller than Z."""
    if n <= size:
        Z = torch.from_numpy(rng.standard_normal((draws, n, size)))
        return Z.mT @ Z
    L = np.tril(rng.standard_normal((draws, size, size)), -1)
    L[:, range(size), range(size)] = np.sqrt(rng.chisquare(n - np.arange(size), (draws, size)))
    root = torch.from_numpy(L)
    return root @ root.mT
