"""A table of clients is a dictionary that never changes, and whose next version is cheap."""

import random

import pytest

from fedelta.engines.tables import Table


def test_every_version_stays_what_it_was() -> None:
    draw = random.Random(0)
    table, right = Table(dict.fromkeys(range(5), 0)), dict.fromkeys(range(5), 0)
    versions = [(table, right)]
    for value in range(1, 200):
        before, expected = versions[-1] if draw.random() < 0.8 else draw.choice(versions)  # from an older one now and then
        new = {draw.randrange(12): value for _ in range(draw.randrange(4))}
        gone = [draw.randrange(12) for _ in range(draw.randrange(3))]
        after = {k: v for k, v in expected.items() if k not in gone} | new
        versions.append((before.followed(new, gone), after))
    for found, expected in versions:
        assert found == expected
        assert dict(found) == expected
        assert (len(found), set(found)) == (len(expected), set(expected))
        assert [found.get(k, -1) for k in range(13)] == [expected.get(k, -1) for k in range(13)]
        assert [k in found for k in range(13)] == [k in expected for k in range(13)]


def test_a_follower_copies_nothing() -> None:
    """Tables of a hundred thousand clients would else cost a round more than its training."""

    class Uncopied(dict[int, int]):
        def copy(self) -> dict[int, int]:
            raise AssertionError

        def __iter__(self):
            raise AssertionError

    table: Table[int] = Table()
    table._entries = Uncopied({k: k for k in range(10)})
    later = table.followed({3: 0, 11: 1}, [4])
    assert (later[3], later[11], later.get(4), later[5]) == (0, 1, None, 5)
    assert (table[3], table.get(11), table[4], table[5]) == (3, None, 4, 5)


def test_nothing_new_is_no_new_version() -> None:
    table = Table({1: 2})
    assert table.followed({}, [7]) is table


def test_a_client_without_an_entry_is_named() -> None:
    with pytest.raises(KeyError, match="3"):
        Table({1: 2})[3]
