"""Instructions answered by tiny T5 and BART: the encoder reads the prompt, the decoder writes the answer and its end."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from fedelta.tasks import Instruction, evaluate, predict_all
from fedelta.tasks.task import IGNORED, Task
from fedelta.tasks.text.gaps import warn_of_cut_texts
from fedelta.tasks.text.written import cut_answer, decoder_inputs, encode_answers
from fedelta.testing import check_task

PAD, BOS, EOS = 0, 1, 2
MARKS = ["<pad>", "<s>", "</s>", "<unk>"]
WORDS = [*MARKS, *"abcdefghijklmnopqrstuvwxyz", *"0123456789", "?"]
ROWS = [
    {"instruction": "a b c", "response": "1 2"},
    {"instruction": "d", "response": "3 4 5 6 7"},
    {"instruction": "e f g h i", "response": "8"},
]


def tokenizer(template: str | None) -> Any:
    """A tokenizer of single letters that marks texts by a template, as T5's and BART's do."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    if template is not None:
        marks = [("<s>", BOS), ("</s>", EOS)]
        made = processors.TemplateProcessing(single=template, special_tokens=marks)
        core.post_processor = made  # pyright: ignore[reportAttributeAccessIssue]
    names: dict[str, Any] = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def t5() -> Any:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    ids: dict[str, Any] = {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(WORDS), **sizes, **ids))


def bart() -> Any:
    sizes: dict[str, Any] = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2}
    ids: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "decoder_start_token_id": EOS}
    config = BartConfig(vocab_size=len(WORDS), d_model=16, max_position_embeddings=128, **sizes, **ids)
    return BartForConditionalGeneration(config)


@dataclass(frozen=True)
class Kind:
    """A kind of model, and how its tokenizer marks a text."""

    build: Callable[[], Any]
    template: str

    def model(self) -> Any:
        torch.manual_seed(0)
        return self.build().double().eval()

    def tokenizer(self) -> Any:
        return tokenizer(self.template)


KINDS = {"t5": Kind(t5, "$A </s>"), "bart": Kind(bart, "<s> $A </s>")}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def task(**settings: Any) -> Task:
    return Instruction(prompt="{instruction} ?", **settings).for_encoder_decoder()


def test_an_end_mark_before_the_mark_of_a_language_is_not_set_twice() -> None:
    """As mBART's tokenizers mark a text; its models begin by the last token, which has to be the language."""
    ids = [WORDS.index(word) for word in ("1", "2")]
    assert encode_answers(["1 2"], tokenizer("$A </s> <s>")) == [[*ids, EOS, BOS]]
    assert encode_answers(["1 2"], tokenizer(None)) == [[*ids, EOS]]


def test_the_encoder_reads_the_prompt_and_the_decoder_writes_the_answer_with_the_tokenizers_marks(kind: Kind) -> None:
    marks = kind.tokenizer()
    (found,) = task().encode(ROWS[:1], marks)
    begin = ["<s>"] if kind is KINDS["bart"] else []
    assert marks.convert_ids_to_tokens(found["input_ids"]) == [*begin, "a", "b", "c", "?", "</s>"]
    assert marks.convert_ids_to_tokens(found["token_labels"]) == [*begin, "1", "2", "</s>"]
    assert found["attention_mask"] == [1] * len(found["input_ids"])
    assert set(found) == {"input_ids", "attention_mask", "token_labels"}, "token types are none of these models' inputs"


def test_an_answer_ends_by_the_end_mark_where_the_tokenizer_sets_none() -> None:
    (found,) = task().encode(ROWS[:1], tokenizer(None))
    assert found["token_labels"][-1] == EOS
    assert found["token_labels"].count(EOS) == 1


def test_the_loss_is_the_models_own_with_labels(kind: Kind) -> None:
    """Answers of several lengths; what is behind an answer's end counts nowhere."""
    it, model = task(), kind.model()
    batch = it.collate(it.encode(ROWS, kind.tokenizer()), PAD)
    labels = batch["token_labels"]
    assert (labels == IGNORED).any()
    own = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels)
    assert it.loss(model, batch).item() == pytest.approx(own.loss.item(), rel=1e-10)
    made = it.decisions(model, batch)
    torch.testing.assert_close(made.scores, own.logits[labels != IGNORED], rtol=1e-10, atol=1e-12)


def test_its_metrics_are_those_of_a_causal_model(kind: Kind) -> None:
    it, model = task(metrics=(*Instruction().metrics, "exact_match")), kind.model()
    found = evaluate(it, model, it.encode(ROWS, kind.tokenizer()), pad_token_id=PAD)
    assert set(found) == {"loss", "perplexity", "accuracy", "exact_match"}
    assert found["loss"] == pytest.approx(torch.tensor(found["perplexity"]).log().item(), rel=1e-6)


def test_exact_matches_are_the_answers_that_the_model_writes_by_itself(kind: Kind) -> None:
    it, model = task(metrics=("exact_match",)), kind.model()
    examples = it.encode(ROWS, kind.tokenizer())
    written: list[dict[str, Any]] = []
    for example in examples:
        prompt = torch.tensor([example["input_ids"]])
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
        written.append({**example, "token_labels": ids[0, 1:].tolist()})
    assert evaluate(it, model, written, pad_token_id=PAD) == {"exact_match": 1.0}
    wrong = written[0]["token_labels"]
    written[0] = {**written[0], "token_labels": [*wrong[:-1], (wrong[-1] + 1) % len(WORDS)]}
    assert evaluate(it, model, written, pad_token_id=PAD) == {"exact_match": pytest.approx(2 / 3)}


def test_the_order_of_rows_and_their_padding_change_nothing(kind: Kind) -> None:
    it, model = task(), kind.model()
    examples = it.encode(ROWS, kind.tokenizer())
    together = predict_all(it, model, examples, pad_token_id=PAD)
    for i, example in enumerate(examples):
        alone = predict_all(it, model, [example], pad_token_id=PAD)
        assert together.loss_sum[i] == pytest.approx(alone.loss_sum[0], rel=1e-10)
        assert together.count[i] == alone.count[0] == len(example["token_labels"])


def test_the_laws_of_tasks_hold(kind: Kind) -> None:
    assert check_task(Instruction().for_encoder_decoder()).ok
    assert check_task(task(), ROWS, tokenizer=kind.tokenizer(), model=kind.model()).ok


def test_only_what_is_wanted_goes_through_the_output_head(kind: Kind) -> None:
    it, model, rows = task(), kind.model(), list[int]()
    model.get_output_embeddings().register_forward_hook(lambda _, args, __: rows.append(args[0].shape[:-1].numel()))
    batch = it.collate(it.encode(ROWS, kind.tokenizer()), PAD)
    it.loss(model, batch)
    assert rows == [int((batch["token_labels"] != IGNORED).sum())]


# --- rows that do not fit --------------------------------------------------------------------------------------------


def test_a_prompt_loses_its_end_but_not_its_mark_and_an_answer_its_end_with_the_mark(kind: Kind) -> None:
    row = {"instruction": "a b c d e f g h", "response": "1 2 3 4 5 6 7 8"}
    (found,) = task(max_length=5).encode([row], kind.tokenizer())
    words = kind.tokenizer().convert_ids_to_tokens
    begin = ["<s>"] if kind is KINDS["bart"] else []
    assert words(found["input_ids"]) == [*begin, *"abcdefgh"[: 4 - len(begin)], "</s>"]
    assert words(found["token_labels"]) == [*begin, *"12345678"[: 5 - len(begin)]]


def test_an_answer_that_is_cut_keeps_the_mark_of_a_language_and_the_end_mark_before_it() -> None:
    """mBART and PLBart begin the decoder by the last token, which has to be the language."""
    marks = tokenizer("$A </s> <s>")
    row = {"instruction": "a", "response": "1 2 3 4 5 6 7 8"}
    for most, kept in ((5, "123"), (9, "1234567"), (10, "12345678")):
        (found,) = task(max_length=most).encode([row], marks)
        assert marks.convert_ids_to_tokens(found["token_labels"]) == [*kept, "</s>", "<s>"]
    with pytest.raises(ValueError, match="max_length 2 leaves no place for an answer beside the tokenizer's marks: raise it"):
        cut_answer([4, 5, EOS, BOS], 2, EOS)


def test_a_cut_answer_does_not_begin_by_a_word_where_the_mark_of_a_language_stands_first() -> None:
    """As mBART-50's tokenizers mark a text: a whole answer begins by its EOS, and so does one that has lost it."""
    model = MBartForConditionalGeneration(
        MBartConfig(vocab_size=len(WORDS), d_model=16, encoder_layers=1, decoder_layers=1, pad_token_id=PAD, eos_token_id=EOS)
    )
    rows = [{"instruction": "a", "response": text} for text in ("1 2 3 4 5 6", "1")]
    it = task(max_length=4)
    labels = it.collate(it.encode(rows, tokenizer("<s> $A </s>")), PAD)["token_labels"]
    words = [WORDS.index(word) for word in ("1", "2", "3")]
    assert labels.tolist() == [[BOS, *words], [BOS, words[0], EOS, IGNORED]]
    assert decoder_inputs(model, labels).tolist() == [[EOS, BOS, *words[:2]], [EOS, BOS, words[0], EOS]]


def test_a_start_token_of_the_models_own_stands_before_whole_and_cut_answers(kind: Kind) -> None:
    model, labels = kind.model(), torch.tensor([[4, 5, 6, 7], [4, 5, EOS, IGNORED]])
    assert torch.equal(decoder_inputs(model, labels), model.prepare_decoder_input_ids_from_labels(labels))


@pytest.mark.parametrize("field", ["instruction", "response"])
def test_rows_that_are_cut_on_either_side_are_counted(field: str, kind: Kind, caplog: pytest.LogCaptureFixture) -> None:
    rows = [*ROWS, {**ROWS[0], field: "a b c d e f g h i j k l"}]
    it = task(max_length=9)
    warn_of_cut_texts(it, rows, it.encode(rows, kind.tokenizer()), kind.tokenizer(), "train")
    assert "train: 1 of 4 rows are cut to task.max_length = 9 tokens" in caplog.text


def test_unusable_rows_are_named(kind: Kind) -> None:
    for row, message in (
        ({"instruction": "a"}, r"row 1 has no field 'response'; it has 'instruction'"),
        ({"instruction": "a", "response": None}, r"row 1 has nothing in its field 'response': fill it or leave the row out"),
        ({"instruction": "a", "response": 3}, r"row 1: field 'response' holds 3 \(int\), but text is needed"),
    ):
        with pytest.raises(ValueError, match=message):
            task().encode([ROWS[0], row], kind.tokenizer())
    with pytest.raises(ValueError, match="data set is empty"):
        task().encode([], kind.tokenizer())


def test_an_empty_answer_is_its_end_alone(kind: Kind) -> None:
    (found,) = task().encode([{"instruction": "a", "response": ""}], kind.tokenizer())
    assert found["token_labels"][-1:] == [EOS]


def test_a_prompt_without_tokens_is_refused() -> None:
    it = Instruction(prompt="{instruction}").for_encoder_decoder()
    with pytest.raises(ValueError, match="row 0: its prompt has no tokens for the encoder to read: fill 'instruction'"):
        it.encode([{"instruction": " ", "response": "1"}], tokenizer(None))


def test_a_length_that_holds_marks_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length 1 leaves no place for a prompt beside the tokenizer's marks"):
        task(max_length=1).encode(ROWS, KINDS["bart"].tokenizer())


# --- what the task is ------------------------------------------------------------------------------------------------


def test_it_has_the_settings_of_the_task_that_was_asked_for() -> None:
    asked = Instruction(answer="summary", prompt="summarize: {instruction}", max_length=77, metrics=("loss",))
    found = asked.for_encoder_decoder()
    for name in ("instruction", "context", "answer", "category", "prompt", "prompt_with_context", "max_length", "metrics"):
        assert getattr(found, name) == getattr(asked, name)
    assert (found.auto_class, found.peft_task_type) == ("AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM")
    assert type(replace(found, max_length=8)) is type(found)
    assert found.for_encoder_decoder() is found


def test_a_class_of_ones_own_is_not_exchanged() -> None:
    class Own(Instruction):
        pass

    own = Own()
    assert own.for_encoder_decoder() is own
