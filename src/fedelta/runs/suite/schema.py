"""The keys of a suite file, and how one is read; nothing here reads the config that a suite is based on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import Field, ValidationError, field_validator

from fedelta.registry import is_code
from fedelta.runs.config.paths import place_code, placed, resolved
from fedelta.runs.config.read import BUILT_IN, explained, read_yaml
from fedelta.runs.config.section import ConfigError, Section
from fedelta.runs.suite.keys import demand_other_keys
from fedelta.runs.suite.names import shown, slug, text_given
from fedelta.runs.suite.sweep import Setting, listed, settings_of

OF_THE_SUITE = ("label", "set", "tune")
"""Words of a method's mapping that are the suite's, beside `name` and `path`, which choose the method."""

TUNING_SEEDS = (100, 101)
"""Of the runs that choose a value, where the suite does not name others."""

PLAIN_NAMES = ("suite", "study")
"""Names of a file that say nothing: such a suite is called after its folder."""

Grid: TypeAlias = Mapping[str, Sequence[Any]]
"""By dotted key, the values to try."""


@dataclass(frozen=True)
class Tune:
    """Says how a method's own value is chosen.

    Attributes:
        grid: by dotted key of the config, the values to try; several keys are tried in all combinations.
        seeds: of the runs that choose.
        setting: in `each` setting anew, or in the `first`, for all.
    """

    grid: Grid
    seeds: Sequence[int] = TUNING_SEEDS
    setting: Literal["each", "first"] = "each"


@dataclass(frozen=True)
class Entry:
    """One method of a suite.

    Attributes:
        label: by which it is known in tables and folders.
        choice: its name or path, and its hyper-parameters.
        changes: by dotted key, what else its runs have of their own.
        tune: None for a method that is not tuned.
    """

    label: str
    choice: Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tune: Tune | None = None

    @property
    def name(self) -> str:
        """Returns the method's name; that of its file for one's own."""
        return str(self.choice["name"] if "name" in self.choice else Path(str(self.choice["path"])).stem)


class Suite(Section):
    """A suite as it is written."""

    base: str | dict[str, Any] = Field(description="the config that all runs share: a path, a built-in name, or the mapping")
    methods: list[str | dict[str, Any]] = Field(
        min_length=1,
        description="names, files of one's own, or mappings {name | path, hyper-parameters, label, set, tune}",
    )
    seeds: int | list[int] = Field(default=3, description="a list, or a number n for 0 to n - 1")
    sweep: dict[str, list[Any]] | list[dict[str, Any]] | None = Field(
        default=None,
        description="settings: {dotted.key: [values]} for all combinations, or a list of mappings, each perhaps with "
        "a `name` and `seeds` of its own",
    )
    baseline: str | None = Field(default=None, description="the label that differences are taken to; the first by default")
    tune: dict[str, Any] | None = Field(
        default=None, description="{dotted.key: [values], seeds: [100, 101], setting: each | first}"
    )
    metric: str = Field(default="accuracy", description="that is compared")
    jobs: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="runs at a time, each with one thread; `auto` counts cores and memory"
    )
    store: str | None = Field(
        default=None, description="a .jsonl.gz of finished runs: what is found there is not run again, also in a fresh clone"
    )

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, seeds: int | list[int]) -> int | list[int]:
        listed(seeds)
        return seeds

    @field_validator("store")
    @classmethod
    def _a_store(cls, store: str | None) -> str | None:
        return None if store is None else demand_store(store)

    def seed_list(self) -> list[int]:
        """Returns the seeds of every setting that names none of its own."""
        return listed(self.seeds)


@dataclass(frozen=True)
class SuiteFile:
    """A suite that was read.

    Attributes:
        name: of the suite, and of its folder.
        place: the folder from which its paths are taken.
        suite: as it is written.
        entries: its methods; a path in them, as in all else, counts from `place`.
    """

    name: str
    place: Path
    suite: Suite
    entries: Sequence[Entry]

    @property
    def baseline(self) -> str:
        """Returns the label that differences are taken to."""
        return self.suite.baseline or self.entries[0].label

    @cached_property
    def base(self) -> str | Path | Mapping[str, Any]:
        """The base config with its paths placed, or the name of a built-in one.

        A file is read once, so that an edit while cells are running does not mix two configs in one table. One that is not
        there is left to whoever reads the path.
        """
        base = self.suite.base
        if isinstance(base, Mapping):
            return resolved(base, self.place)
        path = self.place / base
        if base in BUILT_IN or not path.is_file():
            return base if base in BUILT_IN else path
        return resolved(read_yaml(path), path.parent)

    def settings(self) -> dict[str, Mapping[str, Any]]:
        """Returns the swept values of each setting by its name; one without a name where nothing is swept."""
        return {name: self.placed(setting.values) for name, setting in self._swept.items()}

    def own_seeds(self, setting: str) -> list[int] | None:
        """Returns the seeds that a setting names for itself; None where it has those of the suite."""
        return self._swept[setting].seeds

    def seeds_of(self, setting: str) -> list[int]:
        """Returns the compared seeds of a setting."""
        own = self.own_seeds(setting)
        return self.suite.seed_list() if own is None else own

    def all_seeds(self) -> list[int]:
        """Returns the seeds that some setting has, each once."""
        return list(dict.fromkeys(seed for setting in self._swept for seed in self.seeds_of(setting)))

    @cached_property
    def _swept(self) -> dict[str, Setting]:
        return settings_of(self.suite.sweep)

    def placed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns values by dotted key with the paths in them placed."""
        return {key: placed(key, value, self.place) for key, value in values.items()}


def read_suite(path: Path) -> SuiteFile:
    """Reads a suite file.

    Raises:
        ConfigError: for a file that is no suite, with one line for each fault; for a swept key without a value, two settings
            of one name, or wrong seeds of one.
    """
    if not path.is_file():
        raise ConfigError(f"no suite file at {path}: give a YAML file with the keys base and methods")
    name = path.resolve().parent.name if path.stem in PLAIN_NAMES else path.stem
    return suite_of(read_yaml(path), name, path.parent)


def suite_of(raw: Mapping[str, Any], name: str, place: Path) -> SuiteFile:
    """Returns the suite in a mapping; errors are those of `read_suite`."""
    try:
        suite = Suite.model_validate(dict(raw))
    except ValidationError as error:
        raise ConfigError("\n".join(explained(error, Suite))) from None
    entries = [_entry(given, suite.tune, place) for given in suite.methods]
    _demand_labels(entries)
    labels = [entry.label for entry in entries]
    if suite.baseline is not None and suite.baseline not in labels:
        raise ConfigError(f"baseline: no method has the label {suite.baseline!r}; there are {', '.join(labels)}")
    file = SuiteFile(name, place, suite, entries)
    _demand_other_seeds(entries, file.all_seeds())
    return file


def demand_store(store: str) -> str:
    """Returns the path of a store; raises ValueError for one of another kind of file."""
    if not store.endswith(".jsonl.gz"):
        raise ValueError(f"a store is a .jsonl.gz, such as cells.jsonl.gz, but {store!r} is none")
    return store


ONE_SEED = "methods are compared within a seed, on the same test rows: the suite's `seeds` are those of all methods"


def _entry(given: str | Mapping[str, Any], suites_tune: Mapping[str, Any] | None, place: Path) -> Entry:
    mapping = _choice(given) if isinstance(given, str) else dict(given)
    if ("name" in mapping) == ("path" in mapping):
        raise ConfigError(f"methods: {given!r} needs a name or a path, and one of them only")
    changes = mapping.get("set") or {}
    if not isinstance(changes, Mapping):
        raise ConfigError(f"methods: `set` of {given!r} must be a mapping of dotted keys to values")
    _demand_keys_of_a_method(changes, f"methods: `set` of {given!r:.200}")
    choice = place_code({key: value for key, value in mapping.items() if key not in OF_THE_SUITE}, place)
    own = {key: placed(key, value, place) for key, value in cast("Mapping[str, Any]", changes).items()}
    entry = Entry("", choice, own)
    label = text_given(mapping["label"], "methods: a `label`") if "label" in mapping else entry.name
    if "tune" in mapping:
        tune = _own_tune(mapping["tune"], suites_tune, f"methods: {label}: tune")
    else:
        tune = None if suites_tune is None else tune_of(suites_tune, "tune")
    return Entry(label, choice, entry.changes, tune)


def _demand_keys_of_a_method(keys: Iterable[object], where: str) -> None:
    """Raises ConfigError for a key that is the suite's own, or a seed, which is that of all methods."""
    keys = list(keys)
    demand_other_keys(keys, where)
    if any(str(key).partition(".")[0] == "seed" for key in keys):
        raise ConfigError(f"{where} has seed, but {ONE_SEED}")


def _choice(text: str) -> dict[str, Any]:
    return {"path": text} if is_code(text) else {"name": text}


def _own_tune(given: object, suites: Mapping[str, Any] | None, where: str) -> Tune | None:
    """Returns a method's own tuning, whose seeds and setting are the suite's if it names none; null stands for none."""
    if given is None:
        return None
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} must be a mapping of dotted keys to lists of values, or null")
    common = {key: suites[key] for key in ("seeds", "setting") if suites and key in suites}
    return tune_of({**common, **cast("Mapping[str, Any]", given)}, where)


def tune_of(given: Mapping[str, Any], where: str) -> Tune:
    """Returns what a `tune` mapping says.

    Raises:
        ConfigError: for one without a value to try, or with wrong seeds.
    """
    seeds, setting = given.get("seeds", list(TUNING_SEEDS)), given.get("setting", "each")
    grid = {key: value for key, value in given.items() if key not in ("seeds", "setting")}
    if setting not in ("each", "first"):
        raise ConfigError(f"{where}.setting must be each or first, but is {setting!r}")
    if not isinstance(seeds, list) or not seeds or not all(isinstance(s, int) for s in cast("list[object]", seeds)):
        raise ConfigError(f"{where}.seeds must be a list of seeds, but is {seeds!r}")
    if not grid or not all(isinstance(values, list) and values for values in grid.values()):
        raise ConfigError(f"{where} must name a key and the values to try, such as training.learning_rate: [0.001, 0.01]")
    _demand_keys_of_a_method(grid, where)
    for key, values in grid.items():
        if len({slug(shown(value)) for value in values}) < len(values):
            raise ConfigError(f"{where}.{key} has two values that look alike among {values!r:.200}: leave one of them out")
    return Tune(grid, cast("list[int]", seeds), setting)


def _demand_labels(entries: Sequence[Entry]) -> None:
    for kind, names in (("label", [e.label for e in entries]), ("folder", [slug(e.label).casefold() for e in entries])):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ConfigError(f"methods: the {kind} {twice[0]!r} occurs twice: give each of them a `label` of its own")


def _demand_other_seeds(entries: Sequence[Entry], seeds: Sequence[int]) -> None:
    for entry in entries:
        both = sorted(set(seeds) & set(entry.tune.seeds if entry.tune else ()))
        if both:
            raise ConfigError(
                f"tune.seeds: {', '.join(map(str, both))} are among the compared seeds, so that {entry.label} would be chosen "
                f"by what it is judged by: tune on others, such as {list(TUNING_SEEDS)}"
            )
