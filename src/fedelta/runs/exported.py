"""Gathers what the card of an exported adapter tells: from its own files, the config and the records of its run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedelta.method import RESERVED
from fedelta.models.adapter_files import Layout
from fedelta.models.aliases import portable_name
from fedelta.models.base_facts import BaseFacts
from fedelta.models.image_models import needs_telling, reads_images
from fedelta.report.model_card import IMAGES, SEQUENCE, Exported
from fedelta.report.words import Record
from fedelta.runs.config import Lora, RunConfig
from fedelta.runs.config.ranks import RankChoice
from fedelta.runs.evaluation import best_round
from fedelta.runs.folder import RunFolder
from fedelta.runs.labels import labels_of
from fedelta.tasks.image_classification import ImageClassification
from fedelta.tasks.images.processor import ImageProcessor
from fedelta.tasks.task import Task

UNKNOWN_BASE = "NAME-OF-THE-BASE-MODEL"
"""Stands for the base of an adapter that does not name it."""

PROMPTS: Mapping[str, str] = {"prompt": "The text before an answer", "prompt_with_context": "With a context"}
"""The settings of a task that are texts before an answer, and what a card calls them."""


def exported(
    layout: Layout, config: RunConfig, task: Task, facts: BaseFacts, run: RunFolder | None, adapter: str, *, merged: bool
) -> Exported:
    """Returns what is told of an adapter.

    Args:
        layout: of its folder.
        config: of its run, or what its folder tells.
        task: with its labels, where they are known.
        facts: of the base model.
        run: None for an adapter of no run.
        adapter: its name in the run: "best", "last", "rank-4", "client-0".
        merged: whether it is written as a whole model.
    """
    base = layout.config.get("base_model_name_or_path") or (portable_name(config.model.name) if run else UNKNOWN_BASE)
    ranks: Mapping[str, int] = layout.config.get("rank_pattern") or {}
    round, scores = _scores(run, config, adapter)
    fields = {name: getattr(task, name, None) for name in PROMPTS}
    if getattr(task, "context", None) is None:
        fields.pop("prompt_with_context")
    return Exported(
        base=base,
        local=Path(base).is_dir(),
        auto_class=task.auto_class,
        merged=merged,
        license=facts.license,
        release=facts.release,
        labels=labels_of(task),
        ranks=sorted({layout.config["r"], *ranks.values()}),
        one_scale=not ranks and not layout.config.get("alpha_pattern"),
        drawn=layout.drawn,
        saved=layout.config.get("modules_to_save") or (),
        loading={} if merged else _loading(config, task, facts),
        tokenizer=fits(facts),
        max_length=task.max_length if run and not reads_images(task) else None,
        **_of_images(task, facts),
        prompts={PROMPTS[name]: text for name, text in fields.items() if isinstance(text, str)},
        training=_training(config, run) if run else {},
        scores=scores,
        round=round,
        scored=_scored(adapter),
    )


def _of_images(task: Task, facts: BaseFacts) -> dict[str, Any]:
    """Returns what is told of a model of images; nothing for one of text."""
    prepared = prepared_by(task, facts)
    if prepared is None:
        return {}
    size: tuple[int, int] = prepared.size
    return {"side": size, "between_positions": needs_telling(facts.config, size)}


def prepared_by(task: Task, facts: BaseFacts) -> ImageProcessor | None:
    """Returns what prepares the images of a task for its model; None for a task of text."""
    return task.processor(facts.processor) if isinstance(task, ImageClassification) else None


def fits(facts: BaseFacts) -> bool:
    """Returns whether a tokenizer can lie beside the adapter: for one with more tokens PEFT would enlarge the base."""
    size = facts.config.get("vocab_size")
    return facts.tokenizer is not None and not (isinstance(size, int) and len(facts.tokenizer) > size)


def _loading(config: RunConfig, task: Task, facts: BaseFacts) -> dict[str, Any]:
    """Returns the arguments without which the base would be loaded as another model than the run's."""
    given: dict[str, Any] = {}
    if config.model.revision is not None and task.auto_class != SEQUENCE:
        given["revision"] = config.model.revision  # PEFT's own loader takes it for the adapter's
    if facts.dtype() not in (None, config.model.dtype):
        given["dtype"] = config.model.dtype
    if task.auto_class not in (SEQUENCE, IMAGES):
        return given
    if facts.outputs() not in (None, len(labels_of(task))):
        given["ignore_mismatched_sizes"] = True  # a head of the base's own, for other labels
    if task.auto_class == SEQUENCE and not facts.pads() and facts.tokenizer is not None:
        given["pad_token_id"] = facts.tokenizer.pad_token_id  # by which the model finds the end of a text
    return given


def _training(config: RunConfig, run: RunFolder) -> dict[str, str]:
    settings = {key: value for key, value in config.method.items() if key not in RESERVED}
    told = ", ".join(f"{key}={value}" for key, value in settings.items())
    clients = config.num_clients()
    lora = config.lora
    return {
        "Method": f"{config.method['name']}{f' ({told})' if told else ''}",
        **({} if clients is None else {"Clients": str(clients)}),
        "Rounds": str(len(run.survey()[0])),
        "Ranks of the clients": _ranks(lora.rank),
        **_scale(lora),
        "Task": str(config.task["name"]),
    }


def _scale(lora: Lora) -> dict[str, str]:
    if lora.scale is not None:
        return {"Scale at every rank": f"{lora.scale:g}"}
    return {"lora_alpha": f"{lora.lora_alpha:g}{', rank-stabilised' if lora.rslora else ''}"}


def _ranks(rank: int | list[int] | RankChoice) -> str:
    if isinstance(rank, RankChoice):
        return f"drawn from {', '.join(map(str, rank.choices))}"
    if isinstance(rank, int):
        return str(rank)
    return ", ".join(f"{r} ({n} of {len(rank)})" for r, n in sorted(Counter(rank).items()))


def _scores(run: RunFolder | None, config: RunConfig, adapter: str) -> tuple[int | None, dict[str, dict[str, float]]]:
    """Returns the round that left the adapter, and its scores by split; None and nothing where nothing was scored."""
    records = [] if run is None else run.survey()[0]
    scored = [record for record in records if record.get("validation") or record.get("test")]
    if not scored:
        return None, {}
    best = best_round(scored, config.evaluation.best_by) if adapter == "best" else None
    record = scored[-1] if best is None else next(r for r in scored if r["t"] == best)
    return record["t"], _by_split(record)


def _by_split(record: Record) -> dict[str, dict[str, float]]:
    splits: Sequence[str] = ("validation", "test")
    measured = {split: record.get(split) or {} for split in splits}
    return {split: {k: v for k, v in values.items() if v is not None} for split, values in measured.items() if values}


def _scored(adapter: str) -> str:
    if adapter.startswith("client-"):
        return "the models of all clients, on average,"
    return "the server's model, at the largest rank," if adapter.startswith("rank-") else "this model"
