"""A run whose clients are at real sites: from a config, and a way to reach them, to the folder that a local run leaves.

The server holds neither rows nor a base model, unless `federation.server_model` asks for it. It learns in a census who the
sites are; then the loop, the checkpoint and the folder are those of `runs.runner`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedelta.engines import census
from fedelta.engines.census import RemoteClient
from fedelta.engines.census_answers import CensusEntry
from fedelta.engines.guards import reason_of
from fedelta.engines.remote import Terms, evaluation_parcel, scores_of
from fedelta.engines.rounds import Round
from fedelta.engines.settings import RunSettings
from fedelta.engines.visits import VisitAll
from fedelta.exchange.parcels import Parcel
from fedelta.models.adapter_files import Layout
from fedelta.runs import layouts
from fedelta.runs.config import ConfigError, RefusedByClaim, RunConfig, read_config
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.claims import pools
from fedelta.runs.config.read import Overrides, Source
from fedelta.runs.config.terms import terms_of
from fedelta.runs.evaluation import Scores
from fedelta.runs.folder import RunFolder
from fedelta.runs.labels import labels_of
from fedelta.runs.open_run import OpenRun
from fedelta.runs.rounds import Experiment, taken
from fedelta.runs.runner import opened
from fedelta.sampling import uniform
from fedelta.tasks.metrics import get_metric

if TYPE_CHECKING:
    from fedelta.runs.server_model import ServerModel

logger = logging.getLogger("fedelta.sites")


class Carrier(Protocol):
    """A way to reach real sites.

    Attributes:
        late: answers that came after their deadline, or after enough others had come; they were dropped.
    """

    late: int

    def gather(self, count: int, seconds: float) -> Sequence[Any]:
        """Returns the addresses of the sites once there are so many; raises TimeoutError if there are fewer."""
        ...

    def ask(self, parcels: Mapping[Any, Parcel], seconds: float) -> Mapping[Any, Parcel | Exception]:
        """Sends small parcels, all at once; returns the answers, asking again where a fault may pass."""
        ...

    def exchange(self, parcels: Iterable[tuple[Any, Parcel]], seconds: float) -> Iterator[tuple[Any, Parcel | Exception]]:
        """Sends parcels as they are made, and yields each answer as it arrives."""
        ...

    def visits(self, run: str, terms: Terms, deadline: float, over_selection: float) -> VisitAll:
        """Returns the engine that visits a cohort."""
        ...


@contextmanager
def opened_at_sites(
    config: Source, carrier: Carrier, overrides: Overrides = (), *, sites: int | None = None
) -> Generator[OpenRun]:
    """Builds a run over real sites, for the block of a `with` that plays its rounds.

    A run whose folder holds a checkpoint goes on from there, under the name that its sites know it by.

    Args:
        config: of the run, as the server has it.
        carrier: the way to its sites.
        overrides: changes by dotted key.
        sites: to wait for before the census; by default the clients that the config speaks of.

    Raises:
        ConfigError: for a config that cannot be run over sites, or sites that are not those that the run began with.
        CensusError: for sites that do not fit together, naming each.
        TimeoutError: for sites that do not come.
    """
    settled = read_config(config, overrides)
    folder = RunFolder(settled.folder())
    build = partial(build_at_sites, carrier=carrier, sites=sites)
    resume = folder.path if folder.holds_results() else None
    with opened(settled, resume=resume, build=build) as going:
        yield going


def carry_out(config: Source, carrier: Carrier, overrides: Overrides = (), *, sites: int | None = None) -> Path:
    """Runs a config over real sites to its end, or to the end of what is left of it; returns the run's folder."""
    with opened_at_sites(config, carrier, overrides, sites=sites) as going:
        for record in going.records():
            logger.info("round %s: %s", record["t"], {k: record[k] for k in ("train_loss", "bytes", "dropped", "seconds")})
    logger.info("the run has ended in %s; %d late answers were dropped", going.folder.path, carrier.late)
    return going.folder.path


def build_at_sites(
    config: RunConfig, chosen: Choices, notes: Mapping[str, Any], *, carrier: Carrier, sites: int | None = None
) -> Experiment:
    """Takes the census and builds everything up to the first round.

    Args:
        config: of the run.
        chosen: what it names, built.
        notes: of the checkpoint that the run goes on from; empty for a new one.
        carrier: the way to the sites.
        sites: to wait for.

    Raises:
        ConfigError, CensusError, TimeoutError: as `opened_at_sites`.
    """
    demand_for_sites(config, chosen)
    federation = config.federation
    method = chosen.method.for_topology(federation.rounds, lambda: 0.0)
    config = config.model_copy(update={"method": {**config.method, **taken(method, chosen.method)}})
    run = str(notes.get("run") or uuid.uuid4().hex)
    held = _server_model(config, chosen)
    addresses = carrier.gather(_count(config, sites), federation.deadline)
    ask = partial(carrier.ask, seconds=federation.deadline)
    config, known = _census(config, partial(terms_of, method=method, files=chosen.files), ask, addresses, run)
    terms = terms_of(config, method, chosen.files)
    found = census.enrol(ask, known, run, terms)
    if held is not None:
        held.demand_base(found.base)
    return Experiment(
        config=config,
        method=method,
        clients=found.clients,
        template=found.template,
        settings=_asking_more(chosen.settings, federation.participation, federation.over_selection),
        engine=partial(carrier.visits, run, terms, federation.deadline, federation.over_selection),
        layout=_layout(found, config, chosen) if held is None else held.layout,
        **_scored_here(held),
        own_scores=OwnScores(config, chosen, carrier, run, terms, found.clients),
        memories_here=False,
        notes={"run": run, "sites": {str(site.peer.id): _identity(site) for site in known}},
    )


def _layout(found: census.Sites, config: RunConfig, chosen: Choices) -> Layout:
    return replace(layouts.received(found.layout, config.model.name), labels=labels_of(chosen.task))


def demand_for_sites(config: RunConfig, chosen: Choices) -> None:
    """Raises ConfigError for a run that real sites cannot carry out as it stands."""
    name, federation = config.method["name"], config.federation
    if federation.where != "flower":
        raise ConfigError(f"federation.where = {federation.where}: set it to flower to run over Flower's sites")
    if chosen.method.needs_validation and not federation.server_model:
        raise RefusedByClaim(
            "needs_validation",
            f"method {name!r} weighs updates by their validation scores, and a server of real sites has no model to score by: "
            "set federation.server_model to true and give it validation rows, or choose another method",
        )
    if pools(chosen.method):
        sentence = f"method {name!r} trains on the data of all clients together, which no site gives away"
        raise RefusedByClaim("population", sentence)


def _server_model(config: RunConfig, chosen: Choices) -> ServerModel | None:
    """Returns the model at the server, where one is asked for; else no model library is imported."""
    if not config.federation.server_model:
        return None
    from fedelta.runs.server_model import server_model

    return server_model(config, chosen)


def _scored_here(held: ServerModel | None) -> dict[str, Any]:
    """Returns the entries of an experiment that say what is scored in this process, and by what."""
    if held is None:
        return {"deal": None, "evaluator": None}
    return {name: getattr(held, name) for name in ("deal", "evaluator", "validation", "test")}


def _count(config: RunConfig, sites: int | None) -> int:
    count = sites or config.num_clients()
    if count is None:
        raise ConfigError("the number of sites is not known before the census: set `sites` in the app's pyproject.toml")
    return count


def _census(
    config: RunConfig, terms: Callable[[RunConfig], Terms], ask: census.Ask, addresses: Sequence[Any], run: str
) -> tuple[RunConfig, list[CensusEntry]]:
    """Asks all sites who they are; where the form of products is open it is settled, and they are asked again under it."""
    known = census.survey(ask, addresses, run, terms(config))
    if config.model.gemm == "auto":
        gemm = census.agreed(known, "gemm", "default")
        config = read_config(config, {"model.gemm": gemm})  # read anew: the word is that of sites
        known = census.survey(ask, addresses, run, terms(config))
    return config, known


def _identity(site: CensusEntry) -> dict[str, Any]:
    """Returns what must be the same of a site when its run is taken up again."""
    return {"name": site.name, "rank": site.peer.rank, "num_examples": site.peer.num_examples}


def _asking_more(settings: RunSettings, participation: float, over_selection: float) -> RunSettings:
    """Returns the run's settings, with cohorts that are larger by the share of over-selection."""
    if not over_selection:
        return settings
    return replace(settings, cohort=uniform(min(1.0, participation * (1 + over_selection))))


@dataclass(frozen=True)
class OwnScores:
    """Scores of participants' own models on their own rows, which the sites make themselves.

    They are asked where the config holds rows out for that, or where models are personal, so that nobody else can score them.
    A site that does not answer, or has no rows, is left out of these scores and of nothing else.
    """

    config: RunConfig
    chosen: Choices
    carrier: Carrier
    run: str
    terms: Terms
    clients: Sequence[RemoteClient]

    def __call__(self, done: Round) -> dict[int, Scores]:
        if not (done.personal or self.config.data.client_test_fraction):
            return {}
        ids = {client.address: client.peer.id for client in self.clients}
        found: dict[int, Scores] = {}
        for address, answer in self.carrier.exchange(self._parcels(done), self.config.federation.deadline):
            try:
                found[ids[address]] = self._scores(done, answer)
            except Exception as error:
                logger.info("client %s has no scores of its own in round %s: %s", ids[address], done.t, reason_of(error))
        return dict(sorted(found.items()))

    def _parcels(self, done: Round) -> Iterator[tuple[Any, Parcel]]:
        for client in self.clients:
            yield client.address, evaluation_parcel(done, client.peer, self.run, self.terms)

    def _scores(self, done: Round, answer: Parcel | Exception) -> Scores:
        """Returns the scores in an answer; raises for one without, or with others than the task has."""
        if isinstance(answer, Exception):
            raise answer
        scores = scores_of(done, self.run, answer)
        wanted = {get_metric(metric)[0] for metric in self.chosen.task.metrics}
        if set(scores) != wanted:
            raise ValueError(f"it scored {sorted(scores)}, where the task has {sorted(wanted)}")
        return scores
