"""Lines that load, serve and publish an adapter; texts that mean nothing in a card."""

import pytest

from fedelta.report.model_card import (
    CAUSAL,
    SEQUENCE,
    Exported,
    caution,
    code,
    fenced,
    load_lines,
    model_card,
    serve_line,
    upload_line,
)

LANGUAGE = Exported(base="owner/base", auto_class=CAUSAL, ranks=[8])


def language(**changes: object) -> Exported:
    return Exported(**{**vars(LANGUAGE), **changes})  # pyright: ignore[reportArgumentType]


def test_a_classifier_is_told_its_labels():
    it = Exported(base="b", auto_class=SEQUENCE, labels=(3, "it's"), loading={"pad_token_id": 0})
    loader = "AutoPeftModelForSequenceClassification"
    call = """from_pretrained('out dir', num_labels=2, id2label={0: '3', 1: "it's"}, pad_token_id=0)"""
    assert load_lines(it, "out dir") == [
        f"from peft import {loader}",
        "from transformers import AutoTokenizer",
        "",
        f"model = {loader}.{call}",
        "tokenizer = AutoTokenizer.from_pretrained('out dir')",
    ]


def test_without_a_tokenizer_the_bases_is_loaded():
    assert load_lines(language(tokenizer=False), "out")[-1] == "tokenizer = AutoTokenizer.from_pretrained('owner/base')"


@pytest.mark.parametrize(
    ("rank", "option"),
    [(8, ""), (16, ""), (17, " --max-lora-rank 32"), (64, " --max-lora-rank 64"), (300, " --max-lora-rank 320")],
)
def test_a_served_rank_is_one_that_vllm_takes(rank: int, option: str):
    line = f"vllm serve owner/base --enable-lora --lora-modules 'my name=out'{option}"
    assert serve_line(language(ranks=[rank]), "out", "my name") == line


@pytest.mark.parametrize(
    "changes",
    [
        {"saved": ["lm_head"]},
        {"one_scale": False},
        {"ranks": [513]},
        {"base": "--config=x"},
        {"base": "a\nb"},
        {"auto_class": SEQUENCE},
    ],
)
def test_what_vllm_would_not_serve_has_no_line(changes: dict[str, object]):
    assert serve_line(language(**changes), "out", "mine") is None
    assert "vllm serve" not in model_card(language(**changes), "mine")


def test_a_merged_model_needs_no_adapter():
    it = language(merged=True, saved=["lm_head"], one_scale=False)
    assert serve_line(it, "out", "mine") == "vllm serve out"
    assert load_lines(it, "out")[2] == "model = AutoModelForCausalLM.from_pretrained('out')"
    assert "base_model_relation: finetune" in model_card(it, "mine")


def test_a_base_with_other_weights_than_its_name_says_so():
    assert "- Base model: `owner/base` (4-bit release)\n" in model_card(language(release="4-bit release"), "mine")
    assert "- Base model: `owner/base`\n" in model_card(LANGUAGE, "mine")
    warning = "`owner/base` from the Hub, whose weights are not those of the training (4-bit release)"
    assert warning in str(caution(language(release="4-bit release")))
    assert caution(language(release="4-bit release", local=True)) is None
    assert caution(language(release="4-bit release", merged=True)) is None
    assert "; The checkpoint" in str(caution(language(release="4-bit release", drawn=["head"])))


def test_places_are_quoted_for_a_shell():
    assert upload_line("my dir/$x", "$x") == "hf upload 'YOUR-NAME/$x' 'my dir/$x'"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "`plain`"),
        ("", "`  `"),
        ("a`b", "``a`b``"),
        ("`a", "`` `a ``"),
        ("two\nlines\x1b[0m\u202e", r"`two\nlines\x1b[0m\u202e`"),
        ("x" * 300, f"`{'x' * 200}…`"),
    ],
)
def test_inline_code_holds_any_text(text: str, shown: str):
    assert code(text) == shown


def test_a_block_cannot_end_itself():
    assert fenced("a\n````\nb\r") == "`````\na\n````\nb\\r\n`````\n"
