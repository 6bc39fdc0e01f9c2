"""Who may share a pass: a rehearsal finds the models that answer a client otherwise when others are there."""

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    ConvBertConfig,
    ConvBertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from fedelta import tree
from fedelta.models.cohort import sharing
from fedelta.models.cohort.cohort import Cohort
from fedelta.models.cohort.sharing import refusal, rehearsed
from fedelta.models.peft import PeftAdaptedModel

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "pad_token_id": 1,
}
DEBERTA = {**SMALL, "relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"]}
XLNET = {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24, "pad_token_id": 1}

BERT = lambda: BertForSequenceClassification(BertConfig(**SMALL))  # noqa: E731
ALONE = {
    "convolves along the sequence": (
        lambda: ConvBertForSequenceClassification(ConvBertConfig(**SMALL, embedding_size=16, head_ratio=1)),
        ["query", "value"],
    ),
    "transforms along the sequence": (lambda: FNetForSequenceClassification(FNetConfig(**SMALL)), ["intermediate.dense"]),
    "reads the last place": (lambda: XLNetForSequenceClassification(XLNetConfig(**XLNET)), ["layer_1"]),
    "adapts a table of positions": (
        lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**DEBERTA, share_att_key=True)),
        ["query_proj", "key_proj"],
    ),
}


def adapted(build: Any, targets: list[str], **lora: Any) -> PeftAdaptedModel:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS", **lora)
    return PeftAdaptedModel(build().double().eval(), config)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[Cohort]:
    """The cohorts of all rehearsals."""
    seen: list[Cohort] = []

    class Seen(Cohort):
        def __enter__(self) -> Cohort:
            seen.append(self)
            return super().__enter__()

    monkeypatch.setattr(sharing, "Cohort", Seen)
    return seen


@pytest.mark.parametrize("kind", ALONE)
def test_a_model_that_answers_otherwise_in_company_is_refused(kind: str, passes: list[Cohort]) -> None:
    model = adapted(*ALONE[kind])
    assert refusal(model) == "the model answers a client otherwise when others are in the pass"
    assert refusal(model) is not None
    assert len(passes) == 1  # it is rehearsed once


def test_deberta_may_share_a_pass_where_its_table_is_not_adapted(passes: list[Cohort]) -> None:
    build = lambda: DebertaV2ForSequenceClassification(DebertaV2Config(**DEBERTA, share_att_key=True))  # noqa: E731
    assert refusal(adapted(build, ["value_proj"])) is None
    assert len(passes) == 1


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_model_whose_rows_are_independent_is_taken_and_left_as_it_was(dropout: float, passes: list[Cohort]) -> None:
    model = adapted(BERT, ["query", "value"], lora_dropout=dropout)
    before = {n: x.clone() for n, x in tree.parameters(model.live()).items()}
    assert refusal(model) is None
    assert len(passes) == 1
    assert all(torch.equal(x, before[n]) for n, x in tree.parameters(model.live()).items())


def test_answers_that_went_to_the_wrong_client_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Cohort.losses
    monkeypatch.setattr(Cohort, "losses", lambda *args: losses(*args)[::-1])
    assert not rehearsed(adapted(BERT, ["query"]))


def test_a_model_without_tokens_is_not_rehearsed(passes: list[Cohort]) -> None:
    small = {n: v for n, v in SMALL.items() if n not in ("vocab_size", "pad_token_id")}
    model = adapted(lambda: ViTForImageClassification(ViTConfig(**small, image_size=8, patch_size=4)), ["fc1"])
    assert refusal(model) is None
    assert not passes
