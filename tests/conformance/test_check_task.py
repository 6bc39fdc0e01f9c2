"""Deliberately wrong tasks: each breaks the law that it is made to break, and no other. Right ones of other kinds keep all."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration, ViTConfig, ViTForImageClassification

from fedelta.tasks import (
    IGNORED,
    Batch,
    Classification,
    Decisions,
    Example,
    Instruction,
    MultipleChoice,
    Predictions,
    Row,
    Task,
    list_tasks,
    model_inputs,
    pad_examples,
    task_class,
    tokenized,
)
from fedelta.testing import TASK_LAWS, ConformanceError, check, check_task, named
from fedelta.testing.language import ToyTokenizer


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_keeps_all_laws(name: str) -> None:
    report = check_task(task_class(name))
    asked = [v.law for v in report.verdicts if v.outcome == "kept"]
    assert asked == [law.name for law in TASK_LAWS if name != "instruction" or law.name != "labels"]


# --- wrong tasks -----------------------------------------------------------------------------------------------------


class Doubles(Classification):
    """Makes two examples of each row."""

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        return [example for example in super().encode(rows, tokenizer) for _ in range(2)]


class SortsRows(Classification):
    """Sorts rows by length, as a sampler may, but not a task."""

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        return sorted(super().encode(rows, tokenizer), key=self.length)


class PadsInEncode(Classification):
    """Pads while it encodes, so that an example depends on its company."""

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        found = super().encode(rows, tokenizer)
        longest = max(map(self.length, found))
        masks = [[*x["attention_mask"], *[0] * (longest - self.length(x))] for x in found]
        return [{**x, "attention_mask": mask} for x, mask in zip(found, masks, strict=True)]


class NeverCuts(Classification):
    """Takes texts of any length."""

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        return Classification.encode(replace(self, max_length=10_000), rows, tokenizer)


class LosesTheMask(Classification):
    """Lets the model read the padding."""

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        return Decisions(model(input_ids=batch["input_ids"]).logits, batch["labels"])


class GuessesTheMask(Classification):
    """Takes one token for padding, whatever the batch is padded with."""

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        mask = (batch["input_ids"] != 0).long()
        return Decisions(model(input_ids=batch["input_ids"], attention_mask=mask).logits, batch["labels"])


class LearnsPadding(Instruction):
    """Counts the places behind an answer's end as decisions."""

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        batch = super().collate(examples, pad_token_id)
        last = batch["attention_mask"] == 0
        return batch | {"token_labels": batch["token_labels"].masked_fill(last, 0)}


class NormalisesTheBatch(Classification):
    """Centres scores over the batch."""

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        made = super().decisions(model, batch)
        return replace(made, scores=made.scores - made.scores.mean(dim=0))


class AsksTwice(Classification):
    """Takes the mean of two passes."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return (super().loss(model, batch) + super().loss(model, batch)) / 2


class PredictsTwice(Classification):
    """Asks again for each prediction."""

    def predict(self, model: nn.Module, batch: Batch) -> Predictions:
        super().predict(model, batch)
        return super().predict(model, batch)


class NoGradients(Classification):
    """Returns a loss that nothing can be learned from."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch).detach()


class Shouts(Classification):
    """Gives labels another spelling than the one that it can read."""

    def label_of(self, row: Row) -> Hashable:
        return str(super().label_of(row)).upper()


class OneLabel(Classification):
    """Gives all rows the label of the first class, and learns them apart."""

    def label_of(self, row: Row) -> Hashable:
        return self.labels[0]


class OneTarget(Classification):
    """Learns the first class from all rows."""

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        return [{**example, "label": 0} for example in super().encode(rows, tokenizer)]


class ReadsPositions(MultipleChoice):
    """Gives the right ending's text as its label, which no row may have."""

    def label_of(self, row: Row) -> Hashable:
        return self.choices_of(row)[0]


class Unsettled(Classification):
    """Gives its labels another order whenever it is asked."""

    def settled(self, rows: Sequence[Row]) -> Classification:
        return replace(super().settled(rows), labels=super().settled(rows).labels[::-1])


def nothing(predictions: Predictions) -> float:
    return float("nan")


@dataclass(frozen=True, kw_only=True)
class LosesAMetric(Classification):
    def score(self, predictions: Predictions) -> dict[str, float]:
        return {}


@dataclass(frozen=True, kw_only=True)
class NoSuchField(Classification):
    """Says that its labels are in a field that no row has."""

    def label_field(self) -> str:
        return "category"


WRONG: dict[str, list[Any]] = {
    "one example a row": [Doubles, SortsRows, PadsInEncode, NeverCuts(max_length=8)],
    "padding": [LosesTheMask, GuessesTheMask, LearnsPadding, NormalisesTheBatch],
    "asks once": [AsksTwice, PredictsTwice, NoGradients],
    "labels": [Shouts, OneLabel, OneTarget, ReadsPositions, Unsettled, NoSuchField],
    "metrics": [
        Instruction(metrics=("macro_f1",)),
        Classification(metrics=(nothing,)),
        Classification(metrics=()),
        LosesAMetric,
    ],
}


CASES = {f"{law} {k}": (law, task) for law, tasks in WRONG.items() for k, task in enumerate(tasks)}


@pytest.mark.parametrize(("law", "task"), CASES.values(), ids=CASES)
def test_a_wrong_task_breaks_exactly_the_law_that_it_is_made_to_break(law: str, task: Any) -> None:
    report = check_task(task, raise_on_failure=False)
    assert list(report.violations) == [law], str(report)
    with pytest.raises(ConformanceError, match=law):
        check_task(task)


def test_every_law_has_a_task_that_breaks_it() -> None:
    assert list(WRONG) == [law.name for law in TASK_LAWS]


def test_no_other_law_is_judged_when_rows_are_no_examples() -> None:
    report = check_task(Doubles, raise_on_failure=False)
    assert report.count("not asked") == len(TASK_LAWS) - 1


# --- tasks of other kinds --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Images(Task):
    """Tells bright images from dark ones: `pixel_values` in place of tokens."""

    auto_class: ClassVar[str] = "AutoModelForImageClassification"
    peft_task_type: ClassVar[str | None] = None
    sample: ClassVar[tuple[Row, ...]] = tuple({"image": np.full((3, 8, 8), k / 4), "label": k // 2} for k in range(4))

    def label_field(self) -> str:
        return "label"

    def model_kwargs(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        return [{"pixel_values": np.float32(row["image"]), "label": row["label"]} for row in rows]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        return pad_examples(examples, pad_token_id)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        return Decisions(model(**model_inputs(batch)).logits, batch["labels"])

    def label_of(self, row: Row) -> Hashable:
        return row["label"]


@dataclass(frozen=True, kw_only=True)
class Translation(Task):
    """Writes one text for another, with an encoder-decoder: `labels=` of a length of their own."""

    auto_class: ClassVar[str] = "AutoModelForSeq2SeqLM"
    peft_task_type: ClassVar[str | None] = "SEQ_2_SEQ_LM"
    sample: ClassVar[tuple[Row, ...]] = (
        {"text": "one", "answer": "eins, und nicht zwei"},
        {"text": "a long text", "answer": "kurz"},
    )

    def encode(self, rows: Sequence[Row], tokenizer: Any) -> list[Example]:
        texts = tokenized(tokenizer, [row["text"] for row in rows], None, self.max_length)
        answers = tokenizer([row["answer"] for row in rows], add_special_tokens=False)["input_ids"]
        return [{**text, "token_labels": answer} for text, answer in zip(texts, answers, strict=True)]

    def collate(self, examples: Sequence[Example], pad_token_id: int) -> Batch:
        return pad_examples(examples, pad_token_id, self.pad_to_multiple)

    def decisions(self, model: nn.Module, batch: Batch) -> Decisions:
        target = batch["token_labels"]
        written = target != IGNORED
        scores = model(**model_inputs(batch, labels=target)).logits
        return Decisions(scores[written], target[written], owner=written.nonzero()[:, 0])

    def label_of(self, row: Row) -> None:
        return None


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=300, decoder_start_token_id=0, pad_token_id=0, **sizes)).double()


def vit() -> nn.Module:
    sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(intermediate_size=24, num_labels=2, **sizes))


@pytest.mark.parametrize("task", [Images, Translation])
def test_the_contract_serves_images_and_encoder_decoders(task: type[Task]) -> None:
    models = {Images: vit, Translation: t5}
    for model in (None, models[task]()):
        assert check_task(task, model=model).ok


def test_an_encoder_decoders_loss_is_the_models_own() -> None:
    torch.manual_seed(0)
    task, model = Translation(), t5().eval()
    batch = task.collate(task.encode(task.sample, ToyTokenizer()), 0)
    assert batch["token_labels"].shape[1] != batch["input_ids"].shape[1]
    own = model(**model_inputs(batch, labels=batch["token_labels"])).loss
    assert task.loss(model, batch).item() == pytest.approx(own.item(), rel=1e-9)


def test_images_of_unequal_shapes_are_refused_with_a_remedy() -> None:
    wide = [{"pixel_values": np.zeros((3, 8, 8 + k))} for k in range(2)]
    with pytest.raises(ValueError, match=r"pixel_values .* shapes \(3, 8, 8\) and \(3, 8, 9\): bring them to one"):
        pad_examples(wide, 0)


# --- the check itself ------------------------------------------------------------------------------------------------


def test_a_task_is_checked_on_rows_tokenizer_and_model_of_the_callers_own() -> None:
    rows = [{"review": "short", "stars": 1}, {"review": "a longer one", "stars": 5}]
    assert check_task(Classification(text="review", label="stars"), rows).ok
    with pytest.raises(ValueError, match="is checked on 1 row"):
        check_task(Classification, rows[:1])


def test_what_cannot_be_checked_is_answered_with_a_remedy() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needy(Classification):
        needed: int

    class Odd(Classification):
        auto_class: ClassVar[str] = "AutoModelForObjectDetection"

    with pytest.raises(ValueError, match="Needy cannot be made without arguments"):
        check_task(Needy)
    with pytest.raises(ValueError, match="no toy for AutoModelForObjectDetection"):
        check_task(Odd)


def test_a_model_keeps_its_mode_and_the_callers_generator_its_place() -> None:
    model = vit().train()
    before = torch.get_rng_state()
    check_task(Classification)
    assert torch.equal(torch.get_rng_state(), before)
    check_task(Images, model=model)
    assert all(module.training for module in model.modules())


def test_tasks_are_named_as_methods_are(tmp_path: Path) -> None:
    assert named("MultipleChoice") is task_class("multiple_choice")
    assert check("choice-likelihood").subject == "ChoiceByLikelihood"
    with pytest.raises(ValueError, match=r"no method or task is called 'clasification'; did you mean 'classification'"):
        named("clasification")
    with pytest.raises(ValueError, match=r"did you mean 'fedavg'"):
        named("fedavgg")
    path = tmp_path / "own.py"
    path.write_text("from fedelta.tasks.classification import Classification\nclass Own(Classification): pass\n")
    assert named(str(path)).__name__ == "Own"
    assert check(str(path)).ok
