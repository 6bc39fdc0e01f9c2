"""Puts to use what a run left: finds an adapter, scores it on other data, and exports it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fedelta.data.carving import subsample
from fedelta.data.gaps import without_empty
from fedelta.data.rows import Row
from fedelta.data.sources import load_rows
from fedelta.exchange import files
from fedelta.models.adapter_files import CONFIG, WEIGHTS, Layout, copy_adapter, load_adapter, own_files, read_layout
from fedelta.models.base_facts import BaseFacts, base_facts
from fedelta.models.export import merge_into
from fedelta.models.fitting import task_for
from fedelta.models.image_models import PREPARED, reads_images
from fedelta.models.loading import load_model
from fedelta.models.positions import check_lengths, places_of
from fedelta.report.model_card import Exported, model_card
from fedelta.runs.base import evaluator, load_adapted, peft_config
from fedelta.runs.config import ConfigError, RunConfig, read_config
from fedelta.runs.config.allowed import allowed
from fedelta.runs.config.checks import checked_alone
from fedelta.runs.config.own import NOTHING, Own
from fedelta.runs.config.resume import demand_leave, without_leave
from fedelta.runs.config.schema import PROGRAM
from fedelta.runs.deal import deal, read_own
from fedelta.runs.exported import exported, prepared_by
from fedelta.runs.folder import RunFolder
from fedelta.runs.labels import lacks_labels, with_labels
from fedelta.runs.reports import json_object, known_split
from fedelta.tasks import get_task
from fedelta.tasks.task import Task

logger = logging.getLogger("fedelta")

Which: TypeAlias = Literal["best", "last"]

CARD = "README.md"

ENCODER_DECODER = "SEQ_2_SEQ_LM"
"""PEFT's type of an adapter of an encoder-decoder that writes."""

TASK_OF = {"SEQ_CLS": "classification", "CAUSAL_LM": "instruction", ENCODER_DECODER: "instruction"}
"""The task to take if a PEFT folder names only its own task type."""


@dataclass(frozen=True)
class Source:
    """An adapter on disk, and the config that says what it is for.

    Attributes:
        adapter: the PEFT folder.
        config: of the run; for a bare PEFT folder, as far as the folder tells.
        stored: the run's config as its folder has it; None for a bare PEFT folder.
        own: the Python files that may run. A method's is never needed, and a task's is for scores and merged models.
        run: the run's folder; None for a bare PEFT folder.
    """

    adapter: Path
    config: RunConfig
    stored: RunConfig | None = None
    own: Own = NOTHING
    run: RunFolder | None = None

    @property
    def of_run(self) -> bool:
        """Returns whether a run's config was found: then a task that lacks its labels can read them from the run's data."""
        return self.stored is not None

    def demand_leave(self) -> None:
        """Raises ConfigError if the model is not known, or loading it needs what only a person may allow, and nobody has."""
        if self.config.model.name == PROGRAM:
            raise ConfigError(
                "the base model of this run was an object of a program: say where it lies by --set model.name=FOLDER"
            )
        if self.stored is not None:
            demand_leave(self.stored.model, self.config.model)


def find(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    which: Which | None = None,
    rank: int | None = None,
    client: int | str | None = None,
    trust_remote_code: bool = False,
    allow_files: Collection[str | os.PathLike[str]] = (),
) -> Source:
    """Finds the adapter that is meant by a run's folder, by the folder of one of its adapters, or by any PEFT folder.

    Args:
        path: the folder.
        overrides: of the config, as `fedelta.runs.config.load_config` takes them.
        which: of a run, the round that was best on validation data, or the last one; by default the best one where the run
            had validation data. With `rank` or `client` it is always the last.
        rank: what a participant of this rank ran at the end.
        client: what this client ran at the end, for methods whose participants run different models: its number, or the name
            that the run knows it by. Digits are a name where a client is called so.
        trust_remote_code: allows the model's own code to run. The folder's word for it does not count.
        allow_files: the Python files, by path or sha256, that may run, where the run's task is one of a file.

    Raises:
        FileNotFoundError: for a folder that is neither, or an adapter that the run did not leave, naming those it left.
        ValueError: for the best round together with a rank or a client, a client's name that the run does not know, or a
            choice where there is none.
    """
    own = Own(allowed(allow_files))
    path, changes = Path(path), [*overrides, *(["model.trust_remote_code=true"] if trust_remote_code else [])]
    if (path / "config.yaml").is_file():
        return _of_run(_adapter_of(RunFolder(path), which, rank, client), path, changes, own)
    if which is not None or rank is not None or client is not None:
        raise ValueError(f"{path} is not the folder of a run, so there is no choice of round, rank or client in it")
    run = path.resolve().parent.parent
    if path.resolve().parent.name == "adapters" and (run / "config.yaml").is_file():
        return _of_run(path, run, changes, own)
    return Source(path, _config_of(path, changes), own=own)


def _of_run(adapter: Path, run: Path, changes: Sequence[str], own: Own) -> Source:
    stored = checked_alone(read_config(run / "config.yaml"))
    return Source(adapter, checked_alone(read_config(without_leave(stored), changes)), stored, own, RunFolder(run))


def score(source: Source, data: str | None = None, *, split: str | None = None, limit: int | None = None) -> dict[str, float]:
    """Returns the task's metrics of an adapter on other rows, and the number of rows under "examples".

    Args:
        source: from `find`.
        data: a file, a Hub data set or `docstrings`, with the fields that the config names; by default the run's test rows.
        split: of a Hub data set or of `docstrings`.
        limit: so many rows, drawn with the config's seed.

    Raises:
        ValueError, OSError: for rows or an adapter that do not fit the task or the base model.
    """
    source.demand_leave()
    config, task = source.config, task_of(source)
    rows = _test_rows(source, task) if data is None else _given_rows(config, task, data, split)
    rows = subsample(rows, limit, config.seeds().data)
    if lacks_labels(task):
        task = deal(config, task).task if source.of_run else task.settled(rows)
    model, tokenizer = load_adapted(
        config.model, task, peft_config(config.lora), device=config.device, seed=config.seeds().start
    )
    task, deployed = task_for(task, model.module.config), {"adapter": load_adapter(source.adapter)}
    examples = task.encode(rows, tokenizer)
    check_lengths(places_of(model.module, task), task, examples, "rows")
    scores = evaluator(task, model, config.evaluation.batch_size).score(deployed, examples)
    return {"examples": len(rows), **scores}


def _given_rows(config: RunConfig, task: Task, data: str, split: str | None) -> list[Row]:
    revision = config.data.revision if data == config.data.source else None
    rows = load_rows(
        data,
        split=split,
        fields=config.data.fields,
        seed=config.seeds().data,
        revision=revision,
        path=config.data.path if data == config.data.source else None,
        in_files=task.path_fields(),
    )
    return without_empty(rows, task.label_field(), config.data.empty, data)


def _test_rows(source: Source, task: Task) -> list[Row]:
    """Returns the test rows of a run: from their own file where they have one, so that no other needs to be here.

    Raises:
        ValueError: for an adapter of no run, or a run without such rows.
    """
    data = source.config.data
    if not source.of_run:
        raise ValueError(f"{source.adapter} belongs to no run that has test rows: give the rows to score on")
    if data.source == PROGRAM and source.config.federation.where == PROGRAM:  # a hub may have a data set of that name
        raise ValueError("the rows of this run were objects of a program: give the rows to score on")
    if data.test is not None and data.clients is not None:
        return read_own(source.config, task, data.test, "test").rows
    rows = list(deal(source.config, task).splits.test)
    if not rows:
        raise ValueError("the run kept no test rows: give the rows to score on")
    return rows


def export(source: Source, folder: str | Path, *, merged: bool = False) -> Exported:
    """Writes the adapter as a PEFT folder, or a whole model with the delta in its weights; with model card and tokenizer,
    or what prepares images in its place.

    The folder appears whole or not at all. What cannot be read of the base model is left out, with a warning.

    Returns:
        What the card tells, from which `fedelta.report.model_card` makes the lines to use the folder by.

    Raises:
        FileExistsError: if the folder holds anything.
        ValueError: if the adapter belongs to another base than the config's.
    """
    folder = Path(folder)
    demand_unused(folder)
    own_files(source.adapter)  # before one is read
    if merged:
        source.demand_leave()
    layout = read_layout(source.adapter)
    task, known = (_task_with_labels(source), True) if merged else _task_to_tell(source, layout)
    if layout.config.get("task_type") == ENCODER_DECODER:
        task = task.for_encoder_decoder()
    facts = _facts_of(source, reads_images(task))
    told = exported(layout, source.config, task, facts, source.run, source.adapter.name, merged=merged)
    told = told if known else replace(told, max_length=None, prompts={})
    # The model first, which takes memory and may not fit: no draft is begun for what cannot be written.
    whole = _merged(source, task) if merged else None
    with files.whole_folder(folder) as draft:
        if whole is None:
            copy_adapter(source.adapter, draft)
        else:
            whole.save_pretrained(draft)
        if told.tokenizer:
            facts.tokenizer.save_pretrained(draft)
        if (processor := prepared_by(task, facts)) is not None:
            files.write(draft / PREPARED, (json.dumps(processor.as_json(), indent=2) + "\n").encode())
        files.write(draft / CARD, model_card(told, folder.resolve().name).encode())
    return told


def _facts_of(source: Source, images: bool) -> BaseFacts:
    settings = source.config.model
    return base_facts(
        settings.name,
        settings.revision,
        digest=settings.digest,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=settings.use_safetensors,
        images=images,
    )


def _merged(source: Source, task: Task) -> Any:
    """Returns the base model with the adapter in its weights."""
    settings = source.config.model
    model, tokenizer = load_model(
        settings.name,
        task,
        device="cpu",
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        use_safetensors=settings.use_safetensors,
        revision=settings.revision,
        digest=settings.digest,
        seed=source.config.seeds().start,  # what the checkpoint lacks and nobody trained is part of the base
    )
    # A quantised base has a fingerprint of its own, which the adapter keeps. The delta goes into the whole model, whose
    # fingerprint is another, so that the two cannot be compared.
    checked_by = None if settings.quantization else tokenizer
    return merge_into(model, load_adapter(source.adapter), tokenizer=checked_by)


def demand_unused(folder: Path) -> None:
    """Raises FileExistsError if the folder holds anything: nothing that is written may replace what somebody keeps."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty: give another folder to write to")


def _adapter_of(run: RunFolder, which: Which | None, rank: int | None, client: int | str | None) -> Path:
    if rank is not None or client is not None:
        if which == "best":
            raise ValueError("what ranks and clients run is kept of the last round only: leave --round out, or say last")
        return _existing(run, f"rank-{rank}" if client is None else f"client-{_number_of(run, client)}")
    return _existing(run, which or ("best" if (run.adapters / "best").is_dir() else "last"))


def _number_of(run: RunFolder, client: int | str) -> int:
    if isinstance(client, int):
        return client
    dealt = known_split(json_object(run.split_file)) or {"clients": {}}
    named = {number: known.get("name") for number, known in dealt["clients"].items()}
    names = {name: int(number) for number, name in named.items() if isinstance(name, str) and number.isdecimal()}
    if client in names:
        return names[client]
    if client.isdecimal():
        return int(client)
    known_as = f"its clients are {', '.join(names)}" if names else "its clients have numbers only, from 0"
    raise ValueError(f"the run has no client {client!r}: {known_as}")


def adapters_in(path: Path) -> list[Path]:
    """Returns the adapter that is meant by a folder, of a run or of PEFT; all clients' own of a run that has no common one.

    Raises:
        FileNotFoundError: for a run that has no adapter yet.
    """
    run = RunFolder(path)
    if not run.config_file.is_file():
        return [path]
    common = [name for name in ("best", "last") if (run.adapters / name).is_dir()]
    own = sorted(run.adapters.glob("client-*"), key=lambda folder: (len(folder.name), folder.name))
    if common or not own:
        return [_adapter_of(run, None, None, None)]
    return [_existing(run, folder.name) for folder in own]


def _existing(run: RunFolder, name: str) -> Path:
    adapter = run.adapters / name
    left = sorted(p.name for p in run.adapters.iterdir()) if run.adapters.is_dir() else []
    if adapter.is_dir():
        if lacking := [file for file in (CONFIG, WEIGHTS) if not os.path.lexists(adapter / file)]:
            raise FileNotFoundError(
                f"{adapter} has no {' and no '.join(lacking)}: bring it back, take another adapter of the run "
                f"({', '.join(left)}), or let `fedelta run --resume {run.path}` write it anew with more rounds"
            )
        return _inside(adapter)
    raise FileNotFoundError(f"{run.path} has no adapter {name!r}; it has {', '.join(left) or 'none yet'}")


def _inside(adapter: Path) -> Path:
    """Returns the same folder; raises ValueError if it, or `adapters` around it, is a link out of the run's folder."""
    for folder in (adapter, adapter.parent):
        if folder.is_symlink():
            raise ValueError(f"{folder} is a link, which is not followed in the folder of a run: name the folder it leads to")
    return adapter


def _config_of(path: Path, overrides: Sequence[str]) -> RunConfig:
    """Returns a config for a PEFT folder that belongs to no run."""
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}; give the folder of a run or a PEFT folder")
    layout = read_layout(path).config
    raw: dict[str, Any] = {
        "model": {"name": layout.get("base_model_name_or_path") or "minilm"},
        "task": TASK_OF.get(str(layout.get("task_type")), "classification"),
        "lora": {"target_modules": layout.get("target_modules"), "modules_to_save": layout.get("modules_to_save")},
    }
    return checked_alone(read_config(raw, overrides))


def _task_to_tell(source: Source, layout: Layout) -> tuple[Task, bool]:
    """Returns the task that a card tells of, and whether it is the adapter's own.

    A folder alone must be enough to export: where the task is of a file that may not run, or its labels have gone with the
    data, the kind of model stands for it.
    """
    try:
        return _task_with_labels(source), True
    except (ValueError, OSError, ImportError) as error:
        logger.warning("the model card cannot tell of the task, and its lines may lack the labels: %s", error)
    kind = TASK_OF.get(str(layout.config.get("task_type")), "classification")
    return with_labels(get_task(kind), layout.labels), False


def task_of(source: Source) -> Task:
    """Returns the task of an adapter, with the labels that are kept beside it where the config names none."""
    return with_labels(source.own.task_alone(source.config), read_layout(source.adapter).labels)


def _task_with_labels(source: Source) -> Task:
    task = task_of(source)
    return deal(source.config, task).task if source.of_run and lacks_labels(task) else task
