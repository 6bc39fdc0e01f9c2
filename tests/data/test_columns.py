"""What is in the columns of rows."""

import pytest

from fedelta.data.columns import columns_of, is_numeric
from fedelta.data.files import read_file


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["a", "b"], "text"),
        ([1, 2.0], "whole number"),
        ([1, 2.5], "number"),
        ([True, False], "true or false"),
        ([["a"], ["b", "c"]], "list of texts"),
        ([[{"role": "user", "content": "hi"}]], "chat"),
        ([None, " ", float("nan")], "nothing"),
        (["a.png", "b/c.JPG"], "image"),
        (["a plain text", "look at cat.jpg"], "text"),
        (["a", 1], "other"),
        ([{"a": 1}], "other"),
    ],
)
def test_a_column_is_of_a_kind(values: list[object], kind: str):
    (column,) = columns_of([{"x": value} for value in values])
    assert column.kind == kind


def test_gaps_values_and_lengths_are_counted():
    rows = [{"x": "one two"}, {"x": ""}, {"y": 3}, {"x": "one two"}, {"x": "one"}]
    x, y = columns_of(rows)
    assert (x.name, x.missing, x.example, x.counts) == ("x", 2, "one two", {"one two": 2, "one": 1})
    assert (x.words(0.0), x.words(0.5), x.words(1.0)) == (1, 2, 2)
    assert (y.missing, y.words(1.0)) == (4, 0)


def test_many_different_values_are_not_counted():
    assert columns_of([{"x": str(k)} for k in range(1001)])[0].counts == {}


def test_numbers_written_as_text_are_numbers():
    assert is_numeric(columns_of([{"x": "1.5"}, {"x": "-2"}])[0])
    assert not is_numeric(columns_of([{"x": "1.5"}, {"x": "two"}])[0])


def test_a_table_may_have_many_columns_and_long_fields(tmp_path):
    names = [f"c{k}" for k in range(20_000)]
    (tmp_path / "wide.csv").write_text(f"{','.join(names)}\n{','.join('0' for _ in names)}\n1,2\n")
    with pytest.raises(ValueError, match=r"line 3 does not have the header's columns 'c0', .*'c11' and 19,988 more$"):
        read_file(tmp_path / "wide.csv")
    (tmp_path / "long.csv").write_text(f"text\n{'x' * 200_000}\n")
    assert len(read_file(tmp_path / "long.csv")[0]["text"]) == 200_000
