"""Partitions are partitions, the same for the same seed, as skewed as asked for, and honest when they cannot be had."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedelta.split.partition import assign_ranks, get_scheme, partition, partition_table, plot_partition

SETTINGS = {
    "iid": {},
    "dirichlet": {"concentration": 0.5},
    "shards": {"shards_per_client": 3},
    "natural": {},
    "quantity": {"concentration": 1.0},
}


def spread(parts, labels):
    return np.mean([line["distance"] for line in partition_table(parts, labels) if line["examples"]])


labels_of_some = st.lists(st.sampled_from(["x", "y", 3]), min_size=3, max_size=60).filter(lambda found: len(set(found)) == 3)


@pytest.mark.parametrize("scheme", SETTINGS)
@given(labels=labels_of_some, clients=st.integers(1, 3), seed=st.integers(0, 3))
def test_every_example_goes_to_exactly_one_client(scheme, labels, clients, seed):
    parts = partition(labels, scheme, clients, seed=seed, min_examples=0, **SETTINGS[scheme])
    assert len(parts) == clients
    assert sorted(i for part in parts for i in part) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in parts)
    again = partition(labels, scheme, clients, seed=seed, min_examples=0, **SETTINGS[scheme])
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


LABELS = ["abcde"[i % 5] for i in range(1000)]


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "shards", "quantity"])
def test_another_seed_gives_another_partition(scheme):
    one, two = (partition(LABELS, scheme, 10, seed=seed, min_examples=0, **SETTINGS[scheme]) for seed in (0, 1))
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_iid_sizes_differ_by_one_at_most():
    sizes = [len(part) for part in partition(LABELS[:997], "iid", 10)]
    assert max(sizes) - min(sizes) == 1


def test_a_smaller_concentration_is_more_skewed():
    skews = [spread(partition(LABELS, "dirichlet", 10, concentration=c, seed=1), LABELS) for c in (0.1, 1.0, 1000.0)]
    assert skews[0] > 0.5 > skews[1] > 0.1 > skews[2]


def test_dirichlet_shares_have_the_distributions_mean_and_variance():
    """Over many seeds, a client's share of a label has mean 1/K and variance (K - 1) / (K^2 (K c + 1))."""
    labels, clients, concentration = [0, 1] * 2000, 4, 0.8
    shares = []
    for seed in range(150):
        parts = partition(labels, "dirichlet", clients, concentration=concentration, seed=seed, min_examples=0)
        shares += [np.sum(part % 2 == 0) / 2000 for part in parts]
    assert np.mean(shares) == pytest.approx(1 / clients)
    expected = (clients - 1) / (clients**2 * (clients * concentration + 1))
    assert np.var(shares) == pytest.approx(expected, rel=0.2)


def test_which_members_of_a_label_a_client_gets_is_random():
    """Rows often stand in an order that means something, so a client must not get a run of neighbours."""
    labels = [0] * 500 + [1] * 500
    for part in partition(labels, "dirichlet", 2, concentration=50.0):
        held = part[part < 500]
        assert held.min() < 50
        assert held.max() >= 450


def test_a_tiny_concentration_gives_each_label_to_one_client():
    parts = partition(LABELS, "dirichlet", 3, concentration=1e-6, min_examples=0)
    assert sum(len({LABELS[i] for i in part}) for part in parts) == 5


def test_shards_are_equal_and_bring_few_labels():
    parts = partition(LABELS, "shards", 10, shards_per_client=2)
    assert {len(part) for part in parts} == {100}
    assert max(len({LABELS[i] for i in part}) for part in parts) <= 2


def test_natural_gives_each_value_a_client_of_its_own():
    rows = [{"language": ("yor", "amh", "hau")[i % 3], "label": 0} for i in range(30)]
    parts = partition(rows, "natural", by="language")
    assert [{rows[i]["language"] for i in part} for part in parts] == [{"amh"}, {"hau"}, {"yor"}]


def test_natural_puts_whole_values_together_evenly():
    rows = [{"who": who} for who, count in zip("abcde", (15, 30, 30, 45, 60), strict=True) for _ in range(count)]
    parts = partition(rows, "natural", 3, by="who")
    assert all(len({p for p, part in enumerate(parts) for i in part if rows[i]["who"] == who}) == 1 for who in "abcde")
    assert sorted(len(part) for part in parts) == [60, 60, 60]


@pytest.mark.parametrize("setting", [{"concentration": 0.5}, {"sigma": 1.5}])
def test_quantity_skews_sizes_but_not_labels(setting):
    parts = partition(LABELS * 10, "quantity", 8, **setting)
    sizes = [len(part) for part in parts]
    assert max(sizes) > 3 * min(sizes)
    assert max(line["distance"] for line in partition_table(parts, LABELS * 10) if line["examples"] > 300) < 0.1


def test_rows_go_by_label_a_field_or_a_function():
    rows = [{"label": label, "rest": "xy"[i % 2]} for i, label in enumerate(LABELS)]
    plain = partition(LABELS, "shards", 5)
    for by in (None, "label", lambda row: row["label"]):
        assert all(np.array_equal(a, b) for a, b in zip(plain, partition(rows, "shards", 5, by=by), strict=True))
    assert len(partition(rows, "natural", by="rest")) == 2


def test_min_examples_is_kept_by_drawing_again():
    assert min(len(part) for part in partition(LABELS, "dirichlet", 10, concentration=0.3, min_examples=30, seed=4)) >= 30


def test_an_empty_client_is_possible_only_if_allowed():
    loose = partition(LABELS, "dirichlet", 10, concentration=0.01, min_examples=0)
    assert min(len(part) for part in loose) == 0
    with pytest.raises(ValueError, match=r"fewer than min_examples=1, in the best of 1000 draws: raise the concentration"):
        partition(LABELS, "dirichlet", 40, concentration=0.01)


@pytest.mark.parametrize(
    ("scheme", "clients", "settings", "message"),
    [
        ("dirichlt", 3, {}, "'dirichlt'; did you mean 'dirichlet'"),
        ("iid", 3, {"concentration": 1.0}, "'iid' has no setting 'concentration'; it has none"),
        ("dirichlet", 3, {}, "'dirichlet' needs its settings concentration"),
        ("dirichlet", 3, {"concentration": 0.0}, "concentration must be a positive number, not 0.0"),
        ("dirichlet", 3, {"concentration": float("nan")}, "concentration must be a positive number"),
        ("shards", 3, {"shards_per_client": 0}, "shards_per_client must be a positive number, not 0"),
        ("quantity", 3, {}, "exactly one of concentration and sigma, but has none"),
        ("quantity", 3, {"sigma": 1, "concentration": 1}, "exactly one of concentration and sigma"),
        ("iid", None, {}, "needs a number of clients of at least 1, not None"),
        ("iid", 0, {}, "needs a number of clients of at least 1, not 0"),
        ("iid", 2000, {}, "1000 examples are too few for 2000 clients with at least 1 each"),
        ("natural", 6, {}, "there are 6 clients and only 5 values: take at most 5 clients"),
        ("natural", 3, {"min_examples": 300}, "in the best of 1 draw: take fewer clients, so that small groups"),
        ("iid", 3, {"by": "kind"}, "bare labels were given"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_remedy(scheme, clients, settings, message):
    with pytest.raises(ValueError, match=message):
        partition(LABELS, scheme, clients, **settings)


def test_other_refusals():
    with pytest.raises(ValueError, match="no examples to share out"):
        partition([], "iid", 1)
    with pytest.raises(ValueError, match="at least two different labels"):
        partition(["a"] * 9, "dirichlet", 3, concentration=1.0)
    with pytest.raises(ValueError, match="row 1 has no field 'who'; it has 'x'"):
        partition([{"who": 1}, {"x": 1}], "natural", by="who")
    with pytest.raises(ValueError, match=r"settings \['concentration'\] go with a scheme's name"):
        partition(LABELS, get_scheme("iid"), 2, concentration=1.0)


def test_table_by_hand():
    labels = ["a", "a", "b", "b"]
    first, second, third = partition_table([np.array([0, 1, 2]), np.array([3]), np.array([], dtype=int)], labels)
    assert first["labels"] == {"a": 2, "b": 1}
    assert (first["client"], first["examples"]) == (0, 3)
    assert first["top_share"] == pytest.approx(2 / 3)
    assert first["distance"] == pytest.approx(1 / 6)
    assert (second["top_share"], second["distance"]) == (1.0, 0.5)
    assert (third["examples"], third["top_share"], third["distance"]) == (0, None, None)


@pytest.mark.parametrize("labels", [LABELS, list(range(1000))], ids=["bars", "shades"])
def test_the_picture_is_written(tmp_path, labels):
    pytest.importorskip("matplotlib")
    plot_partition(partition(labels, "iid", 4), labels, tmp_path / "split.png")
    assert (tmp_path / "split.png").read_bytes().startswith(b"\x89PNG")


def test_ranks_are_drawn_alike_for_the_same_seed():
    drawn = assign_ranks([2, 4, 8, 16], 200, seed=3)
    assert drawn == assign_ranks([2, 4, 8, 16], 200, seed=3) != assign_ranks([2, 4, 8, 16], 200, seed=4)
    assert all(35 <= count <= 65 for count in collections.Counter(drawn).values())
    assert set(assign_ranks([2, 4, 8], 50, weights=[1, 0, 3])) == {2, 8}


def test_ranks_may_be_one_balanced_or_listed():
    assert assign_ranks(8, 3) == assign_ranks(8, 3, how="list") == [8, 8, 8]
    assert collections.Counter(assign_ranks([2, 4], 6, how="balanced")) == {2: 3, 4: 3}
    assert collections.Counter(assign_ranks([2, 4], 6, how="balanced", weights=[2, 1])) == {2: 4, 4: 2}
    assert assign_ranks([4, 2, 8], 3, how="list") == [4, 2, 8]


@pytest.mark.parametrize(
    ("ranks", "settings", "message"),
    [
        ([0, 4], {}, "at least 1"),
        ([], {}, "at least 1"),
        ([2, 4], {"how": "lst"}, "'lst'; did you mean 'list'"),
        ([2, 4], {"how": "list"}, "2 ranks are listed for 3 clients"),
        ([2, 4], {"weights": [1.0]}, "1 weights do not go with"),
        ([2, 4], {"weights": [-1.0, 2.0]}, "must not be negative"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(ranks, settings, message):
    with pytest.raises(ValueError, match=message):
        assign_ranks(ranks, 3, **settings)
