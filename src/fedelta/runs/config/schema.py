"""The keys of a config, their types and defaults. Nothing here reads a file, or imports what a config chooses by name.

Every section is a frozen model that refuses unknown keys. `choices` builds what is chosen, `checks` says what goes together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from fedelta.models.patterns import check_pattern
from fedelta.runs.config.ranks import RankChoice, Ranks, rank_values
from fedelta.runs.config.rows import Data
from fedelta.runs.config.section import Named, Section, chosen, named
from fedelta.runs.config.seeds import Seed, Seeds, seeds_of
from fedelta.runs.config.trackers import ReportTo

T = TypeVar("T")

PROGRAM = "program"
"""Stands in a config for what only the program has that made the clients."""

LONGEST_NAME = 100
"""Characters in the name of a run: its folder's name, with what is put before and after it, must fit any file system."""


class Model(Section):
    """The base model, which stays frozen; `model: minilm` is short for `model: {name: minilm}`."""

    name: str = Field(
        default="minilm", description="an alias (`minilm`; `fedelta fetch` lists all), a local folder or a Hub id"
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="precision of the frozen weights; float16 can answer, but not train"
    )
    quantization: Literal["4bit", "8bit"] | None = Field(default=None, description="of the base model; needs bitsandbytes")
    revision: str | None = Field(default=None, description="a branch, tag or commit on the Hub; a run writes the commit down")
    digest: str | None = Field(
        default=None, description="of the model's code and configs; a run writes it down, and later uses compare it"
    )
    trust_remote_code: bool = Field(
        default=False, description="lets the model's own code run; a folder cannot ask for it, only a person"
    )
    use_safetensors: bool = Field(default=True, description="refuses weights in any other format, such as a pickle")
    base_dropout: bool = Field(default=False, description="leaves the base model's own dropout on while training")
    gemm: Literal["auto", "default", "onednn", "bf16"] = Field(
        default="auto", description="products with frozen weights on a CPU; bf16 has a relative error of about 3e-3"
    )
    compact: bool = Field(
        default=True,
        description="computes no padding, and in the last layer only what the head reads; differs in rounding",
    )
    cache_activations: int = Field(
        default=0, ge=0, strict=True, description="MiB to keep what layers below all adapters compute for an example; 0: none"
    )


class Lora(Section):
    """The adapter that clients train; the words are those of PEFT's `LoraConfig`."""

    rank: Ranks = Field(default=8, description="one for all, one for each client, or {choices: [...]}")
    lora_alpha: float = Field(default=16.0, gt=0, description="the scale of an adapter is `lora_alpha` / rank")
    rslora: bool = Field(default=False, description="takes `lora_alpha` / sqrt(rank) as the scale")
    scale: float | None = Field(
        default=None,
        gt=0,
        description="one scale whatever the rank, in place of `lora_alpha` / rank, under which a comparison of ranks is one of "
        "learning rates, too",
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="of what enters the adapter, while training")
    target_modules: list[str] | str | None = Field(
        default=None, description="the weights that get an adapter, by name; PEFT's default for the architecture if not given"
    )
    modules_to_save: list[str] | None = Field(
        default=None, description="modules that train whole, beside the task's own head, such as `classifier`"
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default={}, description="ranks of single layers, by name or pattern; they go before `rank`"
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default={}, description="the same for `lora_alpha`")
    start: str | None = Field(default=None, description="a PEFT folder to start from in place of a fresh adapter")

    @field_validator("rank")
    @classmethod
    def _positive(cls, rank: int | list[int] | RankChoice) -> int | list[int] | RankChoice:
        if not rank_values(rank) or min(rank_values(rank)) < 1:
            raise ValueError(f"ranks must be at least 1, got {rank}")
        return rank

    @model_validator(mode="after")
    def _one_scale(self) -> Lora:
        others = ("lora_alpha", "rslora", "alpha_pattern")
        given = [key for key in others if getattr(self, key) != Lora.model_fields[key].default]
        if self.scale is not None and given:
            raise ValueError(f"scale = {self.scale:g} is one for every rank: leave {' and '.join(given)} or scale out")
        return self

    @field_validator("rank_pattern", "alpha_pattern", "target_modules")
    @classmethod
    def _patterns(cls, value: T) -> T:
        for pattern in [value] if isinstance(value, str) else value if isinstance(value, Mapping) else ():
            check_pattern(pattern)
        return value


class Partition(Section):
    """Deals the training rows to clients."""

    scheme: Literal["iid", "dirichlet", "shards", "natural", "quantity"] = Field(
        default="iid", description="the rule; see Schemes below"
    )
    clients: int | None = Field(default=10, ge=1, description="may be null for `natural`: one client for each value")
    by: str | None = Field(default=None, description="the field that skews the split; the task's label by default")
    concentration: float | None = Field(default=None, gt=0, description="of the Dirichlet distribution; small is unequal")
    shards_per_client: int | None = Field(default=None, ge=1, description="of the scheme `shards`; 2 if not given")
    feature_shift: list[Literal["none", "rotation", "blur", "inversion"]] | None = Field(
        default=None,
        min_length=1,
        description="of images: what is done to all of a client's, clients taking the list in turns; synthetic, and not done "
        "to the validation and test rows of all",
    )
    min_examples: int = Field(default=1, ge=0, description="the fewest examples that a client may get; 0 allows empty clients")


class LocalTraining(Section):
    """Training at a client in one round."""

    batch_size: int = Field(default=16, ge=1, description="examples in a step")
    learning_rate: float = Field(default=1e-3, gt=0, description="in round 0")
    learning_rate_decay: float = Field(default=1.0, gt=0, description="factor for each further round")
    local_steps: int | None = Field(default=None, ge=1, description="steps in a round; if not given, `local_epochs` counts")
    local_epochs: int = Field(default=1, ge=1, description="passes over the client's examples in a round")
    max_grad_norm: float | None = Field(default=None, gt=0, description="clips the gradient to this norm")
    optimizer: Named = Field(default={"name": "adamw"}, description="fresh in every round; see Optimizers below")
    trainer: str | None = Field(
        default=None,
        pattern=r"\.py:[A-Za-z_][A-Za-z0-9_]*$",
        description="in place of all other keys here, a function of a Python file that makes a Trainer of transformers or TRL "
        "for each round, as `./site.py:make_trainer`; the file must be allowed to run, as that of a method",
    )

    @field_validator("optimizer", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return named(value)


class Federation(Section):
    """Who takes part, and for how long; with a server, or on a graph of nodes without one."""

    where: Literal["here", "flower", "zenoh", "program"] = Field(
        default="here",
        description="clients train in this process, at sites of Flower, or as peers that meet over zenoh; a run writes "
        "`program` down whose clients were objects of a program",
    )
    rounds: int = Field(default=10, ge=1, le=10**9, description="of the whole run")
    participation: float = Field(default=1.0, gt=0, le=1, description="share of the clients in each round's cohort")
    weights: Literal["examples", "uniform"] = Field(
        default="examples", description="of the updates; `uniform` by default where there is no server"
    )
    max_share: float | None = Field(
        default=None, gt=0, le=1, description="the largest weight of an update, whatever number of examples its client claims"
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
    deadline: float = Field(default=600.0, gt=0, description="seconds that a round waits for the answers of real sites")
    over_selection: float = Field(
        default=0.0,
        ge=0,
        le=10,
        description="of real sites: share of extra clients in a cohort, whose round ends with the first answers; who is first "
        "is not drawn from the seed",
    )
    server_model: bool = Field(
        default=False,
        description="of real sites: the server holds the base model, too, to score on the validation and test rows that it has",
    )
    topology: Named | None = Field(default=None, description="who hears whom, in place of a server; see Topologies below")
    link_drop: float = Field(default=0.0, ge=0, le=1, description="probability that a message between two nodes gets lost")
    channel: list[Named] = Field(
        default=[],
        description="codecs that make uploads smaller, in the order in which they are applied; see Codecs below",
    )

    @model_validator(mode="before")
    @classmethod
    def _uniform_without_a_server(cls, value: Any) -> Any:
        without = isinstance(value, Mapping) and value.get("topology") is not None
        return {"weights": "uniform", **cast("Mapping[str, Any]", value)} if without else value

    @field_validator("topology", mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return None if value is None else named(value)

    @field_validator("channel", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return [named(choice) for choice in value] if isinstance(value, list) else value


class Evaluation(Section):
    """Measurements and their times. Round numbers start at 0; the last round is always evaluated."""

    every: int = Field(default=1, ge=1, description="rounds from one evaluation to the next")
    batch_size: int = Field(default=64, ge=1, description="examples in a pass")
    best_by: str = Field(default="accuracy", description="the validation metric that chooses the best round")
    diagnostics: bool | Literal["global"] = Field(
        default=True, description="of every round; 'global' leaves out the table by layer, under 1 KB a layer"
    )


def _model_by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


NamedModel: TypeAlias = Annotated[Model, BeforeValidator(_model_by_name, json_schema_input_type=str | Model)]
"""A model, for which its name alone may stand; a schema says so, too, lest an editor marks a config that runs."""


class RunConfig(Section):
    """A whole run."""

    name: str = Field(default="run", description="of the run, and of its folder")
    seed: Seed = Field(
        default=0,
        description="of everything that is drawn, the same seed gives the same adapter; or one for each kind of draw, "
        "{data: 0, partition: 0, schedule: 0, start: 0}",
    )
    device: str = Field(default="auto", description="`cpu`, `cuda`, or the best that is there")
    output: str | None = Field(default=None, description="the run's folder; `runs/<name>` by default")
    model: NamedModel = Field(default=Model(), description="the base model by its name alone, or the keys of `model`")
    lora: Lora = Lora()
    task: Named = Field(
        default={"name": "classification"},
        description="what is learned from a row: a name (see Tasks below) or a Python file, with settings",
    )
    data: Data = Data()
    partition: Partition = Partition()
    method: Named = Field(
        default={"name": "fedavg"},
        description="a name (see the pages of the methods) or a Python file, or a mapping with `name` or `path`, the method's "
        "settings, and perhaps a `label` for tables",
    )
    training: LocalTraining = LocalTraining()
    federation: Federation = Federation()
    evaluation: Evaluation = Evaluation()
    report_to: ReportTo = Field(default=[])

    @field_validator("name")
    @classmethod
    def _a_folders(cls, name: str) -> str:
        if name in ("", ".", "..") or len(name) > LONGEST_NAME or not name.isprintable() or "/" in name or "\\" in name:
            raise ValueError(
                f"{name!r:.120} is no name of a folder: give one of at most {LONGEST_NAME} characters without / and \\; "
                "`output` may be any path"
            )
        return name

    @field_validator("task", "method", mode="before")
    @classmethod
    def _name_alone(cls, value: Any, info: ValidationInfo) -> Any:
        return chosen(str(info.field_name), value)

    @field_validator("method")
    @classmethod
    def _no_words_of_a_suite(cls, method: dict[str, Any]) -> dict[str, Any]:
        for word in ("set", "tune"):
            if word in method:
                raise ValueError(f"{word} has a meaning in a suite of `fedelta compare` alone: leave it out of a run's config")
        if not isinstance(method.get("label"), str | None):
            raise ValueError(f"label should be a text, got {method['label']!r:.80}")
        return method

    def seeds(self) -> Seeds:
        """Returns the seed of each kind of draw."""
        return seeds_of(self.seed)

    def num_clients(self) -> int | None:
        """Returns the number of clients; None where it is not known before the rows are read."""
        return self.partition.clients if self.data.clients is None else len(self.data.clients)

    def client_files(self) -> dict[str, str]:
        """Returns the file of each client by its name, in the order of ids; empty where rows are dealt by `partition`."""
        return self.data.clients or {}

    def folder(self) -> Path:
        """Returns the folder that the run writes to."""
        return Path(self.output or f"runs/{self.name}")
