"""Makes real clients in a few lines, from one Hugging Face model, a data set for each client and any ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
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
from fedelta.demands import number
from fedelta.models.base_store import delta_shape
from fedelta.models.devices import pick_device
from fedelta.models.image_models import check_images, processor_for, reads_images
from fedelta.models.loading import CAUSAL, SEQ2SEQ, check_decoder, fitted, load_model, main_input_of, set_padding, task_for
from fedelta.models.passes import Backend
from fedelta.models.patterns import by_layer, demand_used
from fedelta.models.peft import PeftAdaptedModel, modules_ending
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


def peers_for(
    ranks: Sequence[int],
    lora_config: LoraConfig,
    sizes: Sequence[int],
    layers: Collection[str],
    *,
    scale: float | None = None,
) -> list[Peer]:
    """Makes peers 0, 1, ... with a LoRA configuration's scales and patterns; a rank pattern beats a rank, as in PEFT.

    Args:
        ranks: one for each peer.
        lora_config: its patterns are resolved here, and nowhere later.
        sizes: the number of each peer's examples.
        layers: the names of the layers that carry the adapter.
        scale: one for every rank and layer, in place of those that follow from `lora_alpha`.

    Raises:
        ValueError: for a pattern that is not accepted, or a scale beside patterns of `lora_alpha` or rsLoRA.
    """
    if scale is not None:
        number(above=0)("scale", scale)
        if lora_config.alpha_pattern or lora_config.use_rslora:
            raise ValueError("scale is one for every layer and rank: leave alpha_pattern and rslora out, or leave scale out")
    common = Peer(
        id=0,
        rank=1,
        lora_alpha=lora_config.lora_alpha if scale is None else None,
        rslora=lora_config.use_rslora,
        rank_pattern=by_layer(lora_config.rank_pattern or {}, layers, "rank_pattern"),
        alpha_pattern=by_layer(lora_config.alpha_pattern or {}, layers, "alpha_pattern"),
        scale=1.0 if scale is None else scale,
    )
    both = zip(ranks, sizes, strict=True)
    return [replace(common, id=k, rank=rank, num_examples=size) for k, (rank, size) in enumerate(both)]


def config_for(task: Task, lora_config: LoraConfig, model: nn.Module) -> LoraConfig:
    """Returns a copy of a LoRA configuration with the task's type, if it has none, and the task's heads that the model has."""
    config = copy.deepcopy(lora_config)
    config.task_type = config.task_type or task.peft_task_type
    heads = {*(config.modules_to_save or ()), *(head for head in task.modules_to_save if modules_ending(model, head))}
    config.modules_to_save = sorted(heads) or None
    return config


def check_head(model: Any, task: Task) -> None:
    """Raises ValueError for a model of transformers whose class lacks the head that the task trains.

    A user's own class is not checked: nothing is known of its name.
    """
    found = type(model)
    if not found.__module__.startswith("transformers."):
        return
    wanted = task.auto_class.removeprefix("AutoModel")
    fits = (
        model.get_output_embeddings() is not None if task.auto_class in (CAUSAL, SEQ2SEQ) else found.__name__.endswith(wanted)
    )
    if not fits:
        raise ValueError(
            f"task {type(task).__name__!r} trains a model {wanted}, but the loaded one is a {found.__name__}, without such a "
            f"head: load it by {task.auto_class}.from_pretrained, or give its name in place of the model"
        )


def check_outputs(model: Any, task: Task) -> None:
    """Raises ValueError for a model whose head has another number of outputs than the task has labels."""
    wanted, found = task.model_kwargs().get("num_labels"), getattr(model.config, "num_labels", None)
    if wanted is not None and found is not None and wanted != found:
        raise ValueError(f"the task has {wanted} labels, the model {found} outputs; load the model with num_labels={wanted}")


def check_dtype(model: nn.Module) -> None:
    """Raises ValueError for a float16 base, in which gradients below its smallest number vanish: many of those of B do."""
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError(
            "the base model is in float16, in which small gradients become exactly zero (there is no loss scaling): train on "
            "bfloat16, which has the range of float32 and takes as much memory, or on float32"
        )


def check_ranks(adapted: PeftAdaptedModel, lora_config: LoraConfig, ranks: Sequence[int]) -> None:
    """Raises ValueError for names and patterns that no layer has, and for a rank above min(o, i), which no delta needs."""
    _check_names(adapted, lora_config)
    distinct = sorted(set(ranks))
    for peer in peers_for(distinct, lora_config, [1] * len(distinct), list(adapted.adapted_layers)):
        for name, layer in adapted.adapted_layers.items():
            o, i = delta_shape(cast("Any", layer).get_base_layer())
            if peer.rank_of(name) > min(o, i):
                raise ValueError(
                    f"layer {name!r} is {o} x {i}, so that no delta of it has a rank above {min(o, i)}, but rank "
                    f"{peer.rank_of(name)} is asked for: lower it, or give the layer a rank of its own by rank_pattern"
                )


def _check_names(adapted: PeftAdaptedModel, lora_config: LoraConfig) -> None:
    """Raises ValueError for what PEFT would leave out in silence: a name in the configuration that no layer has."""
    if not isinstance(targets := lora_config.target_modules or [], str):
        demand_used(sorted(targets), _own_layers(adapted.module), "target_modules")
    for where in ("rank_pattern", "alpha_pattern"):
        demand_used(getattr(lora_config, where) or (), list(adapted.adapted_layers), where)
    for key, value in (lora_config.alpha_pattern or {}).items():
        number(above=0)(f"alpha_pattern: {key!r}", value)


def _own_layers(module: nn.Module) -> list[str]:
    """Returns the names of a model's innermost modules, without what PEFT put into them."""
    inside = (".base_layer", ".lora_", ".original_module", ".modules_to_save")
    own = [name for name, _ in module.named_modules() if not any(part in name for part in inside)]
    outer = {name.rpartition(".")[0] for name in own}
    return [name for name in own if name not in outer]


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
