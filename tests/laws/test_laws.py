"""Every registered method against every law of `fedelta.testing`: there is no other table of laws, and none of methods.

These acceptance tests of the specifications are laws, and are not asked again elsewhere: hetero-G4 (fixed point, one client,
scale), hetero-G5 (order-free), dec-35 (learns, complete graph); so are nodes of equal ranks that come together on a ring.
"""

from functools import cache

import pytest

from fedelta.methods import list_methods, method_class
from fedelta.testing import LAWS, UNEQUAL_RANKS, Law, judge, scene_of
from fedelta.testing.claims import arguments_used
from fedelta.testing.scene import Scene, quiet


@cache
def scene(name: str) -> Scene:
    """One scene for all laws of a method, so that its rounds are played once."""
    return scene_of(method_class(name))


@pytest.mark.parametrize("law", [UNEQUAL_RANKS, *LAWS], ids=lambda law: law.name)
@pytest.mark.parametrize("name", list_methods())
def test_every_method_keeps_every_law_or_says_why_not(name: str, law: Law[Scene]) -> None:
    with quiet():
        verdict = judge(law, scene(name), method_class(name).exempt)
    assert verdict.outcome != "broken", verdict.detail


@pytest.mark.parametrize("name", list_methods())
def test_every_method_uses_what_it_asks_clients_for(name: str) -> None:
    with quiet():
        assert arguments_used(scene(name)) == method_class(name).asks


def test_laws_have_names_of_their_own_and_one_line_each() -> None:
    laws = [UNEQUAL_RANKS, *LAWS]
    assert len({law.name for law in laws}) == len(laws)
    assert all(law.statement.endswith(".") for law in laws)
