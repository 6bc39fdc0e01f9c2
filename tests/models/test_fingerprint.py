"""A base's fingerprint: the same wherever the base comes from, another for anything that makes another base."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fedelta.models import fingerprint as module
from fedelta.models.fingerprint import fingerprint
from fedelta.models.peft import PeftAdaptedModel

TARGETS = ["bert.encoder.layer.0.attention.self.query"]
HEADS = ["classifier.weight", "classifier.bias"]


def test_it_does_not_depend_on_the_path(linear, tokenizer, tmp_path):
    model = linear.model()
    for name in ("a", "b"):
        model.save_pretrained(tmp_path / name)
    loaded = [AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("a", "b")]
    assert len({fingerprint(m, tokenizer, TARGETS, HEADS) for m in (model, *loaded)}) == 1


def test_it_does_not_depend_on_heads_or_on_pefts_wrappers(case, tokenizer):
    model, other = case.model(), case.model()
    adapted = PeftAdaptedModel(model, case.lora(), tokenizer)
    live = adapted.live()
    for name in live.dense:
        torch.nn.init.normal_(other.get_parameter(name))
    assert adapted.fingerprint == fingerprint(other, tokenizer, live.layers, live.dense)
    adapted.load(adapted.initial(case.peer(7), seed=3))
    assert adapted.fingerprint == fingerprint(adapted.module, tokenizer, live.layers, live.dense)


def test_it_depends_on_weights_architecture_tokenizer_and_targets(linear, tokenizer):
    def of(change=lambda model: None, tokenizer=tokenizer, targets=TARGETS):
        model = linear.model()
        change(model)
        return fingerprint(model, tokenizer, targets, HEADS)

    def nudge(model):
        model.bert.encoder.layer[1].output.dense.weight.data[3, 4] += 1e-2

    prints = [
        of(),
        of(nudge),
        of(lambda m: setattr(m.config, "num_attention_heads", 4)),
        of(lambda m: setattr(m.config, "hidden_act", "relu")),
        of(tokenizer=None),
        of(targets=[TARGETS[0].replace("query", "key")]),
    ]
    assert len(set(prints)) == len(prints)
    assert of() == prints[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_it_does_not_depend_on_the_precision_that_a_base_is_loaded_in(linear, tokenizer, dtype):
    model = linear.model()
    assert fingerprint(model, tokenizer, TARGETS, HEADS) == fingerprint(linear.model().to(dtype), tokenizer, TARGETS, HEADS)


@pytest.mark.parametrize(("volatile", "value"), [("use_cache", False), ("_name_or_path", "b"), ("pad_token_id", 3)])
def test_it_does_not_depend_on_how_a_model_is_run(linear, volatile, value):
    model, other = linear.model(), linear.model()
    setattr(other.config, volatile, value)
    assert fingerprint(model, None, TARGETS, HEADS) == fingerprint(other, None, TARGETS, HEADS)


def test_a_large_model_is_sampled_evenly(linear, monkeypatch):
    model = linear.model()
    full = fingerprint(model, None, TARGETS, HEADS)
    monkeypatch.setattr(module, "WHOLE", 0)
    monkeypatch.setattr(module, "BLOCKS", 4)
    monkeypatch.setattr(module, "BLOCK", 64)
    sampled = fingerprint(model, None, TARGETS, HEADS)
    assert sampled != full
    assert sampled == fingerprint(linear.model(), None, TARGETS, HEADS)
    model.bert.encoder.layer[1].output.dense.weight.data[-1, -1] += 1  # the ends are always among the blocks
    assert sampled != fingerprint(model, None, TARGETS, HEADS)
