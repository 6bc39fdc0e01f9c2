"""Names a frozen base by a digest, equal for equal architecture, weights, tokenizer and targets, wherever it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

VOLATILE = frozenset(
    {
        "_name_or_path",
        "transformers_version",
        "architectures",
        "dtype",
        "torch_dtype",
        "use_cache",
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "pad_token_id",
        "finetuning_task",
        "attn_implementation",
        "_attn_implementation",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
    }
)
"""Entries of a config that say where a model came from, how it is run, or what its (trained) head predicts."""

WHOLE = 1 << 29
"""The number of weights up to which all are hashed; of a larger model only blocks, spread evenly over each tensor."""

BLOCKS, BLOCK = 64, 2048
"""Blocks taken from each tensor of a large model, and weights in a block."""


def fingerprint(model: nn.Module, tokenizer: Any, targets: Collection[str], heads: Collection[str] = ()) -> str:
    """Returns 16 hexadecimal digits that name a base.

    Floating-point weights are rounded to bfloat16, so that a base has one name in every precision that it may be loaded in. A
    base that is quantised to integers is another one.

    Args:
        model: a transformers model, plain or with its adapter injected: both give the same digits.
        tokenizer: its vocabulary counts; None, or what prepares images, where there is none.
        targets: names of the layers that carry the adapter.
        heads: names of the tensors that train in full; their values do not count.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (_architecture(model), _vocabulary(tokenizer), sorted(targets)):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    for part in _weights(model, heads):
        digest.update(part)
    return digest.hexdigest()


def weights_digest(model: nn.Module, heads: Collection[str] = ()) -> str:
    """Returns 16 hexadecimal digits that name a base's weights alone, as `fingerprint` reads them."""
    digest = hashlib.blake2b(digest_size=8)
    for part in _weights(model, heads):
        digest.update(part)
    return digest.hexdigest()


def _weights(model: nn.Module, heads: Collection[str]) -> Iterator[bytes | memoryview]:
    tensors = sorted(base_tensors(model, heads), key=lambda item: item[0])
    sampled = sum(x.numel() for _, x in tensors) > WHOLE
    for name, x in tensors:
        yield json.dumps([name, list(x.shape)]).encode()
        yield _content(x, sampled)


def base_tensors(model: nn.Module, heads: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Yields the frozen tensors under the names that they have without PEFT's wrappers."""
    for name, x in [*model.named_parameters(), *model.named_buffers()]:
        plain = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if ".lora_" not in name and ".modules_to_save." not in name and plain not in heads:
            yield plain, x.detach()


def _architecture(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    if config is None:
        return {}
    return {k: v for k, v in config.to_diff_dict().items() if k not in VOLATILE}


def _vocabulary(tokenizer: Any) -> list[Any]:
    return sorted(tokenizer.get_vocab().items()) if hasattr(tokenizer, "get_vocab") else []


def _content(x: Tensor, sampled: bool) -> memoryview:
    """Returns a tensor's bytes in a common precision, or evenly spread blocks of them; none of one on the meta device."""
    if x.is_meta:
        return memoryview(b"")
    flat = x.reshape(-1)
    if sampled and flat.numel() > BLOCKS * BLOCK:
        starts = torch.linspace(0, flat.numel() - BLOCK, BLOCKS, dtype=torch.float64).long()
        flat = torch.cat([flat[k : k + BLOCK] for k in starts.tolist()])
    common = flat.to(torch.bfloat16) if flat.is_floating_point() else flat
    return common.contiguous().cpu().view(torch.uint8).numpy().data
