"""Diagnostics: functions of a round that return numbers.

They see what the updates mean through `Round.position`, and models through `Round.global_model` and `Round.participant_model`,
so they work for every method. Everything comes from products of factors in float64; no dW is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

from fedelta.diagnostics.facts import Facts, Undefined
from fedelta.diagnostics.numbers import (
    OF_CLIENTS,
    OF_CLIENTS_AND_SERVER,
    OF_NODES,
    aggregation_error,
    energy_by_band,
    higher_rank_energy_ratio,
    server_effective_rank,
    server_stable_rank,
    spectrum,
)
from fedelta.diagnostics.numbers import Number as OfLayers
from fedelta.engines.rounds import Round

__all__ = ["NAMES", "Undefined", "Value", "diagnose", "new_reasons"]

Value: TypeAlias = float | str | Mapping[str, Any] | Sequence[float] | None

Number: TypeAlias = float | Mapping[str, float] | Sequence[float]

Source: TypeAlias = Callable[[Facts, Sequence[str]], Number]
"""Computes one of the numbers, from some layers of a round."""

OF_ALL_LAYERS = frozenset({"spectrum"})
"""Numbers without a column in the table by layer, which would outweigh all others."""

DIGITS = 6
"""Significant digits in the table by layer."""


def diagnose(round: Round, *, per_layer: bool = False) -> dict[str, Value]:
    """Returns the numbers of a round; where one is undefined it is None, and `<name>_reason` says why.

    With dW_k the deltas of the updates (without a base delta), p_k their weights (1 / n in gossip), and M = sum p_k dW_k, the
    exact mean, before a server truncates it:

        aggregation_error     ||M - s (sum p_k B_k) (sum p_k A_k)|| / ||M||: what averaging factors would get wrong (Sun et al.
                              2024, arXiv 2403.12313); ranks must be equal
        effective_rank        of M, the mean over layers (Roy and Vetterli 2007)
        stable_rank           of M, the mean over layers
        update_norm           sum p_k ||dW_k||
        cancellation_ratio    ||M|| / sum p_k ||dW_k||
        client_cosine         the mean cosine between two clients' deltas
        cosine_with_mean      the mean cosine between a client's delta and M
        overlap_B_squared     of the column spaces of two clients' B, ||Q_j^T Q_k||^2 / min(r_j, r_k) with Q an orthonormal
                              basis: the mean cos^2 of the principal angles; the mean over pairs, then layers
        overlap_B_root        the same with the root of each pair's; overlap_A_*: of the row spaces of A
        overlap_with_mean_*   the same between a client and M: its leading singular vectors, as many as the largest client has.
                              The report of Senarath et al. (arXiv 2606.22724) defines this square, with B_k for its basis, so
                              that its size counts
        energy_within_mean_*  the share of ||dW_k||^2 inside that subspace, so that a direction counts by what it carries
        angle_with_mean_*     the principal angles with it, radians: their average, and the largest of all clients and layers

    All of these but the first also as `increment_<name>`, of dW_k less the delta that client k started from. After the first
    rounds clients agree in what they share, so that the cumulative cosines and overlaps tend to 1 whatever the method does;
    those of the increments do not. An increment's subspaces are its leading singular vectors, as many as the client's rank.

    Of the clients' factors and those that the server sends next, to a client of the largest ranks:

        overlap_with_server_* the same between a client's B (or A) and the server's new one: the root is the number of the code
                              that Senarath et al. published. It tells how the server writes what it sends: B averaged over
                              the clients does not span the leading singular vectors of M

    Of the server's delta after the round, as it is sent, with its base delta:

        server_effective_rank, server_stable_rank   as above; M's only where the server neither truncates nor averages factors

        spectrum              the shares of its energy by component, the leading first and at most 32 of them, the mean over
                              layers; on a graph, of M. It has no column in the table by layer

    The same, over the layers that have unequal ranks:

        higher_rank_energy_ratio  the share of its energy beyond the smallest configured rank (Wu et al. 2026, arXiv
                                  2602.13486). It falls towards 0 when the higher ranks fade; that it stays high does not say
                                  that the model is good
        energy_by_band            the shares between successive configured ranks, by components such as "1-2", "3-8" and "9-"

    Of the models that the nodes of a graph hold after the round; a server has one model:

        consensus_B, consensus_A, consensus_product   sqrt(sum_i ||x_i - mean x||^2) for a factor, or for the delta
        consensus_*_relative                          the same over sqrt(sum_i ||x_i||^2): 0 in consensus, at most 1
        cross_term_norm                               ||mean(dW) - s mean(B) mean(A)||

    And what travelled: `bytes_up` and `bytes_down`.

    Args:
        round: as an engine yields it, before the next one is asked for.
        per_layer: adds "layers", a table by columns: `layer` has the names, and each number that any layer has a list in that
            order, rounded to 6 significant digits.
    """
    facts = Facts(round)
    result: dict[str, Value] = {}
    for name, source in _SOURCES.items():
        value, reason = _value(source, facts, facts.names)
        result |= {name: value} if reason is None else {name: None, f"{name}_reason": reason}
    result |= {"bytes_up": round.bytes.total_up, "bytes_down": round.bytes.total_down}
    return {**result, "layers": _table(facts, result)} if per_layer else result


def new_reasons(values: Mapping[str, Any], said: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the numbers of a round without the reasons that an earlier round gave, and the last reason of each number so far.

    A run so gives a reason once: that of a None is the last one at or before its round. Columns of the table count by
    themselves.

    Args:
        values: of `diagnose`.
        said: what came back for the round before; empty for the first one.
    """
    fresh = {n: v for n, v in values.items() if not n.endswith("_reason") or said.get(n) != v}
    known = {**said, **{n: v for n, v in values.items() if n.endswith("_reason")}}
    if "layers" in values:
        fresh["layers"], known["layers"] = new_reasons(values["layers"], said.get("layers", {}))
    return fresh, known


def _value(source: Source, facts: Facts, names: Sequence[str]) -> tuple[Number | None, str | None]:
    try:
        return source(facts, names), None
    except Undefined as reason:
        return None, str(reason)


def _table(facts: Facts, whole: Mapping[str, Value]) -> dict[str, list[Any]]:
    """Returns the numbers by layer in columns; without those that are undefined for each layer alone."""
    table: dict[str, list[Any]] = {"layer": facts.names}
    for name, source in _SOURCES.items():
        if name in OF_ALL_LAYERS:
            continue
        found = [_value(source, facts, [n]) for n in facts.names]
        if all(reason is not None for _, reason in found):
            continue
        table[name] = [_short(value) for value, _ in found]
        if any(reason is not None for _, reason in found):
            table[f"{name}_reason"] = [reason for _, reason in found]
    return table


def _short(value: Number | None) -> Any:
    if isinstance(value, Mapping):
        return {k: _short(x) for k, x in value.items()}
    if isinstance(value, Sequence):
        return [_short(x) for x in value]
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _of_updates(number: OfLayers, facts: Facts, names: Sequence[str]) -> float:
    return number([facts.updates[n] for n in names])


def _of_changes(number: OfLayers, facts: Facts, names: Sequence[str]) -> float:
    return number([facts.changes[n] for n in names])


def _of_nodes(number: OfLayers, facts: Facts, names: Sequence[str]) -> float:
    return number([facts.nodes[n] for n in names])


def _of_overlaps(number: Callable[..., float], facts: Facts, names: Sequence[str]) -> float:
    return number([facts.overlaps[n] for n in names])


def _of_server(number: Callable[..., Any], facts: Facts, names: Sequence[str]) -> Any:
    return number({n: facts.server[n] for n in names}, facts.ranks)


def _of_spectra(facts: Facts, names: Sequence[str]) -> list[float]:
    on_graph = facts.round.gossip
    found = [facts.updates[n].mean_svd[1] if on_graph else facts.server[n] for n in names]
    return [_short(share) for share in spectrum(found)]


def _sources() -> Iterator[tuple[str, Source]]:
    yield "aggregation_error", partial(_of_updates, aggregation_error)
    yield from ((name, partial(_of_updates, number)) for name, number in OF_CLIENTS.items())
    yield from ((f"increment_{name}", partial(_of_changes, number)) for name, number in OF_CLIENTS.items())
    yield from ((name, partial(_of_overlaps, number)) for name, number in OF_CLIENTS_AND_SERVER.items())
    yield "server_effective_rank", partial(_of_server, server_effective_rank)
    yield "server_stable_rank", partial(_of_server, server_stable_rank)
    yield "spectrum", _of_spectra
    yield "higher_rank_energy_ratio", partial(_of_server, higher_rank_energy_ratio)
    yield "energy_by_band", partial(_of_server, energy_by_band)
    yield from ((name, partial(_of_nodes, number)) for name, number in OF_NODES.items())


_SOURCES = dict(_sources())

NAMES = [*_SOURCES, "bytes_up", "bytes_down"]
"""The names of all numbers, in the order in which `diagnose` gives them."""
