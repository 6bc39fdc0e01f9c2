"""Reads YAML texts that people write: a key that stands twice in one mapping is refused, not taken as it stands last."""

from __future__ import annotations

from typing import Any

import yaml


class RepeatedKeyError(yaml.YAMLError):
    """A mapping has one key twice; the message names the key and both lines."""


class StrictLoader(yaml.SafeLoader):
    """Builds plain values alone, as the safe loader does, and refuses repeated keys."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Returns a mapping as it is written, before `<<` brings in keys that it may well repeat."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # the constructor refuses it: no list or mapping is a key
            line, written = key.start_mark.line + 1, (key.tag, key.value)
            if written in lines:
                raise RepeatedKeyError(
                    f"line {line}: the key {key.value!r} is there already, in line {lines[written]}: keep one of them"
                )
            lines[written] = line
        return node


def load_yaml(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        RepeatedKeyError: for a key that stands twice in one mapping.
        yaml.YAMLError: for a text that is not YAML, or that asks for more than plain values.
        RecursionError: for one that is nested too deeply.
    """
    return yaml.load(text, Loader=StrictLoader)  # which is a safe one
