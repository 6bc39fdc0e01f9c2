"""A Flower app of a config: the files of its folder, and what they call at the server and at a site.

The ClientApp passes each message to the site's own process, which `fedelta site` starts and which keeps model and rows in
memory. Where none runs it builds the site in its own process: in a simulation, or for a trial, from the site's own config. The
config beside the app came with it, from whoever started the run, and so is no site's consent to anything. Nothing here imports
torch before a site is built or a run is carried out, since Flower starts a new process for each message.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedelta.exchange.parcels import Parcel
from fedelta.runs.config.read import dump_config, read_config
from fedelta.runs.config.schema import RunConfig

if TYPE_CHECKING:
    from fedelta.runs.config.node import Node
    from fedelta.runs.remote import Carrier

Handle = Callable[[Parcel], Parcel]

CONFIG, PACKAGE = "config.yaml", "federation"

PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{name}"
version = "1.0.0"
description = "A run of fedelta over Flower"
license = "Apache-2.0"
dependencies = [] # fedelta[flower] is installed at the server and at every site, and not by Flower

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.flwr.app]
publisher = "{name}"

[tool.flwr.app.components]
serverapp = "{package}.server:app"
clientapp = "{package}.client:app"

[tool.flwr.app.config]
sites = {sites} # to wait for before round 0; 0 waits for the clients that config.yaml speaks of
overrides = "" # changes of config.yaml at the server, such as "federation.rounds=20 output=/data/run"
"""

SERVER = '''\
"""The server's end of the run: `fedelta.runs.flower_app.serve` on the config beside this file."""

from functools import partial
from pathlib import Path

from fedelta.engines.runners.flower.server import server_app
from fedelta.runs.flower_app import serve

app = server_app(partial(serve, Path(__file__).with_name("config.yaml")))
'''

CLIENT = '''\
"""The site's end of the run: its messages go to the site's own process, or are answered here."""

from functools import partial
from pathlib import Path

from fedelta.engines.runners.flower.client import client_app
from fedelta.runs.flower_app import site_of

app = client_app(partial(site_of, Path(__file__).with_name("config.yaml")))
'''

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""Environment under which Flower tells nobody what is run."""


# --- the folder ------------------------------------------------------------------------------------------------------


def write_app(config: RunConfig, folder: Path) -> None:
    """Writes the folder of a Flower app.

    Args:
        config: of the run.
        folder: to make; an empty one may be there.

    Raises:
        FileExistsError: for a folder that holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: give a folder that is not there yet, so that nothing is written over")
    name = re.sub(r"[^a-z0-9]+", "-", config.name.lower()).strip("-") or "run"
    package = folder / PACKAGE
    package.mkdir(parents=True, exist_ok=True)
    text = PYPROJECT.format(name=name, package=PACKAGE, sites=config.num_clients() or 0)
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
    (package / "__init__.py").write_text('"""A run of fedelta over Flower."""\n', encoding="utf-8")
    (package / "server.py").write_text(SERVER, encoding="utf-8")
    (package / "client.py").write_text(CLIENT, encoding="utf-8")
    (package / CONFIG).write_text(dump_config(placed(config)), encoding="utf-8")


def placed(config: RunConfig) -> RunConfig:
    """Returns a config for Flower, which runs the app elsewhere: its folder is written in full, as all other paths are."""
    raw = config.model_dump(mode="json")
    raw["output"] = str(config.folder().resolve())
    raw["federation"]["where"] = "flower"
    return read_config(raw)


# --- the server ------------------------------------------------------------------------------------------------------


def serve(config_file: Path, carrier: Carrier, settings: Mapping[str, Any]) -> Path:
    """Carries out the run at the server, or what is left of it; returns its folder.

    Args:
        config_file: of the app.
        carrier: the way to the sites.
        settings: of the app: `sites`, `overrides`.
    """
    from fedelta.runs.remote import carry_out

    _log_to_stdout()
    changes = shlex.split(str(settings.get("overrides", "")))
    return carry_out(config_file, carrier, changes, sites=int(settings.get("sites", 0)) or None)


def _log_to_stdout() -> None:
    """Shows the log where `flwr log` reads it."""
    logger = logging.getLogger("fedelta")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False


# --- a site ----------------------------------------------------------------------------------------------------------


def site_of(config_file: Path, node_config: Mapping[str, Any], seconds: float | None = None) -> Handle:
    """Returns what answers at a node.

    Args:
        config_file: of the app.
        node_config: of the SuperNode: `socket`, of a worker; or `node`, a node file, and perhaps `config`, the site's own,
            by which it is built where no worker runs; or, in a simulation, `partition-id`.
        seconds: that a worker may take for an answer; None waits as long as it takes.

    Raises:
        ValueError: for a node config that says none of them.
        ConnectionError: for a node file alone where no worker runs.
    """
    if "socket" in node_config:
        return _through(Path(str(node_config["socket"])), seconds)
    if "node" in node_config:
        own = node_config.get("config")
        return _of_node_file(Path(str(node_config["node"])), None if own is None else Path(str(own)), seconds)
    if "partition-id" in node_config:
        return _simulated(config_file, int(node_config["partition-id"]))
    raise ValueError(
        "the SuperNode does not say which site it is: start it with --node-config 'node=\"/path/of/node.yaml\"', or with "
        "socket=... of a running `fedelta site`"
    )


def _through(socket: Path, seconds: float | None) -> Handle:
    from fedelta.engines.runners.sites.worker import ask

    return partial(ask, socket, timeout=seconds)


def _of_node_file(node_file: Path, own: Path | None, seconds: float | None) -> Handle:
    """Returns the worker of a node file, where one runs; else the site in this process, built from its own config."""
    from fedelta.engines.runners.sites.worker import SOCKET
    from fedelta.runs.config.node import read_node

    node = read_node(node_file)
    socket = node.folder() / SOCKET
    if socket.exists():
        return _through(socket, seconds)
    if own is None:
        raise ConnectionError(
            f"no site is running at {socket}: start it by `fedelta site`, or name the site's own config beside the node file "
            "(config=...), since the app's config comes from the server"
        )
    return _built(own, node)


def _simulated(config_file: Path, k: int) -> Handle:
    """Returns site k of a simulation; one beyond those of the run says so, since a simulation may have more nodes."""
    from fedelta.runs.config.node import Node

    config = read_config(config_file)
    count = config.num_clients()
    if count is not None and k >= count:
        reason = f"node {k} of the simulation is one too many: the run has {count} sites"
        return lambda parcel: Parcel("refusal", {"reason": reason, "spare": True})
    names = list(config.client_files())
    state = f"{config.folder()}.sites/{k}"  # beside the run's folder, where it can be seen and removed
    return _built(config_file, Node(name=names[k] if names else f"site-{k}", client=k, state=state))


_sites: dict[tuple[Path, str], Handle] = {}
"""By config file and state folder, the sites that were built in this process, which Ray keeps from message to message."""


def _built(config_file: Path, node: Node) -> Handle:
    """Returns the site in this process."""
    key = config_file, str(node.folder())
    if key not in _sites:
        from fedelta.runs.sites import answerer

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _sites[key] = answerer(read_config(config_file), node)
    return _sites[key]
