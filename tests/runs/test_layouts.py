"""The layout of adapters as it crosses from a site: no place on its disk, and at the server nothing of another kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedelta.models.adapter_files import Layout
from fedelta.runs import layouts

WHOLE = Layout(
    {
        "base_model_name_or_path": "/home/north/models/secret",
        "target_modules": {"query", "value"},
        "modules_to_save": ["classifier"],
        "task_type": "SEQ_CLS",
        "lora_dropout": 0.1,
        "auto_mapping": {"parent_library": "/home/north/code"},
    },
    frozenset({"embed"}),
)


def test_a_site_tells_no_path_and_a_server_names_the_base_as_it_has_it() -> None:
    sent = json.loads(json.dumps(layouts.to_send(WHOLE)))
    assert "north" not in json.dumps(sent)
    assert layouts.received(sent, "theirs/model") == Layout(
        {
            "base_model_name_or_path": "theirs/model",
            "target_modules": ["query", "value"],
            "modules_to_save": ["classifier"],
            "task_type": "SEQ_CLS",
            "lora_dropout": 0.1,
        },
        frozenset({"embed"}),
    )
    assert layouts.received(sent, "minilm").config["base_model_name_or_path"] == "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    "given",
    [
        None,
        "all",
        [],
        {"config": [], "embeddings": "embed"},
        {"config": {"target_modules": "(a+)+", "task_type": 3, "lora_dropout": True, "base_model_name_or_path": "evil"}},
        {"config": {"target_modules": [["a"]], "modules_to_save": {"a": 1}, "auto_mapping": {"x": "y"}}, "embeddings": [1]},
    ],
)
def test_what_does_not_fit_is_left_out(given: Any) -> None:
    assert layouts.received(given, "mine") == Layout({"base_model_name_or_path": "mine"})
