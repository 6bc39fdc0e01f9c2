"""Adapts a Hugging Face model by a LoRA adapter that can be exchanged: one frozen base serves any number of clients.

PEFT builds the layers and runs them; an adapter of any rank and scale is put into them by giving them other tensors.
Nothing of the base is copied, but for the weights that a method adds to (see `base_store`).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedelta import tree
from fedelta.adapted import Batch
from fedelta.lowrank import LoRA, wide
from fedelta.models import pass_sizes
from fedelta.models.adapter_files import Layout
from fedelta.models.aliases import portable_name
from fedelta.models.base_store import BaseStore
from fedelta.models.checkpointing import as_checkpointed_before, recompute
from fedelta.models.cohort import sharing
from fedelta.models.cohort.cohort import Cohort
from fedelta.models.fingerprint import fingerprint
from fedelta.models.initial import initial_layer
from fedelta.models.lora_options import check_training_options
from fedelta.models.passes import Backend, FastPass, PassSettings, installed
from fedelta.models.patches import Patch, Undo, remove_all, whole_or_undone
from fedelta.models.patterns import PLAIN as PLAIN_NAME
from fedelta.models.patterns import exactly, harmless, matching, shortened
from fedelta.models.products import PLAIN, Product
from fedelta.models.quantised import kept_differentiable
from fedelta.models.slots import (
    SLOT,
    factors_of,
    heads_of,
    plain_dropout,
    put_factors,
    saved_modules,
    seeded_dropout,
    trained_heads,
)
from fedelta.models.wide_heads import Widened, bridge
from fedelta.peers import Peer
from fedelta.tree import Adapter, BaseDelta

CLASSIFIER_HEADS = (*SEQ_CLS_HEAD_NAMES, "classification_head")
"""The names of heads for classification: PEFT's, and that of T5 and BART, which PEFT would not train."""


class PeftAdaptedModel:
    """A frozen base with an adapter that can be exchanged; what `fedelta.adapted.AdaptedModel` asks for.

    The model is changed in place: it gets PEFT's layers. `unload` takes them out again.

    Args:
        model: a transformers model, on its device.
        lora_config: any plain LoRA configuration; its `r` is only the rank until the first `load`.
        tokenizer: part of the base's fingerprint.
        base_delta: how a base delta is applied: "weight" rewrites floating-point weights, "hook" adds it in the forward
            pass, "auto" chooses layer by layer ("hook" for quantised weights).
        base_dropout: leaves the base model's own dropout on in training. It draws from torch's global generator, which is
            then seeded at every call of training.
        gemm: how products with frozen weights are formed on a CPU; see `fedelta.models.fast.frozen_gemm`.
        compact: computes no padding, and no rows of the last layer that are not read; see `fedelta.models.fast.no_padding` and
            `first_token`.
        cache_activations: MiB of the device's memory in which to keep what enters the lowest layer that trains, so that the
            layers below run once for an example; see `fedelta.models.fast.activation_cache`.

    Attributes:
        module: the model itself, which a task calls.
        passes: those of `fedelta.models.fast` that are installed.
        patches: all that was changed in the model, in order; `unload` takes it back.
        fingerprint: of the base.
        layout: what a PEFT folder needs to know beside the adapter's values.

    Raises:
        ValueError: for a configuration that is not plain LoRA, targets that do not exist, tied weights, layers that are
            neither Linear, Conv1D nor Embedding, a model that carries an adapter already, or `cache_activations` under
            `base_dropout`.
    """

    def __init__(
        self,
        model: Any,
        lora_config: LoraConfig,
        tokenizer: Any = None,
        *,
        base_delta: Literal["auto", "weight", "hook"] = "auto",
        base_dropout: bool = False,
        gemm: Backend | Literal["auto"] = "auto",
        compact: bool = True,
        cache_activations: int = 0,
    ) -> None:
        settings = PassSettings(gemm=gemm, compact=compact, cache_activations=cache_activations, base_dropout=base_dropout)
        self.base_dropout = base_dropout
        self.patches: list[Patch] = []
        self.passes: list[FastPass] = []
        with whole_or_undone(self.patches):
            self.patches += kept_differentiable(model)
            peft = _inject(model, lora_config)
            self.patches.append(Undo(peft.unload))
            self.module: nn.Module = peft.get_base_model()
            self._anchor = next(self.module.parameters())  # tells the device; a look-up costs more than a small layer
            self._layers: dict[str, Any] = {n: m for n, m in self.module.named_modules() if isinstance(m, LoraLayer)}
            self._heads = dict(heads_of(self.module))
            check_layers(self._layers)
            check_not_tied(self.module)
            bases = {n: layer.get_base_layer() for n, layer in self._layers.items()}
            self.base_store = BaseStore(bases, hook={"auto": None, "weight": False, "hook": True}[base_delta])
            self.patches.append(Undo(partial(self.base_store.apply, None)))
            self.fingerprint = fingerprint(self.module, tokenizer, self._layers, self._heads)
            saved = saved_modules(self.module)
            embeddings = frozenset(n for n, b in bases.items() if isinstance(b, nn.Embedding))
            self.layout = Layout(_written(peft.peft_config[SLOT], lora_config, sorted(saved)), embeddings)
            self.trained_modules: Sequence[nn.Module] = [*self._layers.values(), *saved.values()]
            self._draw_from_generators()
            self._widen_heads()
            self._first_heads = {n: _kept(getattr(m, a)) for n, (m, a) in self._heads.items()}
            self._live = self._read()
            for fast in installed(self, settings):
                self.passes.append(fast)
                self.patches.append(fast)

    def _draw_from_generators(self) -> None:
        """Gives adapter dropout a generator of its own, alone and inside layers that are checkpointed."""
        self._dropouts = [found for layer in self._layers.values() if (found := seeded_dropout(layer)) is not None]
        self.patches += [Undo(partial(plain_dropout, layer)) for layer in self._layers.values()]
        self.patches.append(Undo(partial(as_checkpointed_before, self.module)))

    def _widen_heads(self) -> None:
        """Lets heads train in float32 or wider inside a base of half precision."""
        heads, narrow, wider = trained_heads(self.module), self._base_dtype, self.dtype
        self.patches += [Widened(head, wider) for head in heads]
        self.patches += bridge(self.module, heads, narrow)

    @property
    def device(self) -> torch.device:
        return self._anchor.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the trained tensors: float32, or float64 under a float64 base. Half precision loses small steps."""
        return wide(self._base_dtype)

    @property
    def _base_dtype(self) -> torch.dtype:
        return next((p.dtype for p in self.module.parameters() if p.is_floating_point()), torch.float32)

    def load(self, adapter: Adapter, base: BaseDelta | None = None) -> None:
        """Takes over copies of the adapter's values, of any rank and scale, and brings the base to `base`.

        Raises:
            ValueError: naming the layer, for an adapter of other layers, shapes or another base, or one that is not finite.
        """
        tree.check_fits(adapter, self._live, "the adapter", "the model")
        self.base_store.apply(base)
        for name, layer in self._layers.items():
            x = adapter.layers[name]
            put_factors(layer, self._parameter(x.B), self._parameter(x.A), x.scale)
        for name, (holder, attribute) in self._heads.items():
            setattr(holder, attribute, self._parameter(adapter.dense[name]))
        self._live = self._read()

    def base_weight(self, layer: str) -> Tensor:
        """Returns a layer's pretrained weight (o, i), whatever base delta it shows now. Refuses a quantised one."""
        return self.base_store.pristine(layer)

    def live(self) -> Adapter:
        """Returns the trained tensors themselves; the next `load` replaces them."""
        return self._live

    def mode(self, dropout: torch.Generator | None) -> torch.Generator | None:
        """Sets training, with adapter dropout drawn from the generator; or evaluation, for None. Returns what is drawn from.

        The base stays in evaluation mode even in training, unless `base_dropout` was asked for.
        """
        self.module.train(self.base_dropout and dropout is not None)
        if self.base_dropout and dropout is not None:
            torch.manual_seed(_draw_seed(dropout))
        source = None if dropout is None else self.source(dropout)
        for module in self._dropouts:
            module.generator = source
        recompute(self.module, None if source is None else lambda: [source])
        return source

    def source(self, dropout: torch.Generator) -> torch.Generator:
        """Returns the generator on this model's device that stands for one on the CPU."""
        if self.device.type == "cpu":
            return dropout
        return torch.Generator(self.device).manual_seed(_draw_seed(dropout))

    @property
    def gemm(self) -> Backend:
        """The backend of products with frozen weights, as chosen."""
        chosen: list[Backend] = [fast.gemm for fast in self.passes if fast.gemm is not None]
        return chosen[0] if chosen else "default"

    @property
    def product(self) -> Product:
        """Forms the products with frozen weights."""
        return next((fast.product for fast in self.passes if fast.product is not None), PLAIN)

    def tokens(self, batch: Batch) -> int:
        """Counts the tokens of a batch that a pass computes; padding counts, unless a pass leaves it out."""
        config, skips_padding = self.module.config, any(fast.skips_padding for fast in self.passes)
        writes = bool(getattr(config, "is_encoder_decoder", False))
        return pass_sizes.tokens(batch, skips_padding=skips_padding, patch=pass_sizes.patch_of(config), writes=writes)

    def longest(self, batch: Batch) -> int:
        """Returns the tokens of the longest sequence of a batch."""
        return pass_sizes.longest(batch, pass_sizes.patch_of(self.module.config))

    def pass_tokens(self) -> int:
        """Returns the tokens for which one pass has room on the model's device."""
        return pass_sizes.pass_tokens(self.module.config, self.device, self.dtype)

    def joint_refusal(self) -> str | None:
        """Returns the reason why several clients cannot train in one pass of this model; None if they can."""
        return sharing.refusal(self)

    def joint(
        self, starts: Sequence[Adapter], bases: Sequence[BaseDelta | None], generators: Sequence[torch.Generator]
    ) -> Cohort:
        """Loads several adapters at once; see `fedelta.adapted.AdaptedModel`."""
        return Cohort(self, starts, bases, generators)

    @property
    def adapted_layers(self) -> Mapping[str, nn.Module]:
        """PEFT's layers by name."""
        return self._layers

    def head_tensors(self) -> list[tuple[nn.Module, dict[str, str]]]:
        """Returns each module whose own tensors train, with their flat names by attribute."""
        names: dict[nn.Module, dict[str, str]] = {}
        for name, (holder, attribute) in self._heads.items():
            names.setdefault(holder, {})[attribute] = name
        return list(names.items())

    def initial(self, peer: Peer, seed: int = 0) -> Adapter:
        """Draws the common initial adapter at a peer's ranks and scales (`initial_layer`); heads are as the model had them."""
        layers = {n: initial_layer(n, layer.get_base_layer(), peer, seed, self.dtype) for n, layer in self._layers.items()}
        return Adapter(layers, {n: t.clone() for n, t in self._first_heads.items()}, self.fingerprint)

    def unload(self) -> None:
        """Gives the model back as it was: pristine weights, PEFT's layers taken out. Heads keep the values last loaded."""
        remove_all(self.patches)
        self.passes.clear()

    def _parameter(self, value: Tensor) -> nn.Parameter:
        # A copy, since training writes into it. Contiguous, since the bits of a product depend on its factors' memory layout.
        moved = value.detach().to(self.device, self.dtype)
        return nn.Parameter(moved.clone(memory_format=torch.contiguous_format))

    def _read(self) -> Adapter:
        layers = {n: LoRA(*factors_of(layer), layer.scaling[SLOT]) for n, layer in self._layers.items()}
        return Adapter(layers, {n: getattr(m, a) for n, (m, a) in self._heads.items()}, self.fingerprint)


def _kept(head: Tensor) -> Tensor:
    """Returns a copy of a head's tensor on the CPU; zeros for one on the meta device, which has no values."""
    return torch.zeros_like(head, device="cpu") if head.is_meta else head.detach().cpu().clone()


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


# --- what PEFT is asked for, and what is refused ---------------------------------------------------------------------


def _inject(model: Any, lora_config: LoraConfig) -> PeftModel:
    check_training_options(lora_config.to_dict())
    if isinstance(model, PeftModel) or any(isinstance(m, LoraLayer) for m in model.modules()):
        raise ValueError("the model carries an adapter already; unload() it first, or load the model again")
    config = _without_patterns(lora_config, model)
    config.base_model_name_or_path = None  # PEFT sets its own, and warns of any other; see `_written`
    config.modules_to_save = _heads_by_name(model, config)
    config.fan_in_fan_out = any(isinstance(m, Conv1D) for m in model.modules())
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # a model of Conv1D may have Linear layers too
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # PEFT's own use of it
            wrapped = get_peft_model(model, config, adapter_name=SLOT)
    except ValueError as error:
        raise ValueError(_do_not_fit(lora_config.target_modules, str(error), model)) from error
    assert isinstance(wrapped, PeftModel)  # get_peft_model's other return type is for mixed adapters
    return wrapped


def _do_not_fit(wanted: Collection[str] | str | None, why: str, model: nn.Module) -> str:
    return (
        f"target_modules={wanted if isinstance(wanted, str) else sorted(wanted or ())} do not fit the model: {why} "
        f"Names that can be targeted here: {', '.join(targetable(model))}"
    )


def _without_patterns(asked: LoraConfig, model: nn.Module) -> LoraConfig:
    """Returns a copy of the configuration whose patterns are resolved into the model's exact names, which PEFT matches fast.

    Raises:
        ValueError: for a pattern that is not accepted.
    """
    config, names = copy.deepcopy(asked), [n for n, _ in model.named_modules()]
    targets, excluded = config.target_modules, config.exclude_modules
    if isinstance(targets, str) and targets.lower() != INCLUDE_LINEAR_LAYERS_SHORTHAND:
        found = matching(targets, names, "target_modules")
        if not found:
            raise ValueError(_do_not_fit(targets, "no layer's whole name is like that.", model))
        config.target_modules = exactly(found)
    if isinstance(excluded, str):
        found = matching(excluded, names, "exclude_modules")
        config.exclude_modules = exactly(found) if found else None
    config.rank_pattern = harmless(config.rank_pattern or {}, names, "rank_pattern")
    config.alpha_pattern = harmless(config.alpha_pattern or {}, names, "alpha_pattern")
    listed = config.layers_pattern or []
    if odd := [p for p in ([listed] if isinstance(listed, str) else listed) if not PLAIN_NAME.fullmatch(p)]:
        raise ValueError(f"layers_pattern: {shortened(odd[0])} is a pattern, not a name such as 'layers'; list target_modules")
    return config


def _heads_by_name(model: nn.Module, config: LoraConfig) -> list[str] | None:
    """Returns `modules_to_save`, and a classifier's heads, by the names that the model has.

    PEFT trains a module in full if its name *ends* in the given one: "classifier" means DistilBERT's "pre_classifier", too. But
    it keeps LoRA layers only off modules of exactly that name, so that "all-linear" would put one inside a trained module.
    """
    asked, usual = config.modules_to_save or [], CLASSIFIER_HEADS if config.task_type == "SEQ_CLS" else ()
    if missing := [m for m in asked if m not in usual and not modules_ending(model, m)]:
        parts = ", ".join(name for name, _ in model.named_children())
        raise ValueError(f"modules_to_save names {missing}, which the model does not have; it has {parts}")
    found: set[str] = set()
    for head in (*asked, *usual):
        found |= set(modules_ending(model, head))
    return sorted(found) or None


def modules_ending(model: nn.Module, name: str) -> list[str]:
    """Returns the modules that PEFT means by a name in `modules_to_save`."""
    return [n for n, _ in model.named_modules() if n.endswith(name)]


def _written(config: PeftConfig, asked: LoraConfig, saved: list[str]) -> dict[str, Any]:
    """Returns what a PEFT folder says: the heads, and a name of the base that means something on other machines."""
    base = asked.base_model_name_or_path or config.base_model_name_or_path
    given = {"exclude_modules": asked.exclude_modules, "base_model_name_or_path": base and portable_name(base)}
    return {**config.to_dict(), **given, "modules_to_save": saved or None}


def targetable(model: nn.Module) -> list[str]:
    """Returns the last parts of the names of the modules that can carry an adapter."""
    kinds = nn.Linear | Conv1D | nn.Embedding
    return sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, kinds)})


def check_layers(layers: dict[str, Any]) -> None:
    """Raises ValueError for a target that has no delta of the form B A."""
    for name, layer in layers.items():
        base = layer.get_base_layer()
        linear = isinstance(base, Conv1D | nn.Embedding) or hasattr(base, "in_features")
        if not linear or any(f.ndim != 2 for f in factors_of(layer)):
            raise ValueError(
                f"target {name!r} is a {type(base).__name__}; only Linear, Conv1D and Embedding layers have a delta B A: "
                "leave it out of target_modules"
            )


def check_not_tied(module: nn.Module) -> None:
    """Raises ValueError if a weight that is adapted or trained belongs to another module too."""
    owners: dict[int, list[str]] = {}
    for name, m in module.named_modules():
        for p in m.parameters(recurse=False):
            owners.setdefault(id(p), []).append(name)
    for names in owners.values():
        marked = [n for n in names if n.endswith(".base_layer") or ".original_module" in n]
        if len(names) > 1 and marked:
            plain = [n.replace(".base_layer", "").replace(".original_module", "") for n in names]
            raise ValueError(
                f"{' and '.join(map(repr, plain))} are tied: they share one weight, so a change of one would be a change of "
                "the other; leave them out of target_modules and modules_to_save, or load with tie_word_embeddings=False"
            )
