"""Rosters: what a node reads of the others, and what is wrong in one, by its key."""

from pathlib import Path
from typing import Any

import pytest

from fedelta.runs.config.roster import read_roster, roster_for, roster_from, write_roster
from fedelta.runs.config.section import ConfigError

PAIR: dict[str, Any] = {"nodes": [{"name": "a", "rank": 4, "examples": 10}, {"name": "b", "rank": 2, "examples": 30}]}


def test_a_roster_is_read_as_it_was_written(tmp_path: Path) -> None:
    roster = roster_for(["a", "b"], [4, 2], [10, 30], ["tls/one.example:7447", None])
    write_roster(tmp_path / "roster.yaml", roster)
    assert read_roster(tmp_path / "roster.yaml") == roster
    assert (roster.names(), roster.id_of("b")) == (["a", "b"], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": PAIR["nodes"][:1]}, "nodes"),
        ({"nodes": [PAIR["nodes"][0]] * 2}, "two nodes have one name, 'a'"),
        ({"nodes": [{**PAIR["nodes"][0], "name": "a/b"}, PAIR["nodes"][1]]}, "name"),
        ({"nodes": [{**PAIR["nodes"][0], "endpoint": "tcp/one.example:7447"}, PAIR["nodes"][1]]}, "endpoint"),
        ({"nodes": [{**node, "endpoint": "tls/h:1"} for node in PAIR["nodes"]]}, "two nodes have one endpoint"),
        ({"relay": {"name": "b", "endpoint": "tls/h:1"}}, "the relay has the name of a node, 'b'"),
        ({"silense": 3}, "silence"),
    ],
)
def test_what_is_wrong_in_a_roster_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        roster_from({**PAIR, **changes})


def test_a_roster_that_is_not_there_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no roster at .*: `fedelta gossip"):
        read_roster(tmp_path / "none.yaml")
    roster = roster_from(PAIR)
    with pytest.raises(ConfigError, match="the roster has no node 'c': it has a, b"):
        roster.id_of("c")


def test_a_repeated_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "roster.yaml"
    path.write_text("nodes:\n- name: a\n  rank: 2\n  rank: 4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"roster\.yaml, line 4: the key 'rank' is there already, in line 3"):
        read_roster(path)
