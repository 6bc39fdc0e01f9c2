"""The one table of the laws of methods, in the order in which they are asked."""

from __future__ import annotations

from fedelta.testing import algebra, claims, purity, refusals
from fedelta.testing.reports import Law
from fedelta.testing.scene import Scene

UNEQUAL_RANKS: Law[Scene] = claims.unequal_ranks
"""Asked before all others: they are tried at unequal ranks where it holds, and at equal ranks where it does not."""

LAWS: tuple[Law[Scene], ...] = (
    claims.claims,
    purity.own_generators,
    purity.serialisable,
    purity.pure,
    purity.deterministic,
    purity.order_free,
    purity.resumable,
    purity.dtype,
    purity.no_dead_component,
    algebra.fixed_point,
    algebra.one_client,
    algebra.scale,
    algebra.learns,
    refusals.weights,
    refusals.finite,
    refusals.fits,
    claims.sums,
    claims.decentralised,
    claims.complete_graph,
    claims.one_shot,
    claims.validation,
    claims.personal,
    claims.asks,
    claims.bytes_as_declared,
)
