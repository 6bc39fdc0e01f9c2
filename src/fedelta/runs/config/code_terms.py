"""Finds a site's own Python file of a method or a task that the terms of a run name by its digest; code never travels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from fedelta.code_files import CodeFile, read_code
from fedelta.registry import is_code
from fedelta.runs.config.allowed import CHOICES, DIGEST, code_paths
from fedelta.runs.config.node import Node, Refusal
from fedelta.runs.config.schema import RunConfig

DIGESTS = "digests"
"""The term with the digests of Python files, by the key that names them."""


def without_place(choice: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a choice as it travels: without the path of a file, and without a label for tables."""
    return {key: value for key, value in choice.items() if key not in ("path", "label")}


def files_here(own: RunConfig, node: Node) -> dict[str, CodeFile]:
    """Returns, by their digests, the files that may run at a site: those of its node file, and those that its own config names.

    Raises:
        FileNotFoundError, ValueError: for a path to no Python file.
    """
    named = [read_code(path) for path in code_paths({key: getattr(own, key) for key in CHOICES}).values()]
    may_run = node.may_run()
    return {**{file.digest: file for file in named if file.digest in may_run}, **node.files()}


def choice_here(key: str, given: Mapping[str, Any], files: Mapping[str, CodeFile]) -> Any:
    """Returns a method or a task as the terms choose it, with the path of this site's own file where it is a file's.

    Args:
        key: "method" or "task".
        given: the terms, of any form.
        files: from `files_here`.

    Raises:
        Refusal: for terms with a path, or a file that this site does not have.
    """
    choice, wanted = given[key], _digests(given).get(key)
    called = cast("Mapping[str, Any]", choice).get("name") if isinstance(choice, Mapping) else choice
    if isinstance(choice, Mapping) and "path" in choice:
        raise Refusal(f"{key}.path is this site's own and cannot come from a server")
    if wanted is None:
        if is_code(called):
            raise Refusal(f"{key} {called!r:.80} is a Python file's, but the terms do not say of which digest")
        return choice
    if not isinstance(choice, Mapping):
        raise Refusal(f"{key} must be keys and values where it is a Python file's, but is {choice!r:.80}")
    file = files.get(wanted)
    if file is None:
        raise Refusal(
            f"{key} {called!r:.80} is the Python file with sha256 {wanted!s:.64}, and this site has no such file: get it from "
            "whoever leads the run, read it, and put its path into `code` of the node file"
        )
    return {**cast("Mapping[str, Any]", choice), "path": str(file.path)}


def _digests(given: Mapping[str, Any]) -> Mapping[str, str]:
    """Returns the digests of the terms; raises Refusal for anything else in their place."""
    found = given.get(DIGESTS, {})
    digests = cast("Mapping[Any, Any]", found) if isinstance(found, Mapping) else {"": None}
    if not all(key in CHOICES and isinstance(value, str) and DIGEST.fullmatch(value) for key, value in digests.items()):
        raise Refusal(f"{DIGESTS} is {found!r:.200}, where a sha256 for {' and '.join(CHOICES)} belongs")
    return digests
