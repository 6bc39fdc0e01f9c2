"""A base in 4 or 8 bits on a CPU: what bitsandbytes does there to layers in evaluation mode must not cost their gradients."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from fedelta import tree
from fedelta.client import Request
from fedelta.engines.runners._joint import train_together
from fedelta.method import TrainResult
from fedelta.models.clients import hf_clients
from fedelta.models.loading import load_model
from fedelta.models.quantised import REPACKS, kept_differentiable
from fedelta.models.trainer.client import TrainerClient
from fedelta.models.trainer.model import TrainerModel
from fedelta.tasks import get_task
from fedelta.tree import Adapter

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


SIZES = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
LORA: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "lora_alpha": 8}

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install bitsandbytes"
)


def quantised(folder: Path, tokenizer: Any, bits: Any) -> tuple[Any, Any]:
    """A tiny language model in few bits, and its tokenizer."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **SIZES)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), get_task("instruction"), device="cpu", quantization=bits)


def ask(module: Any, tokens: Any) -> None:
    """Asks a model as evaluation does, without gradients, which is when layers are repacked."""
    module.eval()
    with torch.no_grad():
        module(**tokens(["1 2"], return_tensors="pt", return_token_type_ids=False))


@needs_bitsandbytes
@pytest.mark.parametrize(("bits", "dtype"), [("4bit", torch.uint8), ("8bit", torch.int8)])
def test_a_quantised_base_trains_on_a_cpu_alone_and_together(
    bits: str, dtype: torch.dtype, tmp_path: Path, tokenizer: Any
) -> None:
    """After it was scored, too."""
    model, tokens = quantised(tmp_path, tokenizer, bits)
    assert {p.dtype for name, p in model.named_parameters() if "q_proj" in name} == {dtype}
    settings: dict[str, Any] = {"task": "instruction", "device": "cpu", "local_steps": 8, "learning_rate": 0.02}
    clients = hf_clients(model, tokens, [ROWS, ROWS[:1]], LoraConfig(**LORA), 2, **settings)
    adapted = clients[0].model
    adapted.load(clients[0].template)
    adapted.mode(None)
    ask(adapted.module, tokens)
    alone = [client.train(0, client.template) for client in clients]
    together = train_together(clients, [Request(0, client.template) for client in clients])
    for client, one, other in zip(clients, alone, together, strict=True):
        assert isinstance(other, TrainResult)
        assert not unmoved(one, client.template), "a layer has no gradient"
        assert other.loss == pytest.approx(one.loss, rel=1e-2)  # the base computes in half precision
        again = client.train(1, one.adapter)
        assert again.loss < one.loss


@needs_bitsandbytes
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_trainers_quantised_base_learns_after_it_was_asked(bits: str, tmp_path: Path, tokenizer: Any) -> None:
    base, tokens = quantised(tmp_path, tokenizer, bits)
    model = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **LORA))
    ids = torch.tensor([4, 5, 6, 7])
    rows: Any = [{"input_ids": ids + k, "labels": ids + k} for k in range(4)]
    off: dict[str, Any] = {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path / "out"), learning_rate=0.02, max_steps=8, **off)
    client = TrainerClient(0, lambda _: Trainer(model, arguments, train_dataset=rows, data_collator=default_data_collator))
    ask(model, tokens)
    first = client.train(0, client.template)
    assert not unmoved(first, client.template), "a layer has no gradient"
    assert client.train(1, first.adapter).loss < first.loss


@needs_bitsandbytes
def test_a_trainers_base_that_was_repacked_before_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    base, tokens = quantised(tmp_path, tokenizer, "4bit")
    if not any(getattr(layer, REPACKS, False) for layer in base.modules()):
        pytest.skip("this CPU has no bfloat16 instructions, for which layers are repacked")
    model: Any = get_peft_model(base, LoraConfig(r=2, task_type="CAUSAL_LM", **LORA))
    ask(model, tokens)
    with pytest.raises(ValueError, match="was repacked by bitsandbytes for answers alone"):
        TrainerModel(model, "client 0")


def unmoved(result: TrainResult, start: Adapter) -> list[str]:
    """The tensors that training left as they were."""
    before = tree.parameters(start)
    return [name for name, value in tree.parameters(result.adapter).items() if torch.equal(value, before[name])]
