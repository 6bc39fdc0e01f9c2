"""The keys of a config, their defaults and what is valid together; nothing here reads a file.

Every section is a frozen model that refuses unknown keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from fedelta import optim
from fedelta.client import Training
from fedelta.method import Method
from fedelta.methods import get_method
from fedelta.sampling import share
from fedelta.tasks.metrics import get_metric
from fedelta.tasks.partition import Scheme, get_scheme
from fedelta.tasks.registry import get_task
from fedelta.tasks.task import Task
from fedelta.topology import Topology, get_topology


class ConfigError(ValueError):
    """A config that cannot be run; the message names the key and the remedy."""


class Section(BaseModel):
    """A part of the config: frozen, and without room for unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Model(Section):
    """The frozen base."""

    name: str = Field(default="minilm", description="an alias, a local folder or a Hub id")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["4bit", "8bit"] | None = None
    trust_remote_code: bool = False
    base_dropout: bool = Field(default=False, description="leave the base model's own dropout on while training")
    gemm: Literal["auto", "default", "onednn", "bf16"] = Field(
        default="auto", description="products with frozen weights on a CPU; bf16 has a relative error of about 3e-3"
    )
    compact: bool = Field(
        default=True,
        description="computes no padding, and in the last layer only what the head reads; the same answers but for rounding",
    )
    cache_activations: int = Field(
        default=0,
        ge=0,
        strict=True,
        description="MiB of memory to keep what the layers below all adapters compute, once for an example; 0 keeps nothing",
    )


class RankChoice(Section):
    """Ranks drawn for each client."""

    choices: list[int] = Field(min_length=1)
    shares: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="how often each choice is drawn; equally by default"
    )

    @model_validator(mode="after")
    def _one_share_each(self) -> RankChoice:
        if self.shares is not None and (len(self.shares) != len(self.choices) or sum(self.shares) <= 0):
            raise ValueError(f"shares {self.shares} must be one number for each of the choices {self.choices}, not all zero")
        return self


def _rank_form(value: Any) -> str:
    """Which of the forms of `lora.rank` is meant, so that an error speaks of that form alone."""
    if isinstance(value, Mapping | RankChoice):
        return "<drawn>"
    return "<listed>" if isinstance(value, list) else "<one>"


Ranks: TypeAlias = Annotated[
    Annotated[int, Tag("<one>")] | Annotated[list[int], Tag("<listed>")] | Annotated[RankChoice, Tag("<drawn>")],
    Discriminator(_rank_form),
]


class Lora(Section):
    """The adapter."""

    rank: Ranks = Field(default=8, description="one for all, one for each client, or {choices: [...]}")
    lora_alpha: float = Field(default=16.0, gt=0)
    rslora: bool = False
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: list[str] | str | None = Field(default=None, description="PEFT's default for the architecture if not given")
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = {}
    alpha_pattern: dict[str, float] = {}
    start: str | None = Field(default=None, description="a PEFT folder to start from in place of a fresh adapter")

    @field_validator("rank")
    @classmethod
    def _positive(cls, rank: int | list[int] | RankChoice) -> int | list[int] | RankChoice:
        if not rank_values(rank) or min(rank_values(rank)) < 1:
            raise ValueError(f"ranks must be at least 1, got {rank}")
        return rank


class Data(Section):
    """Where the rows come from; see `fedelta.tasks.sources.load_splits`."""

    source: str = "docstrings"
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    subset: str | None = None
    fields: dict[str, str] | list[str] | None = None
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    test_fraction: float = Field(default=0.1, ge=0, lt=1)
    client_test_fraction: float = Field(default=0.0, ge=0, lt=1, description="of each client's rows, kept to test it by")
    stratify: str | None = None
    limit: int | dict[str, int] | None = None


class Partition(Section):
    """How the training rows are dealt to clients; see `fedelta.tasks.partition.partition`."""

    scheme: Literal["iid", "dirichlet", "shards", "natural", "quantity"] = "iid"
    clients: int | None = Field(default=10, ge=1, description="may be null for `natural`: one client for each value")
    by: str | None = Field(default=None, description="the field that skews the split; the task's label by default")
    concentration: float | None = Field(default=None, gt=0, description="of the Dirichlet distribution; small is unequal")
    shards_per_client: int | None = Field(default=None, ge=1)
    min_examples: int = Field(default=1, ge=0)

    def build(self) -> Scheme:
        """The scheme with its settings."""
        given = {"concentration": self.concentration, "shards_per_client": self.shards_per_client}
        return get_scheme(self.scheme, **{k: v for k, v in given.items() if v is not None})


Named: TypeAlias = dict[str, Any]
"""A choice by name with settings of its own, validated by the registry that knows the name."""


class LocalTraining(Section):
    """What a client does in a round; see `fedelta.client.Training`."""

    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    learning_rate_decay: float = Field(default=1.0, gt=0)
    local_steps: int | None = Field(default=None, ge=1)
    local_epochs: int = Field(default=1, ge=1)
    max_grad_norm: float | None = Field(default=None, gt=0)
    optimizer: Named = {"name": "adamw"}

    @field_validator("optimizer", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return named(value)

    def build(self) -> Training:
        return Training(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            learning_rate_decay=self.learning_rate_decay,
            local_steps=self.local_steps,
            local_epochs=self.local_epochs,
            max_grad_norm=self.max_grad_norm,
            optimizer=optim.get_optimizer(**self.optimizer),
        )


class Federation(Section):
    """Who takes part, and for how long; with a server, or on a graph of nodes without one."""

    rounds: int = Field(default=10, ge=1)
    participation: float = Field(default=1.0, gt=0, le=1, description="share of the clients in each round's cohort")
    weights: Literal["examples", "uniform"] = Field(
        default="examples", description="of the updates; `uniform` by default where there is no server"
    )
    quorum: int | float = Field(
        default=0.5, description="updates a round needs: a number, or a share of the cohort (1.0 is all)"
    )
    engine: Literal["auto", "sequential", "batched"] = Field(
        default="auto", description="clients one after another, or many in one pass of the model"
    )
    token_budget: int | None = Field(default=None, ge=1, description="tokens in a pass of the batched engine")
    spool: bool | Literal["auto"] = Field(
        default="auto", description="updates wait for their aggregation on disk: all, none, or beyond the first GiB of a round"
    )
    topology: Named | None = Field(
        default=None, description="who hears whom, in place of a server; see `fedelta.topology.get_topology`"
    )
    link_drop: float = Field(default=0.0, ge=0, le=1, description="probability that a message between two nodes gets lost")

    @model_validator(mode="before")
    @classmethod
    def _uniform_without_a_server(cls, value: Any) -> Any:
        without = isinstance(value, Mapping) and value.get("topology") is not None
        return {"weights": "uniform", **cast("Mapping[str, Any]", value)} if without else value

    @field_validator("topology", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return None if value is None else named(value)

    def build_topology(self) -> Topology | None:
        """The graph; None with a server."""
        return None if self.topology is None else get_topology(**self.topology)


class Evaluation(Section):
    """What is measured, and when. Round numbers start at 0; the last round is always evaluated."""

    every: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)
    best_by: str = Field(default="accuracy", description="the validation metric that chooses the best round")
    diagnostics: bool | Literal["global"] = Field(
        default=True, description="of every round; 'global' leaves out the table by layer, under 1 KB a layer"
    )


class RunConfig(Section):
    """A whole run."""

    name: str = "run"
    seed: int = 0
    device: str = "auto"
    output: str | None = Field(default=None, description="the run's folder; runs/<name> by default")
    model: Model = Model()
    lora: Lora = Lora()
    task: Named = {"name": "classification"}
    data: Data = Data()
    partition: Partition = Partition()
    method: Named = {"name": "fedavg"}
    training: LocalTraining = LocalTraining()
    federation: Federation = Federation()
    evaluation: Evaluation = Evaluation()

    @field_validator("task", "method", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return named(value)

    @model_validator(mode="after")
    def _possible(self) -> RunConfig:
        for build in (self.build_method, self.build_task, self.training.build):
            build()
        self._check_ranks()
        self._check_partition()
        self._check_federation()
        self._check_metric()
        return self

    def build_method(self) -> Method:
        """The method, with its hyper-parameters."""
        return get_method(**self.method)

    def build_task(self) -> Task:
        """The task; its labels may still have to be read from the data."""
        return get_task(**self.task)

    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.output or f"runs/{self.name}")

    def _check_ranks(self) -> None:
        ranks, clients = rank_values(self.lora.rank), self.partition.clients
        if isinstance(self.lora.rank, list) and clients is not None and len(ranks) != clients:
            raise ValueError(f"lora.rank lists {len(ranks)} ranks for partition.clients = {clients}: give one for each client")
        if len(set(ranks)) > 1 and not self.build_method().hetero_rank:
            raise ValueError(
                f"method {self.method['name']!r} needs equal ranks, but lora.rank gives {sorted(set(ranks))}: set one rank, or "
                "use a method for unequal ranks such as flexlora or zeropad (`fedelta methods` lists them)"
            )

    def _check_partition(self) -> None:
        scheme = self.partition.scheme
        if self.partition.clients is None and scheme != "natural":
            raise ValueError(f"partition.clients is missing: the scheme {scheme!r} needs a number of clients")
        if scheme == "natural" and self.partition.by is None:
            raise ValueError("partition.by is missing: a natural partition needs the field that tells clients apart")
        for key, needed_by in (("concentration", ("dirichlet", "quantity")), ("shards_per_client", ("shards",))):
            if getattr(self.partition, key) is not None and scheme not in needed_by:
                owners = " and ".join(needed_by)
                raise ValueError(f"partition.{key} has no meaning for the scheme {scheme!r}: it belongs to {owners}")
        self.partition.build()

    def _check_federation(self) -> None:
        clients = self.partition.clients
        if clients is not None:
            cohort = share(self.federation.participation, clients, "federation.participation")
            share(self.federation.quorum, cohort, "federation.quorum", up=True)
        self._check_gossip(self.federation)

    def _check_gossip(self, federation: Federation) -> None:
        topology = federation.build_topology()
        if topology is None and federation.link_drop:
            raise ValueError("federation.link_drop has no meaning with a server: it belongs to federation.topology")
        if topology is None:
            return
        if federation.participation < 1:
            raise ValueError(
                f"federation.participation = {federation.participation} has no meaning without a server, where every node "
                "trains in every round: set it to 1, or give federation.topology an `activation` below 1"
            )
        if self.build_method().coordinates == "base":
            raise ValueError(
                f"method {self.method['name']!r} moves the base model, which nodes without a server would move apart: set "
                "federation.topology to null, or choose another method"
            )
        if self.partition.clients is not None:
            topology.mixing(self.partition.clients, seed=self.seed)

    def _check_metric(self) -> None:
        known = [get_metric(metric)[0] for metric in self.build_task().metrics]
        if self.evaluation.best_by not in known:
            raise ValueError(
                f"evaluation.best_by = {self.evaluation.best_by!r} is not measured: task.metrics has {', '.join(known)}"
            )


def named(value: Any) -> Any:
    """A name alone as a choice without settings.

    Raises:
        ValueError: for a choice without a name.
    """
    choice = {"name": value} if isinstance(value, str) else value
    if not isinstance(choice, Mapping) or not isinstance(choice.get("name"), str):
        raise ValueError("needs a name: write `name: ...`, or the name alone")
    return choice


def rank_values(rank: int | list[int] | RankChoice) -> list[int]:
    """The ranks that may occur."""
    if isinstance(rank, RankChoice):
        return rank.choices
    return rank if isinstance(rank, list) else [rank]
