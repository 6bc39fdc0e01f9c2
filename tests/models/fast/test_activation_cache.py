"""Kept activations: the layers below what trains run once for an example, and the numbers stay what they were."""

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.models.bert.modeling_bert import BertLayer

from fedelta import tree
from fedelta.client import LocalClient, Training
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.fast.activation_cache import MIB, ActivationCache, Rows, Store
from fedelta.models.layer_stack import transformer_layers
from fedelta.models.lora_peers import peers_for
from fedelta.models.packing import Packing
from fedelta.models.peft import PeftAdaptedModel
from fedelta.peers import template_for
from fedelta.runs.base import load_adapted, peft_config
from fedelta.runs.config import load_config
from fedelta.tasks import Classification
from fedelta.tasks.task import IGNORED, pad_examples

PAD = 1
SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "num_labels": 3,
    "pad_token_id": PAD,
    "max_position_embeddings": 64,
}
DISTILBERT = {"vocab_size": 40, "dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 24, "num_labels": 3, "pad_token_id": PAD}
GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 4, "n_head": 2, "pad_token_id": PAD, "bos_token_id": 2, "eos_token_id": 2}
FAMILIES = {
    "bert": (lambda: BertForSequenceClassification(BertConfig(**SMALL)), ["query", "value"]),
    "roberta": (lambda: RobertaForSequenceClassification(RobertaConfig(**SMALL)), ["query"]),
    "distilbert": (lambda: DistilBertForSequenceClassification(DistilBertConfig(**DISTILBERT)), ["q_lin", "lin2"]),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), ["c_attn"]),
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=1)), ["q_proj", "down_proj"]),
}
LENGTHS = (3, 11, 7, 5, 4)


def adapted(name: str = "bert", *, make: Any = None, cache: int = 64, upper: Any = (2, 3), **settings: Any) -> PeftAdaptedModel:
    """A model of four layers in float64, adapted in the upper ones, always of the same weights."""
    build, targets = FAMILIES[name]
    torch.manual_seed(0)
    model = (make or build)().double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    options = {n: settings.pop(n) for n in ("compact", "base_dropout") if n in settings}
    upper = list(upper) if upper is not None else None
    lora = LoraConfig(**{"r": 2, "lora_alpha": 4, "target_modules": targets, "layers_to_transform": upper, **settings})
    return PeftAdaptedModel(model, lora, cache_activations=cache, **options)


def cache_of(model: PeftAdaptedModel) -> ActivationCache | None:
    return next((fast for fast in model.passes if isinstance(fast, ActivationCache)), None)


def lower(model: Any) -> nn.Module:
    """A part of the lowest layer that its pass cannot go without."""
    return next(m for m in transformer_layers(model)[0].modules() if isinstance(m, nn.LayerNorm) or "Norm" in type(m).__name__)


class RowsSeen:
    """How many rows the lowest layer has got since it was last asked."""

    def __init__(self, model: PeftAdaptedModel) -> None:
        self.rows = 0
        lower(model.module).register_forward_pre_hook(self._count)

    def _count(self, module: Any, args: Any) -> None:
        self.rows += args[0].numel() // args[0].shape[-1]

    def __call__(self) -> int:
        rows, self.rows = self.rows, 0
        return rows


def example(k: int, length: int) -> dict[str, Any]:
    ids = torch.randint(3, 40, (length,), generator=torch.Generator().manual_seed(k)).tolist()
    return {"input_ids": ids, "attention_mask": [1] * length, "label": k % 3}


def pad(examples: Any) -> Any:
    return pad_examples(examples, pad_token_id=PAD)


def inputs(lengths: Any = LENGTHS) -> dict[str, torch.Tensor]:
    batch = pad([example(k, n) for k, n in enumerate(lengths)])
    return {n: batch[n] for n in ("input_ids", "attention_mask")}


def loss(module: Any, batch: Any) -> torch.Tensor:
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if logits.ndim == 2:
        return F.cross_entropy(logits, batch["labels"])
    target = torch.where(batch["attention_mask"] > 0, batch["input_ids"], IGNORED)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), target.flatten(), ignore_index=IGNORED)


def clients(model: PeftAdaptedModel, ranks: Any = (2, 3, 1), dropout: float = 0.0) -> list[LocalClient]:
    """Three clients of unequal ranks and sizes, two epochs in a round."""
    config = LoraConfig(lora_alpha=4, lora_dropout=dropout)
    parts = [[example(10 * k + j, 3 + (5 * j + k) % 9) for j in range(4 + k)] for k in range(3)]
    peers = peers_for(ranks, config, [len(part) for part in parts], list(model.adapted_layers))
    common = model.initial(max(peers, key=lambda p: p.rank))
    for x in common.layers.values():
        x.B.copy_(0.1 * torch.randn(x.B.shape, generator=torch.Generator().manual_seed(3)))  # so that no gradient is zero
    training = Training(batch_size=3, learning_rate=0.01, local_epochs=2)
    return [LocalClient(p, template_for(p, common), model, parts[p.id], pad, loss, training) for p in peers]


def logits(model: PeftAdaptedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """At real tokens."""
    model.mode(None)
    with torch.inference_mode():
        found = model.module(**batch).logits
    return found[batch["attention_mask"].bool()] if found.ndim == 3 else found


def gap(found: Any, expected: Any) -> float:
    """The largest relative difference of any tensor of two runs' states and uploads, by its norm."""
    values = [
        [x for r in run for part in (r.state, *(u.content for u in r.updates)) for _, x in tree.named_tensors(part)]
        for run in (found, expected)
    ]
    return max(float((x - y).norm() / y.norm().clamp(min=1e-12)) for x, y in zip(*values, strict=True) if x.is_floating_point())


def run(model: PeftAdaptedModel, engine: str = "sequential", method: str = "flexlora", **options: Any) -> Any:
    return list(federate(get_method(method), clients(model, **options), rounds=2, engine=engine, debug=True))


# --- the same numbers from less work ---------------------------------------------------------------------------------


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_the_same_and_each_example_passes_the_lower_layers_once(name, compact):
    model = adapted(name, compact=compact)
    seen = RowsSeen(model)
    client = clients(model)[1]
    one = client.train(0, client.template)
    assert seen() > 0
    again = client.train(1, one.adapter)
    assert seen() == 0
    plain = clients(adapted(name, compact=compact, cache=0))[1]
    other = plain.train(0, plain.template)
    for found, expected in ((one, other), (again, plain.train(1, other.adapter))):
        for (n, x), (_, y) in zip(tree.named_tensors(found.adapter), tree.named_tensors(expected.adapter), strict=True):
            assert float((x - y).norm()) <= 1e-9 * float(y.norm()), n


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", FAMILIES)
def test_joint_passes_train_as_clients_alone_do(name, dropout):
    model = adapted(name, lora_dropout=dropout)
    seen = RowsSeen(model)
    batched = run(model, "batched", dropout=dropout)
    once = seen()
    assert 0 < once <= 2 * sum(len(e["input_ids"]) for c in clients(model) for e in c.examples)  # of four epochs
    assert gap(batched, run(model, dropout=dropout)) <= 1e-9
    assert seen() == 0, "what one engine computed serves the other"
    assert gap(batched, run(adapted(name, cache=0, lora_dropout=dropout), dropout=dropout)) <= 1e-9


@pytest.mark.parametrize("method", ["fedex_lora", "flora"])
def test_a_base_that_moves_does_so_above(method):
    model, ranks = adapted(), (2, 2, 2)
    assert gap(run(model, method=method, ranks=ranks), run(adapted(cache=0), method=method, ranks=ranks)) <= 1e-9
    assert cache_of(model).recalled > 0


def test_what_evaluation_computed_serves_training():
    model = adapted()
    client = clients(model)[0]
    batch = pad(client.examples)
    logits(model, {n: batch[n] for n in ("input_ids", "attention_mask")})  # in inference mode
    seen = RowsSeen(model)
    client.train(0, client.template)
    assert seen() == 0


def test_an_unknown_example_makes_the_whole_batch_run_once():
    model, plain = adapted(), adapted(cache=0)
    seen = RowsSeen(model)
    logits(model, inputs((3, 11)))
    assert seen() == 14
    for rows in (21, 0):
        torch.testing.assert_close(logits(model, inputs((3, 11, 7))), logits(plain, inputs((3, 11, 7))), rtol=1e-12, atol=1e-12)
        assert seen() == rows


def test_packed_and_padded_passes_serve_one_another():
    model, plain = adapted(), adapted(cache=0)
    packed, padded = inputs((3, 11, 7)), inputs((3, 3))
    padded["input_ids"][1] = packed["input_ids"][2, :3]
    assert Packing.of(packed["attention_mask"])
    assert not Packing.of(padded["attention_mask"])
    logits(model, packed)
    alone = {n: x[:1, :3] for n, x in packed.items()}
    seen = RowsSeen(model)
    torch.testing.assert_close(logits(model, alone), logits(plain, alone), rtol=1e-12, atol=1e-12)
    assert seen() == 0
    logits(model, padded)
    torch.testing.assert_close(logits(model, packed), logits(plain, packed), rtol=1e-12, atol=1e-12)
    assert seen() == 6


def test_choices_are_rows():
    batch = {n: x.reshape(2, 2, -1) for n, x in inputs((3, 11, 7, 5)).items()}
    model, plain = (adapted(make=lambda: BertForMultipleChoice(BertConfig(**SMALL)), cache=n) for n in (64, 0))
    seen = RowsSeen(model)
    for rows in (44, 0):
        torch.testing.assert_close(model.module(**batch).logits, plain.module(**batch).logits, rtol=1e-12, atol=1e-12)
        assert seen() == rows


# --- what is kept, and for how long ----------------------------------------------------------------------------------


def test_the_store_stays_within_its_budget_and_drops_what_was_asked_for_longest_ago(caplog):
    store, x = Store(250), torch.zeros(2, 5, dtype=torch.float64)
    for key in (b"a", b"b", b"c"):
        store.keep(key, x)
    assert len(store.find([b"c", b"b", b"c"])) == len(store) == 3
    assert store.size == 240
    assert store.find([b"unknown", b"a"]) is None
    store.keep(b"d", x)
    store.keep(b"huge", torch.zeros(100))
    assert store.size == 240
    assert [store.find([k]) is not None for k in (b"a", b"b", b"c", b"d", b"huge")] == [True, False, True, True, False]
    store.keep(b"e", x)
    assert caplog.text.count("is full with 3 examples") == 1
    assert "cache_activations" in caplog.text


def test_what_is_kept_is_a_copy_without_a_graph():
    store, x = Store(1000), torch.ones(8, 2, requires_grad=True) * 2
    store.keep(b"a", x[:1])
    [kept] = store.find([b"a"])
    assert not kept.requires_grad
    assert kept.untyped_storage().nbytes() == 8


def test_the_budget_is_in_mib_of_what_a_run_keeps():
    model = adapted()
    logits(model, inputs())
    store = cache_of(model).store
    assert (store.budget, len(store), store.size) == (64 * MIB, 5, sum(LENGTHS) * 16 * 8)


def changed_in_place(model: Any) -> None:
    with torch.no_grad():
        transformer_layers(model)[1].output.dense.weight.mul_(1.5)


def replaced(model: Any) -> None:
    dense = transformer_layers(model)[0].output.dense
    dense.weight = nn.Parameter(dense.weight.detach() * 1.5, requires_grad=False)


def swapped(model: Any) -> None:
    norm = transformer_layers(model)[1].output
    norm.LayerNorm = nn.LayerNorm(16, dtype=torch.float64)


def other_embeddings(model: Any) -> None:
    weight = model.get_input_embeddings().weight
    model.get_input_embeddings().load_state_dict({"weight": weight.flip(0)})


@pytest.mark.parametrize("change", [changed_in_place, replaced, swapped, other_embeddings])
def test_nothing_is_served_after_a_change_below(change):
    model, plain = adapted(), adapted(cache=0)
    before = logits(model, inputs())
    change(model.module)
    change(plain.module)
    found, expected = logits(model, inputs()), logits(plain, inputs())
    assert not torch.allclose(before, expected)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_change_above_forgets_nothing():
    model = adapted()
    logits(model, inputs())
    seen = RowsSeen(model)
    for layer in model.live().layers.values():
        layer.B.data.fill_(0.3)
    found = logits(model, inputs())
    assert seen() == 0
    plain = adapted(cache=0)
    plain.load(model.live())
    torch.testing.assert_close(found, logits(plain, inputs()), rtol=1e-12, atol=1e-12)


def test_rows_are_known_by_tokens_types_and_places():
    batch = inputs((3, 5))
    keys = Rows.of(batch).keys
    longer = {n: F.pad(x, (0, 4), value=0) for n, x in batch.items()}
    assert (
        Rows.of(longer).keys == keys == [k for r in (0, 1) for k in Rows.of({n: x[r : r + 1] for n, x in batch.items()}).keys]
    )
    left = {n: x.roll(4, dims=1) for n, x in longer.items()}
    types = {**batch, "token_type_ids": torch.zeros(2, 5, dtype=torch.long)}
    positions = {**batch, "position_ids": torch.arange(5)[None]}
    others = [left, types, positions, {**types, "token_type_ids": positions["position_ids"]}]
    found = [keys, *(Rows.of(other).keys for other in others)]
    assert len({k for ks in found for k in ks}) == 10


# --- where it keeps out ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason", ["hidden states", "attentions", "key-value cache", "embeddings", "training", "checkpointing"]
)
def test_other_passes_run_all_layers(reason):
    model = adapted("llama")
    seen, batch = RowsSeen(model), dict(inputs())
    asked = {
        "hidden states": {"output_hidden_states": True},
        "attentions": {"output_attentions": True},
        "key-value cache": {"use_cache": True},
    }
    batch.update(asked.get(reason, {}))
    if reason == "embeddings":
        batch["inputs_embeds"] = model.module.get_input_embeddings()(batch.pop("input_ids"))
    if reason == "checkpointing":
        model.module.gradient_checkpointing_enable()
    model.module.train(reason == "training")
    with torch.no_grad():
        model.module(**batch)
        assert seen() > 0
        model.module(**batch)
    assert seen() > 0
    assert len(cache_of(model).store) == 0


class Rolling(BertLayer):
    """Mixes tokens outside its attention, padding too."""

    def forward(self, hidden_states: Any, *args: Any, **options: Any) -> Any:
        return super().forward(hidden_states.roll(1, dims=1), *args, **options)


def rolling() -> Any:
    model = FAMILIES["bert"][0]()
    model.bert.encoder.layer[0] = Rolling(model.config)
    return model


BELOW, ALONE = "nothing lies below what trains", "do not compute each example's tokens by themselves"
LESS = {
    "all layers": ({"upper": None}, BELOW),
    "the embeddings": ({"target_modules": ["query", "word_embeddings"], "upper": None}, BELOW),
    "a module in the lowest layer": ({"modules_to_save": ["layer.0.output.LayerNorm"]}, BELOW),
    "tokens are mixed": ({"make": rolling}, ALONE),
}


@pytest.mark.parametrize("reason", LESS)
def test_a_model_that_gains_nothing_says_so_once(reason, caplog):
    settings, words = LESS[reason]
    with caplog.at_level(logging.WARNING, "fedelta.models"):
        model = adapted(**settings)
    assert cache_of(model) is None
    assert caplog.text.count("cache_activations has no effect") == 1
    assert words in caplog.text
    torch.testing.assert_close(logits(model, inputs()), logits(adapted(**{**settings, "cache": 0}), inputs()))


def test_a_trained_module_counts_as_adapted():
    model = adapted(modules_to_save=["layer.1.output.LayerNorm"])
    assert len(cache_of(model)._skipped) == 1
    assert cache_of(model).recalled == len(cache_of(model).store) == 0


def test_a_model_of_images_says_that_it_has_no_tokens(caplog):
    sizes = {n: v for n, v in SMALL.items() if n not in ("vocab_size", "pad_token_id", "max_position_embeddings")}
    model = adapted(
        make=lambda: ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)), target_modules=["q_proj"]
    )
    assert cache_of(model) is None
    assert "token ids" in caplog.text


def test_dropout_of_the_base_is_refused():
    with pytest.raises(ValueError, match=r"base_dropout .* cache_activations to 0"):
        adapted(base_dropout=True)


def test_a_failure_leaves_nothing_behind():
    model = adapted()
    logits(model, inputs())
    handle = model.module.classifier.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logits(model, inputs())
    handle.remove()
    assert not any("forward" in vars(layer) for layer in transformer_layers(model.module))


def test_unload_takes_it_out():
    model = adapted()
    model.unload()
    assert not model.module._forward_pre_hooks
    assert not any(layer._forward_hooks for layer in transformer_layers(model.module))


def test_a_config_asks_for_it(tiny_config):
    asked = {**tiny_config, "model": {**tiny_config["model"], "cache_activations": 8}}
    asked["lora"] = {**tiny_config["lora"], "target_modules": r".*layer\.1\..*query"}
    config = load_config(asked)
    task = Classification(labels=("cats", "dogs"))
    model, _ = load_adapted(config.model, task, peft_config(config.lora), device=config.device, seed=config.seed)
    assert cache_of(model).store.budget == 8 * MIB
