"""Writes the text of a first config, with a comment where a reader has to decide."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fedelta.data.columns import Column
from fedelta.runs.config.schema import LONGEST_NAME
from fedelta.runs.starter.guess import Guess
from fedelta.runs.starter.layout import Layout

CAUSAL = "HuggingFaceTB/SmolLM2-135M"
"""The model of a config for answers in words, unless a person names one: small, and open to all uses."""

ENCODER = "minilm"

VISION = "dinov2-small"

KNOWN = {
    ENCODER: ("an English encoder of 22 million weights", "[query, value]"),
    VISION: (f"a vision transformer of 22 million weights, which `fedelta fetch {VISION}` gets", "[q_proj, v_proj]"),
}
"""By model, what is said of it, and the layers that get an adapter."""

CLIENTS = 5
"""Clients that the rows of one file are dealt to."""

COHORT = 10
"""Clients of a round where there are many."""

PIXELS = 112
"""Of a side of the images: few enough for a processor, a multiple of the patches of 14 and 16 pixels."""

LONGEST = {"instruction": 512}
"""The most tokens of an example by task; 256 for others."""

RATES = {"instruction": "2.0e-4", "image_classification": "1.0e-3"}
"""The learning rate by task; "3.0e-3" for others."""

TOKENS = 1.6
"""Tokens of a word, generously: in English there are about 1.3."""


def config_text(layout: Layout, guess: Guess, sizes: Mapping[str, int], folder: Path, model: str | None) -> str:
    """Returns the text of a config.

    Args:
        layout: the files.
        guess: of the task.
        sizes: rows by the name of each file.
        folder: that the config is to lie in, to which paths are relative.
        model: the base model; None leaves the choice here.
    """
    causal, images = guess.task["name"] == "instruction", _of_images(guess)
    lines = [
        "# A first config, made from the data. What is left out has a default; `fedelta schema` lists all keys.",
        f"name: {_flow(_name(layout))}",
        "seed: 0",
        "",
        *_model(model or (CAUSAL if causal else VISION if images else ENCODER), model is None),
        "",
        *_task(guess),
        "",
        *_data(layout, guess, sizes, folder),
        *_partition(layout, guess, sizes),
        "",
        "# The rule that combines the clients' adapters; `fedelta methods` lists the others.",
        "method: fedavg",
        *_training(layout, sizes, causal, RATES.get(guess.task["name"], "3.0e-3")),
        *_federation(layout, guess),
        f"evaluation: {{every: 1, best_by: {'loss' if causal else 'accuracy'}}}",
    ]
    return "\n".join(lines) + "\n"


def _of_images(guess: Guess) -> bool:
    return guess.task["name"] == "image_classification"


def _flow(value: Any) -> str:
    """Returns a value in YAML on one line, also where the name of a column has several: it may stand in a comment."""
    text = _dumped(value)
    return text if len(text.splitlines()) == 1 else _dumped(value, style='"')


def _dumped(value: Any, style: str | None = None) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, default_style=style, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _name(layout: Layout) -> str:
    """Returns a name for the run: that of its one file, or of the folder of its files."""
    file = next(iter(layout.train.values()))
    name = next(iter(layout.train)) if layout.alone and next(iter(layout.train)) != "train" else file.absolute().parent.name
    kept = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-. ")
    return kept[:LONGEST_NAME] or "run"


def _model(name: str, chosen: bool) -> list[str]:
    about, targets = KNOWN.get(name, ("a language model, which the first run downloads", ""))
    lines = [f"# {about}; any model of the Hub or folder does" if chosen else "# as given: a folder, or a model of the Hub"]
    modules = f", target_modules: {targets}" if targets else ""
    return [*lines, f"model: {{name: {_flow(name)}}}", f"lora: {{rank: 8, lora_alpha: 16{modules}}}"]


def _task(guess: Guess) -> list[str]:
    others = [f"# {', '.join(map(_flow, guess.others[:5]))} could be the label, too"] if guess.others else []
    if _of_images(guess):
        about = "# Pixels of a side, to which whole images are brought: a pass costs as much as it has patches"
        return [about, *others, f"task: {_flow({**guess.task, 'image_size': PIXELS})}"]
    words = sum(column.words(0.95) for column in guess.texts[:2])
    longest = LONGEST.get(guess.task["name"], 256)
    length = min(longest, 16 * -(-int(TOKENS * words + 8) // 16))
    lines = [f"# 95 of 100 rows have {words} words or fewer; longer ones are cut at max_length tokens"]
    return [*lines, *others, f"task: {_flow({**guess.task, 'max_length': length})}"]


def _data(layout: Layout, guess: Guess, sizes: Mapping[str, int], folder: Path) -> Iterator[str]:
    yield "# Paths are relative to this file."
    yield "data:"
    if layout.alone is not None:
        yield f"  source: {_flow(_relative(layout.alone, folder))} # {sizes[next(iter(layout.train))]:,} rows"
    else:
        yield "  clients:"
        for name, file in layout.train.items():
            yield f"    {_flow(name)}: {_flow(_relative(file, folder))} # {sizes[name]:,} rows"
    for part, file in layout.parts.items():
        if _of_images(guess) and file.is_dir():
            yield f"  # {part}: {sizes[part]:,} rows of its subfolder {_flow(file.name)}"
        else:
            yield f"  {part}: {_flow(_relative(file, folder))} # {sizes[part]:,} rows"
    if layout.alone is None:
        yield "  client_test_fraction: 0.2 # of each client's rows, to test it by"
    else:
        yield from _carved(layout, guess.label)
    if guess.label is not None and guess.label.missing:
        yield f"  empty: drop # {guess.label.missing:,} rows have no label"


def _carved(layout: Layout, label: Column | None) -> Iterator[str]:
    """Yields the shares of the one file that are kept for the parts that have no file."""
    for part, about in (("validation", "to choose the best round by"), ("test", "to report on")):
        if part not in layout.parts:
            yield f"  {part}_fraction: {0.1 if part == 'validation' else 0.2} # {about}"
    if label is not None and len(layout.parts) < 2:
        yield f"  stratify: {_flow(label.name)} # the parts have the same shares of the labels"


def _partition(layout: Layout, guess: Guess, sizes: Mapping[str, int]) -> list[str]:
    if layout.alone is None:
        return []
    if guess.owner is not None:
        count = len(guess.owner.counts)
        return [
            f"# one client for each of the {count} values of {_flow(guess.owner.name)}",
            f"partition: {{scheme: natural, by: {_flow(guess.owner.name)}, clients: null}}",
        ]
    clients = max(2, min(CLIENTS, sizes[next(iter(layout.train))] // 20))
    if guess.label is None:
        return ["# Rows are dealt at random.", f"partition: {{scheme: iid, clients: {clients}}}"]
    return [
        "# Clients of unequal size with unequal labels, as real ones are: less so with a larger concentration.",
        f"partition: {{scheme: dirichlet, clients: {clients}, concentration: 0.5}}",
    ]


def _training(layout: Layout, sizes: Mapping[str, int], causal: bool, rate: str) -> list[str]:
    smallest = min(sizes[name] for name in layout.train)
    batch = 4 if causal or smallest < 100 else 16
    return [f"training: {{batch_size: {batch}, local_steps: 10, learning_rate: {rate}}}"]


def _federation(layout: Layout, guess: Guess) -> list[str]:
    count = len(layout.train) if layout.alone is None else len(guess.owner.counts) if guess.owner else 0
    if count <= 2 * COHORT:
        return ["federation: {rounds: 10}"]
    return [f"federation: {{rounds: 10, participation: {max(COHORT / count, 0.001):.3f}}} # about {COHORT} clients a round"]


def _relative(file: Path, folder: Path) -> str:
    """Returns a file's path from the config's folder; a path that would climb more than three folders is written in full."""
    path = Path(os.path.relpath(file, folder))
    return str(file.absolute()) if path.parts[:4] == ("..",) * 4 else path.as_posix()
