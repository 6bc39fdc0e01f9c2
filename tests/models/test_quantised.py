"""A base in 4 bits on a CPU: what bitsandbytes does there to layers in evaluation mode must not cost their gradients."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fedelta import tree
from fedelta.client import Request
from fedelta.engines.runners._joint import train_together
from fedelta.method import TrainResult
from fedelta.models.clients import hf_clients
from fedelta.models.loading import load_model
from fedelta.models.quantised import REPACKS, kept_differentiable
from fedelta.tasks import get_task

ROWS = [{"instruction": "1 2 3", "response": "4 5"}, {"instruction": "6", "response": "7 8 9"}]


def layer(packed: bool) -> nn.Module:
    """A stand-in for a layer of bitsandbytes, as far as it is asked."""
    found: Any = nn.Module()
    found.weight = SimpleNamespace(quant_state=SimpleNamespace(packing_format_for_cpu=packed))
    setattr(found, REPACKS, True)
    return found


def test_layers_are_not_repacked_until_it_is_undone() -> None:
    model = nn.Sequential(layer(packed=False), nn.Linear(2, 2))
    (undo,) = kept_differentiable(model)
    assert getattr(model[0], REPACKS) is False
    undo.remove()
    assert getattr(model[0], REPACKS) is True


def test_a_model_that_was_repacked_before_is_refused_by_its_layer() -> None:
    model = nn.Sequential(layer(packed=False), layer(packed=True))
    with pytest.raises(ValueError, match=r"layer '1' was repacked by bitsandbytes for answers alone.*: load the model again"):
        kept_differentiable(model)
    assert getattr(model[0], REPACKS) is True, "nothing is changed in a model that is refused"


def quantised(folder: Path, tokenizer: Any) -> tuple[Any, Any]:
    """A tiny language model in 4 bits, and its tokenizer."""
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), get_task("instruction"), device="cpu", quantization="4bit")


def test_a_base_in_4_bits_trains_on_a_cpu_alone_and_together(tmp_path: Path, tokenizer: Any) -> None:
    """After it was scored, too: in evaluation mode and without gradients, which is when layers are repacked."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install bitsandbytes")
    model, tokens = quantised(tmp_path, tokenizer)
    assert {p.dtype for name, p in model.named_parameters() if "q_proj" in name} == {torch.uint8}
    lora = LoraConfig(target_modules=["q_proj", "v_proj"], lora_alpha=8)
    settings: dict[str, Any] = {"task": "instruction", "device": "cpu", "local_steps": 8, "learning_rate": 0.02}
    clients = hf_clients(model, tokens, [ROWS, ROWS[:1]], lora, 2, **settings)
    adapted = clients[0].model
    adapted.load(clients[0].template)
    adapted.mode(None)
    with torch.no_grad():
        adapted.module(**tokens(["1 2"], return_tensors="pt", return_token_type_ids=False))
    alone = [client.train(0, client.template) for client in clients]
    together = train_together(clients, [Request(0, client.template) for client in clients])
    for client, one, other in zip(clients, alone, together, strict=True):
        assert isinstance(other, TrainResult)
        moved = tree.parameters(one.adapter)
        start = tree.parameters(client.template)
        assert all(not torch.equal(value, start[name]) for name, value in moved.items()), "a layer has no gradient"
        assert other.loss == pytest.approx(one.loss, rel=1e-2)  # the base computes in bfloat16
        again = client.train(1, one.adapter)
        assert again.loss < one.loss
