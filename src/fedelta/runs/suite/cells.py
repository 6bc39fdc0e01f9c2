"""Expands a suite into its cells: a config for each setting, method and seed, all checked before any is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from fedelta.runs.config import ConfigError, RunConfig, read_config
from fedelta.runs.config.checks import check, check_metric, demand_here
from fedelta.runs.config.own import NOTHING, Own
from fedelta.runs.config.read import Overrides, pairs
from fedelta.runs.config.section import RefusedByClaim
from fedelta.runs.digests import NOTHING_KNOWN, Known, digest_of
from fedelta.runs.suite.names import Values, slug, text_of
from fedelta.runs.suite.schema import Entry, SuiteFile


@dataclass(frozen=True, eq=False)
class Task:
    """One run of a suite.

    Attributes:
        setting: its name; empty where nothing is swept.
        label: of the method.
        seed: of what is drawn.
        config: that is asked for, without a folder.
        folder: of the run.
        digest: of the config.
        tuning: the values' text of a run that helps to choose them; empty for one that is compared.
        scores_start: the run also scores the model before any training.
    """

    setting: str
    label: str
    seed: int
    config: RunConfig
    folder: Path
    digest: str
    tuning: str = ""
    scores_start: bool = False

    @property
    def title(self) -> str:
        """Returns how it is called on the screen."""
        parts = [self.setting, self.label, self.tuning, f"seed {self.seed}"]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, eq=False)
class Plan:
    """A suite with a config for each setting and method.

    Attributes:
        file: the suite.
        folder: of all its runs.
        changes: of a person, on top of the base.
        settings: by name, the swept keys and values.
        refused: by setting and label, the claim's sentence of a method that cannot serve the setting.
        own: the Python files that may run.
        known: stands in for files that are not here.
        tasks: by folder, those that were made so far.
    """

    file: SuiteFile
    folder: Path
    changes: Overrides
    settings: Mapping[str, Values]
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    own: Own = NOTHING
    known: Known = NOTHING_KNOWN
    tasks: dict[Path, Task] = field(default_factory=dict[Path, Task])

    @property
    def seeds(self) -> list[int]:
        """Returns the compared seeds, each once; a setting may have some of them only."""
        return self.file.all_seeds()

    def seeds_of(self, setting: str) -> list[int]:
        """Returns the compared seeds of a setting."""
        return self.file.seeds_of(setting)

    def cells(self) -> Iterator[tuple[str, Entry, int]]:
        """Yields setting, method and seed of each cell that is compared, in this order."""
        for setting, entry in product(self.settings, self.file.entries):
            for seed in self.seeds_of(setting):
                yield setting, entry, seed

    def task(self, setting: str, entry: Entry, seed: int, chosen: Values) -> Task:
        """Returns a run that is compared, with its tuned values."""
        folder = self.folder / "cells" / _folder(setting) / slug(entry.label) / f"seed-{seed}"
        return self._task(setting, entry, seed, chosen, folder)

    def tuning_task(self, setting: str, entry: Entry, seed: int, values: Values) -> Task:
        """Returns a run that helps to choose a value."""
        text = text_of(values)
        folder = self.folder / "tune" / _folder(setting) / slug(entry.label) / slug(text) / f"seed-{seed}"
        return self._task(setting, entry, seed, values, folder, text)

    def _task(self, setting: str, entry: Entry, seed: int, values: Values, folder: Path, text: str = "") -> Task:
        if folder not in self.tasks:
            config = with_seed(self.config(setting, entry, values), seed)
            # Any method of the first seed may score the start, which is done once: whose turn it is may be killed before.
            first = not text and seed == self.seeds_of(setting)[0]
            self.tasks[folder] = Task(setting, entry.label, seed, config, folder, digest_of(config, self.known), text, first)
        return self.tasks[folder]

    def config(self, setting: str, entry: Entry, values: Values) -> RunConfig:
        """Returns the config of a setting and a method with some values; the seed is the base's.

        Raises:
            ConfigError: for a key or a value that is wrong.
        """
        changes = {"method": dict(entry.choice), **self.settings[setting], **entry.changes, **self.file.placed(values)}
        return read_config(self.file.base, {**dict(pairs(self.changes)), **changes, "name": slug(entry.label), "output": None})


def with_seed(config: RunConfig, seed: int) -> RunConfig:
    """Returns a config whose partition, schedule and start are drawn from a seed; rows are kept out by the config's own."""
    each = {"data": config.seeds().data, "partition": seed, "schedule": seed, "start": seed}
    return read_config({**config.model_dump(mode="json"), "seed": each})


def plan_of(file: SuiteFile, folder: Path, changes: Overrides = (), own: Own = NOTHING, known: Known = NOTHING_KNOWN) -> Plan:
    """Expands a suite, and checks the config of every cell.

    Args:
        file: the suite.
        folder: of all its runs.
        changes: of a person, on top of the base.
        own: the Python files that may run.
        known: stands in for files that are not here.

    Raises:
        ConfigError: with one line for each fault; a method that refuses a setting by a claim is none.
    """
    plan = Plan(file, folder, changes, file.settings())
    refused: dict[tuple[str, str], str] = {}
    faults: dict[str, dict[tuple[str, str], None]] = {}
    for setting, entry in product(plan.settings, file.entries):
        for values in combinations(entry):
            try:
                config = plan.config(setting, entry, values)
                check_metric("metric", file.suite.metric, check(config, own))
                demand_here(config)
            except RefusedByClaim as claim:
                refused[setting, entry.label] = str(claim)
            except ConfigError as error:
                faults.setdefault(str(error), {})[setting, entry.label] = None
    if faults:
        raise ConfigError("\n".join(f"{_where(list(cells), plan)}{fault}" for fault, cells in faults.items()))
    return Plan(file, folder, changes, plan.settings, refused, own, known)


def combinations(entry: Entry) -> list[Values]:
    """Returns the values that a method is tuned over; one without values for a method that is not tuned."""
    if entry.tune is None:
        return [{}]
    keys = list(entry.tune.grid)
    return [dict(zip(keys, found, strict=True)) for found in product(*entry.tune.grid.values())]


def _where(cells: Sequence[tuple[str, str]], plan: Plan) -> str:
    """Says which settings and methods have a fault, for the beginning of its line; nothing where it is that of all.

    A setting that has it whatever the method is named alone, and so is a method that has it in every setting.
    """
    settings, labels = list(plan.settings), [entry.label for entry in plan.file.entries]
    if len(cells) == len(settings) * len(labels):
        return ""
    whole = [s for s in settings if s and all((s, label) in cells for label in labels)]
    everywhere = [label for label in labels if all((s, label) in cells for s in settings)]
    rest = [" ".join(filter(None, cell)) for cell in cells if cell[0] not in whole and cell[1] not in everywhere]
    named = [*whole, *everywhere, *rest]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} others" if len(named) > 3 else "") + ": "


def _folder(setting: str) -> str:
    return slug(setting) if setting else "all"
