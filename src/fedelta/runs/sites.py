"""One site of a run: its own rows, model and client, behind the terms that a server sends and the bounds of its node file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

from fedelta.client import LocalClient
from fedelta.code_files import read_code
from fedelta.engines.guards import check_takes, one_line, reason_of
from fedelta.engines.site import Score, Site
from fedelta.exchange import parcels
from fedelta.exchange.channel import Channel
from fedelta.exchange.parcels import Parcel
from fedelta.method import Method
from fedelta.models.adapter_files import load_adapter
from fedelta.models.base_store import delta_shape
from fedelta.models.clients import client_on, common_adapter
from fedelta.models.fitting import task_for
from fedelta.models.lora_peers import check_ranks, peers_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.positions import places_of
from fedelta.models.trainer.client import TrainerClient, in_place_of
from fedelta.peers import Peer
from fedelta.runs import layouts
from fedelta.runs.base import evaluator, load_adapted, peft_config, pinned_model
from fedelta.runs.bounded import Bounded
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.allowed import function_in
from fedelta.runs.config.checks import check
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.node import Allow, Node, Refusal
from fedelta.runs.config.own import Own
from fedelta.runs.config.terms import demand_memory, demand_steps, terms_of, under_terms
from fedelta.runs.deal import ranks_for
from fedelta.runs.encoded import encoded
from fedelta.runs.labels import labels_of
from fedelta.runs.site_rows import SiteRows, rows_of
from fedelta.tasks.task import Task
from fedelta.tree import Adapter

logger = logging.getLogger("fedelta.site")


@dataclass(frozen=True)
class BuiltSite:
    """All that a site needs to take part in a run under its terms.

    Attributes:
        name: of the site.
        client: the door to its rows and model.
        model: in memory.
        method: with the hyper-parameters of the terms.
        channel: the run's stages.
        fingerprint: of its base model.
        labels: of its task, in the order of the head's outputs; None where it has none.
        gemm: how products with frozen weights are formed, as it was chosen here.
        layout: entries of adapter_config.json and the names of embeddings, for whoever writes adapters of this model.
        folder: of the site's state.
        allow: what it may be asked.
        score: scores a deployed model on the site's own rows; None without such rows.
        num_tests: the rows that `score` reads.
    """

    name: str
    client: LocalClient | TrainerClient
    model: PeftAdaptedModel
    method: Method
    channel: Channel
    fingerprint: str | None
    labels: Sequence[Any] | None
    gemm: str
    layout: Mapping[str, Any]
    folder: Path
    allow: Allow
    score: Score | None
    num_tests: int

    def site(self) -> Site:
        """Returns a site for one message."""
        about = {
            "name": self.name,
            "labels": None if self.labels is None else list(self.labels),
            "choices": {"gemm": self.gemm},
            "layout": self.layout,
        }
        client: Any = Bounded(self.client, self.allow)
        folder = self.folder / "runs"
        return Site(self.method, client, self.channel, folder, score=self.score, num_tests=self.num_tests, about=about)


def build_site(config: RunConfig, node: Node, terms: object = None) -> BuiltSite:
    """Builds one site: its rows are read, its model is loaded, its client is made.

    To the bit it is the client of this id of the same config run in one process, where the node file lowers no rank.

    Args:
        config: the site's own.
        node: its node file.
        terms: of the run, from the server; None takes the config alone, which serves to try a site.

    Raises:
        Refusal: for terms that this site does not carry out, naming the key.
        ValueError, OSError, ImportError: for data, a model or an adapter that does not fit the config, naming the remedy.
    """
    if terms is None:
        chosen = check(config, Own(node.may_run()))
        demand_steps(config.training.local_steps, node.allow)
    else:
        config, chosen = under_terms(config, terms, node)
    config = config if node.device is None else config.model_copy(update={"device": node.device})
    demand_labels(config, chosen.task)
    rows = rows_of(config, node, chosen.task)
    demand_steps(chosen.training.steps_for(len(rows.train)), node.allow)
    return _built(config, chosen, node, rows)


def _built(config: RunConfig, chosen: Choices, node: Node, rows: SiteRows) -> BuiltSite:
    section, files = pinned_model(config.model, config.device)
    lora, task = peft_config(config.lora), chosen.task
    model, tokenizer = load_adapted(section, task, lora, device=config.device, seed=config.seeds().start, files=files)
    task = task_for(task, model.module.config)
    _demand_base(model, node.allow)
    peers, common = _begin(config, model, rows.client, node.allow)
    cache = node.folder() / "rows"
    places = places_of(model.module, task)
    own_trainer = node.trainer is not None or chosen.trainer is not None  # which makes texts of the rows in its own way
    examples = encoded(task, rows.train, tokenizer, "train", cache, places=None if own_trainer else places)
    tests = encoded(task, rows.test, tokenizer, "test", cache, places=places)
    peer = replace(peers[0], id=rows.client, num_examples=len(examples))
    client = _client(
        client_on(model, task, examples, peer, common, chosen.training, seed=config.seeds().schedule), chosen, node, rows
    )
    return BuiltSite(
        name=node.name,
        client=client,
        model=model,
        method=chosen.method.for_topology(config.federation.rounds, lambda: 0.0),
        channel=chosen.settings.channel,
        fingerprint=model.fingerprint,
        labels=labels_of(task) or None,
        gemm=model.gemm,
        layout=layouts.to_send(model.layout),
        folder=node.folder(),
        allow=node.allow,
        score=partial(evaluator(task, model, config.evaluation.batch_size).score, examples=tests) if tests else None,
        num_tests=len(tests),
    )


def _client(local: LocalClient, chosen: Choices, node: Node, rows: SiteRows) -> LocalClient | TrainerClient:
    """Returns the client that trains: by the site's own Trainer, where its node file or its config names one.

    Raises:
        Refusal: for a method that asks for what a Trainer cannot do, or more steps than the node allows.
    """
    make = chosen.trainer
    if node.trainer is not None:  # its owner wrote it into the node file: that is leave to run it
        path, name = function_in(node.trainer)
        make = read_code(path).function_of(name)
    if make is None:
        return local
    client = in_place_of(local, make, rows.train)
    demand_steps(client.num_steps, node.allow)
    try:
        check_takes(chosen.method, [client])
    except ValueError as error:
        raise Refusal(str(error)) from None
    return client


def answerer(config: RunConfig, node: Node) -> Answerer:
    """Returns a site behind one function, which answers any parcel, and logs what it refuses."""
    return Answerer(config, node)


class Answerer:
    """A site behind one function. Bounds are checked before anything is built; what was built last is kept for its terms.

    Args:
        config: the site's own.
        node: its node file.
    """

    def __init__(self, config: RunConfig, node: Node) -> None:
        self.config, self.node = config, node
        self._built: BuiltSite | None = None
        self._keys: set[str] = set()

    def prepare(self) -> None:
        """Builds the site under the terms of its own config, so that what is amiss is said now, and a server need not wait.

        Raises:
            ValueError, OSError, ImportError: as `build_site`.
        """
        chosen = check(self.config, Own(self.node.may_run()))
        method = chosen.method.for_topology(self.config.federation.rounds, lambda: 0.0)
        built = self._under(terms_of(self.config, method, chosen.files))
        logger.info(
            "site %s is client %d: %d rows to train on, %d to score by, rank %d, base %s",
            built.name,
            built.client.peer.id,
            built.client.peer.num_examples,
            built.num_tests,
            built.client.peer.rank,
            built.fingerprint,
        )

    def __call__(self, parcel: Parcel) -> Parcel:
        try:
            demand_memory(len(parcel.body), self.node.allow, f"the message of a {parcel.kind}")
            if parcel.header.get("terms") is None:
                raise Refusal("the terms of the run are missing: without them nothing is bound")
            built = self._under(parcel.header["terms"])
        except Exception as error:
            return self._refuse(parcel, error)
        logger.info("%s: %s", self.node.name, _in_words(parcel))
        return built.site().handle(parcel)

    def _under(self, terms: Any) -> BuiltSite:
        """Returns what was built under these terms, or builds it."""
        if self._built is None or _digest(terms) not in self._keys:
            under_terms(self.config, terms, self.node)  # what is refused does not cost what was built
            self._built, self._keys = None, set()  # two models need not be in memory at once
            self._built = build_site(self.config, self.node, terms)
            self._keys = {_digest(terms), _digest(_settled(terms, self._built.gemm))}
        return self._built

    def _refuse(self, parcel: Parcel, error: Exception) -> Parcel:
        kind = "refused" if isinstance(error, Refusal) else "cannot answer"
        logger.warning("%s %s: %s", kind, _in_words(parcel), reason_of(error))
        logger.debug("%s %s", kind, parcel.kind, exc_info=error)
        return parcels.refusal(f"site {self.node.name}: {reason_of(error)}")


def _settled(terms: Any, gemm: str) -> Any:
    """Returns terms that leave the form of products open with what was chosen here, under which the same site is built."""
    model = terms.get("model") if isinstance(terms, Mapping) else None
    return {**terms, "model": {**model, "gemm": gemm}} if isinstance(model, Mapping) and model.get("gemm") == "auto" else terms


def _digest(terms: Any) -> str:
    return blake2b(json.dumps(terms, sort_keys=True).encode(), digest_size=16).hexdigest()


def _in_words(parcel: Parcel) -> str:
    # both come from elsewhere, and must not forge a line of the log
    run, t = (one_line(f"{parcel.header.get(name)!s:.60}") for name in ("run", "t"))
    return f"{parcel.kind} of run {run}" + (f", round {t}" if "t" in parcel.header else "") + f", {len(parcel.body)} bytes"


def demand_labels(config: RunConfig, task: Task) -> None:
    """Raises ConfigError for a task that leaves open what is read from all rows, which no site has."""
    try:
        task.settled([])
    except ValueError:
        raise ConfigError(
            f"task.labels is missing: task {config.task['name']!r} reads its labels from all rows, and no site has them. Write "
            "them into the config, the same at the server and at every site, as `task: {name: ..., labels: [...]}`; "
            "`fedelta partition` lists those of rows that lie here"
        ) from None


def _demand_base(model: PeftAdaptedModel, allow: Allow) -> None:
    if allow.base is not None and model.fingerprint != allow.base:
        raise Refusal(
            f"the base model has fingerprint {model.fingerprint}, this site allows {allow.base} alone (allow.base): it, its "
            "tokenizer or the target modules of its adapter are others"
        )


def _begin(config: RunConfig, model: PeftAdaptedModel, k: int, allow: Allow) -> tuple[Sequence[Peer], Adapter]:
    """Returns a peer with this site's rank and one with each other rank of the run; and what this site begins from, or more.

    A fresh adapter of a small rank is the leading rows of a larger one, so that no more is drawn than this site holds. A start
    is cut to the largest rank of all first: then the bits are those of every other site.

    Raises:
        Refusal: for an adapter with more bytes than the node allows, before it is made.
        ValueError: for ranks or a start that do not fit the model.
    """
    lora, ranks = peft_config(config.lora), _ranks(config, k, allow.max_rank)
    check_ranks(model, lora, ranks)
    peers = peers_for(ranks, lora, [1] * len(ranks), list(model.adapted_layers), scale=config.lora.scale)
    start = None if config.lora.start is None else load_adapter(config.lora.start)
    held = peers[:1] if start is None else peers
    largest = max(held, key=lambda peer: peer.rank)
    demand_memory(_bytes_of(model, largest), allow, "the adapter")
    return peers, common_adapter(model, held, seed=config.seeds().start, start=start)


def _bytes_of(model: PeftAdaptedModel, peer: Peer) -> int:
    """Returns the bytes of a peer's adapter, heads among them."""
    shapes = {name: delta_shape(cast("Any", layer).get_base_layer()) for name, layer in model.adapted_layers.items()}
    numbers = sum(peer.rank_of(name) * (o + i) for name, (o, i) in shapes.items())
    return numbers * model.dtype.itemsize + sum(x.nbytes for x in model.live().dense.values())


def _ranks(config: RunConfig, k: int, most: int | None) -> list[int]:
    """Returns this site's rank, within its node's bound, and then the other ranks of the run, each once."""
    count = config.num_clients()
    ranks = ranks_for(config.lora.rank, k + 1 if count is None else count, config.seeds().partition)
    own = ranks[k] if most is None else min(ranks[k], most)
    return [own, *sorted(set(ranks) - {own})]
