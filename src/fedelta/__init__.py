"""Federated low-rank adaptation of Hugging Face models, done faithfully.

The names below are the public interface. They are imported when they are first used, so that `import fedelta` and the
command line's help do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedelta import lowrank, methods, topology, tree
    from fedelta.adapters.aggregation import aggregate
    from fedelta.client import LocalClient, Training
    from fedelta.diagnostics import diagnose
    from fedelta.engines.gossip import gossip
    from fedelta.engines.rounds import Round
    from fedelta.engines.server import federate
    from fedelta.lowrank import LoRA
    from fedelta.merging import ClientUpdate
    from fedelta.method import Client, Method, TrainResult
    from fedelta.methods import get_method, list_methods
    from fedelta.models.adapter_files import load_adapter, save_adapter
    from fedelta.models.clients import hf_clients
    from fedelta.models.trainer.client import TrainerClient
    from fedelta.models.trainer.turn import Turn
    from fedelta.peers import Peer
    from fedelta.runs.runner import run
    from fedelta.topology import mixing
    from fedelta.tree import Adapter, BaseDelta

__version__ = version("fedelta")

_HOME = {
    "Adapter": "fedelta.tree",
    "BaseDelta": "fedelta.tree",
    "Client": "fedelta.method",
    "ClientUpdate": "fedelta.method",
    "LoRA": "fedelta.lowrank",
    "LocalClient": "fedelta.client",
    "Method": "fedelta.method",
    "Peer": "fedelta.peers",
    "Round": "fedelta.engines.rounds",
    "TrainResult": "fedelta.method",
    "TrainerClient": "fedelta.models.trainer.client",
    "Training": "fedelta.client",
    "Turn": "fedelta.models.trainer.turn",
    "aggregate": "fedelta.adapters.aggregation",
    "diagnose": "fedelta.diagnostics",
    "federate": "fedelta.engines.server",
    "get_method": "fedelta.methods",
    "gossip": "fedelta.engines.gossip",
    "hf_clients": "fedelta.models.clients",
    "list_methods": "fedelta.methods",
    "load_adapter": "fedelta.models.adapter_files",
    "run": "fedelta.runs.runner",
    "save_adapter": "fedelta.models.adapter_files",
}
_MODULES = ("lowrank", "methods", "mixing", "topology", "tree")

__all__ = [
    "Adapter",
    "BaseDelta",
    "Client",
    "ClientUpdate",
    "LoRA",
    "LocalClient",
    "Method",
    "Peer",
    "Round",
    "TrainResult",
    "TrainerClient",
    "Training",
    "Turn",
    "aggregate",
    "diagnose",
    "federate",
    "get_method",
    "gossip",
    "hf_clients",
    "list_methods",
    "load_adapter",
    "lowrank",
    "methods",
    "mixing",
    "run",
    "save_adapter",
    "topology",
    "tree",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"fedelta.{name}")
    raise AttributeError(f"module 'fedelta' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({"__version__", *__all__})
