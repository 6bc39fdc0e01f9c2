"""Expands what a suite sweeps into settings: each with its name, its values, and perhaps with seeds of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias, cast

from fedelta.runs.config.section import ConfigError
from fedelta.runs.suite.keys import demand_other_keys
from fedelta.runs.suite.names import Values, shown, slug, text_given

Sweep: TypeAlias = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]]
"""As it is written: {dotted.key: [values]} for all combinations, or a list of settings."""

OF_A_SETTING = ("name", "seeds")
"""Words of a listed setting that are the suite's; every other key is one of the config."""

MOST_SEEDS = 1000
"""Seeds of a suite: ten times as many as any table could need, and few enough to be listed."""


@dataclass(frozen=True)
class Setting:
    """One setting of a suite.

    Attributes:
        values: by dotted key, what is swept.
        seeds: of its own; None where it has those of the suite.
    """

    values: Values
    seeds: list[int] | None = None


def listed(seeds: int | list[int]) -> list[int]:
    """Returns the seeds: n stands for 0 to n - 1.

    Raises:
        ValueError: for none, for too many, for one that is negative, or for one that occurs twice.
    """
    count = seeds if isinstance(seeds, int) else len(seeds)
    if count > MOST_SEEDS:
        raise ValueError(f"must be at most {MOST_SEEDS:,} seeds, but are {count:,}; one seed alone is a list, such as [7]")
    found = list(range(seeds)) if isinstance(seeds, int) else seeds
    if not found or min(found) < 0 or len(set(found)) < len(found):
        raise ValueError(f"must be a number of seeds, or a list of different ones from 0 on, but is {seeds!r}")
    return found


def settings_of(sweep: Sweep | None) -> dict[str, Setting]:
    """Returns the settings by name; one without a name where nothing is swept.

    Raises:
        ConfigError: for a key without a value, two settings of one name, a name that is none, or wrong seeds.
    """
    if not sweep:
        return {"": Setting({})}
    if isinstance(sweep, Mapping):
        return _grid(sweep)
    named = [(_name(setting), _listed_setting(setting)) for setting in sweep]
    return _unlike(dict(named), len(named))


def _grid(sweep: Mapping[str, Sequence[Any]]) -> dict[str, Setting]:
    if taken := [key for key in OF_A_SETTING if key in sweep]:
        raise ConfigError(
            f"sweep.{taken[0]} is no key to sweep: `{taken[0]}` is a setting's own where the sweep is a list, such as "
            "[{name: small, seeds: 3, lora.rank: 4}]"
        )
    demand_other_keys(sweep, "sweep")
    if empty := [key for key, values in sweep.items() if not values]:
        raise ConfigError(f"sweep.{empty[0]} has no value: list those of its settings")
    grid = [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]
    return _unlike({_grid_name(values): Setting(values) for values in grid}, len(grid))


def _listed_setting(given: Mapping[str, Any]) -> Setting:
    values = {key: value for key, value in given.items() if key not in OF_A_SETTING}
    demand_other_keys(values, f"sweep: {_name(given)}")
    return Setting(values, _own_seeds(given["seeds"], _name(given)) if "seeds" in given else None)


def _name(given: Mapping[str, Any]) -> str:
    """Returns what a listed setting is called: as it says, else by its values."""
    if "name" not in given:
        return _grid_name({key: value for key, value in given.items() if key not in OF_A_SETTING})
    return text_given(given["name"], "sweep: the `name` of a setting")


def _own_seeds(given: object, name: str) -> list[int]:
    """Returns a setting's own seeds."""
    each = cast("list[object]", given) if isinstance(given, list) else [given]
    if not all(isinstance(seed, int) and not isinstance(seed, bool) for seed in each):
        raise ConfigError(f"sweep: {name}: seeds must be a number of seeds, or a list of them, but is {given!r:.80}")
    try:
        return listed(cast("int | list[int]", given))
    except ValueError as error:
        raise ConfigError(f"sweep: {name}: seeds {error}") from None


def _unlike(settings: Mapping[str, Setting], count: int) -> dict[str, Setting]:
    if len(settings) < count or len({slug(name).casefold() for name in settings}) < count:
        raise ConfigError("sweep: two settings have the same name: give each a `name` of its own")
    return dict(settings)


def _grid_name(values: Values) -> str:
    return " ".join(f"{key.split('.')[-1]}={shown(value)}" for key, value in values.items())
