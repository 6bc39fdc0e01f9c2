"""Writes the model card of an exported adapter, and the lines that load, serve and publish it.

What a card tells comes from the folder of a run, which a stranger may have written. So every text of it is put between
backticks or in quotes, where neither Markdown nor HTML nor YAML means anything.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import yaml

from fedelta.report.words import number

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
LICENSE = re.compile(r"[A-Za-z0-9][\w.+-]{0,60}")

SEQUENCE, CAUSAL = "AutoModelForSequenceClassification", "AutoModelForCausalLM"
IMAGES, SEQ2SEQ = "AutoModelForImageClassification", "AutoModelForSeq2SeqLM"
PIPELINES: Mapping[str, str] = {
    SEQUENCE: "text-classification",
    CAUSAL: "text-generation",
    IMAGES: "image-classification",
    SEQ2SEQ: "text2text-generation",
}
"""The Hub's name of a task, by the class that loads its model."""

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM takes for --max-lora-rank."""

SERVED_BY_DEFAULT = 16
"""Its default of them."""

LONGEST = 200
"""Characters of a text that a card shows."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Holds what a card tells.

    Attributes:
        base: the base model's name, as others can load it.
        local: whether that is a folder on this machine.
        auto_class: the class of transformers that loads the base.
        merged: whether this is a whole model, and no adapter.
        license: of the base; None where it is not known.
        release: in what the base's weights of the training differ from those that go by its name; "" where they do not.
        labels: in the order of the head's outputs.
        ranks: of the adapter, by layer, each once.
        one_scale: whether all layers have one rank and one scale.
        saved: modules that were trained whole.
        drawn: frozen parameters that the base's checkpoint lacks; they were drawn from the run's seed.
        loading: keyword arguments of the base's `from_pretrained` beside the labels.
        tokenizer: whether the folder holds one.
        max_length: the longest sequence in tokens; None where there is none.
        side: pixels of height and width of the images that the model was trained on; None for a model of text.
        between_positions: whether the model must be told to find positions for a size that it was not pretrained on.
        prompts: by name, the text before an answer.
        training: what is to be said of the training, by heading.
        scores: by split, the metrics.
        round: after which they were measured, from 0; None where nothing was.
        scored: the model that they are of, in words.
    """

    base: str
    auto_class: str
    local: bool = False
    merged: bool = False
    license: str | None = None
    release: str = ""
    labels: Sequence[Hashable] = ()
    ranks: Sequence[int] = ()
    one_scale: bool = True
    saved: Sequence[str] = ()
    drawn: Sequence[str] = ()
    loading: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tokenizer: bool = True
    max_length: int | None = None
    side: tuple[int, int] | None = None
    between_positions: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict[str, str])
    training: Mapping[str, str] = field(default_factory=dict[str, str])
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    round: int | None = None
    scored: str = ""


def load_lines(it: Exported, place: str) -> list[str]:
    """Returns lines of Python that load model and tokenizer, or what prepares images, from the folder, or Hub id, `place`."""
    reader, name = ("AutoTokenizer", "tokenizer") if it.auto_class != IMAGES else ("AutoImageProcessor", "processor")
    last = f"{name} = {reader}.from_pretrained({(place if it.tokenizer or it.auto_class == IMAGES else it.base)!r})"
    names = ", ".join(sorted([it.auto_class, reader]))
    if it.merged:
        return [f"from transformers import {names}", "", f"model = {_call(it.auto_class, place)}", last]
    if it.auto_class == SEQUENCE or (it.auto_class == SEQ2SEQ and "revision" not in it.loading):
        # PEFT loads the base by itself: with two labels unless it is told how many there are, and at its newest revision, since
        # it takes `revision` for the adapter's.
        loader = it.auto_class.replace("AutoModel", "AutoPeftModel")
        given = {**_labels(it.labels), **it.loading}
        imports = [f"from peft import {loader}", "from transformers import AutoTokenizer"]
        return [*imports, "", f"model = {_call(loader, place, given)}", last]
    return [
        "from peft import PeftModel",
        f"from transformers import {names}",
        "",
        f"base = {_call(it.auto_class, it.base, {**_labels(it.labels), **it.loading})}",
        f"model = PeftModel.from_pretrained(base, {place!r})",
        last,
    ]


def _labels(labels: Sequence[Hashable]) -> dict[str, Any]:
    names = [str(label) for label in labels]
    return {"num_labels": len(names), "id2label": dict(enumerate(names))} if names else {}


def _call(loader: str, place: str, given: Mapping[str, Any] | None = None) -> str:
    arguments = [repr(place), *(f"{name}={value!r}" for name, value in (given or {}).items())]
    return f"{loader}.from_pretrained({', '.join(arguments)})"


def serve_line(it: Exported, place: str, name: str) -> str | None:
    """Returns the command by which vLLM serves the adapter; None where it cannot."""
    if it.auto_class != CAUSAL or why_not_served(it) is not None:
        return None
    if it.merged:
        return f"vllm serve {shlex.quote(place)}"
    line = f"vllm serve {shlex.quote(it.base)} --enable-lora --lora-modules {shlex.quote(f'{name}={place}')}"
    rank = max(it.ranks, default=1)
    if rank <= SERVED_BY_DEFAULT:
        return line
    return f"{line} --max-lora-rank {next(r for r in SERVED_RANKS if r >= rank)}"


def why_not_served(it: Exported) -> str | None:
    """Returns the reason why vLLM would not serve a language model's adapter, or serve another one; None if it would."""
    if it.auto_class != CAUSAL or it.merged:
        return None
    if it.saved:
        return "vLLM takes no adapter with modules that were trained whole"
    if not it.one_scale:
        # It reads r and lora_alpha of adapter_config.json, but neither rank_pattern nor alpha_pattern.
        return "vLLM takes one rank and one scale for all layers, and this adapter has several"
    if max(it.ranks, default=1) > SERVED_RANKS[-1]:
        return f"vLLM takes ranks up to {SERVED_RANKS[-1]}"
    if not it.base.isprintable() or it.base.startswith("-"):
        return "the name of its base model cannot be given on a command line"
    return None


def caution(it: Exported) -> str | None:
    """Returns a warning where the lines load another model than was trained; None where they load the same."""
    if it.merged:
        return None
    return "; ".join(reason for reason in (_other_weights(it), _drawn(it)) if reason) or None


def _other_weights(it: Exported) -> str | None:
    if not it.release or it.local:
        return None
    return f"The lines load {code(it.base)} from the Hub, whose weights are not those of the training ({it.release})"


def _drawn(it: Exported) -> str | None:
    if not it.drawn:
        return None
    names = ", ".join(code(name) for name in it.drawn[:3]) + (", and more" if len(it.drawn) > 3 else "")
    return f"The checkpoint of the base model lacks {names}: the run drew them from its seed, and a later loading draws others"


def upload_line(place: str, name: str) -> str:
    """Returns the command that publishes the folder on the Hub."""
    return f"hf upload {shlex.quote(f'YOUR-NAME/{name}')} {shlex.quote(place)}"


def model_card(it: Exported, name: str) -> str:
    """Returns the README.md of an exported folder called `name`."""
    head = [f"---\n{_front_matter(it)}---\n", f"# {code(name)}\n"]
    sections = [_opening(it), _training(it), _scores(it), _labels_listed(it), _prompts(it), _usage(it, name)]
    return "\n".join([*head, *(section for section in sections if section)])


def _front_matter(it: Exported) -> str:
    """Returns what the Hub reads of a card, as YAML."""
    told: dict[str, Any] = {}
    if not it.local and HUB_ID.fullmatch(it.base):
        told["base_model"] = it.base
        told["base_model_relation"] = "finetune" if it.merged else "adapter"
    if it.license is not None and LICENSE.fullmatch(it.license):
        told["license"] = it.license
    told["library_name"] = "transformers" if it.merged else "peft"
    if it.auto_class in PIPELINES:
        told["pipeline_tag"] = PIPELINES[it.auto_class]
    told["tags"] = ["federated-learning", "lora", "fedelta"]
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)


def _opening(it: Exported) -> str:
    adapter = "A LoRA adapter, trained by federated learning"
    what = "A model with a LoRA adapter in its weights, trained by federated learning" if it.merged else adapter
    base = f"the folder {code(PurePath(it.base).name)}, on the machine of its training" if it.local else code(it.base)
    terms = code(it.license) if it.license else "not known here: see the page of the base model"
    base += f" ({it.release})" if it.release else ""
    return f"{what}.\n\n- Base model: {base}\n- Licence of the base model: {terms}\n"


def _training(it: Exported) -> str:
    told = {
        **it.training,
        **({"Ranks of this adapter": ", ".join(map(str, it.ranks))} if it.ranks and not it.merged else {}),
        **({"Trained whole": ", ".join(it.saved)} if it.saved else {}),
        **({"Longest input in tokens": str(it.max_length)} if it.max_length is not None else {}),
        **({"Size of images in pixels": " x ".join(map(str, it.side))} if it.side is not None else {}),
    }
    if not told:
        return ""
    return "\n".join(["## Training\n", *(f"- {heading}: {code(value)}" for heading, value in told.items()), ""])


def _scores(it: Exported) -> str:
    if not it.scores or it.round is None:
        return ""
    metrics = list(dict.fromkeys(metric for values in it.scores.values() for metric in values))
    lines = ["## Scores\n", f"Of {it.scored} after round {it.round}, counted from 0.\n"]
    lines += [f"| split | {' | '.join(map(_cell, metrics))} |", f"|---|{'---:|' * len(metrics)}"]
    for split, values in it.scores.items():
        lines.append(f"| {split} | {' | '.join(number(values.get(metric)) for metric in metrics)} |")
    return "\n".join([*lines, ""])


def _labels_listed(it: Exported) -> str:
    if not it.labels:
        return ""
    return "\n".join(["## Labels\n", *(f"- {k}: {code(repr(label))}" for k, label in enumerate(it.labels)), ""])


def _prompts(it: Exported) -> str:
    if not it.prompts:
        return ""
    return "\n".join(["## Prompt\n", *(f"{name}:\n\n{fenced(text)}" for name, text in it.prompts.items())])


def _usage(it: Exported, name: str) -> str:
    """Returns the lines to use the folder by, where it is called `name`."""
    lines = [f"## Use\n\nWith this folder, or its Hub id, as {code(name)}:\n"]
    lines.append(fenced("\n".join(load_lines(it, name)), "python"))
    if it.auto_class in (SEQUENCE, IMAGES, SEQ2SEQ):
        lines.append(fenced("\n".join(answer_lines(it)), "python"))
    if warning := caution(it):
        lines.append(f"{warning}. A model exported with `--merged` holds the weights of the training.\n")
    if reason := why_not_served(it):
        lines.append(f"{reason}: export it with `--merged` to serve it.\n")
    shell = [line for line in (serve_line(it, name, name), upload_line(name, name)) if line]
    return "\n".join([*lines, fenced("\n".join(shell), "bash")])


def answer_lines(it: Exported) -> list[str]:
    """Returns lines of Python that ask a loaded classifier for the label of a text, or of an image."""
    if it.auto_class == IMAGES:
        told = ", interpolate_pos_encoding=True" if it.between_positions else ""
        return [
            "from PIL import Image",
            "",
            'inputs = processor(Image.open("an-image.png").convert("RGB"), return_tensors="pt")',
            f"answers = [model.config.id2label[int(k)] for k in model(**inputs{told}).logits.argmax(-1)]",
        ]
    cut = f"truncation=True, max_length={it.max_length}, " if it.max_length is not None else ""
    inputs = f'inputs = tokenizer(["a text"], {cut}padding=True, return_tensors="pt")'
    if it.auto_class == SEQUENCE:
        return [inputs, "answers = [model.config.id2label[int(k)] for k in model(**inputs).logits.argmax(-1)]"]
    length = f"max_new_tokens={it.max_length}" if it.max_length is not None else "max_new_tokens=64"
    writes = "input_ids=inputs.input_ids, attention_mask=inputs.attention_mask"
    return [
        inputs,
        f"answers = tokenizer.batch_decode(model.generate({writes}, {length}), skip_special_tokens=True)",
    ]


# --- text that a stranger may have written -----------------------------------------------------------------------------


def code(text: str) -> str:
    """Returns a text as inline code of one line: shortened, and with escapes for characters that do not print."""
    shown = _printable(text)
    shown = shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…"
    marks = "`" * (_longest_run(shown) + 1)
    # Markdown takes a space from either end of inline code, so that a backtick may stand there.
    space = " " if not shown.strip() or "`" in (shown[0], shown[-1]) else ""
    return f"{marks}{space}{shown}{space}{marks}"


def _cell(text: str) -> str:
    return code(text).replace("|", "\\|")


def fenced(text: str, language: str = "") -> str:
    """Returns a text as a block of code that it cannot end itself; its lines stay as they are."""
    lines = [_printable(line) for line in text.split("\n")]
    marks = "`" * max(3, *(_longest_run(line) + 1 for line in lines))
    return "\n".join([f"{marks}{language}", *lines, marks, ""])


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
