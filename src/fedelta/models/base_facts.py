"""Reads what an exported adapter tells of its base model: licence, config and tokenizer. No weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoTokenizer

from fedelta.models.adapter_config import read_json
from fedelta.models.aliases import release_of
from fedelta.models.base_files import BaseFiles, check_code, find_base
from fedelta.models.image_models import processor_in
from fedelta.models.loading import pad_by_end_of_text
from fedelta.tasks.images.processor import ImageProcessor

logger = logging.getLogger("fedelta")

CLASSIFIERS = ("ForSequenceClassification", "ForImageClassification")
"""The ends of the names of models with a head for labels."""

FRONT_MATTER = 65536
"""Bytes of a README that are searched for its front matter."""


@dataclass(frozen=True)
class BaseFacts:
    """Describes a base model as far as it is known.

    Attributes:
        license: as its model card names it; None where it does not.
        release: in what its weights differ from those that go by its name on the Hub; "" where nothing is said of that.
        config: of config.json.
        tokenizer: with a padding token; None where it could not be read, and for a model of images.
        processor: what prepares images for it; None for a model of text.
    """

    license: str | None = None
    release: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: Any = None
    processor: ImageProcessor | None = None

    def pads(self) -> bool:
        """Returns whether the config names a padding token."""
        return self.config.get("pad_token_id") is not None

    def dtype(self) -> str | None:
        """Returns the precision in which transformers would load the weights, where the config names it."""
        named = self.config.get("dtype") or self.config.get("torch_dtype")
        return named if isinstance(named, str) else None

    def outputs(self) -> int | None:
        """Returns the number of outputs of the base's own head for classification; None without one."""
        kinds = self.config.get("architectures")
        if not isinstance(kinds, list) or not any(str(kind).endswith(CLASSIFIERS) for kind in kinds):
            return None
        names = self.config.get("id2label")
        return len(names) if isinstance(names, Mapping) else 2  # the default of transformers, which it leaves out


def base_facts(
    name: str,
    revision: str | None,
    *,
    digest: str | None,
    trust_remote_code: bool,
    use_safetensors: bool,
    images: bool = False,
) -> BaseFacts:
    """Returns what can be read of a base model; what cannot is left out, with a warning.

    Args:
        name: an alias, a local folder or a Hub id.
        revision: on the Hub.
        digest: that the model's code and configs must have; None takes any.
        trust_remote_code: allows code of the model's own to run, as some tokenizers need.
        use_safetensors: as for loading the model.
        images: looks for what prepares images in place of a tokenizer.
    """
    try:
        files = find_base(name, revision)
        check_code(files, name, digest=digest, trust_remote_code=trust_remote_code, use_safetensors=use_safetensors)
        config = read_json(files.folder / "config.json")
        processor = processor_in(files.folder, config) if images else None
    except (OSError, ValueError) as error:
        logger.warning("the base model %r could not be looked at, so its tokenizer is left out: %s", name, error)
        return BaseFacts()
    tokenizer = None if images else _tokenizer(files, name, trust_remote_code)
    return BaseFacts(_license(files.folder / "README.md"), release_of(files.folder), config, tokenizer, processor)


def _tokenizer(files: BaseFiles, name: str, trust_remote_code: bool) -> Any:
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": files.revision or "main"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(files.source, **trust)
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("the tokenizer of base model %r is left out: %s", name, error)
        return None
    pad_by_end_of_text(tokenizer)
    return tokenizer


def _license(readme: Path) -> str | None:
    """Returns the licence that a model card names in its front matter."""
    try:
        with readme.open("rb") as file:
            text = file.read(FRONT_MATTER).decode(errors="replace")
        parts = text.split("\n---", 1)
        found = yaml.safe_load(parts[0].removeprefix("---")) if text.startswith("---") and len(parts) == 2 else None
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return None
    named = found.get("license") if isinstance(found, dict) else None
    return named if isinstance(named, str) else None
