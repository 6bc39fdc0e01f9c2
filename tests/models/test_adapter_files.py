"""PEFT folders: what we write PEFT loads, what PEFT writes we load, and files that are broken or not plain LoRA."""

import json
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.adapters.aggregation import aggregate
from fedelta.lowrank import LoRA
from fedelta.models.adapter_files import CONFIG, WEIGHTS, Layout, load_adapter, read_layout, save_adapter
from fedelta.tree import Adapter


def same(a: Adapter, b: Adapter) -> bool:
    pairs = tree.parameters(a), tree.parameters(b)
    scales = [{n: x.scale for n, x in one.layers.items()} for one in (a, b)]
    return (
        pairs[0].keys() == pairs[1].keys()
        and all(torch.equal(pairs[0][n], pairs[1][n]) and pairs[0][n].dtype == pairs[1][n].dtype for n in pairs[0])
        and scales[0] == scales[1]
        and a.base == b.base
    )


@pytest.mark.parametrize("rank", [1, 2, 3, 7, 16, 40])
def test_peft_reproduces_our_logits_from_what_we_wrote(case, randomised, logits, ids, tmp_path, rank):
    adapted = case.adapted()
    adapter = randomised(adapted.initial(case.peer(rank)))
    adapted.load(adapter)
    adapted.mode(None)
    save_adapter(adapter, tmp_path / "out", like=adapted.layout)
    theirs = PeftModel.from_pretrained(case.model(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(theirs, ids), logits(adapted.module, ids), atol=1e-6, rtol=0)
    assert same(load_adapter(tmp_path / "out"), adapter)


def test_peft_reproduces_our_logits_with_a_rank_and_a_scale_for_each_layer(case, randomised, logits, ids, tmp_path):
    """Scales that no lora_alpha / r gives exactly, and ranks of which no two are equal."""
    adapted = case.adapted()
    adapter = randomised(adapted.initial(case.peer(30)))
    depth = {n: k + 1 for k, n in enumerate(adapter.layers)}
    adapter = tree.map_named(lambda n, x: LoRA(x.B[:, : depth[n]], x.A[: depth[n]], 0.1 + depth[n] / 7), adapter)
    adapted.load(adapter)
    adapted.mode(None)
    save_adapter(adapter, tmp_path / "out", like=adapted.layout)
    theirs = PeftModel.from_pretrained(case.model(), tmp_path / "out").eval()
    torch.testing.assert_close(logits(theirs, ids), logits(adapted.module, ids), atol=1e-6, rtol=0)
    assert same(load_adapter(tmp_path / "out"), adapter)


def test_what_peft_writes_is_read_with_its_own_scale(case, randomised, tmp_path):
    settings = {"use_rslora": True, "rank_pattern": {"query": 3, "c_attn": 3}, "alpha_pattern": {"value": 5, "q_proj": 5}}
    theirs = get_peft_model(case.model(), case.lora(**settings))
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_()
    theirs.save_pretrained(tmp_path)
    adapter = load_adapter(tmp_path)
    for name, x in adapter.layers.items():
        layer = theirs.get_base_model().get_submodule(name)
        delta = layer.get_delta_weight("default")
        assert (x.rank, x.scale) == (layer.r["default"], layer.scaling["default"])
        expected = delta.T if type(layer.get_base_layer()).__name__ in ("Conv1D", "Embedding") else delta
        torch.testing.assert_close(x.dense(), expected)
    assert adapter.layers.keys() == case.adapted(**settings).live().layers.keys()
    assert adapter.dense.keys() == case.adapted(**settings).live().dense.keys()


GPT_NEO = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "attention_types": [[["global", "local"], 6]]}

trained_by_others = pytest.mark.parametrize(
    ("name", "build"),
    [
        ("gpt2_tigrinya", lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50))),
        ("gpt_neo_125m_movies_r8", lambda: GPTNeoForCausalLM(GPTNeoConfig(vocab_size=50, **GPT_NEO))),
    ],
)


@trained_by_others
def test_adapters_trained_by_others_pass_through(shared_data, logits, ids, tmp_path, name, build):
    source = shared_data / "adapters" / name
    adapter = load_adapter(source)
    assert all(x.rank == 8 for x in adapter.layers.values())
    save_adapter(adapter, tmp_path / "out", like=source)
    assert same(load_adapter(tmp_path / "out"), adapter)
    model, outputs = build().eval(), []
    for folder in (source, tmp_path / "out"):
        loaded = PeftModel.from_pretrained(model, folder).eval()
        outputs.append(logits(loaded, ids))
        model = loaded.unload()
    assert torch.equal(*outputs)
    assert not torch.allclose(outputs[0], logits(model, ids), atol=1e-3)


@trained_by_others
def test_adapters_trained_by_others_are_aggregated_into_what_peft_loads(shared_data, logits, ids, tmp_path, name, build):
    """Its mean with an adapter that adds nothing is half of its delta, whatever the ranks: PEFT's logits say so too."""
    source = shared_data / "adapters" / name
    adapter = load_adapter(source)
    nothing = tree.map(lambda x: LoRA(torch.zeros_like(x.B[:, :4]), x.A[:4], x.scale), adapter)
    half = tree.map(lambda x: LoRA(x.B, x.A, x.scale / 2), adapter)
    [mean] = aggregate([source, nothing], method="flexlora", ranks=[8])
    model, outputs = build().eval(), []
    for k, each in enumerate((half, mean)):
        save_adapter(each, tmp_path / str(k), like=source)
        loaded = PeftModel.from_pretrained(model, tmp_path / str(k)).eval()
        outputs.append(logits(loaded, ids))
        model = loaded.unload()
    torch.testing.assert_close(outputs[1], outputs[0], atol=2e-5, rtol=1e-4)
    assert not torch.allclose(outputs[0], logits(model, ids), atol=1e-3)


def test_an_average_of_adapters_is_written_as_one(linear, randomised, tmp_path):
    adapted = linear.adapted()
    parts = [randomised(adapted.initial(linear.peer(r)), seed=r) for r in (2, 5)]
    both = tree.mean_deltas([0.5, 0.5], parts)
    save_adapter(both, tmp_path, like=adapted.layout)
    for name, x in load_adapter(tmp_path).layers.items():
        assert x.rank == 7
        torch.testing.assert_close(
            x.dense(), lr.stack([0.5, 0.5], [p.layers[name] for p in parts], dtype=torch.float64).dense()
        )


# --- details of what is written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_dtypes_are_kept(linear, randomised, tmp_path, dtype):
    adapter = tree.map_tensors(lambda t: t.to(dtype), randomised(linear.adapted().initial(linear.peer(3))))
    save_adapter(adapter, tmp_path)
    assert same(load_adapter(tmp_path), adapter)


def test_whole_numbers_and_common_values_keep_the_config_readable(linear, tmp_path):
    adapted = linear.adapted(use_rslora=True, lora_alpha=12)
    save_adapter(adapted.initial(linear.peer(8, use_rslora=True, lora_alpha=12)), tmp_path, like=adapted.layout)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 12, True)
    assert config["target_modules"] == ["intermediate.dense", "query"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["modules_to_save"] == ["classifier"]
    assert config["task_type"] == "SEQ_CLS"


def test_without_a_layout_layers_and_modules_are_named_in_full(linear, randomised, logits, ids, tmp_path):
    adapted = linear.adapted()
    adapter = randomised(adapted.initial(linear.peer(4)))
    save_adapter(adapter, tmp_path, base_model_name="some/model", task_type="SEQ_CLS")
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["target_modules"] == sorted(adapter.layers)
    assert (config["modules_to_save"], config["base_model_name_or_path"]) == (["classifier"], "some/model")
    adapted.load(adapter)
    adapted.mode(None)
    theirs = PeftModel.from_pretrained(linear.model(), tmp_path).eval()
    torch.testing.assert_close(logits(theirs, ids), logits(adapted.module, ids), atol=1e-6, rtol=0)


def test_a_layer_whose_name_ends_like_anothers_keeps_its_own_rank_and_scale(tmp_path):
    ranks = {"a.q": 1, "q": 2, "h.1.q": 3, "h.11.q": 1, "hx1.q": 1}
    adapter = Adapter({n: LoRA(torch.ones(4, r), torch.ones(r, 5), 1 / (1 + r)) for n, r in ranks.items()})
    save_adapter(adapter, tmp_path)
    assert same(load_adapter(tmp_path), adapter)


def test_the_layout_of_a_folder_knows_embeddings(embedding, randomised, tmp_path):
    adapted = embedding.adapted()
    adapter = randomised(adapted.initial(embedding.peer(4)))
    save_adapter(adapter, tmp_path / "a", like=adapted.layout)
    assert read_layout(tmp_path / "a").embeddings == {"bert.embeddings.word_embeddings"}
    save_adapter(adapter, tmp_path / "b", like=tmp_path / "a")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    assert (tmp_path / "a" / CONFIG).read_bytes() == (tmp_path / "b" / CONFIG).read_bytes()


def test_equal_adapters_give_equal_bytes(linear, randomised, tmp_path):
    adapted = linear.adapted()
    adapter = randomised(adapted.initial(linear.peer(4)))
    contents = set()
    for k in range(8):  # the order of a safetensors file's metadata changes from call to call
        save_adapter(adapter, tmp_path / str(k), like=Layout(linear.adapted().layout.config))
        contents.add(tuple((p.name, p.read_bytes()) for p in sorted((tmp_path / str(k)).iterdir())))
    assert len(contents) == 1


def test_the_fingerprint_travels_in_both_files(linear, tmp_path):
    adapter = linear.adapted().initial(linear.peer(4))
    save_adapter(adapter, tmp_path)
    with safe_open(tmp_path / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt", "fedelta_base": adapter.base}
    assert json.loads((tmp_path / "fedelta.json").read_text())["base"] == adapter.base


def test_an_edited_lora_alpha_wins_over_the_stored_scale(linear, tmp_path, edit_json):
    save_adapter(linear.adapted().initial(linear.peer(4)), tmp_path)
    edit_json(tmp_path / CONFIG, lora_alpha=2)
    assert {x.scale for x in load_adapter(tmp_path).layers.values()} == {0.5}


def test_slices_of_one_template_can_be_written(linear, tmp_path):
    whole = linear.adapted().initial(linear.peer(8))
    first = next(iter(whole.layers))
    shared = tree.map_named(lambda n, x: LoRA(x.B[:, :2], x.A[:2], x.scale) if n == first else x, whole)
    save_adapter(shared, tmp_path)
    assert same(load_adapter(tmp_path), shared)


def test_a_folder_that_exists_keeps_its_other_files(linear, tmp_path):
    adapted = linear.adapted()
    (tmp_path / "notes.txt").write_text("mine")
    for rank in (2, 3):
        save_adapter(adapted.initial(linear.peer(rank)), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {x.rank for x in load_adapter(tmp_path).layers.values()} == {3}
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS, "fedelta.json", "notes.txt"]


def test_a_failed_write_leaves_nothing_behind(linear, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("fedelta.models.adapter_files.os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_adapter(linear.adapted().initial(linear.peer(2)), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- broken input -----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(linear, randomised, tmp_path):
    adapted = linear.adapted()
    save_adapter(randomised(adapted.initial(linear.peer(4))), tmp_path, like=adapted.layout)
    return tmp_path


def test_a_weights_file_can_be_named_itself(folder):
    assert same(load_adapter(folder / WEIGHTS), load_adapter(str(folder)))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no adapter folder .*nowhere; give a folder with adapter_config.json"):
        load_adapter(tmp_path / "nowhere")


def test_a_missing_config_is_named(folder):
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json, so the scale of its adapter is unknown"):
        load_adapter(folder)


def test_a_config_that_is_not_json_is_named(folder):
    (folder / CONFIG).write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json is not JSON"):
        load_adapter(folder)


def test_missing_weights_are_named(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors in"):
        load_adapter(folder)


def test_a_pickle_beside_the_config_is_refused(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model.bin is a pickle.*save it again, which writes safetensors"):
        load_adapter(folder)


WRITE_PICKLES = [
    *(lambda p, version=version: p.write_bytes(pickle.dumps({"a": 1 << 16}, version)) for version in range(2, 6)),
    lambda p: torch.save({"a": 1}, p),
    lambda p: torch.save({"a": 1}, p, _use_new_zipfile_serialization=False),
]


@pytest.mark.parametrize("write", WRITE_PICKLES)
def test_a_pickle_in_disguise_is_refused(folder, write):
    write(folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"is a pickle under the name of a safetensors file.*never read"):
        load_adapter(folder)


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480])
def test_a_damaged_file_whose_length_begins_like_a_pickle_is_said_to_be_damaged(folder, length):
    (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + b"{" + b"?" * length)
    with pytest.raises(ValueError, match="is cut or damaged"):
        load_adapter(folder)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:kept])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors is cut or damaged: \d+ bytes.*copy it again"):
        load_adapter(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "use_dora=True: DoRA"),
        ({"init_lora_weights": "pissa"}, "changes the base weights.*convert the adapter to plain LoRA"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq'"),
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only LORA"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"r": 5}, "has rank 4, adapter_config.json says 5; correct r or rank_pattern"),
    ],
)
def test_configs_that_are_not_plain_lora_are_refused(folder, edit_json, values, message):
    edit_json(folder / CONFIG, **values)
    with pytest.raises(ValueError, match=message):
        load_adapter(folder)


def test_an_initialisation_that_leaves_the_base_alone_is_read(folder, edit_json):
    edit_json(folder / CONFIG, init_lora_weights="gaussian")
    assert load_adapter(folder).layers


def test_keys_that_are_not_understood_are_named(folder):
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "base_model.model.extra.weight": torch.ones(1)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"key 'base_model.model.extra.weight' is not understood"):
        load_adapter(folder)


def test_half_a_layer_is_named(folder):
    tensors = load_file(folder / WEIGHTS)
    tensors.pop("base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"'bert.encoder.layer.0.attention.self.query' lacks lora_B: the file is incomplete"):
        load_adapter(folder)


def test_copies_of_frozen_weights_are_left_aside_with_a_word(folder, caplog):
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "base_model.model.wte.base_layer.weight": torch.ones(1)}, folder / WEIGHTS)
    assert "wte.base_layer.weight" not in load_adapter(folder).dense
    assert "copies of frozen weights" in caplog.text


def test_files_of_two_adapters_in_one_folder_are_refused(folder, edit_json):
    edit_json(folder / "fedelta.json", base="0123456789abcdef")
    with pytest.raises(ValueError, match="files were mixed up"):
        load_adapter(folder)
