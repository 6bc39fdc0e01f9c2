"""Guesses the task of rows from their columns: a choice among endings, an answer in words, or the label of a text or an image.

A guess goes by the names that public data sets use, and where they say nothing by what is in the columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedelta.data.columns import Column, is_numeric
from fedelta.registry import listed, nearest

TEXTS = (
    *("text", "sentence", "content", "body", "review", "tweet", "comment", "document", "utterance", "message", "passage"),
    *("question", "title"),
)
PAIRS = (("premise", "hypothesis"), ("sentence1", "sentence2"), ("question1", "question2"), ("text_a", "text_b"))
PAIRS += (("question", "passage"), ("question", "sentence"), ("query", "document"))
LABELS = (
    *("label", "labels", "class", "category", "target", "intent", "topic", "sentiment", "emotion", "coarse", "coarse_label"),
    *("fine", "fine_label", "label_text", "diagnosis", "y", "answer"),
)
CONTEXTS = ("context", "ctx", "question", "goal", "query", "prompt", "sent1", "startphrase", "premise", "text")
CHOICES = ("choices", "endings", "options", "answers", "candidates")
RIGHT = ("label", "answer", "answer_idx", "answerkey", "answer_key", "gold", "correct", "target")
ASKED = ("instruction", "prompt", "question", "query", "request", "input", "user", "article", "document", "dialogue")
ANSWERED = (
    *("response", "completion", "output", "answer", "reply", "target", "assistant"),
    *("summary", "highlights", "translation"),
)
GIVEN = ("context", "input", "passage")
OWNERS = (
    *("client", "client_id", "site", "hospital", "institution", "user", "user_id", "author", "speaker", "device", "node"),
    *("patient", "patient_id", "subject_id", "customer", "customer_id"),
)

IMAGES = ("image", "img", "picture", "photo", "scan", "file", "file_name", "filename", "path")

NUMBERED = re.compile(r"(?P<stem>.*[a-z])_?(?P<number>[0-9a-e])", re.IGNORECASE)
"""The name of one ending among several columns, such as `sol1` or `choice_b`."""

ENDINGS = ("sol", "ending", "choice", "option", "answer", "alternative")

ROWS_OF_A_LABEL = 3
"""Rows on average of a value that is taken for a label."""

FEW = 20
"""Different values that are taken for labels without a name that says so."""


@dataclass(frozen=True)
class Guess:
    """Says what the rows are taken for.

    Attributes:
        task: as in a config, with its fields.
        uses: what each field that the task reads is to it, by the field's name.
        label: the column with the labels, where the task has classes.
        texts: the columns whose lengths count.
        owner: the column that says whose a row is, if one does.
        others: other columns that could have been the label.
    """

    task: Mapping[str, Any]
    uses: Mapping[str, str]
    texts: Sequence[Column]
    label: Column | None = None
    owner: Column | None = None
    others: Sequence[str] = field(default_factory=tuple)


def guess(columns: Sequence[Column], rows: int, *, text: str | None = None, label: str | None = None) -> Guess:
    """Returns what rows with these columns are taken for.

    Args:
        columns: of all rows.
        rows: their number.
        text: the field with the text of a classification, if a person says so.
        label: the same for its label.

    Raises:
        ValueError: where nothing fits, naming the columns and the remedy.
    """
    known = {column.name: column for column in columns}
    for name in (text, label):
        if name is not None and name not in known:
            raise ValueError(f"there is no column {name!r}{nearest(name, known, then=f'there are {listed(known)}')}")
    found = None
    if text is None and label is None:
        found = _of_choices(columns) or _of_answers(columns, rows)
    if text is None:
        found = found or _of_images(columns, rows, label)
    found = found or _of_labels(columns, rows, text, label)
    if found is None:
        raise ValueError(_nothing(columns, rows))
    owner = first_of(columns, OWNERS, lambda c: c.name not in found.uses and 2 <= len(c.counts) <= rows / 4 and not c.missing)
    others = [name for name in found.others if owner is None or name != owner.name]
    return Guess(found.task, found.uses, found.texts, found.label, owner, others)


def first_of(columns: Iterable[Column], names: Sequence[str], fits: Callable[[Column], bool]) -> Column | None:
    """Returns the fitting column whose name comes first in a list of names, however it is spelled; None without one."""
    by_name: dict[str, Column] = {}
    for column in columns:
        if fits(column):
            by_name.setdefault(column.name.lower().replace("-", "_").replace(" ", "_"), column)
    return next((by_name[name] for name in names if name in by_name), None)


def _is_text(column: Column) -> bool:
    return column.kind == "text" and not column.missing and not is_numeric(column)


def _longest(columns: Iterable[Column]) -> Column | None:
    texts = [column for column in columns if _is_text(column)]
    return max(texts, key=lambda column: column.words(0.5), default=None)


# --- a choice among endings --------------------------------------------------------------------------------------------


def _of_choices(columns: Sequence[Column]) -> Guess | None:
    lists = [column for column in columns if column.kind == "list of texts" and not column.missing]
    listed_in = first_of(lists, CHOICES, lambda c: True) or next(iter(lists), None)
    endings = [listed_in] if listed_in is not None else _numbered(columns)
    if not endings:
        return None
    names = [column.name for column in endings]
    right = first_of(columns, RIGHT, lambda c: c.name not in names and _is_position(c))
    others = [column for column in columns if column.name not in names and column is not right]
    context = first_of(others, CONTEXTS, _is_text) or _longest(others)
    if right is None or context is None:
        return None
    choices = names if listed_in is None else names[0]
    task = {"name": "multiple_choice", "context": context.name, "choices": choices, "label": right.name}
    uses = {context.name: "context", **dict.fromkeys(names, "choices"), right.name: "label"}
    return Guess(task, uses, [context, *(column for column in endings if column.lengths)])


def _numbered(columns: Sequence[Column]) -> list[Column]:
    """Returns the columns that hold one ending each, such as sol1 and sol2; empty without such."""
    groups: dict[str, list[Column]] = {}
    for column in columns:
        match = NUMBERED.fullmatch(column.name)
        if match and column.kind == "text" and match["stem"].rstrip("_").lower() in ENDINGS:
            groups.setdefault(match["stem"].lower(), []).append(column)
    return next((group for group in groups.values() if len(group) > 1), [])


def _is_position(column: Column) -> bool:
    """Returns True for a column that may say which ending is right: by a small number or a letter."""
    values = [str(value).strip() for value in column.counts]
    return bool(values) and not column.missing and all(re.fullmatch(r"[0-9]|[A-Ja-j]", value) for value in values)


# --- an answer in words -------------------------------------------------------------------------------------------------


def _of_answers(columns: Sequence[Column], rows: int) -> Guess | None:
    asked = first_of(columns, ASKED, _is_text)
    answered = first_of(
        columns, ANSWERED, lambda c: c is not asked and _is_text(c) and not (c.counts and len(c.counts) <= min(FEW, rows / 3))
    )
    if asked is None or answered is None:
        return None
    given = first_of(columns, GIVEN, lambda c: c not in (asked, answered) and c.kind == "text")
    task = {"name": "instruction", "instruction": asked.name, "answer": answered.name}
    uses = {asked.name: "instruction", answered.name: "answer"}
    if given is not None:
        task["context"], uses[given.name] = given.name, "context"
    return Guess(task, uses, [column for column in (asked, given, answered) if column is not None])


# --- a label ------------------------------------------------------------------------------------------------------------


def _of_labels(columns: Sequence[Column], rows: int, text: str | None, label: str | None) -> Guess | None:
    candidates = [column for column in columns if column.name != text and could_label(column, rows)]
    chosen = _label_among(columns, candidates, label)
    if chosen is None:
        return None
    rest = [column for column in columns if column is not chosen]
    texts = [column for column in rest if column.name == text] if text else _texts(rest)
    if not texts:
        return None
    task = {"name": "classification", **dict(zip(("text", "text_pair"), [column.name for column in texts], strict=False))}
    uses = {**dict.fromkeys((column.name for column in texts), "text"), chosen.name: "label"}
    others = [column.name for column in candidates if column.name not in uses]
    return Guess({**task, "label": chosen.name}, uses, texts, chosen, others=others)


def _of_images(columns: Sequence[Column], rows: int, label: str | None) -> Guess | None:
    images = [column for column in columns if column.kind == "image" and not column.missing]
    image = first_of(images, IMAGES, lambda c: True) or next(iter(images), None)
    candidates = [column for column in columns if column.kind != "image" and could_label(column, rows)]
    chosen = _label_among(columns, candidates, label)
    if image is None or chosen is None:
        return None
    task = {"name": "image_classification", "image": image.name, "label": chosen.name}
    others = [column.name for column in candidates if column is not chosen]
    return Guess(task, {image.name: "image", chosen.name: "label"}, [], chosen, others=others)


def _label_among(columns: Sequence[Column], candidates: Sequence[Column], label: str | None) -> Column | None:
    """Returns the column that a person says is the label, else the likeliest of the candidates; None without one."""
    said = next((column for column in columns if column.name == label), None)
    few = [column for column in candidates if len(column.counts) <= FEW and column.words(1.0) <= FEW]
    return said or first_of(candidates, LABELS, lambda c: True) or _fewest(few)


def could_label(column: Column, rows: int) -> bool:
    """Returns True for a column with two or more different values, each in some rows on average, none of them a fraction."""
    return 2 <= len(column.counts) <= rows / ROWS_OF_A_LABEL and column.kind != "number"


def _fewest(candidates: Sequence[Column]) -> Column | None:
    return min(candidates, key=lambda column: len(column.counts), default=None)


def _texts(columns: Sequence[Column]) -> list[Column]:
    """Returns the column with the text, or both columns of a pair; empty without one."""
    texts = {column.name.lower(): column for column in columns if _is_text(column)}
    for pair in PAIRS:
        if texts.keys() >= set(pair):
            return [texts[name] for name in pair]
    found = first_of(columns, TEXTS, _is_text) or _longest(columns)
    return [] if found is None else [found]


# --- nothing ------------------------------------------------------------------------------------------------------------


def _nothing(columns: Sequence[Column], rows: int) -> str:
    """Returns the message where no task fits."""
    chat = next((column.name for column in columns if column.kind == "chat"), None)
    if chat is not None:
        return (
            f"the column {chat!r} holds chats, whose template is the affair of a Trainer: write a function that makes one, and "
            "name it in the config by `training: {trainer: ./site.py:make_trainer}` (docs/how-to/own-trainer.md; "
            "examples/trl_sft.py is one for chats), or write the rows with one `prompt` and one `response` each"
        )
    labels = [column for column in columns if could_label(column, rows)]
    why = _no_text(columns, rows) if labels else _no_label(columns, rows)
    return (
        f"{why}. The {len(columns):,} columns of the {rows:,} rows: {listed(c.name for c in columns)}. Name them by --text and "
        "--label; or call them `prompt` and `response`, or `context`, `choices` and `label`"
    )


def _no_label(columns: Sequence[Column], rows: int) -> str:
    numbers = [column.name for column in columns if column.kind == "number" or (column.kind == "text" and is_numeric(column))]
    of_numbers = f"; {listed(numbers)} holds numbers, and a class is no number" if numbers else ""
    few = "; so few rows are none to learn from" if rows < 2 * ROWS_OF_A_LABEL else ""
    labels = f"two or more different values, each in {ROWS_OF_A_LABEL} rows on average"
    return f"no column holds labels, that is {labels}{of_numbers}{few}"


def _no_text(columns: Sequence[Column], rows: int) -> str:
    gaps = [
        f"{column.name!r:.60} has none in {column.missing:,}" for column in columns if column.kind == "text" and column.missing
    ]
    return "no column holds a text in each row" + (
        f"; {', '.join(gaps[:5])}: fill them, or leave these rows out" if gaps else ""
    )
