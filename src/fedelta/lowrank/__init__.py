"""Low-rank algebra: the only module that multiplies factors together.

Shape letters, here and in every method: o = d_out, i = d_in, r = rank, R = stacked rank (the sum of ranks), k = client.
A layer's delta is  dW = scale * B @ A  with B (o, r) and A (r, i): PEFT's orientation and names.

Factorisations run in float64 whatever the input, since a float32 QR misses 1e-6 already at d = 384; results return in the
input's dtype. Nothing here forms dW, an o x i matrix, except `LoRA.dense`, and the factorisations when the stacked rank
exceeds min(o, i), where dW is the smaller of the two.
"""

from fedelta.lowrank.algebra import bands, components, difference, dist2, inner, mean, mean_factors, norm, rescale, stack
from fedelta.lowrank.decompositions import (
    LARGE,
    TIE,
    SvdKind,
    complete_rows,
    from_dense,
    orthonormal_rows,
    pad,
    spectrum,
    svd,
    truncate,
)
from fedelta.lowrank.measures import (
    angles_between,
    basis,
    effective_rank,
    higher_rank_energy,
    numerical_rank,
    principal_angles,
    stable_rank,
)
from fedelta.lowrank.value import LoRA, SigmaOn, Weight, is_finite, wide, with_factor

__all__ = [
    "LARGE",
    "TIE",
    "LoRA",
    "SigmaOn",
    "SvdKind",
    "Weight",
    "angles_between",
    "bands",
    "basis",
    "complete_rows",
    "components",
    "difference",
    "dist2",
    "effective_rank",
    "from_dense",
    "higher_rank_energy",
    "inner",
    "is_finite",
    "mean",
    "mean_factors",
    "norm",
    "numerical_rank",
    "orthonormal_rows",
    "pad",
    "principal_angles",
    "rescale",
    "spectrum",
    "stable_rank",
    "stack",
    "svd",
    "truncate",
    "wide",
    "with_factor",
]
