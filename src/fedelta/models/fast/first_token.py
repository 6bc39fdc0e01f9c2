"""Cuts the last layer of an encoder whose head reads the first token of each sequence and nothing else.

Keys and values are needed of all tokens; the query, the output of the attention and the feed-forward network only of the tokens
that are read. That leaves two in twelve of a layer's products. No gradient is lost: those of the other rows are zero. A model
whose head reads other tokens would answer otherwise; a trial when the model is prepared finds that out, and leaves it alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedelta.models.layer_stack import attends_by_sdpa, is_plain_pass, transformer_layers
from fedelta.models.packing import packing_of
from fedelta.models.passes import FastPass, PassSettings, Trained
from fedelta.models.trial import kept_if_harmless

SETTING, ORDER = "compact", 3  # after `no_padding`, so that it is tried on packed layers, as they will run

Attended: TypeAlias = Callable[[nn.Module, nn.Module, nn.Module], Tensor]
"""(query, key and value layers) -> what the first tokens gather (B, 1, d)."""


def install(model: Trained, settings: PassSettings) -> FastPass | None:
    """Cuts the last layer, unless the base's own dropout would draw for whole grids."""
    return cut_to_first_tokens(model.module) if settings.compact and not settings.base_dropout else None


def cut_to_first_tokens(module: nn.Module) -> LastLayerCut | None:
    """Cuts a model's last layer; returns None for a model that this does not suit or that answers otherwise."""
    if not attends_by_sdpa(module) or not fits(transformer_layers(module)[-1]):
        return None
    return kept_if_harmless(module, lambda: LastLayerCut(module))


class LastLayerCut(FastPass):
    """Runs the last layer of a model as `FirstToken`, until `remove`, in the passes that `is_plain_pass` names.

    Args:
        module: a transformers model whose layers attend by "sdpa", and whose last one `fits`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.layers = transformer_layers(module)
        self._handles = [
            module.register_forward_pre_hook(self._before, with_kwargs=True),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: Any, args: Any, inputs: dict[str, Any]) -> None:
        if is_plain_pass(module, self.layers, inputs):
            self.layers[-1].forward = FirstToken(self.layers[-1])

    def _after(self, *_: Any) -> None:
        # After every pass, so that whoever looks at the layer between two passes finds it as it was.
        if isinstance(vars(self.layers[-1]).get("forward"), FirstToken):
            del self.layers[-1].forward


class FirstToken:
    """The forward pass of such a layer; takes a grid (B, L, d) or packed tokens, and gives (B, 1, d).

    Args:
        layer: of BERT and its relatives, or of DistilBERT; see `fits`.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer: Any = layer
        self.finish = _bert if _is_bert(layer) else _distilbert

    def __call__(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **options: Any) -> Tensor:
        packing = packing_of(hidden_states)
        first = packing.first(hidden_states) if packing else hidden_states[:, :1]
        attention = self.layer.attention.self if _is_bert(self.layer) else self.layer.attention

        def attended(query: nn.Module, key: nn.Module, value: nn.Module) -> Tensor:
            split = lambda x: x.unflatten(-1, (-1, attention.attention_head_size))  # noqa: E731
            grid = lambda x: split(packing.unpack(x) if packing else x).transpose(1, 2)  # noqa: E731
            gathered, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](
                attention,
                split(query(first)).transpose(1, 2),
                grid(key(hidden_states)),
                grid(value(hidden_states)),
                None if attention_mask is None else attention_mask[:, :, :1],
                scaling=attention.scaling,
            )
            return gathered.flatten(2)

        return self.finish(self.layer, first, attended)


def fits(layer: nn.Module) -> bool:
    """Says if the layer has the parts that `FirstToken` puts together."""
    return _is_bert(layer) or _is_distilbert(layer)


def _is_bert(layer: Any) -> bool:
    own = getattr(getattr(layer, "attention", None), "self", None)
    parts = all(hasattr(own, name) for name in ("query", "key", "value", "attention_head_size", "scaling"))
    return parts and hasattr(layer, "feed_forward_chunk") and not getattr(layer, "is_decoder", False)


def _is_distilbert(layer: Any) -> bool:
    own = getattr(layer, "attention", None)
    parts = all(hasattr(own, name) for name in ("q_lin", "k_lin", "v_lin", "out_lin", "attention_head_size", "scaling"))
    return parts and all(hasattr(layer, name) for name in ("sa_layer_norm", "ffn", "output_layer_norm"))


def _bert(layer: Any, first: Tensor, attended: Attended) -> Tensor:
    own = layer.attention.self
    return layer.feed_forward_chunk(layer.attention.output(attended(own.query, own.key, own.value), first))


def _distilbert(layer: Any, first: Tensor, attended: Attended) -> Tensor:
    own = layer.attention
    after = layer.sa_layer_norm(own.out_lin(attended(own.q_lin, own.k_lin, own.v_lin)) + first)
    return layer.output_layer_norm(layer.ffn(after) + after)
