"""Makes real clients in a few lines, from one Hugging Face model, a data set for each client and any ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import LoraConfig
from torch import Tensor, nn

from fedelta.client import LocalClient, Reading, Training
from fedelta.data.rows import Row
from fedelta.models.devices import pick_device
from fedelta.models.fitting import check_decoder, check_dtype, check_head, check_outputs, fitted, main_input_of, task_for
from fedelta.models.image_models import check_images, processor_for, reads_images
from fedelta.models.loading import load_model, set_padding
from fedelta.models.lora_peers import check_ranks, config_for, peers_for
from fedelta.models.passes import Backend
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.positions import check_lengths, places_of
from fedelta.peers import Peer, largest, template_for, truncate_for
from fedelta.registry import check_name
from fedelta.tasks import Task, get_task
from fedelta.tasks.task import Example
from fedelta.tasks.text.gaps import warn_of_cut_texts, warn_of_empty_texts
from fedelta.tree import Adapter


def hf_clients(
    model: Any,
    tokenizer: Any,
    datasets: Sequence[Any],
    lora_config: LoraConfig,
    ranks: int | Sequence[int],
    *,
    task: str | Task = "classification",
    seed: int = 0,
    device: str | torch.device = "auto",
    revision: str | None = None,
    base_dropout: bool = False,
    gemm: Backend | Literal["auto"] = "auto",
    compact: bool = True,
    cache_activations: int = 0,
    scale: float | None = None,
    **training: Any,
) -> list[LocalClient]:
    """Makes clients that share one model in memory and one common initial adapter.

    Args:
        model: a name (alias, folder or Hub id) or a loaded transformers model, which then gets PEFT's layers.
        tokenizer: None, to load the one of a model given by name. For a task of images what prepares them: an
            `ImageProcessor`, one of transformers, or None for the mean and spread of ImageNet.
        datasets: one for each client: a list of rows, or a Hugging Face `Dataset`.
        lora_config: targets, scales and patterns; its `r` is not used.
        ranks: one for all clients, or one for each.
        task: a task or a task's name. What it leaves open, such as the labels, is read from all clients' rows.
        seed: of the initial adapter, of new heads, of batches and of dropout.
        device: where the model is to be.
        revision: a branch, tag or commit of a model that is given by its Hub id.
        base_dropout: leaves the base model's own dropout on in training.
        gemm: how products with frozen weights are formed on a CPU; see `fedelta.models.fast.frozen_gemm`.
        compact: computes no padding, and no rows of the last layer that are not read; see `fedelta.models.fast.no_padding`.
        cache_activations: MiB of memory in which to keep what the layers below all adapters compute, so that they run once
            for an example; 0 keeps nothing. See `fedelta.models.fast.activation_cache`.
        scale: of every adapter, whatever its rank, in place of `lora_alpha` / rank.
        training: settings of `fedelta.client.Training`: batch_size, learning_rate, local_steps, ...

    Returns:
        Clients 0, 1, ... in the order of the data sets. Each one's `model` is the shared `PeftAdaptedModel`.

    Raises:
        ValueError: for numbers of data sets and ranks that differ, an unknown training setting, a loaded model or rows that
            do not fit the task, texts longer than the model has positions for, or a LoRA configuration that is not supported.
    """
    rows = [_rows(part, k) for k, part in enumerate(datasets)]
    settings = _training(training)
    ranks = _one_for_each(ranks, len(rows))
    everything = list(chain.from_iterable(rows))
    task = (get_task(task) if isinstance(task, str) else task).settled(everything)
    if isinstance(model, str | Path):
        model, loaded = load_model(str(model), task, device=device, revision=revision, seed=seed)
        tokenizer = tokenizer or loaded
    else:
        if tokenizer is None and reads_images(task):
            tokenizer = processor_for(model)
        elif tokenizer is None:
            raise ValueError("a loaded model needs its tokenizer; only for a model given by name can it be None")
        kind = fitted(task, model.config, main_input_of(model), type(model).__name__)
        if revision is not None:
            raise ValueError(f"a loaded model has no revision {revision!r}: load it at that revision, or give its Hub id")
        check_head(model, kind)
        check_outputs(model, kind)
        model = model if hasattr(model, "hf_device_map") else model.to(pick_device(device))  # quantised models stay in place
        check_images(model, task, tokenizer, type(model).__name__)
    check_dtype(model)
    set_padding(model, tokenizer)
    settled, task = task, task_for(task, model.config)
    check_decoder(model, tokenizer, task, type(model).__name__)
    lora = config_for(task, lora_config, model)
    adapted = PeftAdaptedModel(
        model,
        lora,
        tokenizer,
        base_dropout=base_dropout,
        gemm=gemm,
        compact=compact,
        cache_activations=cache_activations,
    )
    check_ranks(adapted, lora_config, ranks)
    examples = [task.encode(part, tokenizer) if part else [] for part in rows]
    warn_of_empty_texts(task, everything, "data sets")
    together = list(chain.from_iterable(examples))
    check_lengths(places_of(adapted.module, task), task, together, "data sets")
    warn_of_cut_texts(task, everything, together, tokenizer, "data sets")
    clients = clients_on(adapted, task, examples, lora_config, ranks, settings, seed=seed, scale=scale)
    for client in clients:
        client.reading = Reading(settled, tokenizer)
    return clients


def clients_on(
    adapted: PeftAdaptedModel,
    task: Task,
    examples: Sequence[Sequence[Example]],
    lora_config: LoraConfig,
    ranks: Sequence[int],
    training: Training,
    *,
    seed: int = 0,
    start_seed: int | None = None,
    start: Adapter | None = None,
    scale: float | None = None,
) -> list[LocalClient]:
    """Makes clients 0, 1, ... with these encoded examples and ranks, on a model that is in memory.

    Args:
        seed: of batches and of dropout.
        start_seed: of the initial adapter; `seed` if None.
        start: what all start from in place of a fresh adapter. Where the ranks differ from its own, each client gets the
            best approximation that its rank allows.
        scale: as `peers_for` takes it.

    Raises:
        ValueError: for a start that does not fit the model.
    """
    peers = peers_for(ranks, lora_config, [len(part) for part in examples], list(adapted.adapted_layers), scale=scale)
    common = common_adapter(adapted, peers, seed=seed if start_seed is None else start_seed, start=start)
    return [
        client_on(adapted, task, part, peer, common, training, seed=seed) for peer, part in zip(peers, examples, strict=True)
    ]


def client_on(
    adapted: PeftAdaptedModel,
    task: Task,
    examples: Sequence[Example],
    peer: Peer,
    common: Adapter,
    training: Training,
    *,
    seed: int = 0,
) -> LocalClient:
    """Returns one client with these encoded examples, which begins from its part of the common initial adapter."""
    collate = partial(task.collate, pad_token_id=pad_token_of(adapted))
    loss = cast("Callable[[nn.Module, Any], Tensor]", task.loss)  # its batches are what its own collate makes
    return LocalClient(peer, template_for(peer, common), adapted, examples, collate, loss, training, seed)


def common_adapter(adapted: PeftAdaptedModel, peers: Sequence[Peer], *, seed: int, start: Adapter | None = None) -> Adapter:
    """Returns what all peers begin from, at the largest of their ranks; arguments and errors are those of `clients_on`."""
    if start is None:
        # Drawn once at the largest rank and then sliced, so that all begin from rows of the same A. Patterns are common to all.
        return adapted.initial(max(peers, key=lambda p: p.rank), seed)
    adapted.load(start)  # refuses what does not fit before any work is done
    return _for_all(start, peers)


def _for_all(start: Adapter, peers: Sequence[Peer]) -> Adapter:
    """Brings a trained start to the peers' largest ranks, so that its leading components are the best for smaller ranks."""
    if all(p.rank_of(n) == x.rank for p in peers for n, x in start.layers.items()):
        return start
    return truncate_for(start, largest(start, peers))


def pad_token_of(adapted: PeftAdaptedModel) -> int:
    """Returns the token that fills short sequences; 0 for a model that names none."""
    return getattr(adapted.module.config, "pad_token_id", None) or 0


def _rows(part: Any, client: int) -> list[Row]:
    rows = list(part)
    if rows and not isinstance(rows[0], Mapping):
        raise ValueError(
            f"the data set of client {client} holds {rows[0]!r}, not rows with fields by name; "
            "give a list of rows, or a Hugging Face Dataset, for each client"
        )
    return rows


def _one_for_each(ranks: int | Sequence[int], count: int) -> list[int]:
    if not count:
        raise ValueError("no data sets: give one for each client")
    ranks = [ranks] * count if isinstance(ranks, int | float) else list(ranks)
    if len(ranks) != count:
        raise ValueError(f"{len(ranks)} ranks for {count} data sets: give one rank for all clients, or one for each")
    if bad := [r for r in ranks if isinstance(r, bool) or not isinstance(r, Integral) or r < 1]:
        raise ValueError(f"ranks must be at least 1, and whole, got {bad}")
    return ranks


def _training(settings: dict[str, Any]) -> Training:
    known = [f.name for f in fields(Training)]
    for name in settings:
        check_name("training setting", name, known)
    return Training(**settings)
