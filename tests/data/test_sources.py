"""Every way in: good files of each kind, and a clear refusal for each kind of broken one."""

import gzip
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedelta.data import docstrings, sources
from fedelta.data.carving import split_rows, subsample
from fedelta.data.files import write_rows
from fedelta.data.rounding import proportional
from fedelta.data.rows import value_of
from fedelta.data.sources import load_rows, load_splits

ROWS = [{"text": 'say "hi"', "label": "a"}, {"text": "line\u2028one, two", "label": "b"}]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_rows_that_are_written_are_read_again_and_have_the_same_bytes_at_any_time(tmp_path: Path, monkeypatch):
    path = tmp_path / "made" / "rows.jsonl.gz"
    write_rows(path, ROWS)
    first = path.read_bytes()
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_rows(path, ROWS)
    assert path.read_bytes() == first
    assert load_rows(path) == ROWS


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.jsonl", jsonl(ROWS)),
        ("rows.jsonl.gz", jsonl(ROWS) + "\n"),
        ("rows.json", json.dumps(ROWS)),
        ("rows.csv", '\ufefftext,label\n"say ""hi""",a\n"line\u2028one, two",b\n'),
        ("rows.csv.gz", 'text,label\n"say ""hi""",a\n"line\u2028one, two",b\n'),
        ("rows.tsv", 'text\tlabel\nsay "hi"\ta\nline\u2028one, two\tb\n'),
    ],
)
def test_each_format_gives_the_same_rows(tmp_path, name, text):
    assert load_rows(write(tmp_path / name, text)) == ROWS


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    assert load_rows(tmp_path / "rows.parquet") == ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": 1}\n{"text": \n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 is list, but each row must be an object"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.json", '{"rows": []}', "holds one dict, but a list of objects is needed"),
        ("a.json", "[1]", "row 0 is int"),
        ("a.json", "[", "is not JSON"),
        ("a.csv", "text,label\nonly\n", "line 2 does not have the header's columns 'text', 'label'"),
        ("a.csv", "text,label\na,b,c\n", "line 2 does not have the header's columns"),
        ("a.csv", 'text,label\n"a,b\n', "a.csv cannot be read after line 1: unexpected end"),
        ("a.parquet", "PAR1 no", "not a readable parquet file"),
        ("a.txt", "text", "is not a file ending in .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
def test_broken_files_are_refused(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        load_rows(write(tmp_path / name, text))


def test_cut_off_gzip_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", jsonl(ROWS * 50))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cut-off or damaged gzip"):
        load_rows(path)
    path.write_bytes(b"text")
    with pytest.raises(ValueError, match="cut-off or damaged gzip"):
        load_rows(path)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes("text\nñ\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_rows(tmp_path / "a.csv")


def test_a_header_with_two_separators_is_named_where_a_field_hides_in_it(tmp_path):
    rows = load_rows(write(tmp_path / "a.csv", "text;label,x\none;a,2\n"))
    message = r"row 0 has no field 'label'; it has 'text;label', 'x': 'text;label' looks like columns kept apart by semicolons"
    with pytest.raises(ValueError, match=message):
        value_of(rows[0], 0, "label")
    with pytest.raises(ValueError, match=message):
        load_rows(tmp_path / "a.csv", fields=["label"])


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.jsonl"):
        load_rows(tmp_path / "nowhere.jsonl")


def test_a_file_has_no_splits(tmp_path):
    with pytest.raises(ValueError, match="is a file and has no split 'test'"):
        load_rows(write(tmp_path / "a.jsonl", jsonl(ROWS)), split="test")


def test_what_is_no_source_is_refused():
    with pytest.raises(ValueError, match="nor a Hub id such as 'owner/name'"):
        load_rows("not a source")


@pytest.mark.parametrize(("module", "source"), [("datasets", "owner/name"), ("pyarrow", "a.parquet")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, module, source):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(ImportError, match=r"pip install 'fedelta\[data\]'"):
        load_rows(source)


def test_hub_data_sets_are_asked_for_by_split_and_subset(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kw: asked.append((args, kw)) or ROWS)
    assert load_rows("owner/name", split="test", subset="small", fields=["text"]) == [{"text": r["text"]} for r in ROWS]
    assert asked == [(("owner/name", "small"), {"split": "test", "revision": None})]


def test_fields_are_kept_and_renamed(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(ROWS))
    assert load_rows(path, fields={"sentence": "text"}) == [{"sentence": r["text"]} for r in ROWS]
    with pytest.raises(ValueError, match="row 0 has no field 'kind'; it has 'text', 'label'"):
        load_rows(path, fields=["kind"])


def many(n=100):
    return [{"text": str(i), "label": "abbb"[i % 4]} for i in range(n)]


def test_a_limit_draws_rows_and_keeps_their_order():
    found = subsample(many(), 10, seed=1)
    assert len(found) == 10
    assert found == sorted(found, key=lambda row: int(row["text"])) == subsample(many(), 10, seed=1)
    assert found != subsample(many(), 10, seed=2)
    assert subsample(many(), 1000) == many()
    with pytest.raises(ValueError, match="limit 0"):
        subsample(many(), 0)


@given(st.integers(1, 80), st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 5), st.booleans())
def test_splits_are_disjoint_complete_and_repeatable(n, weights, seed, stratified):
    fractions = [w / sum(weights) for w in weights]
    by = "label" if stratified else None
    parts = split_rows(many(n), fractions, seed, stratify=by)
    assert sorted((row for part in parts for row in part), key=lambda row: int(row["text"])) == many(n)
    assert [len(part) for part in parts] == proportional(fractions, n).tolist()
    assert parts == split_rows(many(n), fractions, seed, stratify=by)


@pytest.mark.parametrize("seed", range(5))
def test_stratified_parts_have_the_labels_shares(seed):
    for part, size in zip(split_rows(many(400), [0.7, 0.1, 0.2], seed, stratify="label"), (280, 40, 80), strict=True):
        assert abs(sum(row["label"] == "a" for row in part) - size / 4) <= 1


def test_stratified_parts_of_many_rare_labels_are_not_empty():
    rows = [{"label": i // 3} for i in range(240)]
    assert len(split_rows(rows, [0.9, 0.1], stratify="label")[1]) == 24


@pytest.mark.parametrize("fractions", [[0.5, 0.4], [1.5, -0.5]])
def test_fractions_must_sum_to_one(fractions):
    with pytest.raises(ValueError, match="must sum to 1"):
        split_rows(many(), fractions)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=12), st.integers(0, 1000))
def test_proportional_numbers_are_within_one_and_exact_in_sum(shares, total):
    found = proportional(shares, total)
    assert found.sum() == total
    assert all(abs(f - s / sum(shares) * total) < 1 + 1e-6 for f, s in zip(found, shares, strict=True))


def test_a_file_alone_is_carved_in_three(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl(many()))
    found = load_splits(path, validation_fraction=0.1, test_fraction=0.25, stratify="label", seed=3)
    assert [len(part) for part in (found.train, found.validation, found.test)] == [65, 10, 25]
    assert found == load_splits(path, validation_fraction=0.1, test_fraction=0.25, stratify="label", seed=3)


def test_a_folder_names_its_files_and_the_test_file_stays_whole(tmp_path):
    write(tmp_path / "one.jsonl", jsonl(many(50)))
    write(tmp_path / "two.jsonl", jsonl(many(7)))
    found = load_splits(tmp_path, train="one.jsonl", test="two.jsonl", validation_fraction=0, limit={"train": 20})
    assert (len(found.train), found.validation, found.test) == (20, [], many(7))
    with pytest.raises(ValueError, match="name the file with its training rows"):
        load_splits(tmp_path, test="two.jsonl")
    with pytest.raises(ValueError, match=r"limit names \['tests'\]"):
        load_splits(tmp_path, train="one.jsonl", limit={"tests": 3})


def test_docstrings_bring_their_own_splits(monkeypatch):
    parts = {part: [{"text": part, "label": "x"}] for part in sources.PARTS}
    monkeypatch.setattr(docstrings, "load", lambda: parts)
    found = load_splits("docstrings", fields=["text"])
    assert (found.train, found.validation, found.test) == ([{"text": "train"}], [{"text": "validation"}], [{"text": "test"}])
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation, test"):
        load_rows("docstrings", split="dev")


def test_real_files(shared_data):
    found = load_splits(
        shared_data / "topic",
        train="trec_train.jsonl.gz",
        test="trec_test.jsonl.gz",
        fields={"text": "text", "label": "coarse"},
        stratify="label",
    )
    assert [len(part) for part in (found.train, found.validation, found.test)] == [4907, 545, 500]
