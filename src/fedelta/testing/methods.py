"""`check_method`: the laws of methods, asked of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fedelta.method import Method, demand_free_names
from fedelta.testing.laws import LAWS, UNEQUAL_RANKS
from fedelta.testing.reports import ConformanceError, Report, examine, judge
from fedelta.testing.scene import Scene, quiet

RANKS = (2, 4, 3)
"""Of the toy federation's clients, for a method that claims unequal ranks."""


def check_method(
    method: type[Method] | Method, *, hetero_ranks: Sequence[int] = RANKS, seed: int = 0, raise_on_failure: bool = True
) -> Report:
    """Asks a method all the laws, on a toy federation in float64; takes about a second.

    Args:
        method: a class, which is checked with its defaults and what it declares as `lawful`; or a method.
        hetero_ranks: the clients' ranks, three at least, where the method claims `hetero_rank`; otherwise as many clients of
            the middle one.
        seed: of the federation.
        raise_on_failure: whether a broken law raises.

    Returns:
        A verdict for every law. One from which the method is `exempt` is listed with its reason.

    Raises:
        ConformanceError: if a law is broken, with the report.
        ValueError: for an exemption from no law, a field of a reserved name, or a class that cannot be made without arguments.
    """
    demand_free_names(method if isinstance(method, type) else type(method))
    with quiet():
        scene = scene_of(method, hetero_ranks, seed)
        report = examine(_title(scene.method), scene, (UNEQUAL_RANKS, *LAWS), scene.method.exempt)
    if raise_on_failure and not report.ok:
        raise ConformanceError(report)
    return report


def scene_of(method: type[Method] | Method, hetero_ranks: Sequence[int] = RANKS, seed: int = 0) -> Scene:
    """The scene on which a method's laws are asked: at unequal ranks, if it claims them and the claim is true."""
    made = method if isinstance(method, Method) else _made(method)
    unequal = tuple(hetero_ranks)
    equal = (sorted(unequal)[len(unequal) // 2],) * len(unequal)
    scene = Scene(made, equal, seed, unequal)
    able = made.hetero_rank and judge(UNEQUAL_RANKS, scene, {}).outcome == "kept"
    return replace(scene, ranks=unequal) if able else scene


def _made(cls: type[Method]) -> Method:
    try:
        return cls(**cls.lawful)
    except TypeError as error:
        raise ValueError(
            f"{cls.__name__} cannot be made without arguments ({error}): define what is abstract, give hyper-parameters "
            "defaults or `lawful` values, or check an instance"
        ) from error


def _title(method: Method) -> str:
    lawful: Mapping[str, Any] = type(method).lawful
    shown = ", ".join(f"{k}={getattr(method, k)!r}" for k in lawful)
    return f"{type(method).__name__}({shown})" if shown else type(method).__name__
