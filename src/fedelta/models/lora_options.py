"""Refuses the options of a LoRA configuration that mean anything but  W + scale * B @ A  on an unchanged base."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "use_dora": "DoRA trains a magnitude that is not linear in B A, so it has no mean; set use_dora=False",
        "use_qalora": "QA-LoRA pools the input of A; set use_qalora=False",
        "use_bdlora": "block-diagonal factors are not LoRA factors; leave use_bdlora unset",
        "lora_bias": "a bias on B is not part of B A; set lora_bias=False",
        "layer_replication": "replicated layers share a base weight; leave layer_replication unset",
        "target_parameters": "bare parameters carry no layer of their own; name modules in target_modules instead",
        "trainable_token_indices": "single tokens are not LoRA factors; target the embedding module instead",
        "megatron_config": "Megatron's parallel layers are split over processes; leave megatron_config unset",
        "alora_invocation_tokens": "an adapter that is active for some tokens only has no single delta; leave it unset",
        "velora_config": "VeLoRA changes the backward pass; leave velora_config unset",
        "monteclora_config": "MonteCLoRA samples its factors; leave monteclora_config unset",
        "arrow_config": "a router over several adapters has no single delta; leave arrow_config unset",
        "kasa_config": "KaSA rewrites the base weight; leave kasa_config unset",
        "ensure_weight_tying": "tied weights cannot carry a delta each; set ensure_weight_tying=False",
    }
)
"""By option: why it is refused where it is set, and the remedy."""

CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract from the base weight: their B A means nothing on the published base."""


def check_options(config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, naming the option and the remedy, for a LoRA configuration that is not plain LoRA.

    Args:
        config: a `LoraConfig` as a mapping, or the content of an adapter_config.json.
        where: names the configuration in the message.
    """
    kind = getattr(config.get("peft_type"), "value", config.get("peft_type"))
    if kind != "LORA":
        raise ValueError(f"{where} has peft_type {kind!r}; only LORA adapters have a delta B A that can be aggregated")
    for option, reason in REFUSED.items():
        if config.get(option):
            raise ValueError(f"{where} sets {option}={config[option]!r}: {reason}")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{where} sets bias={config['bias']!r}: trained biases of the base are not supported; set bias='none'")
    init = str(config.get("init_lora_weights", True)).lower()
    if init.startswith(CHANGES_BASE):
        raise ValueError(
            f"{where} sets init_lora_weights={init!r}, which changes the base weights, so that clients no longer share one "
            "base; leave it True, or convert the adapter to plain LoRA with PEFT when saving it"
        )


def check_training_options(config: Mapping[str, Any]) -> None:
    """Checks as `check_options` does, and refuses initialisations, which a new adapter would silently not follow."""
    check_options(config, "the LoRA configuration")
    init = config.get("init_lora_weights", True)
    if init is not True:
        raise ValueError(
            f"the LoRA configuration sets init_lora_weights={init!r}, but all clients start from one common adapter that is "
            "drawn from the seed; leave it True, or pass a start of your own to the engine"
        )
