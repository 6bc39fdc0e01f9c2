"""Runs one node of a run without a server, at its own place: from config, node file and roster to a folder of results.

The folder is that of any run (`fedelta.runs.folder`), with the records and the adapter of this node. A node that was stopped,
or killed, goes on from its checkpoint by the same command.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import torch

from fedelta import topology
from fedelta.engines import checkpoint
from fedelta.engines.mailbox import Mailbox
from fedelta.engines.neighbours import Patience
from fedelta.engines.node import NodeRound, neighbours_of, take_part
from fedelta.engines.rounds import Snapshot
from fedelta.engines.site import versions
from fedelta.models.adapter_files import load_adapter, save_adapter
from fedelta.models.clients import common_adapter
from fedelta.models.lora_peers import peers_for
from fedelta.peers import Peer
from fedelta.runs.base import peft_config
from fedelta.runs.config import ConfigError, RunConfig
from fedelta.runs.config.checks import check
from fedelta.runs.config.choices import Choices
from fedelta.runs.config.node import Node
from fedelta.runs.config.own import Own
from fedelta.runs.config.read import flat
from fedelta.runs.config.resume import fixed_values
from fedelta.runs.config.roster import Roster
from fedelta.runs.config.terms import terms_of
from fedelta.runs.folder import RunFolder, finite
from fedelta.runs.machine import Stopwatch, moment
from fedelta.runs.records import Record, without_times
from fedelta.runs.sinks import demand_installed, trackers
from fedelta.runs.sites import BuiltSite, build_site
from fedelta.topology import Mixing
from fedelta.tree import Adapter, effective


class ClosingMailbox(Mailbox, Protocol):
    """Carries the post of a node until it is closed."""

    def close(self) -> None:
        """Ends it once what is still to be sent has left."""
        ...


Connect = Callable[[Mapping[int, str]], ClosingMailbox]
"""Opens the post of a node to its neighbours, whose names it is given by id."""


@dataclass
class Peering:
    """Runs the rounds of one node that is built and has its folder.

    Attributes:
        config: of the run.
        roster: of all nodes.
        built: the node's rows, model and client.
        chosen: what the config names.
        mixing: the graph.
        peers: all nodes.
        template: what all begin from, at the largest ranks.
        folder: where this node writes.
        terms: what all nodes must agree in.
        start: the snapshot to go on from; None from the first round.
    """

    config: RunConfig
    roster: Roster
    built: BuiltSite
    chosen: Choices
    mixing: Mixing
    peers: list[Peer]
    template: Adapter
    folder: RunFolder
    terms: Mapping[str, str]
    start: Snapshot | None

    @property
    def me(self) -> int:
        """Returns this node's id."""
        return self.built.client.peer.id

    def records(self, connect: Connect) -> Iterator[Record]:
        """Runs the rounds that are left; each is on disk when its record is yielded."""
        names = dict(enumerate(self.roster.names()))
        ids = [peer.id for peer in self.peers]
        near = neighbours_of(self.mixing, self.me, ids, self.config.federation.rounds)
        mailbox = connect({k: names[k] for k in near})
        with closing(mailbox), trackers(self.config, lambda: self.folder.path, self.start) as sinks:
            for node_round in take_part(
                self.chosen.method,
                self.built.client,
                self.peers,
                self.template,
                mailbox,
                mixing=self.mixing,
                settings=replace(self.chosen.settings, start=self.start),
                names=names,
                terms=self.terms,
                patience=Patience(self.roster.silence, self.config.federation.deadline),
            ):
                record = self.write(node_round)
                for sink in sinks:
                    sink(record)
                yield record

    def write(self, node_round: NodeRound) -> Record:
        """Writes adapter, record and checkpoint of a round, in this order: see `fedelta.runs.folder`."""
        done, linked, one_sided = node_round.done, list(node_round.linked), list(node_round.one_sided)
        own = [u.metrics.get("loss") for u in done.updates if u.sender.id == self.me]
        clock = Stopwatch({"round": done.seconds, "train": done.training, "aggregate": done.seconds - done.training})
        record: Record = {
            "t": done.t,
            "cohort": sorted([self.me, *linked]),
            "dropped": done.dropped,
            "train_loss": own[0] if own else None,
            "bytes": {"down": sum(done.bytes.down.values()), "up": sum(done.bytes.up.values())},
            "seconds": clock.seconds,
            "links": {"counted": linked, "lost": [k for _, k in done.lost_links], "one_sided": one_sided},
        }
        if (done.t + 1) % self.config.evaluation.every == 0 or node_round.next >= self.config.federation.rounds:
            with clock.measure("evaluation"):
                model = done.participant_model(self.built.client.peer)
                if self.built.score is not None:
                    record["test"] = dict(self.built.score(model))
            with clock.measure("save"):
                adapter = effective(model["adapter"], model.get("base"))
                save_adapter(adapter, self.folder.adapters / "last", like=self.built.model.layout)
        record = finite(record | moment())
        self.folder.append(record)
        kept = {**without_times(record), "seconds": {}}  # times are no result
        checkpoint.save(self.folder.checkpoint, replace(done.snapshot, notes={"record": kept, "terms": dict(self.terms)}))
        return record


@contextmanager
def opened(config: RunConfig, node: Node, roster: Roster, folder: Path) -> Generator[Peering]:
    """Builds a node, for the block of a `with` that runs its rounds; goes on after its last checkpoint if there is one.

    Raises:
        ConfigError: for a config that cannot be run so, a roster that does not fit it, or a folder of another run.
        BlockingIOError: for a folder that another process is writing to.
        ValueError, OSError, ImportError: as `runs.sites.build_site`.
    """
    demand_installed(config)
    chosen, mixing = _checked(config, roster, node)
    target = RunFolder(folder)
    target.bring_back()
    if not checkpoint.exists(target.checkpoint) and not _is_begun(target, config):
        target.demand_room(force=False)
    with ExitStack() as stack:
        stack.enter_context(target.locked())
        stack.callback(target.remove_if_unused)  # of a node that could not be built
        peering = _built(config, node, roster, target, chosen, mixing)
        target.write_config(config, chosen.files)
        target.rewind(0 if peering.start is None else peering.start.t, skipping=True)
        yield peering


def _is_begun(folder: RunFolder, config: RunConfig) -> bool:
    """Returns whether a folder is that of this very run; a node may have been killed before its first checkpoint."""
    return folder.config_file.is_file() and fixed_values(folder.config()) == fixed_values(config)


def _checked(config: RunConfig, roster: Roster, node: Node) -> tuple[Choices, Mixing]:
    chosen, count = check(config, Own(node.may_run())), len(roster.nodes)
    if chosen.topology is None:
        raise ConfigError("federation.topology is missing: nodes without a server need a graph, such as `topology: ring`")
    if config.num_clients() not in (None, count):
        raise ConfigError(f"the config has {config.num_clients()} clients, the roster {count} nodes: they must be the same")
    if config.federation.link_drop:
        raise ConfigError("federation.link_drop loses messages of a simulation: leave it out where messages travel")
    return chosen, chosen.topology.mixing(count, seed=config.seeds().schedule)


def _built(config: RunConfig, node: Node, roster: Roster, folder: RunFolder, chosen: Choices, mixing: Mixing) -> Peering:
    k = roster.id_of(node.name)
    start = checkpoint.load(folder.checkpoint) if checkpoint.exists(folder.checkpoint) else None
    built = build_site(config, node.model_copy(update={"client": k}))
    ranks, sizes = [n.rank for n in roster.nodes], [n.examples for n in roster.nodes]
    peers = peers_for(ranks, peft_config(config.lora), sizes, list(built.model.adapted_layers), scale=config.lora.scale)
    _demand_as_in_roster(built, peers[k], node.name)
    common = load_adapter(config.lora.start) if config.lora.start else None
    template = common_adapter(built.model, peers, seed=config.seeds().start, start=common)
    terms = _terms(config, chosen, mixing, roster, built)
    if start is not None:
        _demand_same_terms(start.notes.get("terms", {}), terms, folder.path)
    return Peering(config, roster, built, chosen, mixing, peers, template, folder, terms, start)


def _demand_as_in_roster(built: BuiltSite, listed: Peer, name: str) -> None:
    own = built.client.peer
    for what, found, wanted in (("rank", own.rank, listed.rank), ("examples", own.num_examples, listed.num_examples)):
        if found != wanted:
            raise ConfigError(f"the roster gives node {name!r} {what} {wanted}, but it has {found}: write that into the roster")


def _terms(config: RunConfig, chosen: Choices, mixing: Mixing, roster: Roster, built: BuiltSite) -> dict[str, str]:
    """Returns what all nodes must agree in, by dotted name: all that changes numbers, and what reads messages."""
    method = chosen.method.for_topology(config.federation.rounds, lambda: topology.expected_rho_sq(mixing))
    terms = terms_of(config, method, chosen.files)
    terms["model"] = {**terms["model"], "name": Path(config.model.name).name, "base": built.fingerprint}
    if config.model.gemm == "auto":
        del terms["model"]["gemm"]  # each machine's own choice
    terms["federation"] = {**terms["federation"], "topology": config.federation.topology, "weights": config.federation.weights}
    terms["task"] = {**terms["task"], "labels": built.labels}
    terms["roster"] = {node.name: {"rank": node.rank, "examples": node.examples} for node in roster.nodes}
    terms["versions"] = {**versions(), "torch": torch.__version__.partition(".")[0]}
    return {key: _short(value) for key, value in flat(terms).items()}


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 40 else blake2b(text.encode(), digest_size=8).hexdigest()


def _demand_same_terms(old: Mapping[str, str], new: Mapping[str, str], folder: Path) -> None:
    """Raises ConfigError for a folder whose run had other terms; more rounds are no others."""
    free = {"federation.rounds", "versions.fedelta", "versions.torch"}
    if changed := sorted(key for key in {*old, *new} - free if old.get(key) != new.get(key)):
        raise ConfigError(
            f"{folder} holds the rounds of a run with another {', '.join(changed)}: give this one another --output, or take "
            "those values back"
        )
