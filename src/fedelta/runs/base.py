"""Loads the model of a run, at the commit that the run keeps, and makes its evaluator."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from peft import LoraConfig

from fedelta.models.aliases import is_packaged
from fedelta.models.base_files import BaseFiles, find_base
from fedelta.models.clients import pad_token_of
from fedelta.models.devices import pick_device
from fedelta.models.fitting import task_for
from fedelta.models.loading import drawn_of, load_model
from fedelta.models.lora_peers import config_for
from fedelta.models.peft import PeftAdaptedModel
from fedelta.runs.config import Lora, Model
from fedelta.runs.evaluation import Evaluator
from fedelta.runs.labels import labels_of
from fedelta.tasks.task import Task


def pinned_model(model: Model, device: str) -> tuple[Model, BaseFiles | None]:
    """Returns a model's section and its files; a commit on the Hub and a digest of the code are filled in where they lack.

    The files are None if they cannot be found: then loading the model raises the error, with the remedies.

    Raises:
        ValueError: for a device that is not here, or a dtype in which a run cannot train (though a model can answer).
    """
    pick_device(device)
    if model.dtype == "float16":
        raise ValueError(
            "model.dtype = float16 is not trained in, since small gradients become exactly zero in it: set bfloat16 or float32"
        )
    try:
        files = find_base(model.name, model.revision)
    except (OSError, ValueError):
        return model, None
    # An alias gets no digest: its package and the Hub hold the same weights, but may write the configs differently.
    digest = model.digest or (None if is_packaged(model.name) else files.digest())
    return model.model_copy(update={"revision": files.revision, "digest": digest}), files


def load_adapted(
    model: Model, task: Task, adapter: LoraConfig, *, device: str, seed: int, files: BaseFiles | None = None
) -> tuple[PeftAdaptedModel, Any]:
    """Loads the base model of a config; returns it with places for adapters, and its tokenizer.

    Args:
        model: the config's section.
        task: chooses the class of model, together with the model's own config, and its outputs.
        adapter: from `peft_config`.
        device: as the config names it.
        seed: for parameters that the checkpoint lacks.
        files: of the model, where they were found before.
    """
    base, tokenizer = load_model(
        model.name,
        task,
        device=device,
        dtype=model.dtype,
        quantization=model.quantization,
        trust_remote_code=model.trust_remote_code,
        use_safetensors=model.use_safetensors,
        revision=model.revision,
        digest=model.digest,
        seed=seed,
        files=files,
    )
    adapted = PeftAdaptedModel(
        base,
        config_for(task_for(task, base.config), adapter, base),
        tokenizer,
        base_dropout=model.base_dropout,
        gemm=model.gemm,
        compact=model.compact,
        cache_activations=model.cache_activations,
    )
    trained = {name for _, names in adapted.head_tensors() for name in names.values()}
    drawn = sorted(drawn_of(base) - trained)
    adapted.layout = replace(adapted.layout, labels=labels_of(task), drawn=drawn)
    return adapted, tokenizer


def evaluator(task: Task, model: PeftAdaptedModel, batch_size: int) -> Evaluator:
    """Returns the evaluator of a task on a model."""
    return Evaluator(task, model, pad_token_of(model), batch_size)


def peft_config(lora: Lora) -> LoraConfig:
    """Returns the adapter's configuration in PEFT's terms, without a rank: each client has its own."""
    return LoraConfig(
        lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType] - PEFT divides it, so a fraction is fine
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save,
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
    )
