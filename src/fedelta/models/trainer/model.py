"""The model of a Trainer: its adapter is exchanged, its base brought to a version, and what was added to it taken out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fedelta import tree
from fedelta.lowrank import LoRA, wide
from fedelta.models.base_store import BaseStore
from fedelta.models.fingerprint import fingerprint, weights_digest
from fedelta.models.initial import initial_layer
from fedelta.models.lora_options import check_options
from fedelta.models.peft import check_layers, check_not_tied
from fedelta.models.quantised import kept_differentiable
from fedelta.models.slots import SLOT, factors_of, heads_of, put_factors
from fedelta.peers import Peer, template_for
from fedelta.tree import Adapter, BaseDelta


@dataclass(frozen=True, eq=False)
class _Known:
    """Keeps what is known of a model that was seen before.

    Attributes:
        store: brings its base to a version. One for a model, since it keeps the pristine weights.
        weights: the digest of the pristine base.
    """

    store: BaseStore
    weights: str


_known: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


class TrainerModel:
    """A PeftModel that belongs to a Trainer.

    Args:
        model: as the Trainer holds it.
        who: names the client in errors.

    Attributes:
        peft: the model.
        layers: PEFT's layers by the name that they have in the base.

    Raises:
        TypeError: for a model without an adapter.
        ValueError: for an adapter that is not plain LoRA, of another name, or beside which something else trains; or a base in
            4 bits through which no gradient goes.
    """

    def __init__(self, model: Any, who: str) -> None:
        if not isinstance(model, PeftModel):
            raise TypeError(
                f"{who}: the Trainer's model is a {type(model).__name__}, without an adapter: give it "
                "get_peft_model(model, LoraConfig(...)), or peft_config=LoraConfig(...) where the Trainer takes one"
            )
        self.peft, self.who = model, who
        self._forward = vars(model).get("forward")
        _check_adapter(model, who)
        self._base: nn.Module = model.get_base_model()
        self.layers: dict[str, Any] = {n: m for n, m in self._base.named_modules() if isinstance(m, LoraLayer)}
        self._heads = dict(heads_of(self._base))
        check_layers(self.layers)
        check_not_tied(self._base)
        self._check_nothing_else_trains()
        if model not in _known:
            kept_differentiable(self._base)  # for good: the model is asked and trained in turns, by its owner, too
            bases = {n: layer.get_base_layer() for n, layer in self.layers.items()}
            _known[model] = _Known(BaseStore(bases), weights_digest(self._base, self._heads))

    @property
    def config(self) -> Any:
        """The LoRA configuration of the adapter."""
        return self.peft.peft_config[SLOT]

    @property
    def weights(self) -> str:
        """The digest of the frozen weights as they were when the model was first seen."""
        return _known[self.peft].weights

    def fingerprint(self, tokenizer: Any) -> str:
        """Returns the name of the base, the same as that of a client of another kind on the same base and tokenizer."""
        vocabulary = tokenizer if hasattr(tokenizer, "get_vocab") else getattr(tokenizer, "tokenizer", None)
        return fingerprint(self._base, vocabulary, list(self.layers), self._heads)

    def initial(self, peer: Peer, seed: int, base: str) -> Adapter:
        """Returns what a peer begins from: its part of the model's adapter, if that was trained; else one drawn from the seed.

        Heads are as the model has them now.

        Raises:
            ValueError: for a trained adapter of a smaller rank than the peer's.
        """
        live = self.live()
        own = tree.with_parameters(live, {n: _copy(x) for n, x in tree.parameters(live).items()})
        own = replace(own, base=base)
        if any(x.A.any() and x.B.any() for x in own.layers.values()):
            return template_for(peer, own)
        layers: dict[str, LoRA] = {}
        for name, x in own.layers.items():
            layers[name] = initial_layer(name, self.layers[name].get_base_layer(), peer, seed, x.A.dtype)
        return replace(own, layers=layers)

    def base_weight(self, layer: str) -> Tensor:
        """Returns a layer's pretrained weight (o, i), whatever base delta it shows now."""
        return _known[self.peft].store.pristine(layer)

    def scales(self) -> Mapping[str, tuple[int, float]]:
        """Returns the rank and the scale that each layer has now."""
        return {n: (layer.r[SLOT], layer.scaling[SLOT]) for n, layer in self.layers.items()}

    def live(self) -> Adapter:
        """Returns the adapter's own tensors, not copies."""
        layers = {n: LoRA(*factors_of(layer), layer.scaling[SLOT]) for n, layer in self.layers.items()}
        return Adapter(layers, {n: getattr(m, a) for n, (m, a) in self._heads.items()})

    def load(self, adapter: Adapter, base: BaseDelta | None = None) -> None:
        """Takes over an adapter's values, of any rank and scale, and brings the base to a whole delta.

        Raises:
            ValueError: for an adapter of other layers or shapes, or one that is not finite.
        """
        tree.check_fits(adapter, Adapter(self.live().layers, self.live().dense, adapter.base), "the adapter", "the model")
        _known[self.peft].store.apply(base)
        with torch.no_grad():
            for name, layer in self.layers.items():
                _put(layer, adapter.layers[name])
            for name, x in self.live().dense.items():
                x.copy_(adapter.dense[name])
        self._tell_config({n: x.rank for n, x in adapter.layers.items()})

    def train_only(self, names: Collection[str]) -> None:
        """Freezes all tensors of the adapter but these, by flat name."""
        for name, x in tree.parameters(self.live()).items():
            x.requires_grad_(name in names)

    def read(self, start: Adapter, trained: Collection[str]) -> Adapter:
        """Returns the adapter in `start`'s dtypes, on the CPU; what did not train is that of `start` to the bit.

        Raises:
            RuntimeError: if something was trained that was to stay.
        """
        before, values = tree.parameters(start), dict[str, Tensor]()
        for name, x in tree.parameters(self.live()).items():
            if name not in trained and not torch.equal(x.detach(), before[name].to(x)):
                raise RuntimeError(
                    f"{self.who}: the Trainer changed {name!r}, which stays as it is in this round: make the optimiser of the "
                    "parameters that require gradients when training begins, or leave it to the Trainer"
                )
            kept = x.detach() if name in trained else before[name]
            values[name] = kept.to("cpu", before[name].dtype, copy=True)
        return tree.with_parameters(start, values)

    def release(self) -> None:
        """Takes out what a Trainer put into the model, which may be the next one's, too.

        That is other adapters, such as the reference of a preference loss, and what a mixed precision wraps around `forward`.
        """
        own = vars(self.peft)
        if self._forward is None:
            own.pop("forward", None)
        # With its mark accelerate would take the model for prepared, and the next Trainer's precision would be another.
        for name in ("_original_forward", "_is_accelerate_prepared"):
            own.pop(name, None)
        for name in [n for n in self.peft.peft_config if n != SLOT]:
            self.peft.delete_adapter(name)
        self.peft.set_adapter(SLOT)

    def _check_nothing_else_trains(self) -> None:
        own = {id(x) for x in tree.parameters(self.live()).values()}
        others = self.peft.peft_config.keys() - {SLOT}
        extra = [
            name
            for name, x in self.peft.named_parameters()
            if x.requires_grad and id(x) not in own and others.isdisjoint(name.split("."))
        ]
        if extra:
            raise ValueError(
                f"{self.who}: the Trainer's model also trains {_some(extra)}, which no message carries: freeze them, or name "
                "their module in LoraConfig(modules_to_save=[...])"
            )

    def _tell_config(self, ranks: Mapping[str, int]) -> None:
        """Writes the ranks into the configuration, which a Trainer saves, and copies for further adapters."""
        config, distinct = self.config, set(ranks.values())
        if len(distinct) == 1:
            config.r, config.rank_pattern = distinct.pop(), {}
        else:
            config.rank_pattern = dict(ranks)


def _copy(x: Tensor) -> Tensor:
    return x.detach().to("cpu", wide(x.dtype), copy=True)


def _put(layer: Any, x: LoRA) -> None:
    """Gives a layer other factors: in place where they fit, since an optimiser may hold the tensors already."""
    B, A = factors_of(layer)
    if B.shape == x.B.shape and A.shape == x.A.shape and A.dtype == wide(A.dtype):
        B.copy_(x.B)
        A.copy_(x.A)
        layer.scaling[SLOT] = x.scale
        return
    # In float32 or wider: half precision loses small steps, and PEFT brings a layer's input to the factors' dtype.
    fresh_B, fresh_A = (nn.Parameter(new.detach().to(A.device, wide(A.dtype), copy=True)) for new in (x.B, x.A))
    put_factors(layer, fresh_B, fresh_A, x.scale)


def _check_adapter(model: PeftModel, who: str) -> None:
    config: Any = model.peft_config.get(SLOT)
    if config is None or model.active_adapter != SLOT:
        raise ValueError(
            f"{who}: the Trainer's model has the adapters {_some(list(model.peft_config))}, of which {model.active_adapter!r} "
            f"is active: the one that travels must be active and be called {SLOT!r}, as get_peft_model calls it"
        )
    check_options(config.to_dict(), f"{who}: the Trainer's LoRA configuration")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
