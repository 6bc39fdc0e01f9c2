"""The census: sites that fit together are enrolled; one that does not is named, with the reason, before a round is played."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.engines.census import CensusError, agreed, enrol, survey
from fedelta.engines.site import Site, digest_of
from fedelta.exchange import wire
from fedelta.exchange.channel import Channel
from fedelta.exchange.parcels import Parcel, refusal
from fedelta.methods.flexlora import FlexLoRA
from fedelta.models.toy import toy_federation
from fedelta.tree import Adapter

Ask = Callable[[Mapping[str, Parcel]], Mapping[str, Parcel | Exception]]
RANKS = (2, 4, 3)


def sites(change: Callable[[int, Parcel], Parcel | Exception] = lambda k, answer: answer) -> Ask:
    """Three toy sites, a to c, whose answers are changed."""
    clients = toy_federation(RANKS, lora_alpha=8.0)
    about = {"labels": ["x", "y"], "choices": {"gemm": "onednn"}}
    built = [Site(FlexLoRA(), c, Channel(), Path("unused"), about={**about, "name": f"s{k}"}) for k, c in enumerate(clients)]

    def ask(parcels: Mapping[str, Parcel]) -> Mapping[str, Parcel | Exception]:
        return {a: change("abc".index(a), built["abc".index(a)].handle(p)) for a, p in parcels.items()}

    return ask


def said(**entries: Any) -> Callable[[int, Parcel], Parcel]:
    """Site 1 says something else in its header."""
    return lambda k, answer: replace(answer, header={**answer.header, **entries}) if k == 1 else answer


def test_sites_that_fit_are_enrolled_with_the_adapters_that_they_begin_from() -> None:
    ask = sites()
    known = survey(ask, "abc", "run", {})
    found = enrol(ask, known, "run", {})
    assert [(c.peer.id, c.peer.rank, c.name, c.address) for c in found.clients] == [
        (0, 2, "s0", "a"),
        (1, 4, "s1", "b"),
        (2, 3, "s2", "c"),
    ]
    for client, own in zip(found.clients, toy_federation(RANKS, lora_alpha=8.0), strict=True):
        assert digest_of(client.template) == digest_of(own.template)
    assert found.template.layers["hidden"].rank == 4
    assert agreed(known, "gemm", "default") == "onednn"


def test_what_sites_choose_differently_is_settled_for_them() -> None:
    assert agreed(survey(sites(said(choices={"gemm": "bf16"})), "abc", "run", {}), "gemm", "default") == "default"
    for odd in ({}, {"gemm": ["onednn"]}, ["gemm"]):
        assert agreed(survey(sites(said(choices=odd)), "abc", "run", {}), "gemm", "default") == "default"


VERSIONS = {"fedelta": "0.0.0", "parcels": 1, "wire": 1, "torch": "1.0"}

REFUSED: dict[str, tuple[Callable[[int, Parcel], Parcel | Exception], str]] = {
    "another version": (said(versions=VERSIONS), r"site 's1' at b: it has fedelta '0\.0\.0' .*torch '1\.0'.*install the same"),
    "another base": (said(base="other"), r"site 's1' at b: its base model is 'other', that of others 'toy'"),
    "other labels": (said(labels=["x"]), r"site 's1' at b: its labels is \('x',\)"),
    "one id twice": (
        lambda k, a: replace(a, header={**a.header, "peer": {**a.header["peer"], "id": 0}}),
        r"site 's1' at b: it is client 0, and so is site 's0' at a",
    ),
    "no answer": (lambda k, a: TimeoutError("no answer within 5 s") if k == 1 else a, "site at b: TimeoutError: no answer"),
    "a refusal": (lambda k, a: refusal("not allowed here") if k == 1 else a, "site at b: .*not allowed here"),
    "another kind": (lambda k, a: replace(a, kind="train") if k == 1 else a, "site at b: .*kind 'train'"),
    "no peer": (said(peer=[1]), r"site 's1' at b: .*says of its peer \[1\]"),
    "a rank that is none": (
        said(peer={"id": 1, "rank": "4", "num_examples": 3}),
        "site 's1' at b: .*peer's rank must be .*'4'",
    ),
    "a huge rank": (said(peer={"id": 1, "rank": 10**9, "num_examples": 3}), "site 's1' at b: .*peer's rank must be"),
    "a huge id": (said(peer={"id": 10**30, "rank": 4, "num_examples": 3}), "site 's1' at b: .*peer's id must be"),
    "a negative id": (said(peer={"id": -1, "rank": 4, "num_examples": 3}), "site 's1' at b: .*peer's id must be"),
    "negative examples": (said(peer={"id": 1, "rank": 4, "num_examples": -3}), "site 's1' at b: .*num_examples must be"),
    "endless examples": (said(peer={"id": 1, "rank": 4, "num_examples": 10**400}), "site 's1' at b: .*num_examples must be"),
    "a rank of a layer": (
        said(peer={"id": 1, "rank": 4, "num_examples": 3, "rank_pattern": {"hidden": True}}),
        "site 's1' at b: .*rank_pattern of 'hidden' must be",
    ),
    "a scale of a layer": (
        said(peer={"id": 1, "rank": 4, "num_examples": 3, "alpha_pattern": {"hidden": -1}}),
        "site 's1' at b: .*alpha_pattern of 'hidden' must be",
    ),
    "labels that cannot be counted": (said(labels=[["x"], ["y"]]), "site 's1' at b: .*one of its labels is a list"),
    "half a peer": (said(peer={"id": 1}), "does not say its peer's num_examples, rank"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_eng_13_a_site_that_does_not_fit_is_named_with_the_reason(what: str) -> None:
    change, reason = REFUSED[what]
    with pytest.raises(CensusError, match=reason):
        survey(sites(change), "abc", "run", {})


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(CensusError) as error:
        survey(sites(lambda k, a: TimeoutError("silent") if k else a), "abc", "run", {})
    assert str(error.value).count("silent") == 2


def test_a_site_that_begins_from_another_adapter_is_named() -> None:
    ask = sites(lambda k, answer: replace(answer, header={**answer.header, "digest": "0" * 32}) if k == 2 else answer)
    known = survey(ask, "abc", "run", {})
    with pytest.raises(CensusError, match=r"'s2' \(client 2\): begins from another adapter than 's1'"):
        enrol(ask, known, "run", {})


def sent(change: Callable[[Adapter], Any]) -> Ask:
    """Site 1, which has the largest rank, sends another adapter than its digest stands for."""

    def changed(k: int, answer: Parcel) -> Parcel:
        if k != 1 or not answer.body:
            return answer
        return replace(answer, body=wire.encode({"template": change(wire.decode(answer.body)["template"])}))

    return sites(changed)


def of_rank(adapter: Adapter, rank: int) -> Adapter:
    return replace(adapter, layers={name: lr.pad(x, rank) for name, x in adapter.layers.items()})


def test_no_more_of_an_adapter_is_kept_than_its_site_can_hold() -> None:
    """The server's own state would grow with whatever a site sends."""
    ask = sent(lambda adapter: of_rank(adapter, 20))
    found = enrol(ask, survey(ask, "abc", "run", {}), "run", {})
    assert {x.rank for x in found.template.layers.values()} == {4}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda adapter: adapter.dense, "sent a dict where its adapter"),
        (lambda adapter: tree.map_tensors(lambda x: x * math.nan, adapter), "NaN or Inf"),
        (lambda adapter: tree.map_named(lambda _, x: lr.components(x, 0, 1), adapter), "the template only 1"),
    ],
)
def test_a_site_that_sends_no_adapter_of_its_own_is_named(change: Callable[[Adapter], Any], reason: str) -> None:
    ask = sent(change)
    known = survey(ask, "abc", "run", {})
    with pytest.raises(CensusError, match=f"site 's1' at b: .*{reason}"):
        enrol(ask, known, "run", {})


def test_a_rank_that_the_common_adapter_lacks_is_said_of_its_site() -> None:
    peer = {"id": 2, "rank": 3, "num_examples": 4, "lora_alpha": 8.0, "rank_pattern": {"hidden": 9}}
    ask = sites(lambda k, answer: replace(answer, header={**answer.header, "peer": peer}) if k == 2 else answer)
    known = survey(ask, "abc", "run", {})
    with pytest.raises(CensusError, match=r"site 's2' at c: .*rank 9, the template only 4"):
        enrol(ask, known, "run", {})


def test_nodes_that_all_stand_for_no_site_are_an_error() -> None:
    spare = Parcel("refusal", {"reason": "one too many", "spare": True})
    with pytest.raises(CensusError, match="none of 3 nodes stands for a site"):
        survey(sites(lambda k, answer: spare), "abc", "run", {})


def test_a_client_at_a_site_is_not_trained_here() -> None:
    ask = sites()
    client = enrol(ask, survey(ask, "abc", "run", {}), "run", {}).clients[0]
    with pytest.raises(RuntimeError, match="client 0 trains at its site 's0'"):
        client.train(0, client.template)
