"""Reads and writes adapters as PEFT folders: adapter_config.json, adapter_model.safetensors, and fedelta.json for the rest.

PEFT reads what is written here, and every plain LoRA adapter that PEFT writes is read here. In PEFT's config a scale is
lora_alpha / r, which cannot be every float, so fedelta.json repeats it to the last bit.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fedelta.client import LocalClient
from fedelta.exchange import files
from fedelta.exchange.wire import MalformedError
from fedelta.lowrank import LoRA
from fedelta.models.adapter_config import check_types, is_labels, is_number, is_text, is_texts, is_values, read_json
from fedelta.models.adapter_entries import entries_of
from fedelta.models.lora_options import check_options
from fedelta.models.patterns import by_layer
from fedelta.peers import Peer
from fedelta.tree import Adapter

if TYPE_CHECKING:
    from peft import LoraConfig  # slow to import, and not needed to look at files

CONFIG, WEIGHTS, EXTRA = "adapter_config.json", "adapter_model.safetensors", "fedelta.json"
PREFIX = "base_model.model."
BASE_KEY = "fedelta_base"
"""Metadata entry with the fingerprint of the frozen base."""

SUFFIXES = {".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_embedding_A": "A", ".lora_embedding_B": "B"}
"""The ends of the factors' keys in the file; Embedding layers hold bare parameters."""

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""The types that a factor may have."""

UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""The errors of safetensors on bytes that are no such file: its own, and those that escape it."""

PICKLE_VERSIONS = (b"\2", b"\3", b"\4", b"\5")

log = logging.getLogger("fedelta")


@dataclass(frozen=True)
class Layout:
    """Holds what a PEFT folder says beside the values of its adapter, and an `Adapter` does not.

    Attributes:
        config: entries of adapter_config.json, such as the target modules, the base model's name and the task type.
        embeddings: the layers that are Embedding modules, whose factors have other names in the file.
        labels: of the task that the adapter was trained for, in the order of the head's outputs; empty where it has none.
        drawn: frozen parameters that the base's checkpoint lacks, so that they were drawn from the run's seed.
    """

    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    embeddings: frozenset[str] = frozenset()
    labels: Sequence[Hashable] = ()
    drawn: Sequence[str] = ()


def load_adapter(path: str | Path) -> Adapter:
    """Loads the adapter in a PEFT folder, or of a given adapter_model.safetensors, with dtypes as stored.

    Raises:
        FileNotFoundError: for a folder or file that is missing, naming it.
        MalformedError: for files that are cut, a pickle, or not what such files hold; a ValueError.
        ValueError: for an adapter that is not plain LoRA.
    """
    weights, config = _locate(Path(path))
    tensors, metadata = _read_tensors(weights)
    factors, dense, _ = _sort_keys(tensors, config, weights)
    extra = _read_extra(weights.parent / EXTRA)
    base = extra.base
    if base is not None and metadata.get(BASE_KEY, base) != base:
        raise MalformedError(
            f"{weights.parent}: {EXTRA} names base {base}, {WEIGHTS} base {metadata[BASE_KEY]}: files were mixed up"
        )
    peer = _as_peer(config, list(factors), weights.with_name(CONFIG))
    layers = {n: _layer(n, pair, peer, extra.scales.get(n), weights) for n, pair in factors.items()}
    return Adapter(layers, dense, metadata.get(BASE_KEY, base))


def read_layout(path: str | Path) -> Layout:
    """Returns the layout of a PEFT folder, to write another adapter like it; errors are those of `load_adapter`."""
    weights, config = _locate(Path(path))
    try:
        with safe_open(weights, framework="pt") as file:
            keys = [k.removeprefix(PREFIX) for k in file.keys()]  # noqa: SIM118 - not a mapping
    except UNREADABLE as error:
        raise MalformedError(f"{weights} {_what_it_is(weights)} ({error})") from error
    embeddings = frozenset(k.removesuffix(".lora_embedding_A") for k in keys if k.endswith(".lora_embedding_A"))
    extra = _read_extra(weights.parent / EXTRA)
    return Layout(config, embeddings, extra.labels, extra.drawn)


def _locate(path: Path) -> tuple[Path, dict[str, Any]]:
    """Returns the path of the weights and the config, which is checked to be plain LoRA."""
    folder = path.parent if path.suffix == ".safetensors" else path
    if not folder.is_dir():
        raise FileNotFoundError(f"no adapter folder {folder}; give a folder with {CONFIG} and {WEIGHTS}")
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"{folder} has no {CONFIG}, so the scale of its adapter is unknown; give a folder that PEFT wrote"
        )
    config = read_json(folder / CONFIG)
    check_types(config, folder / CONFIG)
    check_options(config, str(folder / CONFIG))
    return _weights_file(path if path.suffix == ".safetensors" else folder / WEIGHTS), config


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if path.with_suffix(".bin").is_file():
        raise MalformedError(
            f"{path.with_suffix('.bin')} is a pickle, which may run code when it is opened and is never read; load it with "
            "PEFT where you trust it and save it again, which writes safetensors"
        )
    raise FileNotFoundError(f"no {path.name} in {path.parent}")


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except UNREADABLE as error:
        raise MalformedError(f"{path} {_what_it_is(path)} ({error})") from error


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(8)
    # A pickle begins with 0x80 and its version. So may a safetensors file, which begins with the length of its header. What
    # follows tells them apart: a pickle goes on with a frame (0x95), and a real length has zeros in its upper half.
    framed_or_long = head[2:3] == b"\x95" or head[4:] != bytes(4)
    pickled = head[:1] == b"\x80" and head[1:2] in PICKLE_VERSIONS and framed_or_long
    if pickled or head[:2] == b"PK":
        return "is a pickle under the name of a safetensors file; it may run code when it is opened and is never read"
    return f"is cut or damaged: {path.stat().st_size} bytes are not a whole safetensors file; copy it again"


def _sort_keys(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], list[str]]:
    """Factors by layer, dense tensors by name, and copies of frozen weights, which are left aside."""
    factors: dict[str, dict[str, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    copies: list[str] = []
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        suffix = next((s for s in SUFFIXES if name.endswith(s)), None)
        if name != key and suffix is not None:
            pair, factor = factors.setdefault(name.removesuffix(suffix), {}), SUFFIXES[suffix]
            if factor in pair:
                raise MalformedError(f"{path}: {key!r} is a second lora_{factor} of one layer")
            pair[factor] = tensor
        elif name != key and _is_saved_module(name, config):
            dense[name] = tensor
        elif name.endswith(".base_layer.weight"):
            copies.append(name)
        else:
            raise MalformedError(
                f"{path}: key {key!r} is not understood; expected {PREFIX}<layer>.lora_A.weight or a saved module"
            )
    if copies:
        log.warning("%s holds copies of frozen weights, which are left aside: %s", path, copies)
    return factors, dense, copies


def _is_saved_module(name: str, config: Mapping[str, Any]) -> bool:
    return any(f".{module}." in f".{name}" for module in config.get("modules_to_save") or ())


def _layer(name: str, pair: Mapping[str, Tensor], peer: Peer, exact: float | None, path: Path) -> LoRA:
    if missing := {"A", "B"} - pair.keys():
        raise MalformedError(f"{path}: layer {name!r} lacks lora_{missing.pop()}: the file is incomplete")
    shapes = {f: tuple(x.shape) for f, x in pair.items()}
    if any(len(s) != 2 for s in shapes.values()) or shapes["B"][1] != shapes["A"][0]:
        raise MalformedError(
            f"{path}: layer {name!r} has lora_A {shapes['A']} and lora_B {shapes['B']}, which are not factors of one delta"
        )
    if kinds := [str(x.dtype) for x in pair.values() if x.dtype not in FLOATS]:
        raise MalformedError(f"{path}: layer {name!r} holds {kinds[0]}, not floating-point numbers; save it in one of {FLOATS}")
    rank = shapes["A"][0]
    if rank != peer.rank_of(name):
        raise MalformedError(
            f"{path}: layer {name!r} has rank {rank}, {CONFIG} says {peer.rank_of(name)}; correct r or rank_pattern"
        )
    scale = peer.scale_of(name, rank)
    if exact is not None and math.isclose(exact, scale, rel_tol=1e-12):
        # They differ by rounding alone, so the exact one counts. Where they differ by more, somebody has edited lora_alpha.
        scale = exact
    return LoRA(pair["B"], pair["A"], scale)


def _as_peer(config: Mapping[str, Any], layers: list[str], path: Path) -> Peer:
    """Returns the ranks and scales of a PEFT config, by PEFT's own rules; its patterns are resolved into layer names."""
    return Peer(
        id=0,
        rank=config["r"],
        lora_alpha=config["lora_alpha"],
        rslora=bool(config.get("use_rslora")),
        rank_pattern=by_layer(config.get("rank_pattern") or {}, layers, f"{path}: rank_pattern"),
        alpha_pattern=by_layer(config.get("alpha_pattern") or {}, layers, f"{path}: alpha_pattern"),
    )


@dataclass(frozen=True)
class _Extra:
    """Holds the content of fedelta.json: scales by layer, the base's fingerprint, labels and drawn parameters of a `Layout`."""

    scales: Mapping[str, float]
    base: str | None
    labels: Sequence[Hashable]
    drawn: Sequence[str]


def _read_extra(path: Path) -> _Extra:
    found = read_json(path) if path.is_file() else {}
    scales, base = found.get("scales", {}), found.get("base")
    labels, drawn = found.get("labels", []), found.get("drawn", [])
    if not (is_values(scales, is_number) and (base is None or is_text(base)) and is_labels(labels) and is_texts(drawn)):
        raise MalformedError(
            f"{path} must hold finite numbers by layer as `scales`, a text as `base` and a list of different texts or numbers "
            "as `labels` and of texts as `drawn`"
        )
    return _Extra(scales, base, tuple(labels), tuple(drawn))


def copy_adapter(source: str | Path, folder: str | Path) -> None:
    """Copies an adapter's own files, bit for bit, and nothing else that lies beside them; errors are those of `own_files`."""
    source = Path(source)
    _write_folder(Path(folder), {name: _read_plain(source / name) for name in own_files(source)})


def own_files(source: Path) -> list[str]:
    """Returns the names of the files of the adapter in a folder.

    Raises:
        FileNotFoundError: for a folder that lacks one that every adapter has.
        MalformedError: for one that is a link or no plain file: a copy would hold what the folder does not.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"no adapter folder {source}; give a folder with {CONFIG} and {WEIGHTS}")
    needed = (CONFIG, WEIGHTS)
    for name in needed:
        if not os.path.lexists(source / name):
            raise FileNotFoundError(f"{source} has no {name}; give a folder with {CONFIG} and {WEIGHTS}")
    there = [name for name in (*needed, EXTRA) if name in needed or os.path.lexists(source / name)]
    for name in there:
        _demand_plain(source / name)
    return there


def _demand_plain(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise MalformedError(f"{path} is a link or no plain file, which is not followed; put the file itself there")


def _read_plain(path: Path) -> bytes:
    """Returns the bytes of a file that is no link; it is opened in one step, so that it cannot become one in between."""
    _demand_plain(path)
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:
        return file.read()


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    *,
    like: Layout | LocalClient | LoraConfig | str | Path | None = None,
    base_model_name: str | None = None,
    task_type: str | None = None,
    modules_to_save: list[str] | None = None,
) -> None:
    """Writes an adapter as a PEFT folder; equal adapters give equal bytes.

    The folder appears, or replaces an earlier one, whole or not at all. Where it also holds other files, those stay and its
    own are replaced one by one.

    Args:
        adapter: of any rank and scale by layer.
        folder: to write.
        like: where the rest of the config comes from: a client of `hf_clients`, a model's layout, a `LoraConfig`, or a PEFT
            folder.
        base_model_name: what PEFT is to load as the base; by default that of `like`.
        task_type: PEFT's, such as "SEQ_CLS"; by default that of `like`.
        modules_to_save: the modules that the dense tensors belong to; by default those of `like`, or their parents.

    Raises:
        TypeError: for a client whose model is not one of PEFT.
    """
    layout = _as_layout(like)
    given = {"base_model_name_or_path": base_model_name, "task_type": task_type, "modules_to_save": modules_to_save}
    settings = {**layout.config, **{k: v for k, v in given.items() if v is not None}}
    contents = {
        CONFIG: _json(entries_of(adapter, settings)),
        WEIGHTS: _weights(adapter, layout.embeddings),
        EXTRA: _json(_extra(adapter, layout)),
    }
    _write_folder(Path(folder), contents)


def _extra(adapter: Adapter, layout: Layout) -> dict[str, Any]:
    scales = {n: x.scale for n, x in adapter.layers.items()}
    plain = [x.item() if isinstance(x, np.generic) else x for x in layout.labels]
    # Labels that JSON has no form for are left out: whoever needs them then reads them from the data, as they were.
    labels = {"labels": plain} if plain and is_labels(plain) else {}
    drawn = {"drawn": list(layout.drawn)} if layout.drawn else {}
    return {"format": 1, "base": adapter.base, "scales": scales, **labels, **drawn}


def _as_layout(like: Layout | LocalClient | LoraConfig | str | Path | None) -> Layout:
    if like is None or isinstance(like, Layout):
        return like or Layout()
    if isinstance(like, LocalClient):
        return _layout_of(like)
    return read_layout(like) if isinstance(like, str | Path) else Layout(like.to_dict())


def _layout_of(client: LocalClient) -> Layout:
    layout = getattr(client.model, "layout", None)
    if not isinstance(layout, Layout):
        raise TypeError(
            f"like: client {client.peer.id} has a {type(client.model).__name__}, not a model of PEFT; give a LoraConfig"
        )
    return layout


def _weights(adapter: Adapter, embeddings: frozenset[str]) -> bytes:
    tensors = {f"{PREFIX}{n}": t for n, t in adapter.dense.items()}
    for name, x in adapter.layers.items():
        a, b = ("lora_embedding_A", "lora_embedding_B") if name in embeddings else ("lora_A.weight", "lora_B.weight")
        tensors[f"{PREFIX}{name}.{a}"], tensors[f"{PREFIX}{name}.{b}"] = x.A, x.B
    metadata = {"format": "pt", **({BASE_KEY: adapter.base} if adapter.base else {})}
    # Copies, since safetensors refuses tensors that share memory, as slices of one template do.
    return _ordered(save({k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, metadata=metadata))


def _ordered(data: bytes) -> bytes:
    """Returns the same file with its metadata sorted: the library writes them in another order at every call."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=sorted) + "\n").encode()


def _write_folder(folder: Path, contents: Mapping[str, bytes]) -> None:
    # A link may lead to another disk, and only within one disk does a folder change its name in one step.
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        draft.chmod(0o755)  # mkdtemp's folders are private, an adapter's is not
        for name, data in contents.items():
            files.write(draft / name, data)
        # Files that are not ours must stay, so the folder cannot be exchanged as a whole.
        if folder.is_dir() and {p.name for p in folder.iterdir()} - contents.keys():
            for name in contents:
                os.replace(draft / name, folder / name)
        else:
            files.replace_folder(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
