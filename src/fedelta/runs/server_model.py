"""A base model at the server of real sites, which scores on rows of its own: for methods and people that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedelta.data.rows import Row
from fedelta.models.adapter_files import Layout
from fedelta.models.fitting import task_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.positions import places_of
from fedelta.runs.base import evaluator, load_adapted, peft_config, pinned_model
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.choices import Choices
from fedelta.runs.deal import Deal, deal, read_own
from fedelta.runs.encoded import encoded
from fedelta.runs.evaluation import Evaluator
from fedelta.tasks.task import Example, Task


@dataclass(frozen=True)
class ServerModel:
    """The model, and the rows that it is scored on.

    Attributes:
        model: with places for adapters.
        evaluator: of the run's task.
        validation, test: encoded rows; one of them may be empty.
        deal: the rows, where they are dealt from one source; None where each client has its own file.
    """

    model: PeftAdaptedModel
    evaluator: Evaluator
    validation: Sequence[Example]
    test: Sequence[Example]
    deal: Deal | None = None

    @property
    def layout(self) -> Layout:
        """Returns the layout of folders that adapters of this model are written to."""
        return self.model.layout

    def demand_base(self, fingerprint: str) -> None:
        """Raises ConfigError if the sites train on another base model."""
        if self.model.fingerprint != fingerprint:
            raise ConfigError(
                f"the base model at the server has fingerprint {self.model.fingerprint}, that of the sites {fingerprint}: give "
                "both the same files, or set federation.server_model to false"
            )


def server_model(config: RunConfig, chosen: Choices) -> ServerModel:
    """Loads the base model and the rows to score on.

    Raises:
        ConfigError: if there are no such rows.
        ValueError, OSError, ImportError: for data or a model that does not fit the config.
    """
    section, files = pinned_model(config.model, config.device)
    task, dealt, rows = _rows(config, chosen.task)
    if not any(rows.values()):
        raise ConfigError(
            "federation.server_model = true, but the server has no rows to score on: name some in data.validation or "
            "data.test, or set it to false"
        )
    model, tokenizer = load_adapted(
        section, task, peft_config(config.lora), device=config.device, seed=config.seeds().start, files=files
    )
    task = task_for(task, model.module.config)
    places = places_of(model.module, task)
    validation, test = (encoded(task, rows[part], tokenizer, part, places=places) for part in ("validation", "test"))
    return ServerModel(model, evaluator(task, model, config.evaluation.batch_size), validation, test, dealt)


def _rows(config: RunConfig, task: Task) -> tuple[Task, Deal | None, dict[str, Sequence[Row]]]:
    """Returns the task with its labels known, what was dealt, and the rows to score on by part."""
    if config.data.clients is None:  # a trial: the source is here, too, and deals the rows that nobody owns
        dealt = deal(config, task)
        return dealt.task, dealt, {"validation": dealt.splits.validation, "test": dealt.splits.test}
    named = {"validation": config.data.validation, "test": config.data.test}
    own = {part: read_own(config, task, file, part).rows for part, file in named.items() if file is not None}
    return task.settled([]), None, {part: own.get(part, []) for part in named}
