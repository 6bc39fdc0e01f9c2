"""Bytes from anybody: one documented error for whatever is malformed, and never another one.

`make fuzz` sets FEDELTA_MUTANTS to 50,000; a test run has 2,000, and an eighth as many folders, which take longer to write.
"""

import copy
import json
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from fedelta.cli import app
from fedelta.exchange import wire
from fedelta.exchange.wire import MalformedError
from fedelta.lowrank import LoRA
from fedelta.models.adapter_files import CONFIG, EXTRA, WEIGHTS, load_adapter, read_layout, save_adapter
from fedelta.models.toy import random_adapter
from fedelta.tree import Adapter, BaseDelta

MUTANTS = int(os.environ.get("FEDELTA_MUTANTS", "2000"))

TOO_LARGE = "1e999"
"""Stands for the number of these digits, which no float holds."""

ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1 << 70,
    1e308,
    "",
    "t0",
    "\ud800",
    [],
    {},
    [[]],
    [1, 2],
    {"v": {}},
    {"t": "t0"},
    {"m": [1]},
]
ODD += [
    TOO_LARGE,
    {"v": TOO_LARGE},
    {"c": "LoRA", "f": {"v": 1}},
    {"c": "Adapter", "f": {"m": []}},
    {"l": {}},
    {"p": 3},
    {"m": [["a"]]},
    "F8_E4M3",
    [-1, 4],
]

DTYPES = ["F8_E4M3", "F8_E5M2", "U64", "U32", "C64", "F4", "I64", "F16", "BOOL", "nothing", 4, None]


def mutated_json(value: Any, draw: random.Random) -> Any:
    """A copy with one place changed: replaced, dropped, doubled, renamed or nested deeply."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    if not places:
        return draw.choice(ODD)
    holder, key = draw.choice(places)
    match draw.randrange(6):
        case 0 | 1:
            holder[key] = copy.deepcopy(draw.choice(ODD))
        case 2:
            del holder[key]
        case 3 if isinstance(holder, dict):
            holder[str(draw.choice(ODD))] = holder.pop(key)
        case 4:
            for _ in range(draw.choice([1, 5, 2000])):
                holder[key] = draw.choice([lambda x: {"l": [x]}, lambda x: [x], lambda x: {"f": x}])(holder[key])
        case _:
            other, place = draw.choice(places)
            other[place] = copy.deepcopy(holder[key])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def dumped(value: Any) -> bytes:
    """JSON of any depth, with what is not JSON in it as it comes."""
    try:
        return json.dumps(value).replace(f'"{TOO_LARGE}"', TOO_LARGE).encode()
    except RecursionError:
        return b"[" * 100_000 + b"]" * 100_000


def mutated_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bytes flipped, cut, doubled, or with a length that is not theirs."""
    found = bytearray(data)
    match draw.randrange(5):
        case 0:
            for _ in range(draw.choice([1, 1, 8])):
                found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
        case 1:
            del found[draw.randrange(len(found)) :]
        case 2:
            start = draw.randrange(len(found))
            found[start : start + draw.randrange(64)] = draw.randbytes(draw.randrange(64))
        case 3:
            found[:8] = struct.pack("<Q", draw.choice([0, 1, 2, len(data) - 8, len(data), 1 << 40, (1 << 64) - 1]))
        case _:
            start = draw.randrange(len(found))
            found[start:start] = found[start : start + draw.randrange(200)]
    return bytes(found)


def with_header(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """A safetensors file with another header before the same tensors."""
    length = int.from_bytes(data[:8], "little")
    text = dumped(change(json.loads(data[8 : 8 + length])))
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def mutated_structure(data: bytes, draw: random.Random) -> bytes:
    """A message whose structure was changed, in a file that is whole."""

    def change(header: dict[str, Any]) -> dict[str, Any]:
        structure = mutated_json(json.loads(header["__metadata__"][wire.KEY]), draw)
        return header | {"__metadata__": {wire.KEY: dumped(structure).decode()}}

    return with_header(data, change)


def mutated_type(data: bytes, draw: random.Random) -> bytes:
    """A file in which a tensor has another type or shape."""

    def change(header: dict[str, Any]) -> dict[str, Any]:
        name = draw.choice([n for n in header if n != "__metadata__"])
        shapes = [[], [0], [-1], [1 << 62, 4, 0], [2, 3, 4], "x", [1.5]]
        header[name] |= draw.choice([{"dtype": draw.choice(DTYPES)}, {"shape": draw.choice(shapes)}])
        return header

    return with_header(data, change)


def message() -> dict[str, Any]:
    shared = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    return {
        "adapter": random_adapter(2, seed=3, scale=1 / 3),
        "base": BaseDelta(4, {"hidden": (LoRA(shared, shared.mT), torch.zeros(3, 3))}, since=2),
        "plain": [0.1, 1 << 80, True, None, "α", ("a", 1)],
        "empty": torch.zeros(0, 5),
    }


def test_of_no_mutant_of_a_message_comes_another_error_or_half_a_message():
    data = wire.encode(message())
    kinds = (mutated_bytes, mutated_structure, mutated_type, lambda d, r: with_header(d, lambda h: mutated_json(h, r)))
    refused = 0
    for k in range(MUTANTS):
        draw = random.Random(k)
        mutant = kinds[k % len(kinds)](data, draw)
        try:
            found = wire.decode(mutant)
        except MalformedError:
            refused += 1
        else:
            wire.encode(found)  # what is taken is a message
    assert refused > MUTANTS / 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    adapter = random_adapter(2, seed=0, dtype=torch.float32)
    save_adapter(Adapter({**adapter.layers, "deep": random_adapter(4, seed=1).layers["hidden"]}, {}, "ab"), tmp_path / "a")
    return tmp_path / "a"


def test_of_no_mutant_of_an_adapter_folder_comes_another_error(folder: Path):
    files = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS, EXTRA)}
    refused, count = 0, MUTANTS // 8
    for k in range(count):
        draw = random.Random(k)
        name = draw.choice([*files, CONFIG])
        data = files[name]
        change = draw.choice(
            [mutated_bytes, mutated_type if name == WEIGHTS else lambda d, r: dumped(mutated_json(json.loads(d), r))]
        )
        (folder / name).write_bytes(change(data, draw))
        for read in (load_adapter, read_layout):
            try:
                read(folder)
            except ValueError:  # malformed, or well-formed and not plain LoRA
                refused += 1
        (folder / name).write_bytes(data)
    assert refused > count / 4


def _edit(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **values}))

    return change


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return apply


A, B = "base_model.model.hidden.lora_A.weight", "base_model.model.hidden.lora_B.weight"

FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "broken JSON": (_write(CONFIG, b'{"r": '), f"{CONFIG} is not JSON"),
    "deep JSON": (_write(CONFIG, b"[" * 200_000 + b"]" * 200_000), f"{CONFIG} is nested too deeply"),
    "a list for a config": (_write(CONFIG, b"[1, 2]"), f"{CONFIG} holds a list"),
    "no UTF-8": (_write(CONFIG, b'{"r": "\xff"}'), f"{CONFIG} is not JSON"),
    "no rank": (_write(CONFIG, b'{"peft_type": "LORA", "lora_alpha": 8}'), f"{CONFIG} has no entry 'r'"),
    "a list for a rank": (_edit(r=[2]), "r must be a whole number"),
    "a text for a rank": (_edit(r="2"), "r must be a whole number"),
    "true for a rank": (_edit(r=True), "r must be a whole number"),
    "an infinite lora_alpha": (_edit(lora_alpha=float("inf")), "lora_alpha must be a finite number"),
    "a list for a pattern": (_edit(rank_pattern=["hidden"]), "rank_pattern must be whole numbers by pattern"),
    "texts in a pattern": (_edit(alpha_pattern={"hidden": "2"}), "alpha_pattern must be finite numbers by pattern"),
    "a number for modules": (_edit(modules_to_save=3), "modules_to_save must be a list of texts"),
    "numbers for targets": (_edit(target_modules=[1, 2]), "target_modules must be a text or a list of texts"),
    "a list for a base": (_edit(base_model_name_or_path=["x"]), "base_model_name_or_path must be a text"),
    "missing tensors": (_tensors(lambda t: t.pop(B)), "lacks lora_B"),
    "a vector for a factor": (_tensors(lambda t: t.update({A: torch.ones(4)})), "are not factors of one delta"),
    "factors that do not multiply": (_tensors(lambda t: t.update({A: torch.ones(3, 4)})), "are not factors of one delta"),
    "a scalar for a factor": (_tensors(lambda t: t.update({A: torch.tensor(1.0)})), "are not factors of one delta"),
    "whole numbers for a factor": (_tensors(lambda t: t.update({A: t[A].int()})), "not floating-point numbers"),
    "one factor twice": (
        _tensors(lambda t: t.update({A.replace("lora_A.weight", "lora_embedding_A"): t[A].clone()})),
        "is a second lora_A of one layer",
    ),
    "a header of 10^12 bytes": (_write(WEIGHTS, struct.pack("<Q", 10**12) + b"{}"), f"{WEIGHTS} is cut or damaged"),
    "a header that is no JSON": (_write(WEIGHTS, struct.pack("<Q", 4) + b"{abc"), f"{WEIGHTS} is cut or damaged"),
    "half of the weights": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-20]) and None,
        f"{WEIGHTS} is cut or damaged",
    ),
    "a list beside it": (_write(EXTRA, b"[]"), f"{EXTRA} holds a list"),
    "deep JSON beside it": (_write(EXTRA, b"[" * 200_000), f"{EXTRA} is nested too deeply"),
    "texts for scales": (_write(EXTRA, b'{"scales": {"hidden": "2"}}'), "finite numbers by layer as `scales`"),
    "a list for the base": (_write(EXTRA, b'{"base": [1]}'), "a text as `base`"),
}


@pytest.mark.parametrize("fault", FOLDERS)
def test_a_malformed_adapter_folder_is_refused_by_its_fault(fault: str, folder: Path):
    spoil, expected = FOLDERS[fault]
    spoil(folder)
    with pytest.raises(MalformedError, match=expected):
        load_adapter(folder)


@pytest.mark.parametrize("fault", FOLDERS)
def test_the_command_line_says_so_without_a_traceback(fault: str, folder: Path):
    FOLDERS[fault][0](folder)
    done = CliRunner().invoke(app, ["inspect", str(folder)])
    assert done.exit_code == 2
    assert FOLDERS[fault][1].replace("`", "") in done.output.replace("\n", " ").replace("`", "")
    assert isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("read", [load_adapter, read_layout])
def test_a_layout_is_refused_like_an_adapter(read: Callable[[Path], Any], folder: Path):
    (folder / WEIGHTS).write_bytes(b"\x08" + b"\0" * 7 + b"{}      ")
    (folder / CONFIG).write_text("[]")
    with pytest.raises(MalformedError, match="holds a list"):
        read(folder)


def test_a_file_of_a_message_is_refused_by_its_name(tmp_path: Path):
    (tmp_path / "m").write_bytes(struct.pack("<Q", 200_000) + b'{"a":' + b"[" * 199_995)
    with pytest.raises(MalformedError, match=r"m: the header of the message is damaged"):
        wire.read_file(tmp_path / "m")
