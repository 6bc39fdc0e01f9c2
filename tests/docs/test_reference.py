"""The reference is what the code says: config keys, schema, command line, pages of methods."""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
import yaml

from fedelta.methods import list_methods, method_class
from fedelta.runs.config import load_config

REPOSITORY = Path(__file__).resolve().parents[2]
REFERENCE = REPOSITORY / "docs" / "reference"
SCHEMA = json.loads((REFERENCE / "config.schema.json").read_text(encoding="utf-8"))


def test_the_reference_is_what_the_code_says(tool: Callable[[str], ModuleType]) -> None:
    generator = tool("reference")
    wanted: Mapping[Path, str] = generator.files()
    stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert not stale, "stale: make reference"
    assert not generator.left_over(wanted), "pages of methods that are no more: make reference"


def test_every_config_key_is_described() -> None:
    sections = {"": SCHEMA, **SCHEMA["$defs"]}
    keys = {f"{name}.{key}": about for name, section in sections.items() for key, about in section["properties"].items()}
    silent = [key for key, about in keys.items() if "description" not in about and "$ref" not in about]
    assert len(keys) > 50
    assert not silent


@pytest.mark.parametrize("name", list_methods())
def test_every_hyper_parameter_is_explained(name: str) -> None:
    table = (
        (REFERENCE / "methods" / f"{name}.md").read_text(encoding="utf-8").split("## Hyper-parameters")[1].split("## Facts")[0]
    )
    missing = [f.name for f in fields(method_class(name)) if f"| `{f.name}` |" not in table]
    assert not missing


def test_the_schema_takes_a_config_and_refuses_a_wrong_key() -> None:
    config: dict[str, Any] = yaml.safe_load(
        files("fedelta").joinpath("runs/configs/quickstart.yaml").read_text(encoding="utf-8")
    )
    jsonschema.validate(config, SCHEMA)
    jsonschema.validate({**config, "method": {"name": "fedprox", "mu": 0.1}}, SCHEMA)
    for short in ({"model": "minilm"}, {"method": "fedavg"}, {"task": "classification"}, {"training": {"optimizer": "sgd"}}):
        jsonschema.validate(short, SCHEMA)
        load_config(short)
    for wrong in ({"lora": {"rnak": 4}}, {"federation": {"rounds": 0}}, {"partition": {"scheme": "dirichlt"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_generated_pages_hold_no_html() -> None:
    """A name in angle brackets outside of code would vanish from the page."""
    pages = [REFERENCE / "config.md", REFERENCE / "node-file.md", REFERENCE / "cli.md", *(REFERENCE / "methods").glob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        prose = "".join(text.split("```")[::2])
        outside = "".join(part for line in prose.splitlines() for part in line.split("`")[::2])
        assert "<" not in outside.replace("<-", "").replace("< ", "").replace("<=", ""), page.name
