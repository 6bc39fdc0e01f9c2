"""Distance of a merged adapter to the exact mean: PEFT's `add_weighted_adapter` and `fedelta.aggregate` on the same folders.

    python benchmarks/merge.py [--write] [--adapters DIR]

Two adapters each, with weights 1/4 and 3/4. The exact mean is the matrix 1/4 dW_1 + 3/4 dW_2, layer by layer, in float64. A
figure is the norm of the difference to it over its own norm, over all layers. `svd` and `flexlora` are asked for the larger of
the two ranks; `cat` and `flora` have the sum of the ranks.

Made-up adapters have random factors. With `--adapters`, the folder that holds `gpt2_tigrinya` and `gpt_neo_125m_movies_r8`,
each of these published adapters is merged with its own best approximation of half the rank, in the first two blocks.
`--write` keeps the figures in results/merge.csv, and writes them into the page "Merge adapters".
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, GPTNeoConfig, GPTNeoModel

import fedelta
from fedelta.lowrank import LoRA
from fedelta.models.adapter_files import load_adapter, save_adapter
from fedelta.report.words import percent
from fedelta.tree import Adapter

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results" / "merge.csv", HERE.parent / "docs" / "how-to" / "merge-adapters.md"
BEGIN, END = "<!-- merge: begin -->\n", "<!-- merge: end -->"
WEIGHTS = (0.25, 0.75)
PEFT_WAYS, OWN_WAYS = ("linear", "svd", "cat"), ("fedavg", "flexlora", "flora")
SHAPES = {"query": (96, 64), "value": (64, 64)}
REAL = ("gpt2_tigrinya", "gpt_neo_125m_movies_r8")
BLOCKS = ("h.0.", "h.1.")
"""Of a real adapter: enough to compare by, and little to factorise as matrices."""

EXACT = 5e-6
"""The distance, of factors and their SVD in float32, below which a result is the mean itself."""

Deltas = Mapping[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """How a made-up adapter was trained."""

    rank: int = 8
    lora_alpha: int = 16
    rslora: bool = False
    seed: int = 0

    def adapter(self) -> Adapter:
        generator = torch.Generator().manual_seed(self.seed)
        scale = self.lora_alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

        def layer(shape: tuple[int, int]) -> LoRA:
            B, A = (torch.randn(*size, generator=generator) for size in ((shape[0], self.rank), (self.rank, shape[1])))
            return LoRA(B, A, scale)

        return Adapter({name: layer(shape) for name, shape in SHAPES.items()})

    def save(self, folder: Path) -> Path:
        config = LoraConfig(r=self.rank, lora_alpha=self.lora_alpha, use_rslora=self.rslora, target_modules=sorted(SHAPES))
        save_adapter(self.adapter(), folder, like=config)
        return folder


CASES: Mapping[str, tuple[Kind, Kind]] = {
    "an adapter and itself, rank 8": (Kind(), Kind()),
    "rank 8 and 8": (Kind(), Kind(seed=1)),
    "rank 8 and 8, `lora_alpha` 8 and 32": (Kind(lora_alpha=8), Kind(lora_alpha=32, seed=1)),
    "rank 4 and 16": (Kind(4), Kind(16, seed=1)),
    "rank 8 and 8, rsLoRA": (Kind(rslora=True), Kind(rslora=True, seed=1)),
    "rank 4 and 16, rsLoRA": (Kind(4, rslora=True), Kind(16, rslora=True, seed=1)),
    "rank 8 and 8, rsLoRA and plain": (Kind(rslora=True), Kind(seed=1)),
    "rank 8 and 8, plain and rsLoRA": (Kind(), Kind(rslora=True, seed=1)),
}


class Layers(nn.Module):
    """A model of the layers that made-up adapters have."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = (nn.Linear(i, o, bias=False) for o, i in SHAPES.values())


def gpt2() -> nn.Module:
    return GPT2Model(GPT2Config(n_layer=len(BLOCKS), vocab_size=8))


def gpt_neo() -> nn.Module:
    kinds: list[Any] = [[["global", "local"], len(BLOCKS) // 2]]
    return GPTNeoModel(GPTNeoConfig(attention_types=kinds, hidden_size=768, num_heads=12, num_layers=len(BLOCKS), vocab_size=8))


def made_up(folder: Path) -> Iterable[tuple[str, Callable[[], nn.Module], list[Path]]]:
    """Yields each case with the model for PEFT and the folders of its adapters."""
    for k, (name, kinds) in enumerate(CASES.items()):
        yield name, Layers, [kind.save(folder / f"{k}-{j}") for j, kind in enumerate(kinds)]


def real(adapters: Path, folder: Path) -> Iterable[tuple[str, Callable[[], nn.Module], list[Path]]]:
    """Yields the published adapters, each with its own best approximation of half the rank."""
    for name, model in zip(REAL, (gpt2, gpt_neo), strict=True):
        whole = load_adapter(adapters / name)
        kept = {n.removeprefix("transformer."): x for n, x in whole.layers.items() if any(block in n for block in BLOCKS)}
        part = Adapter(kept)
        rank = next(iter(kept.values())).rank
        (half,) = fedelta.aggregate([part], method="flexlora", ranks=[rank // 2])
        folders = [folder / f"{name}-{size}" for size in (rank, rank // 2)]
        for adapter, place in zip((part, half), folders, strict=True):
            save_adapter(adapter, place, like=adapters / name, task_type="FEATURE_EXTRACTION")
        yield f"`{name}`, rank {rank} and {rank // 2}", model, folders


def dense(adapter: Adapter) -> Deltas:
    return {name: x.to(torch.float64).dense() for name, x in adapter.layers.items()}


def mean(folders: Sequence[Path]) -> Deltas:
    deltas = [dense(load_adapter(folder)) for folder in folders]
    return {n: sum((w * d[n] for w, d in zip(WEIGHTS, deltas, strict=True)), torch.zeros(())) for n in deltas[0]}


def distance(found: Deltas, exact: Deltas) -> float:
    """Returns the norm of the difference over the norm of the exact mean, over all layers."""
    off = math.fsum(float((found[n] - x).square().sum()) for n, x in exact.items())
    return math.sqrt(off / math.fsum(float(x.square().sum()) for x in exact.values()))


def by_peft(model: nn.Module, folders: Sequence[Path], way: str) -> Deltas | None:
    """Returns the deltas of what PEFT merges; None where it refuses."""
    names = [f"input{k}" for k in range(len(folders))]
    peft: Any = PeftModel.from_pretrained(cast("Any", model), str(folders[0]), adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        peft.load_adapter(str(folder), adapter_name=name)
    try:
        peft.base_model.add_weighted_adapter(names, list(WEIGHTS), "merged", combination_type=way)
    except ValueError:
        return None
    layers = {n.removeprefix("base_model.model."): m for n, m in peft.named_modules() if isinstance(m, LoraLayer)}
    deltas = {n: cast("Any", m).get_delta_weight("merged").double() for n, m in layers.items()}
    return {n: x.mT if cast("Any", layers[n]).fan_in_fan_out else x for n, x in deltas.items()}


def by_fedelta(folders: Sequence[Path], way: str) -> Deltas | None:
    """Returns the deltas of what the method merges; None where it refuses."""
    rank = max(x.rank for folder in folders for x in load_adapter(folder).layers.values())
    try:
        return dense(fedelta.aggregate(folders, weights=WEIGHTS, method=way, ranks=[rank])[0])
    except ValueError:
        return None


def compare(model: Callable[[], nn.Module], folders: Sequence[Path]) -> dict[str, float | None]:
    """Returns the distance of each way of merging; None where it refuses."""
    exact = mean(folders)
    found = {way: by_peft(model(), folders, way) for way in PEFT_WAYS}
    found |= {way: by_fedelta(folders, way) for way in OWN_WAYS}
    return {way: None if deltas is None else distance(deltas, exact) for way, deltas in found.items()}


def measured(adapters: Path | None = None) -> list[dict[str, str]]:
    """Returns the rows of the table: inputs, the version of PEFT, and each way's distance or `refused`."""
    torch.manual_seed(0)
    rows: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = [*made_up(Path(scratch)), *(real(adapters, Path(scratch)) if adapters else ())]
        for name, model, folders in cases:
            figures = {way: "refused" if x is None else f"{x:.3g}" for way, x in compare(model, folders).items()}
            rows.append({"inputs": name, "peft": version("peft"), **figures})
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the rows as a table of a page."""
    ways = [*(f"PEFT `{way}`" for way in PEFT_WAYS), *(f"`{way}`" for way in OWN_WAYS)]
    lines = [f"| inputs | {' | '.join(ways)} |", f"| --- | {' | '.join(['---:'] * len(ways))} |"]
    lines += [f"| {row['inputs']} | {' | '.join(_shown(row[way]) for way in (*PEFT_WAYS, *OWN_WAYS))} |" for row in rows]
    made = f"PEFT {rows[0]['peft']}; made by `python benchmarks/merge.py --adapters DIR --write`."
    return "\n".join([*lines, "", made, ""])


def _shown(figure: str) -> str:
    if figure == "refused":
        return figure
    return "0" if float(figure) < EXACT else percent(float(figure))


def with_table(page: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the page with this table between its marks."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}{table(rows)}{END}{rest.split(END)[1]}"


def read_results() -> list[dict[str, str]]:
    with RESULTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=Path, help="the folder with the published adapters")
    parser.add_argument("--write", action="store_true", help="keep the figures and write the page")
    asked = parser.parse_args()
    rows = measured(asked.adapters)
    print(table(rows))
    if asked.write:
        with RESULTS.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
