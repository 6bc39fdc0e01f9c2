"""The JSON schema of a config, by which editors complete keys and check values."""

from __future__ import annotations

import json
from typing import Any

from fedelta.runs.config.schema import RunConfig

EDITOR_LINE = "# yaml-language-server: $schema={}\n"
"""The first line of a config that names its schema to an editor; the place is relative to the config."""


def json_schema() -> dict[str, Any]:
    """Returns the schema."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **RunConfig.model_json_schema()}


def schema_text() -> str:
    """Returns the schema as the text of a file."""
    return json.dumps(json_schema(), indent=2) + "\n"
