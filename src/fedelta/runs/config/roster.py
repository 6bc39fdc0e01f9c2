"""Reads rosters: who takes part in a run without a server, by name, with which rank, how many examples, and where.

Every node reads the same file. What the first round begins from, and the weights, depend on all nodes' ranks and examples, so
that these stand here, and a node whose own are others is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from fedelta.exchange import files
from fedelta.runs.config.read import explained, read_yaml
from fedelta.runs.config.section import ConfigError, Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
ENDPOINT = r"^(tls|quic)/[^\s/#?]+:[0-9]{1,5}$"


class Member(Section):
    """Lists one node; its id is its position, from 0."""

    name: str = Field(pattern=NAME, description="of the node: the common name of its certificate")
    rank: int = Field(ge=1, description="of its adapter")
    examples: int = Field(ge=1, description="its training examples")
    endpoint: str | None = Field(
        default=None, pattern=ENDPOINT, description="where others dial it, as `tls/host:port`; none if it only dials out"
    )


class RelayPoint(Section):
    """Names the relay, if nodes do not dial each other."""

    name: str = Field(default="relay", pattern=NAME, description="the common name of its certificate")
    endpoint: str = Field(pattern=ENDPOINT, description="where nodes dial it, as `tls/host:port`")


class Roster(Section):
    """Lists all nodes of a run without a server."""

    nodes: list[Member] = Field(min_length=2, description="in the order of their ids")
    relay: RelayPoint | None = Field(default=None, description="carries everything between nodes that only dial out")
    silence: float = Field(default=5.0, gt=0, description="seconds after which a node that is not heard is not waited for")

    @field_validator("nodes")
    @classmethod
    def _each_once(cls, nodes: list[Member]) -> list[Member]:
        for what, found in (("name", [n.name for n in nodes]), ("endpoint", [n.endpoint for n in nodes if n.endpoint])):
            if twice := {x for x in found if found.count(x) > 1}:
                raise ValueError(f"two nodes have one {what}, {min(twice)!r}: give each its own")
        return nodes

    @model_validator(mode="after")
    def _relay_apart(self) -> Roster:
        if self.relay is not None and self.relay.name in self.names():
            raise ValueError(f"the relay has the name of a node, {self.relay.name!r}: give it a certificate of its own")
        return self

    def names(self) -> list[str]:
        """Returns the nodes' names in the order of ids."""
        return [node.name for node in self.nodes]

    def id_of(self, name: str) -> int:
        """Returns the id of a node; raises ConfigError for a name that is not here."""
        if name not in self.names():
            raise ConfigError(f"the roster has no node {name!r}: it has {', '.join(self.names())}")
        return self.names().index(name)


def read_roster(path: str | Path) -> Roster:
    """Reads a roster; raises ConfigError for a file that is not there or no roster, naming each key that is wrong."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no roster at {path}: `fedelta gossip CONFIG --endpoint ... --roster {path}` writes one")
    return roster_from(read_yaml(path))


def roster_from(values: Any) -> Roster:
    """Returns the roster of a mapping; raises ConfigError as `read_roster` does."""
    try:
        return Roster.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"roster: {line}" for line in explained(error, Roster))) from None


def write_roster(path: Path, roster: Roster) -> None:
    """Writes a roster as YAML."""
    files.commit(path, yaml.safe_dump(roster.model_dump(mode="json", exclude_none=True), sort_keys=False).encode())


def roster_for(names: Sequence[str], ranks: Sequence[int], sizes: Sequence[int], endpoints: Sequence[str | None]) -> Roster:
    """Returns the roster of nodes with these ranks, numbers of examples and endpoints."""
    rows = zip(names, ranks, sizes, endpoints, strict=True)
    return roster_from({"nodes": [{"name": n, "rank": r, "examples": s, "endpoint": e} for n, r, s, e in rows]})
