"""Finds a base model's files, and a digest of its code, before anything of it is loaded."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import snapshot_download

from fedelta.models import adapter_files
from fedelta.models.aliases import ALIASES, hub_id, resolve_model, stand_in

CODE = ("*.py", "*config.json")
"""The files that say what is run: code, and the configs that name it."""

log = logging.getLogger("fedelta")


@dataclass(frozen=True)
class BaseFiles:
    """The files of a base model.

    Attributes:
        source: the string to give to `from_pretrained`.
        folder: holds at least the files of `CODE`.
        revision: the commit on the Hub; None for a local folder.
    """

    source: str
    folder: Path
    revision: str | None

    def digest(self) -> str:
        """Returns 64 hexadecimal digits, which are equal for equal files of `CODE`, wherever they lie."""
        found = hashlib.sha256()
        for path in sorted([*self.folder.rglob("*.py"), *self.folder.glob("*config.json")]):
            content = path.read_bytes()
            name = path.relative_to(self.folder).as_posix()
            found.update(json.dumps([name, len(content)]).encode() + content)
        return found.hexdigest()


def find_base(name: str, revision: str | None = None) -> BaseFiles:
    """Finds the files of a model; of a model on the Hub it fetches only those of `CODE`.

    A fetched model whose weights differ from those of its Hub id stands in for them where the Hub is not reached; and the Hub's
    for an alias that is not fetched. A warning says so.

    Args:
        name: an alias, a local folder or a Hub id.
        revision: a branch, tag or commit on the Hub; the main branch by default.

    Raises:
        OSError, ValueError: for a model that is not here and cannot be fetched, or a revision of a local folder.
    """
    source = resolve_model(name) if revision is None else hub_id(name)
    if Path(source).is_dir():
        if revision is not None:
            raise ValueError(f"{source} is a local folder and has no revision {revision!r}: leave the revision out")
        return BaseFiles(source, Path(source), None)
    try:
        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(CODE)))
    except (OSError, ValueError):
        if revision is not None or (found := stand_in(source)) is None or name in ALIASES:
            raise
        alias, folder = found
        log.warning("model %r is not here: %r stands in for it (%s)", name, alias, ALIASES[alias].release)
        return BaseFiles(str(folder), folder, None)
    if revision is None and name in ALIASES and ALIASES[name].release:
        log.warning("model %r is not fetched: the Hub's %s is taken, which is not the %s", name, source, ALIASES[name].release)
    return BaseFiles(source, folder, folder.name)


def check_code(files: BaseFiles, name: str, *, digest: str | None, trust_remote_code: bool, use_safetensors: bool) -> None:
    """Raises ValueError, naming the remedy, for files that are not to be loaded.

    Args:
        files: of the model.
        name: of the model, for the message.
        digest: that the files of `CODE` must have; None takes any.
        trust_remote_code: whether code of the model may run; then all of it must be here, where the digest covers it.
        use_safetensors: whether weights of another format are refused.
    """
    if digest is not None and files.digest() != digest:
        raise ValueError(
            f"model {name!r} is not the one of the run: the code and configs in {files.folder} have another digest "
            f"({files.digest()[:12]}, the run's {digest[:12]}). Nothing of it was loaded. Get the run's model back, or look at "
            "those files and take them as they are with model.digest=null"
        )
    # With this file in a folder, transformers would load the model that the file names.
    if (files.folder / adapter_files.CONFIG).exists():
        raise ValueError(
            f"model {name!r} holds {adapter_files.CONFIG}, which may name another model, whose code and weights no digest here "
            "covers: give the base model, and the adapter by lora.start; or take that file out of a folder with a whole model"
        )
    for config in _configs(files.folder):
        elsewhere = [str(x) for x in _leaves(config.get("auto_map")) if "--" in str(x)]
        if trust_remote_code and elsewhere:
            raise ValueError(
                f"model {name!r} wants to run code of another repository, {elsewhere[0]!r}, which no digest here covers: copy "
                "model and code into one local folder"
            )
        weights = config.get("transformers_weights")
        if use_safetensors and weights is not None and not str(weights).endswith((".safetensors", ".safetensors.index.json")):
            raise ValueError(f"model {name!r} names {weights!r} as its weights, which is not safetensors: convert it first")


def _configs(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*config.json")):
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if isinstance(content, dict):
            yield cast("dict[str, Any]", content)


def _leaves(value: object) -> Iterator[object]:
    """Yields the plain values in lists and mappings within each other."""
    if isinstance(value, dict):
        value = list(cast("dict[str, object]", value).values())
    if isinstance(value, list):
        for inner in cast("list[object]", value):
            yield from _leaves(inner)
    else:
        yield value
