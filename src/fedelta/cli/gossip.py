"""`fedelta gossip` and `fedelta relay`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedelta.cli.options import AllowFiles, AsJson, Config, Overrides, Trust, allowed_files
from fedelta.cli.output import STOPPED, note

if TYPE_CHECKING:
    from fedelta.runs.config import RunConfig
    from fedelta.runs.config.allowed import Allowed
    from fedelta.runs.config.node import Node
    from fedelta.runs.config.roster import Roster
    from fedelta.runs.peers_here import Nodes

RosterFile = Annotated[
    Path, typer.Option("--roster", metavar="FILE", help="All nodes: names, ranks, examples, endpoints, perhaps a relay.")
]
CertificateFolder = Annotated[
    Path | None,
    typer.Option("--certs", metavar="DIR", help="ca.crt, NAME.crt and NAME.key; `certs` beside the roster by default."),
]


def gossip(
    config: Config,
    node: Annotated[
        str | None, typer.Option("--node", metavar="NAME|FILE", help="The node to be: its name in the roster, or a node file.")
    ] = None,
    roster: RosterFile = Path("roster.yaml"),
    certs: CertificateFolder = None,
    here: Annotated[
        int | None, typer.Option("--local", metavar="N", help="Run all N nodes on this machine, each in its own process.")
    ] = None,
    relayed: Annotated[
        bool, typer.Option("--relayed", help="With --local: the nodes dial a relay, and not each other.")
    ] = False,
    write: Annotated[
        list[str] | None,
        typer.Option("--endpoint", metavar="ENDPOINT", help="Write the roster of nodes at these endpoints, and stop."),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="The folder; below `runs/<name>` by default.")] = None,
    overrides: Overrides = None,
    allow_files: AllowFiles = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Run a federation without a server: one node of it here, or with --local all of them.

    The same command goes on after a node was stopped or killed: it joins the round of the others.
    """
    from fedelta.report.terminal import quieten_libraries
    from fedelta.runs.config import ConfigError, read_config

    if sum(x is not None for x in (node, here, write)) != 1:
        raise ConfigError("give --node to run one node, --local to run all of them here, or --endpoint to write a roster")
    changes = [*(overrides or []), *(["model.trust_remote_code=true"] if trust else [])]
    settled = read_config(config, changes)
    if here is not None and settled.data.clients is None:  # where each node has a file, there are as many as files
        settled = read_config(settled, [f"partition.clients={here}"])
    may_run = allowed_files(overrides, allow_files)
    quieten_libraries()
    if write is not None:
        _write(settled, write, roster, may_run)
    elif here is not None:
        _run_all(settled, output or settled.folder(), here, relayed, may_run, as_json)
    elif node is not None:
        _run_one(settled, node, roster, certs, output, may_run, as_json)


def relay(roster: RosterFile = Path("roster.yaml"), certs: CertificateFolder = None) -> None:
    """Carry what nodes say to each other that can only dial out; reads nobody's rows, and holds each to its own name.

    Listens at the relay's endpoint of the roster, until Ctrl-C.
    """
    from fedelta.report.terminal import show_lines
    from fedelta.runs.config import ConfigError
    from fedelta.runs.config.roster import read_roster

    members = read_roster(roster)
    if members.relay is None:
        raise ConfigError(f"{roster} has no relay: give it one, as `relay: {{endpoint: tls/HOST:PORT}}`")
    show_lines("fedelta")
    _need_zenoh()
    from fedelta.engines.runners.zenoh.relay import serve
    from fedelta.engines.runners.zenoh.settings import Certificates

    found = Certificates.of(certs or roster.parent / "certs", members.relay.name)
    note(f"the relay {members.relay.name} listens at {members.relay.endpoint}; Ctrl-C ends it")
    serve(members.names(), members.relay.endpoint, found)


def _write(config: RunConfig, endpoints: list[str], path: Path, may_run: Allowed) -> None:
    from fedelta.runs.config.roster import write_roster
    from fedelta.runs.peers_here import roster_of_config

    write_roster(path, roster_of_config(config, endpoints, may_run))
    note(f"wrote {path}: give it to every node, with its key and certificates; `name` is that of the certificate")


def _run_one(
    config: RunConfig, node: str, roster: Path, certs: Path | None, output: Path | None, may_run: Allowed, as_json: bool
) -> None:
    """Runs one node; its log goes to stderr with the time, its rounds to stdout."""
    from fedelta.report.run_view import RunView
    from fedelta.report.terminal import CtrlC, show_lines
    from fedelta.runs.config.roster import read_roster

    members = read_roster(roster)
    bounds = _node(node, roster)
    bounds = bounds.model_copy(update={"code": [*bounds.code, *may_run]})
    members.id_of(bounds.name)
    if certs is not None:
        bounds = bounds.model_copy(update={"certificates": str(certs)})
    show_lines("fedelta")
    _need_zenoh()
    from fedelta.engines.runners.zenoh.session import refusals_logged
    from fedelta.runs.peer import opened
    from fedelta.runs.peer_post import connector

    connect = connector(members, bounds, roster)  # before a model is loaded, for certificates that are not there
    folder = output or config.folder() / bounds.name
    with refusals_logged(), CtrlC() as ctrl_c, opened(config, bounds, members, folder) as going:
        view = RunView("json" if as_json else "screen")
        view.begin(config.federation.rounds, going.folder.records())
        with view.shown():
            for record in going.records(connect):
                view.show(record)
                if ctrl_c.asked:
                    break
    if ctrl_c.asked:
        note("stopped after a whole round; the same command goes on")
        raise typer.Exit(STOPPED)


def _node(node: str, roster: Path) -> Node:
    """Returns the node of a file, or one of the roster without a file, whose state lies beside the roster."""
    from fedelta.runs.config.node import node_from, read_node

    if Path(node).is_file():
        return read_node(node)
    return node_from({"name": node, "state": str(roster.parent / "state" / node)})


def _run_all(config: RunConfig, folder: Path, count: int, relayed: bool, may_run: Allowed, as_json: bool) -> None:
    """Runs all nodes here, and shows their rounds as they end."""
    from fedelta.report.terminal import show_warnings

    show_warnings("screen")
    _need_zenoh()
    from fedelta.runs.peers_here import Nodes, prepare

    roster = prepare(config, folder, count, relayed=relayed, may_run=may_run)
    note(f"{count} nodes in {folder}, one process each; what a node says is in {folder}/<name>.log; Ctrl-C ends them all")
    with Nodes(folder, roster, may_run) as nodes:
        _follow(nodes, roster, folder, as_json)
    _summarise(folder, roster, config.federation.rounds)


def _follow(nodes: Nodes, roster: Roster, folder: Path, as_json: bool) -> None:
    from fedelta.report.terminal import out, print_json
    from fedelta.report.words import round_line

    sent = dict.fromkeys(roster.names(), 0)
    for name, record in nodes.turns():
        if record is not None and as_json:
            print_json({"node": name, **record})
        elif record is not None:
            sent[name] += record["bytes"]["up"]
            out.print(f"{name}  {round_line(record, sent[name])}", soft_wrap=True)
        elif (code := nodes.running[name].wait()) != 0:
            note(f"{name} has ended with code {code}, see {folder / name}.log; {_remedy(name, nodes)}")


def _remedy(name: str, nodes: Nodes) -> str:
    """Returns what to do about a process that has ended."""
    from fedelta.runs.peers_here import command_for

    if name not in nodes.roster.names():
        return "without the relay no node hears another: Ctrl-C, and the same command again"
    return "it joins the others again by: fedelta " + " ".join(command_for(nodes.folder, name, nodes.may_run)[:-1])


def _summarise(folder: Path, roster: Roster, rounds: int) -> None:
    """Says how far each node came, and how far apart their adapters are."""
    from fedelta.runs.folder import RunFolder
    from fedelta.runs.peers_here import distances

    there = [name for name in roster.names() if (folder / name / "adapters" / "last").is_dir()]
    apart = distances(folder, there) if there else {}
    for name in roster.names():
        records = RunFolder(folder / name).records()
        done = f"round {records[-1]['t'] + 1} of {rounds}" if records else "no round"
        away = f", its adapter {apart[name]:.3g} from that of {there[0]}, relative to its size" if name in apart else ""
        note(f"{name}: {done}{away}")


def _need_zenoh() -> None:
    if missing := [name for name in ("zenoh", "cryptography") if find_spec(name) is None]:
        raise ImportError(f'gossip over a network needs {" and ".join(missing)}: pip install "fedelta[gossip]"')
