"""Checks that the values of a config go together, before data are read or a model is loaded.

Each error names the key and the remedy.
"""

from __future__ import annotations

from fedelta.models.devices import named_device
from fedelta.runs.config.choices import Choices, choices_of, naming, scheme_of
from fedelta.runs.config.claims import check_claims
from fedelta.runs.config.own import NOTHING, Own, is_own
from fedelta.runs.config.ranks import rank_values
from fedelta.runs.config.schema import PROGRAM, Data, Federation, LocalTraining, Partition, RunConfig
from fedelta.runs.config.section import ConfigError
from fedelta.sampling import share
from fedelta.tasks.metrics import get_metric


def check(config: RunConfig, own: Own = NOTHING) -> Choices:
    """Checks a config whose keys and types are right; returns what it names, built.

    Args:
        config: of the run.
        own: the files that may run, and objects that take the place of what the config names.

    Raises:
        RefusedByClaim: for a config without a fault, of a kind that its method says of itself not to serve.
        ConfigError: for a name or setting that is not known, keys that contradict each other, or a file that may not run.
        FileNotFoundError: for a file of a method or a task that is not there.
    """
    try:
        return _checked(config, own)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None


def checked_alone(config: RunConfig) -> RunConfig:
    """Checks a config for whoever runs none of its code, and returns it.

    What a user's own method or task says of its settings is asked where its code may run; nothing of such a config is checked
    but keys and types, which it has by now.

    Raises:
        ConfigError: as `check`.
    """
    if not is_own(config):
        check(config)
    return config


def _checked(config: RunConfig, own: Own) -> Choices:
    _check_device(config.device)
    chosen = choices_of(config, own)
    _check_ranks(config)
    if config.data.clients is None:
        _check_partition(config.partition)
    else:
        _check_own_files(config)
    _check_shift(config.partition, chosen)
    _check_cohort(config.federation, config.num_clients())
    _check_graph(config, chosen)
    _check_sites(config.federation)
    _check_trainer(config.training)
    if config.federation.where != PROGRAM:  # whose scores may be its own
        check_metric("evaluation.best_by", config.evaluation.best_by, chosen)
    if config.federation.where == "here":
        _check_validation(config.data, config.method["name"], chosen)
    check_claims(config, chosen)  # last, so that what it refuses has no other fault
    return chosen


def _check_device(device: str) -> None:
    if device != "auto":
        try:
            named_device(device)
        except ValueError as error:
            raise ValueError(f"device: {error}") from None


def _check_ranks(config: RunConfig) -> None:
    ranks, clients = rank_values(config.lora.rank), config.num_clients()
    if isinstance(config.lora.rank, list) and clients is not None and len(ranks) != clients:
        given = "partition.clients" if config.data.clients is None else "the number of data.clients"
        raise ValueError(f"lora.rank lists {len(ranks)} ranks for {given} = {clients}: give one for each client")


def _check_trainer(training: LocalTraining) -> None:
    """Raises ValueError for a setting of training that a Trainer of one's own does not read."""
    if training.trainer is None:
        return
    for key, field in LocalTraining.model_fields.items():
        if key != "trainer" and getattr(training, key) != field.default:
            raise ValueError(f"training.{key} has no meaning beside training.trainer: set it in the Trainer's own arguments")


def _check_validation(data: Data, name: str, chosen: Choices) -> None:
    """Raises ValueError for a method that reads validation scores where no row is kept out to score by."""
    if chosen.method.needs_validation and data.validation is None and not data.validation_fraction:
        raise ValueError(
            f"method {name!r} weighs updates by their validation scores, and no row is kept out for that: set "
            "data.validation_fraction, such as 0.1, or data.validation"
        )


def _check_partition(partition: Partition) -> None:
    scheme = partition.scheme
    if partition.clients is None and scheme != "natural":
        raise ValueError(f"partition.clients is missing: the scheme {scheme!r} needs a number of clients")
    if scheme == "natural" and partition.by is None:
        raise ValueError("partition.by is missing: a natural partition needs the field that tells clients apart")
    for key, needed_by in (("concentration", ("dirichlet", "quantity")), ("shards_per_client", ("shards",))):
        if getattr(partition, key) is not None and scheme not in needed_by:
            owners = " and ".join(needed_by)
            raise ValueError(f"partition.{key} has no meaning for the scheme {scheme!r}: it belongs to {owners}")
    scheme_of(partition)


def _check_shift(partition: Partition, chosen: Choices) -> None:
    if partition.feature_shift is not None and not chosen.task.path_fields():
        raise ValueError(
            f"partition.feature_shift has no meaning for task {type(chosen.task).__name__!r}: it belongs to tasks of images"
        )


def _check_own_files(config: RunConfig) -> None:
    """Raises ValueError for what has no meaning where each client has its own file."""
    if config.partition != Partition():
        raise ValueError(
            "partition has no meaning where data.clients names each client's file: leave `partition` out, or put one file with "
            "all rows into data.source"
        )
    for key in ("source", "path", "train", "subset", "revision", "stratify"):
        if getattr(config.data, key) != Data.model_fields[key].default:
            raise ValueError(f"data.{key} has no meaning where data.clients names each client's file: leave one of them out")


def _check_cohort(federation: Federation, clients: int | None) -> None:
    if clients is not None:
        cohort = share(federation.participation, clients, "federation.participation")
        share(federation.quorum, cohort, "federation.quorum", up=True)


def _check_graph(config: RunConfig, chosen: Choices) -> None:
    federation, graph = config.federation, chosen.topology
    if graph is None:
        if federation.link_drop:
            raise ValueError("federation.link_drop has no meaning with a server: it belongs to federation.topology")
        return
    if federation.max_share is not None:
        raise ValueError("federation.max_share has no meaning without a server: nodes weigh by federation.topology")
    if federation.participation < 1:
        raise ValueError(
            f"federation.participation = {federation.participation} has no meaning without a server, where every node "
            "trains in every round: set it to 1, or give federation.topology an `activation` below 1"
        )
    try:
        chosen.settings.channel.demand_no_server()
    except ValueError as error:
        raise ValueError(f"federation.channel: {error}") from None
    clients = config.num_clients()
    if clients is not None:
        with naming("federation.topology", config.federation.topology or {}):
            graph.check(clients, seed=config.seeds().schedule)


def _check_sites(federation: Federation) -> None:
    """Checks the keys that have a meaning for real sites alone."""
    extra, quorum = federation.over_selection, federation.quorum
    if federation.where != "flower" and (extra or federation.server_model):
        key = "over_selection" if extra else "server_model"
        raise ValueError(
            f"federation.{key} has no meaning where federation.where = {federation.where}: it belongs to flower, where a "
            "server asks real sites"
        )
    if federation.where == "flower" and federation.topology is not None:
        raise ValueError("federation.topology has no meaning where federation.where = flower, which has a server: set zenoh")
    if extra and isinstance(quorum, float) and quorum * (1 + extra) > 1:
        raise ValueError(
            f"federation.quorum = {quorum} can never be met with federation.over_selection = {extra}, where a round ends with "
            f"{1 / (1 + extra):.2g} of its cohort: set a quorum below that"
        )


REMEDIES = {
    "flower": "`fedelta flower init CONFIG DIR` makes an app of it, and `flwr run DIR` carries it out",
    "zenoh": "`fedelta gossip CONFIG` carries it out",
    PROGRAM: "the program that made its clients carries it out, by fedelta.run(config, clients=...) or with resume=...",
}
"""By `federation.where`, the command for a run elsewhere."""


def demand_here(config: RunConfig) -> None:
    """Raises ConfigError, naming the command that carries it out, for a run whose clients are elsewhere."""
    where = config.federation.where
    if where != "here":
        raise ConfigError(
            f"federation.where = {where}, so that this run is not for one process: {REMEDIES[where]}"
            + (". To try it here: --set federation.where=here" if where != PROGRAM else "")
        )


def check_metric(key: str, metric: str, chosen: Choices) -> None:
    """Raises ConfigError, naming those that are, for a metric that the task does not measure."""
    known = [get_metric(measured)[0] for measured in chosen.task.metrics]
    if metric not in known:
        raise ConfigError(f"{key} = {metric!r} is not measured: task.metrics has {', '.join(known)}")
