"""What is cut away from a docstring, what is masked, and what is too little to use."""

import pytest

from fedelta.data.prose import MOST_WORDS, likeness, masked, prose_of

OPENING = "Return the shortest way between two places, and nothing if there is no way at all."


@pytest.mark.parametrize(
    "rest",
    [
        "Parameters\n----------\nx : int\n    A number.",
        "Args:\n    x: A number.",
        "Examples\n========\n\n>>> way(1)\n2",
        ">>> way(1)\n2",
        ".. note:: Read on.",
        ":param x: a number",
        "```python\nway(1)\n```",
        "- first\n- second",
        "x (`int`, *optional*):\n    A number.",
        "!!! note\n    Read on.",
    ],
)
def test_prose_ends_at_the_first_section_list_or_code(rest):
    assert prose_of(f"{OPENING}\n\n{rest}\n\nMore prose that stands behind it.") == OPENING


def test_indented_code_is_left_out():
    assert prose_of(f"{OPENING}\n\n    way(1, 2)\n\nIt is the first of them.") == f"{OPENING} It is the first of them."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Make a :class:`~torch.nn.Module` or ``torch.Tensor``.", "Make a Module or thing."),
        ("Use np.linalg.norm of an ndarray.", "Use norm of an thing."),
        ("NumPy and PyTorch and networkx, SymPy!", "thing and thing and thing!"),
        ("See https://example.org/a_b for the shortest_path of DiGraph() [1]_.", "See for the shortest path of Di Graph ."),
        ("A Tensor of Tensors; TensorSpec, base_model.", "A thing of thing Spec, thing."),
        ("Rich transformers, i.e. enriched ones.", "thing, i.e. enriched ones."),
    ],
)
def test_names_become_words_and_giveaways_become_thing(text, expected):
    assert masked(text) == expected


@pytest.mark.parametrize(
    "text",
    ["Too short.", "one " * 9, "Größe und Länge " * 8, "torch and numpy tensors, " * 12, "1 + 2 = 3, 4 * 5 = 20; " * 10],
)
def test_too_little_prose_is_none(text):
    assert prose_of(text) is None


def test_long_texts_are_cut():
    assert len(prose_of("It goes on " * 100).split()) == MOST_WORDS


def test_copies_with_other_names_are_alike():
    assert likeness("The thing model for two words") == likeness("the MODEL for thing two, words")
    assert likeness("The model for two") != likeness("The model for three")
