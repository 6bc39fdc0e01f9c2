"""Terms: what a server sends of a run, and what a site takes of it; each bound is tried in tests/runs/test_sites.py."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from fedelta.methods import get_method, list_methods
from fedelta.runs.config import RunConfig, read_config
from fedelta.runs.config.node import Refusal, node_from
from fedelta.runs.config.terms import SECTIONS, terms_of, under_terms

NODE = node_from({"name": "north"})
TASK = {"name": "classification", "labels": ["a", "b"]}


def settings_of(name: str) -> dict[str, Any]:
    return {"local": ["fedprox", "scaffold"], "optimizer": "fedavgm"} if name == "compose" else {}


@pytest.mark.parametrize("name", list_methods())
def test_a_settled_method_arrives_as_it_was_sent(name: str) -> None:
    config = read_config({"task": TASK, "method": {"name": name, **settings_of(name)}})
    settled = get_method(**config.method).for_topology(7, lambda: 0.25)
    terms = json.loads(json.dumps(terms_of(config, settled), allow_nan=False))
    _, chosen = under_terms(read_config({"task": TASK}), terms, NODE)
    assert chosen.method == settled


def test_a_hyper_parameter_that_came_from_the_graph_travels() -> None:
    config = read_config({"task": TASK, "method": "tad_lora"})
    settled = get_method("tad_lora").for_topology(40, lambda: 0.5)
    assert settled != get_method("tad_lora")
    _, chosen = under_terms(config, terms_of(config, settled), NODE)
    assert chosen.method == settled


CHANGED: dict[str, Any] = {
    "seed": 5,
    "lora.lora_alpha": 3.0,
    "lora.rank": 4,
    "training.learning_rate": 0.5,
    "training.local_steps": 3,
    "training.optimizer": {"name": "sgd"},
    "model.gemm": "default",
    "model.compact": False,
    "federation.rounds": 3,
    "federation.channel": [{"name": "int8"}],
    "partition.clients": 4,
    "data.empty": "drop",
    "task.max_length": 12,
}


def test_what_changes_numbers_comes_from_the_server_and_all_else_is_the_sites_own() -> None:
    base = {"task": TASK, "data": {"source": "here.jsonl"}, "output": "mine", "model": {"revision": "abc"}}
    own = read_config(base, {"device": "cpu"})
    server = read_config({**base, "data": {"source": "there.jsonl"}, "output": "theirs", "name": "server"}, CHANGED)
    found, _ = under_terms(own, terms_of(server, get_method("fedavg")), NODE)
    taken = read_config(own, {**CHANGED, "method": found.method})
    assert found == taken
    assert found.method["name"] == "fedavg"


def test_the_seeds_of_single_kinds_of_draw_travel() -> None:
    own = read_config({"task": TASK})
    server = read_config(own, {"seed": {"data": 1, "start": 2}})
    found, chosen = under_terms(own, terms_of(server, get_method("fedavg")), NODE)
    assert found.seed == server.seed
    assert chosen.settings.seed == 0


def test_every_key_is_a_term_or_known_to_be_none() -> None:
    """A new key of a section that changes numbers belongs into the terms."""
    own = {
        "lora": {"start"},
        "training": {"trainer"},
        "model": {"revision", "digest", "trust_remote_code", "use_safetensors"},
    }
    for section, without in own.items():
        keys = set(type(getattr(RunConfig(), section)).model_fields)
        assert keys - set(SECTIONS[section]) == without, section


def test_the_last_part_of_a_local_folder_is_compared() -> None:
    own, server = (read_config({"task": TASK, "model": {"name": name}}) for name in ("/mine/minilm", "/theirs/minilm"))
    found, _ = under_terms(own, terms_of(server, get_method("fedavg")), NODE)
    assert found.model.name == "/mine/minilm"
    with pytest.raises(Refusal, match=r"model\.name"):
        under_terms(own, terms_of(read_config(server, {"model.name": "/theirs/other"}), get_method("fedavg")), NODE)


def test_a_method_of_ones_own_runs_only_if_it_is_named() -> None:
    config = read_config({"task": TASK, "method": {"name": "compose", "local": ["fedprox"]}})
    terms = terms_of(config, get_method(**config.method))
    parts = ["compose", "fedprox", "fedavg"]
    under_terms(config, terms, node_from({"name": "a", "allow": {"methods": parts}}))
    for missing in parts:
        some = [name for name in parts if name != missing]
        with pytest.raises(Refusal, match=f"method '{missing}' is not among"):
            under_terms(config, terms, node_from({"name": "a", "allow": {"methods": some}}))


def test_no_setting_of_a_method_is_a_path() -> None:
    config = read_config({"task": TASK})
    terms = terms_of(config, get_method("fedavg"))
    for value in ("/etc/passwd", ["..\\up"], {"deep": "a/b"}):
        with pytest.raises(Refusal, match="no path comes from a server"):
            under_terms(config, {**terms, "method": {"name": "fedprox", "mu": value}}, NODE)


OWN = {
    "task": {"name": "instruction", "max_length": 64},
    "lora": {"target_modules": ["query", "value"], "modules_to_save": ["pooler"], "rank": 2},
    "model": {"cache_activations": 4},
}

BEYOND = [
    ("task.context", "diagnosis", "task.context is 'diagnosis', but this site's config consents to None"),
    ("task.prompt", "{instruction}" * 1000, "task.prompt is"),
    ("task.category", "diagnosis", "task.category is"),
    ("task.max_length", 65, "task.max_length is 65, where this site's config has sequences of up to 64"),
    ("task.pad_to_multiple", 10**9, "task.pad_to_multiple is 1000000000"),
    ("lora.target_modules", "all-linear", "lora.target_modules is 'all-linear', but this site's config consents to"),
    ("lora.target_modules", ["query", "value", "word_embeddings"], "lora.target_modules is"),
    ("lora.modules_to_save", ["pooler", "encoder"], "lora.modules_to_save is"),
    ("lora.modules_to_save", None, "lora.modules_to_save is None"),
    ("model.cache_activations", 10**6, "model.cache_activations has 1048576000000 bytes, this site allows 1000000"),
    ("data.limit", 1, "data.limit is 1, but this site's config consents to None alone"),
    ("data.limit", {"train": 1}, "data.limit is {'train': 1}"),
    ("data.client_test_fraction", 0.99, "data.client_test_fraction is 0.99, but this site's config consents to 0.0 alone"),
    ("training.batch_size", 33, "training.batch_size is 33, this site allows 32"),
    ("partition.clients", 10**9, "partition.clients is 1000000000, where rows are dealt to 1000000 at the most"),
]


@pytest.mark.parametrize(("key", "value", "reason"), BEYOND)
def test_a_server_chooses_no_field_no_weight_and_no_size(key: str, value: Any, reason: str) -> None:
    bounded = node_from({"name": "a", "allow": {"max_batch_size": 32, "max_memory": "1MB"}})
    own = read_config(OWN)
    server = read_config(own, {key: value})
    under_terms(own, terms_of(own, get_method("fedavg")), bounded)
    with pytest.raises(Refusal, match=re.escape(reason)):
        under_terms(own, terms_of(server, get_method("fedavg")), bounded)


def test_layers_in_another_order_are_the_same_layers() -> None:
    own = read_config(OWN)
    server = read_config(own, {"lora.target_modules": ["value", "query"], "task.max_length": 16, "task.metrics": ["accuracy"]})
    found, chosen = under_terms(own, terms_of(server, get_method("fedavg")), NODE)
    assert (chosen.task.max_length, chosen.task.metrics) == (16, ("accuracy",))
    assert found.model.cache_activations == 4
