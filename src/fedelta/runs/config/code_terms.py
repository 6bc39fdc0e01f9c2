"""Finds a site's own Python file of a method or a task that the terms of a run name by its digest; code never travels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fedelta.registry import is_code
from fedelta.runs.config.node import Node, Refusal


def without_place(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a choice as it travels: without the path of a file, and without a label for tables."""
    return {key: value for key, value in choice.items() if key not in ("path", "label")}


def choice_here(key: str, given: Mapping[str, Any], node: Node) -> Any:
    """Returns a method or a task as the terms choose it, with the path of this site's own file where it is a file's.

    Args:
        key: "method" or "task".
        given: the terms, of any form.
        node: says which files may run here.

    Raises:
        Refusal: for terms with a path, or a file that this site does not have.
    """
    choice, digests = given[key], given.get("code", {})
    wanted = cast("Mapping[str, Any]", digests).get(key) if isinstance(digests, Mapping) else None
    called = cast("Mapping[str, Any]", choice).get("name") if isinstance(choice, Mapping) else choice
    if isinstance(choice, Mapping) and "path" in choice:
        raise Refusal(f"{key}.path is this site's own and cannot come from a server")
    if wanted is None:
        if is_code(called):
            raise Refusal(f"{key} {called!r:.80} is a Python file's, but the terms do not say of which digest")
        return choice
    if not isinstance(choice, Mapping):
        raise Refusal(f"{key} must be keys and values where it is a Python file's, but is {choice!r:.80}")
    file = node.files().get(wanted) if isinstance(wanted, str) else None
    if file is None:
        raise Refusal(
            f"{key} {called!r:.80} is the Python file with sha256 {wanted!s:.64}, and none of the files in `code` of this site's "
            "node file is that one: get the file from whoever leads the run, read it, and put its path there"
        )
    return {**cast("Mapping[str, Any]", choice), "path": str(file.path)}
