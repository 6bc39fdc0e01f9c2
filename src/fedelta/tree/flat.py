"""Messages as tensors and a structure of plain JSON, and back; the structure that comes from outside is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import UnionType
from typing import Any

from torch import Tensor

from fedelta.lowrank import LoRA
from fedelta.tree.value import Adapter, BaseDelta, Tensors


def flatten(tree: Any) -> tuple[dict[str, Tensor], Any]:
    """A message as (tensors by key, structure): the structure is plain JSON and says how to build it again.

    Raises:
        TypeError: for a leaf that cannot travel, naming where it is.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _structure(tree, tensors, "message")


def _structure(tree: Any, tensors: dict[str, Tensor], where: str) -> Any:
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"v": tree}
    if isinstance(tree, Tensor):
        key = f"t{len(tensors)}"
        tensors[key] = tree
        return {"t": key}
    if isinstance(tree, Mapping):
        return {"m": [[k, _structure(v, tensors, f"{where}/{k}")] for k, v in _string_keys(tree, where)]}
    if isinstance(tree, list | tuple):
        kind = "l" if isinstance(tree, list) else "p"
        return {kind: [_structure(v, tensors, f"{where}[{k}]") for k, v in enumerate(tree)]}
    for name, kind in _NODES.items():
        if isinstance(tree, kind):
            fields = {f: getattr(tree, f) for f in kind.__dataclass_fields__}
            return {"c": name, "f": _structure(fields, tensors, f"{where}:{name}")}
    raise TypeError(f"{where}: a {type(tree).__name__} cannot travel; send tensors, adapters, numbers or strings")


def _string_keys(tree: Mapping[Any, Any], where: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise TypeError(f"{where}: key {key!r} is not a string; name the entries of a message")
        yield key, value


def unflatten(tensors: Tensors, structure: Any) -> Any:
    """The inverse of `flatten`.

    Raises:
        ValueError: for a structure that `flatten` does not write, or a tensor that is missing.
    """
    match structure:
        case {"v": None | bool() | int() | float() | str() as value}:
            return value
        case {"t": str(key)}:
            if key not in tensors:
                raise ValueError(f"the message names tensor {key!r} but does not carry it: it was cut or altered")
            return tensors[key]
        case {"m": list(items)}:
            return dict(_unflatten_item(tensors, item) for item in items)
        case {"l": list(items)}:
            return [unflatten(tensors, v) for v in items]
        case {"p": list(items)}:
            return tuple(unflatten(tensors, v) for v in items)
        case {"c": str(name), "f": inner} if name in _NODES:
            return _node(name, unflatten(tensors, inner))
        case _:
            raise ValueError(f"not the structure of a message: {type(structure).__name__}")


def _unflatten_item(tensors: Tensors, item: Any) -> tuple[str, Any]:
    match item:
        case [str(key), value]:
            return key, unflatten(tensors, value)
        case _:
            raise ValueError("not the structure of a message: an entry needs a name and a value")


def _node(name: str, given: Any) -> Any:
    """A LoRA, an Adapter or a BaseDelta of these fields.

    Raises:
        ValueError: for fields of other names or kinds.
    """
    kind = _NODES[name]
    if not isinstance(given, dict) or set(given) != set(kind.__dataclass_fields__):
        raise ValueError(f"not the fields of a {name}: {given if isinstance(given, str) else type(given).__name__}")
    for key, fits in _KINDS[name].items():
        if not fits(given[key]):
            raise ValueError(f"{key} of a {name} cannot be a {type(given[key]).__name__} like this one")
    return kind(**given)


_NODES: dict[str, Any] = {"LoRA": LoRA, "Adapter": Adapter, "BaseDelta": BaseDelta}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are(kind: type | UnionType, value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(x, kind) for x in value.values())


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _are_terms(value: object) -> bool:
    if not isinstance(value, Mapping) or not _are(tuple | list, value):
        return False
    return all(isinstance(x, LoRA | Tensor) for terms in value.values() for x in terms)


_KINDS: dict[str, dict[str, Callable[[object], bool]]] = {
    "LoRA": {"B": lambda x: isinstance(x, Tensor), "A": lambda x: isinstance(x, Tensor), "scale": _is_number},
    "Adapter": {
        "layers": lambda x: _are(LoRA, x),
        "dense": lambda x: _are(Tensor, x),
        "base": lambda x: x is None or isinstance(x, str),
    },
    "BaseDelta": {"version": _is_count, "terms": _are_terms, "since": _is_count},
}
"""What the fields of each node hold, by its name."""
