"""The adapted model: any rank in place, one common start, dropout of its own, and what it refuses."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.lowrank import LoRA
from fedelta.models.adapter_files import save_adapter
from fedelta.models.dropout import SeededDropout
from fedelta.models.peft import PeftAdaptedModel
from fedelta.peers import Peer


@pytest.mark.parametrize("rank", [1, 3, 4, 20])
def test_a_loaded_adapter_adds_its_delta_to_the_weights(case, randomised, logits, ids, rank):
    """Any rank and scale, above the layer's dimensions too: the logits are those of the densely merged model."""
    adapted, plain = case.adapted(), case.model()
    adapter = randomised(adapted.initial(case.peer(rank)))
    adapter = tree.map_named(lambda n, x: LoRA(x.B, x.A, 0.1 + len(n) / 100), adapter)
    adapted.load(adapter)
    adapted.mode(None)
    with torch.no_grad():
        for name, x in adapter.layers.items():
            layer = plain.get_submodule(name)
            layer.weight += x.dense().T if type(layer).__name__ in ("Conv1D", "Embedding") else x.dense()
        for name, value in adapter.dense.items():
            plain.get_parameter(name).copy_(value)
    torch.testing.assert_close(logits(adapted.module, ids), logits(plain, ids), atol=1e-5, rtol=1e-5)
    assert {x.rank for x in adapted.live().layers.values()} == {rank}


@pytest.mark.parametrize("name", ["linear", "embedding"])
def test_one_seed_gives_one_A_whatever_the_dtype_of_the_base(name, request):
    case = request.getfixturevalue(name)
    narrow = case.adapted().initial(case.peer(3), seed=5)
    wide = PeftAdaptedModel(case.model().double(), case.lora()).initial(case.peer(3), seed=5)
    half = PeftAdaptedModel(case.model().to(torch.bfloat16), case.lora()).initial(case.peer(3), seed=5)
    for n, x in wide.layers.items():
        assert x.dtype == torch.float64
        assert torch.equal(x.A, narrow.layers[n].A.double())
        assert torch.equal(half.layers[n].A, narrow.layers[n].A)


def test_load_copies_and_live_is_what_trains(linear, randomised):
    adapted = linear.adapted()
    adapter = randomised(adapted.initial(linear.peer(4)))
    adapted.load(adapter)
    live = tree.parameters(adapted.live())
    owned = {id(p) for p in adapted.module.parameters() if p.requires_grad}
    assert {id(p) for p in live.values()} == owned
    for name, value in tree.parameters(adapter).items():
        assert torch.equal(live[name], value)
        assert live[name].data_ptr() != value.data_ptr()


def test_names_are_the_models_own(linear, embedding):
    assert sorted(linear.adapted().live().layers)[0] == "bert.encoder.layer.0.attention.self.query"
    assert sorted(linear.adapted().live().dense) == ["classifier.bias", "classifier.weight"]
    x = embedding.adapted().live().layers["bert.embeddings.word_embeddings"]
    assert x.shape == (16, 50)  # dW^T of the stored (num_embeddings, dim) weight


def test_the_base_is_neither_copied_nor_changed(case, randomised):
    model = case.model()
    before = {n: (p.data_ptr(), p.clone()) for n, p in model.named_parameters()}
    adapted = PeftAdaptedModel(model, case.lora())
    for rank in (2, 8, 3):
        adapted.load(randomised(adapted.initial(case.peer(rank))))
    adapted.unload()
    heads = set(adapted.live().dense)
    for name, p in model.named_parameters():
        if name not in heads:
            assert p.data_ptr() == before[name][0]
            assert torch.equal(p, before[name][1])


# --- the common start -------------------------------------------------------------------------------------------------


def test_a_smaller_rank_starts_with_the_leading_rows_of_a_larger_one(case):
    adapted = case.adapted()
    small, large = adapted.initial(case.peer(3), seed=5), adapted.initial(case.peer(40), seed=5)
    for name, x in small.layers.items():
        assert torch.equal(x.A, large.layers[name].A[:3])
        assert not x.B.any()
        assert x.A.abs().sum(1).min() > 0


def test_the_start_depends_on_the_seed_and_not_on_global_state(linear):
    adapted = linear.adapted()
    first = adapted.initial(linear.peer(4), seed=1)
    torch.rand(3)
    again, other = adapted.initial(linear.peer(4), seed=1), adapted.initial(linear.peer(4), seed=2)
    for name, x in first.layers.items():
        assert torch.equal(x.A, again.layers[name].A)
        assert not torch.equal(x.A, other.layers[name].A)


def test_the_start_is_distributed_like_pefts(linear):
    A = linear.adapted().initial(linear.peer(400)).layers["bert.encoder.layer.0.attention.self.query"].A
    bound = 16**-0.5
    assert A.abs().max() <= bound
    assert A.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)


def test_patterns_and_rslora_give_pefts_ranks_and_scales(linear):
    settings = {"use_rslora": True, "rank_pattern": {"query": 9}, "alpha_pattern": {r"layer\.1\.intermediate\.dense": 3}}
    reference = get_peft_model(linear.model(), linear.lora(r=5, **settings))
    initial = linear.adapted(**settings).initial(linear.peer(5, **settings))
    for name, x in initial.layers.items():
        layer = reference.get_base_model().get_submodule(name)
        assert (x.rank, x.scale) == (layer.r["default"], layer.scaling["default"])


# --- training and evaluation ------------------------------------------------------------------------------------------


def test_dropout_draws_from_the_given_generator_alone(linear, randomised, logits, ids):
    adapted = linear.adapted(lora_dropout=0.5)
    adapted.load(randomised(adapted.initial(linear.peer(4))))

    def run(seed: int) -> torch.Tensor:
        adapted.mode(torch.Generator().manual_seed(seed))
        torch.manual_seed(torch.seed() % 1000)
        return logits(adapted.module, ids)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    adapted.mode(None)
    assert torch.equal(logits(adapted.module, ids), logits(adapted.module, ids))
    assert not torch.equal(logits(adapted.module, ids), run(1))


def test_dropout_keeps_the_mean():
    dropout = SeededDropout(0.25)
    dropout.generator = torch.Generator().manual_seed(0)
    y = dropout(torch.ones(200, 200))
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="lora_dropout must be in"):
        SeededDropout(1.0)


def test_base_dropout_is_off_unless_asked_for(linear):
    def base_modes(adapted: PeftAdaptedModel) -> set[bool]:
        adapted.mode(torch.Generator())
        return {m.training for m in adapted.module.modules() if isinstance(m, nn.Dropout)}

    assert base_modes(linear.adapted()) == {False}
    assert base_modes(PeftAdaptedModel(linear.model(), linear.lora(), base_dropout=True)) == {True}


def test_base_dropout_is_seeded(linear, logits, ids):
    adapted = PeftAdaptedModel(linear.model(), linear.lora(), base_dropout=True)
    outputs = []
    for _ in range(2):
        adapted.mode(torch.Generator().manual_seed(3))
        outputs.append(logits(adapted.module, ids))
    assert torch.equal(*outputs)


def test_a_half_precision_base_trains_a_float32_adapter(linear):
    adapted = PeftAdaptedModel(linear.model().to(torch.bfloat16), linear.lora())
    adapted.load(tree.map_tensors(lambda t: t.to(torch.float64), adapted.initial(linear.peer(2))))
    assert {t.dtype for t in tree.parameters(adapted.live()).values()} == {torch.float32}


def test_a_head_trains_in_float32_on_a_half_precision_base(linear, randomised, logits, ids):
    model = linear.model().to(torch.bfloat16)
    adapted = PeftAdaptedModel(model, linear.lora())
    template = adapted.initial(linear.peer(2))
    assert {t.dtype for t in template.dense.values()} == {torch.float32}
    assert logits(adapted.module, ids).dtype == torch.float32
    adapted.load(randomised(template))
    found = logits(adapted.module, ids)
    whole = linear.adapted()
    whole.load(randomised(whole.initial(linear.peer(2))))
    assert (found - logits(whole.module, ids)).norm() < 0.02 * found.norm()
    adapted.unload()
    assert logits(model, ids).dtype == torch.bfloat16


@pytest.mark.parametrize("load", [False, True])
def test_each_tensor_of_a_head_gets_its_own_dtype_back(load, linear):
    model = linear.model().to(torch.bfloat16)
    head = model.classifier
    head.weight.data = head.weight.data.float() + 1e-5  # bfloat16 does not hold these values
    head.register_buffer("mean", torch.ones(3, dtype=torch.float64))
    before = {n: x.clone() for n, x in head.state_dict().items()}
    adapted = PeftAdaptedModel(model, linear.lora())
    if load:
        adapted.load(adapted.initial(linear.peer(2)))
    assert {x.dtype for x in model.classifier.modules_to_save["default"].state_dict().values()} == {torch.float32}
    adapted.unload()
    after = model.classifier.state_dict()
    assert {n: x.dtype for n, x in after.items()} == {n: x.dtype for n, x in before.items()}
    assert all(torch.equal(x, before[n]) for n, x in after.items())


def test_a_module_inside_a_half_precision_body_goes_on_in_its_dtype(llama, logits, ids):
    adapted = PeftAdaptedModel(llama.model().to(torch.bfloat16), llama.lora(modules_to_save=["norm"]))
    assert {t.dtype for t in tree.parameters(adapted.live()).values()} == {torch.float32}
    assert logits(adapted.module, ids).dtype == torch.bfloat16


def test_a_layout_in_memory_does_not_change_the_bits(linear, randomised, logits, ids):
    """Slices of a template, transposes out of a factorisation and tensors off the wire are the same numbers."""
    adapted = linear.adapted()
    adapter = randomised(adapted.initial(linear.peer(8)))
    sliced = tree.map(lambda x: lr.components(x, 0, 3), adapter)
    packed = tree.map_tensors(lambda t: t.contiguous().clone(), sliced)
    transposed = tree.map_tensors(lambda t: t.T.contiguous().T if t.ndim == 2 else t, sliced)
    outputs = []
    for one in (sliced, transposed, packed):
        adapted.load(one)
        assert all(t.is_contiguous() for t in tree.parameters(adapted.live()).values())
        adapted.mode(None)
        outputs.append(logits(adapted.module, ids))
    assert all(torch.equal(outputs[0], o) for o in outputs[1:])


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True: DoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changes the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base"),
        ({"init_lora_weights": "olora"}, "changes the base"),
        ({"init_lora_weights": "gaussian"}, "drawn from the seed"),
        ({"init_lora_weights": False}, "drawn from the seed"),
        ({"lora_bias": True}, "lora_bias=True: a bias on B"),
        ({"bias": "all"}, "bias='all'.*set bias='none'"),
        ({"layer_replication": [(0, 1), (0, 2)]}, "layer_replication"),
        ({"target_parameters": ["x.weight"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"megatron_config": {"a": 1}}, "megatron_config"),
        ({"use_qalora": True}, "use_qalora"),
    ],
)
def test_options_that_are_not_plain_lora_are_refused_by_name(linear, settings, message):
    with pytest.raises(ValueError, match=message):
        linear.adapted(**settings)


@pytest.mark.parametrize(("init", "extra"), [("corda", {}), ("eva", {}), ("lora_ga", {})])
def test_data_driven_initialisations_are_refused(linear, init, extra):
    with pytest.raises(ValueError, match=f"init_lora_weights='{init}'"):
        linear.adapted(init_lora_weights=init, **extra)


def test_loftq_is_refused(linear):
    config = linear.lora()
    config.init_lora_weights = "loftq"
    with pytest.raises(ValueError, match="init_lora_weights='loftq', which changes the base"):
        PeftAdaptedModel(linear.model(), config)


def test_another_kind_of_peft_is_refused(linear):
    config = linear.lora()
    config.peft_type = "IA3"
    with pytest.raises(ValueError, match="peft_type 'IA3'"):
        PeftAdaptedModel(linear.model(), config)


@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_a_tied_weight_is_refused_as_a_target_and_the_model_left_plain(conv1d, target):
    model = conv1d.model()
    with pytest.raises(ValueError, match=r"'transformer.wte' and 'lm_head' are tied.*tie_word_embeddings=False"):
        PeftAdaptedModel(model, LoraConfig(target_modules=[target, "c_attn"], task_type="CAUSAL_LM"))
    assert PeftAdaptedModel(model, conv1d.lora()).live().layers


def test_a_tied_head_is_refused_in_modules_to_save(conv1d):
    with pytest.raises(ValueError, match="are tied"):
        conv1d.adapted(modules_to_save=["lm_head"])


def distilbert():
    return DistilBertForSequenceClassification(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=24))


def t5():
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForSequenceClassification(T5Config(**sizes, decoder_start_token_id=0))


@pytest.mark.parametrize(
    ("build", "heads"),
    [(distilbert, ["classifier", "pre_classifier"]), (t5, ["classification_head"])],
    ids=["distilbert", "t5"],
)
def test_heads_of_other_names_train_in_full_beside_all_linear(build, heads, tmp_path):
    adapted = PeftAdaptedModel(build(), LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"))
    template = adapted.initial(Peer(0, 2, 1))
    assert sorted({n.split(".")[0] for n in template.dense}) == heads
    assert not any(n.startswith(tuple(heads)) for n in template.layers)
    assert adapted.layout.config["modules_to_save"] == heads
    save_adapter(template, tmp_path, like=adapted.layout)
    loaded = PeftModel.from_pretrained(build(), str(tmp_path))
    assert sum("modules_to_save" in n for n, _ in loaded.named_parameters()) == len(template.dense)


def test_a_head_that_the_model_lacks_is_named(linear):
    with pytest.raises(
        ValueError, match=r"names \['clasifier'\], which the model does not have; it has bert, dropout, classifier"
    ):
        linear.adapted(modules_to_save=["clasifier"])


@pytest.mark.filterwarnings("error")
def test_no_warning_of_pefts_reaches_the_user(case):
    config = case.lora(base_model_name_or_path="somebody/their-model", fan_in_fan_out=False)
    adapted = PeftAdaptedModel(case.model(), config)
    assert adapted.layout.config["base_model_name_or_path"] == "somebody/their-model"


def test_targets_that_match_nothing_are_answered_with_what_there_is(linear):
    model = linear.model()
    with pytest.raises(ValueError, match=r"\['q_proj'\].*Names that can be targeted here: .*key, .*query, .*value"):
        PeftAdaptedModel(model, linear.lora(target_modules=["q_proj"]))
    assert PeftAdaptedModel(model, linear.lora()).live().layers


def test_a_layer_without_a_matrix_is_refused():
    class Picture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    with pytest.raises(ValueError, match="'conv' is a Conv2d; only Linear, Conv1D and Embedding"):
        PeftAdaptedModel(Picture(), LoraConfig(target_modules=["conv"]))


def test_a_model_with_an_adapter_is_refused_and_unload_is_the_remedy(linear):
    model = linear.model()
    first = PeftAdaptedModel(model, linear.lora())
    with pytest.raises(ValueError, match=r"carries an adapter already; unload\(\)"):
        PeftAdaptedModel(model, linear.lora())
    first.unload()
    assert not any("lora" in n for n, _ in model.named_modules())
    assert PeftAdaptedModel(model, linear.lora()).fingerprint == first.fingerprint


def test_a_peft_model_is_refused(linear):
    wrapped = get_peft_model(linear.model(), linear.lora())
    assert isinstance(wrapped, PeftModel)
    with pytest.raises(ValueError, match="carries an adapter already"):
        PeftAdaptedModel(wrapped, linear.lora())


def test_adapters_that_do_not_fit_are_refused_by_layer(linear, conv1d, randomised):
    adapted = linear.adapted()
    good = randomised(adapted.initial(linear.peer(4)))
    name = next(iter(good.layers))
    with pytest.raises(ValueError, match="was trained on base"):
        adapted.load(conv1d.adapted().initial(conv1d.peer(4)))
    wrong = tree.map_named(lambda n, x: LoRA(x.B, x.A[:, :-1]) if n == name else x, good)
    with pytest.raises(ValueError, match=f"layer '{name}': the adapter has"):
        adapted.load(wrong)
    broken = tree.map_named(lambda n, x: LoRA(x.B, x.A / 0) if n == name else x, good)
    with pytest.raises(ValueError, match=r"the adapter: .*NaN or Inf"):
        adapted.load(broken)


def test_an_adapter_of_another_base_is_refused(linear):
    mine, other = linear.adapted(seed=0), linear.adapted(seed=1)
    foreign = other.initial(linear.peer(4))
    with pytest.raises(ValueError, match="was trained on base"):
        mine.load(foreign)
    with pytest.raises(ValueError, match="adapters of different base models"):
        tree.mean_factors([0.5, 0.5], [mine.initial(linear.peer(4)), foreign])
