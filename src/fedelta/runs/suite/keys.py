"""Knows the keys of a config that are the suite's own: what `set`, `sweep`, `tune` or `--set` would say of them is refused.

A sweep over `method` would run one method under the label of another, and a table would not say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from fedelta.runs.config.section import ConfigError

NO_METHOD = "which method runs is said in `methods` alone, so that no row stands under another's label"

OF_THE_SUITE: Mapping[str, str] = MappingProxyType(
    {
        "method": f"{NO_METHOD}; a hyper-parameter is method.KEY",
        "method.name": NO_METHOD,
        "method.path": NO_METHOD,
        "name": "a run is called after its method's `label`",
        "output": "runs lie in the suite's folder, which --output names",
    }
)
"""Keys that no setting, no grid and no method may touch, and why."""


def demand_other_keys(keys: Iterable[object], where: str) -> None:
    """Raises ConfigError, with the reason, for a key that is the suite's own.

    Args:
        keys: dotted keys of a config.
        where: they stand, such as "sweep".
    """
    for key in map(str, keys):
        if key in OF_THE_SUITE:
            raise ConfigError(f"{where} has {key}, but {OF_THE_SUITE[key]}")
