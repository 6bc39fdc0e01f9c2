"""Texts that follow a prefix: their tokens, the decision for each of them, and how likely a model finds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from fedelta.tasks.task import IGNORED, Batch, Decisions, Example, at_least_float32, model_inputs
from fedelta.tasks.text.logits import logits_at

Tokens: TypeAlias = list[int]


def token_decisions(model: nn.Module, batch: Batch) -> Decisions:
    """Returns one decision among the vocabulary for each labelled token, sequence by sequence; no other logits are computed.

    Args:
        batch: inputs and `token_labels`, all (n, length). A sequence's first token is never predicted.
    """
    target = batch["token_labels"][:, 1:]
    answer = target != IGNORED
    predicting = F.pad(answer, (0, 1))  # each token is predicted at the position before it
    scores = logits_at(model, model_inputs(batch), predicting)
    return Decisions(scores, target[answer], owner=answer.nonzero()[:, 0])


def encode_prefixes(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    """Returns the tokens before a continuation: with the BOS that the tokenizer sets, without an EOS that it may set."""
    found = tokenizer(list(texts))["input_ids"]
    end = tokenizer.eos_token_id
    # One token that is both EOS and BOS stays: a prefix must not become empty.
    return [ids[:-1] if len(ids) > 1 and ids[-1] == end else list(ids) for ids in found]


def encode_continuations(texts: Sequence[str], tokenizer: Any) -> list[Tokens]:
    """Returns the tokens of texts that stand behind a prefix: no special ones.

    Prefix and continuation are encoded apart, so the border between them never falls inside a token and the continuation
    has the same tokens whatever the prefix.
    """
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def continued(prefix: Tokens, continuation: Tokens, max_length: int, tokenizer: Any, where: str) -> Example:
    """Returns prefix and continuation as one example of at most `max_length` tokens, labels on the continuation only.

    The prefix loses its oldest tokens first, but keeps a leading BOS, and at least one token: the continuation's first
    token is predicted from it. A continuation longer than the rest is cut at its end.

    Raises:
        ValueError: the prefix is empty and the tokenizer has no BOS or EOS to stand for it, or `max_length` is under 2.
    """
    if max_length < 2:
        raise ValueError(f"max_length {max_length} leaves no place for a continuation: give at least 2")
    prefix = prefix or [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None][:1]
    if not prefix:
        raise ValueError(f"{where}: nothing stands before the text to predict, and the tokenizer has no BOS: give a context")
    room = max(max_length - len(continuation), 1)
    # a model that was trained with a BOS reads a text without one as a middle
    keeps_bos = room > 1 and prefix[0] == tokenizer.bos_token_id
    if len(prefix) > room:
        prefix = prefix[:1] + prefix[-(room - 1) :] if keeps_bos else prefix[-room:]
    ids = (prefix + continuation)[:max_length]
    return {
        "input_ids": ids,
        "attention_mask": [1] * len(ids),
        "token_labels": [IGNORED] * len(prefix) + ids[len(prefix) :],
    }


def mean_log_probability(tokens: Decisions, token_labels: Tensor) -> Tensor:
    """Returns each sequence's mean log-probability over its labelled tokens, in nats.

    Args:
        tokens: the decision of each labelled token, sequence by sequence.
        token_labels: (m, length), the tokens themselves, `IGNORED` where they do not count.

    Returns:
        (m,) in float32, or float64 for float64 scores.
    """
    counted = token_labels[:, 1:] != IGNORED
    losses = F.cross_entropy(at_least_float32(tokens.scores), tokens.target, reduction="none")
    return -losses.new_zeros(counted.shape).masked_scatter(counted, losses).sum(dim=1) / counted.sum(dim=1)
