"""Opens the post of a node over zenoh, as roster and node file say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedelta.engines.runners.zenoh.session import Post
from fedelta.engines.runners.zenoh.settings import Addresses, Certificates, addresses, direct, through_relay
from fedelta.runs.config.node import Node
from fedelta.runs.config.roster import Roster
from fedelta.runs.peer import Connect


def connector(roster: Roster, node: Node, roster_file: Path) -> Connect:
    """Returns what opens the post of a node.

    Args:
        roster: of all nodes.
        node: this one.
        roster_file: beside which certificates lie that the node file does not name.

    Raises:
        FileNotFoundError: for certificates that are not there.
    """
    most = node.allow.most_memory()
    folder = Path(node.certificates) if node.certificates is not None else roster_file.parent / "certs"
    certificates = Certificates.of(folder, node.name)

    def connect(neighbours: Mapping[int, str]) -> Post:
        if roster.relay is not None:
            relayed = through_relay(node.name, roster.relay.name, roster.relay.endpoint, certificates)
            return Post(node.name, neighbours, relayed, most=most)
        at = addresses(roster.id_of(node.name), {k: n.endpoint for k, n in enumerate(roster.nodes)}, list(neighbours))
        if node.listen is not None:
            at = Addresses([node.listen], at.dial)
        return Post(node.name, neighbours, direct(node.name, list(neighbours.values()), at, certificates), most=most)

    return connect
