"""Compact passes (no padding, first tokens alone): the same from fewer rows, and full passes wherever that cannot be."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.models.bert.modeling_bert import BertLayer

from fedelta.models.fast.first_token import LastLayerCut, cut_to_first_tokens
from fedelta.models.fast.no_padding import NoPadding, without_padding
from fedelta.models.packing import current
from fedelta.models.passes import FastPass
from fedelta.models.patches import remove_all
from fedelta.models.peft import PeftAdaptedModel

PAD = 1
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
    "pad_token_id": PAD,
    "max_position_embeddings": 64,
}
DECODER = {**SMALL, "num_key_value_heads": 1}
DISTILBERT = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "num_labels": 3, "pad_token_id": PAD}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 2}

FIRST_TOKEN = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SMALL)),
    "electra": lambda: ElectraForSequenceClassification(ElectraConfig(**SMALL, embedding_size=16)),
    "distilbert": lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)),
}
PADDING = {
    "bert by token": lambda: BertForTokenClassification(BertConfig(**SMALL)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "llama classes": lambda: LlamaForSequenceClassification(LlamaConfig(**DECODER)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=8)),
}


def build(make: Any) -> Any:
    torch.manual_seed(0)
    model = make().double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def compacted(model: Any) -> list[FastPass]:
    """The passes that a model has got, in the order in which they are installed."""
    return [fast for make in (without_padding, cut_to_first_tokens) if (fast := make(model)) is not None]


def batch(lengths=(3, 11, 7, 5), left: bool = False) -> dict[str, torch.Tensor]:
    longest = max(lengths)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask = mask.flip(1) if left else mask
    ids = torch.randint(3, 40, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids.where(mask, PAD), "attention_mask": mask.long()}


def answer(model: Any, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The logits at real tokens, and the gradients of all parameters."""
    logits = model(**inputs).logits
    logits = logits[inputs["attention_mask"].bool()] if logits.ndim == 3 else logits
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(logits.square().sum(), [model.get_parameter(n) for n in names], allow_unused=True)
    return [logits.detach(), *(torch.zeros(()) if g is None else g for g in found)]


def rows_seen(layer: nn.Module, run: Any) -> int:
    """How many rows of the last dimension a layer gets while something runs."""
    seen = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].numel() // args[0].shape[-1]))
    run()
    handle.remove()
    return sum(seen)


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        if one.any() or other.any():
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("lengths", [(3, 11, 7, 5), (1, 9, 1, 1), (4, 4, 4)])
@pytest.mark.parametrize("name", [*FIRST_TOKEN, *PADDING])
def test_answers_and_gradients_are_those_of_a_full_pass(name, lengths):
    model = build({**FIRST_TOKEN, **PADDING}[name])
    inputs = batch(lengths)
    expected = answer(model, inputs)
    compact = compacted(model)
    assert [type(x) for x in compact] == ([NoPadding, LastLayerCut] if name in FIRST_TOKEN else [NoPadding])
    assert_equal(answer(model, inputs), expected)
    remove_all(compact)
    assert_equal(answer(model, inputs), expected)


@pytest.mark.parametrize("make", [without_padding, cut_to_first_tokens])
def test_either_pass_does_without_the_other(make):
    model, inputs = build(FIRST_TOKEN["bert"]), batch()
    expected = answer(model, inputs)
    assert make(model) is not None
    assert_equal(answer(model, inputs), expected)
    first, last = model.bert.encoder.layer
    rows = [rows_seen(x.intermediate.dense, lambda: model(**inputs)) for x in (first, last)]
    assert rows == ([26, 26] if make is without_padding else [44, 4])


def test_layers_see_the_real_tokens_and_the_last_one_finishes_the_first_of_each():
    model = build(FIRST_TOKEN["bert"])
    compacted(model)
    inputs = batch((3, 11, 7, 5))
    first, last = model.bert.encoder.layer
    seen = [rows_seen(x, lambda: model(**inputs)) for x in (first.intermediate.dense, last.attention.self.key)]
    assert seen == [26, 26]
    read = [rows_seen(x, lambda: model(**inputs)) for x in (last.attention.self.query, last.intermediate.dense)]
    assert read == [4, 4]


@pytest.mark.parametrize("reason", ["left padding", "no mask", "little padding", "hidden states", "training", "checkpointing"])
def test_other_passes_keep_their_padding(reason):
    model = build(PADDING["llama"])
    inputs = batch((11, 11, 11, 10) if reason == "little padding" else (3, 11, 7, 5), left=reason == "left padding")
    if reason == "no mask":
        del inputs["attention_mask"]
    if reason == "hidden states":
        inputs["output_hidden_states"] = True
    if reason == "checkpointing":
        model.gradient_checkpointing_enable()
    model.train(reason == "training")
    compacted(model)
    assert rows_seen(model.model.layers[0].mlp.up_proj, lambda: model(**inputs)) == 44


class Rolling(BertLayer):
    """Mixes tokens outside its attention."""

    def forward(self, hidden_states, *args, **options):
        return super().forward(hidden_states.roll(1, dims=1), *args, **options)


class Mean(nn.Module):
    """A pooler that reads all tokens."""

    def forward(self, hidden_states):
        return hidden_states.mean(1)


def rolling() -> Any:
    model = FIRST_TOKEN["bert"]()
    model.bert.encoder.layer[0] = Rolling(model.config)
    return model


def averaging() -> Any:
    model = FIRST_TOKEN["bert"]()
    model.bert.pooler = Mean()
    return model


@pytest.mark.parametrize(("make", "left"), [(rolling, [LastLayerCut]), (averaging, [])])
def test_an_architecture_whose_answers_would_change_is_left_alone(make, left):
    model = build(make)
    inputs = batch()
    expected = answer(model, inputs)
    assert [type(x) for x in compacted(model)] == left
    assert_equal(answer(model, inputs), expected)


def test_models_of_other_kinds_are_left_alone():
    shared = AlbertForSequenceClassification(AlbertConfig(**SMALL, embedding_size=16))  # one layer, run several times
    eager = BertForSequenceClassification._from_config(BertConfig(**SMALL), attn_implementation="eager")
    assert not any(compacted(model) for model in (shared, eager, nn.Linear(2, 2)))


def test_a_model_of_which_nothing_can_be_left_out_is_left_alone():
    """Falcon's layers ask for their whole grid, and it has no head that reads first tokens."""
    model = build(lambda: FalconForCausalLM(FalconConfig(**SMALL)))
    assert not compacted(model)
    assert not model._forward_pre_hooks


def test_a_failure_leaves_nothing_behind():
    model = build(FIRST_TOKEN["bert"])
    compacted(model)
    handle = model.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch())
    handle.remove()
    assert current.get() is None
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(m) for m in model.modules())


def test_adapter_dropout_draws_the_same_with_and_without_padding():
    inputs, found = batch(), []
    for compact in (True, False):
        lora = LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.5, task_type="SEQ_CLS")
        adapted = PeftAdaptedModel(build(FIRST_TOKEN["bert"]), lora, compact=compact)
        adapted.live().layers["bert.encoder.layer.0.attention.self.value"].B.data.fill_(1.0)
        adapted.mode(torch.Generator().manual_seed(3))
        with torch.no_grad():
            found.append(adapted.module(**inputs).logits)
        adapted.unload()
        assert not adapted.module._forward_pre_hooks
    torch.testing.assert_close(*found)


def test_a_model_that_is_not_one_stack_of_layers_is_refused_quietly():
    model = build(FIRST_TOKEN["bert"])
    model.bert.encoder.layer.append(nn.Identity())
    assert not compacted(model)
