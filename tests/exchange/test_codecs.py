"""Codecs: what they send, what they lose, what they remember, and what they read from somebody who lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedelta import tree
from fedelta.engines.gossip import gossip
from fedelta.engines.rounds import Round
from fedelta.engines.server import federate
from fedelta.exchange import wire
from fedelta.exchange.channel import OWN, Channel, Memory, Stage
from fedelta.exchange.codecs import Codec, get_codec, list_codecs
from fedelta.lowrank import LoRA
from fedelta.method import Method
from fedelta.methods import get_method, list_methods
from fedelta.models.toy import toy_federation
from fedelta.peers import Peer
from fedelta.runs.config import Federation, RunConfig
from fedelta.runs.config.checks import check
from fedelta.runs.config.choices import channel_of
from fedelta.topology import ring
from fedelta.tree import Adapter, Message

PEER = Peer(id=7, rank=2, num_examples=1)

BLOCK = 4
"""Numbers to a scale: few, so that the toy's matrices have several blocks."""

CODECS: dict[str, Callable[[], Codec]] = {
    "bf16": lambda: get_codec("bf16"),
    "fp16": lambda: get_codec("fp16"),
    "int8": lambda: get_codec("int8", block=BLOCK),
    "int8 without feedback": lambda: get_codec("int8", block=BLOCK, feedback=False),
    "top_k": lambda: get_codec("top_k", share=0.25),
    "top_k without feedback": lambda: get_codec("top_k", share=0.25, feedback=False),
}

UNTOUCHED = {"fedgalore", "flora", "florist", "local_only"}
"""Methods that send nothing whose counterpart was sent down, so that top_k leaves everything as it is."""


def built(name: str) -> Method:
    return get_method(name, local=["fedprox", "scaffold"], optimizer="fedavgm") if name == "compose" else get_method(name)


def run(method: Method, channel: Channel, engine: str = "sequential", rounds: int = 3, **options: Any) -> list[Round]:
    ranks = (2, 4, 3) if method.hetero_rank else (3, 3, 3)
    score = {"score": lambda adapter, base: {"accuracy": 0.5, "loss": 1.0}}
    given: dict[str, Any] = {"rounds": rounds, "seed": 3, "debug": True, "channel": channel, "engine": engine} | score | options
    return list(federate(method, toy_federation(ranks, seed=5), **given))


def named(tree_of: Any) -> dict[str, Tensor]:
    return dict(tree.named_tensors(tree_of))


# --- the law, over all methods ---------------------------------------------------------------------------------------


@dataclass
class Sent:
    """One upload on its way through a codec."""

    down: Message
    content: Message
    before: Memory
    coded: Message
    after: Memory
    decoded: Message = field(default_factory=dict)


@dataclass(frozen=True)
class Watched(Stage):
    """A codec, and all that has passed it."""

    codec: Codec
    seen: dict[tuple[int, int], Sent] = field(default_factory=dict)

    def encode(self, t: int, peer: Peer, down: Message, content: Message, memory: Memory) -> tuple[Message, Memory]:
        coded, kept = self.codec.encode(t, peer, down, content, memory)
        self.seen[t, peer.id] = Sent(down, content, memory, coded, kept)
        return coded, kept

    def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
        arrived = wire.decode(wire.encode(content))  # what a site sends is bytes
        decoded = self.codec.decode(t, peer, down, arrived)
        self.seen[t, peer.id].decoded = decoded
        return decoded


def counterpart(sent: Sent, path: str) -> Tensor | None:
    """The tensor that was sent down and has come back, where there is one; a factor may come back alone."""
    known, first = named(sent.down), path.partition("/")[0]
    rest = path.partition("/")[2]
    places = [path, f"adapter/{rest}/{first}", f"adapter/{rest}"] if first in ("A", "B", "dense") else [path]
    places = [] if path.startswith(("second_moment", "coordinates", "parts")) else places
    found = next((known[place] for place in places if place in known), None)
    return found if found is not None and found.shape == named(sent.content)[path].shape else None


def coded_tensors(sent: Sent) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Path, what was sent and what was read of each coded tensor; the others must be what they were."""
    pairs = zip(tree.named_tensors(sent.content), tree.named_tensors(sent.decoded), sent.coded["letters"], strict=True)
    for (path, x), (same, y), letter in pairs:
        assert (path, x.shape, x.dtype) == (same, y.shape, y.dtype)
        if letter == ".":
            assert torch.equal(x, y), path
        else:
            yield path, x, y


def keeps_its_bound(codec: Codec, sent: Sent) -> None:
    """The error is within the one that is declared, and what is lost of a difference is what is remembered."""
    rounding = 1e-12
    for path, x, y in coded_tensors(sent):
        reference = counterpart(sent, path)
        if reference is None or codec.name in ("bf16", "fp16"):
            assert path not in sent.after
            assert bool(((y - x).abs() <= codec.error(x) + rounding).all()), path
            continue
        rest = sent.before.get(path, torch.zeros(()))
        target = x - reference + (rest if rest.shape == x.shape else 0)
        lost = target - (y - reference)
        assert bool((lost.abs() <= codec.error(target) + rounding).all()), path
        remembers: Any = codec
        assert (path in sent.after) == remembers.feedback
        if remembers.feedback:
            torch.testing.assert_close(sent.after[path], lost, atol=rounding, rtol=0)


WAYS = [*((codec, "sequential") for codec in CODECS), ("int8", "batched"), ("top_k", "batched")]


@pytest.mark.parametrize(("codec", "engine"), WAYS)
@pytest.mark.parametrize("name", list_methods())
def test_every_method_runs_with_every_codec_within_its_bound(name: str, codec: str, engine: str) -> None:
    watched = Watched(CODECS[codec]())
    rounds = run(built(name), Channel((watched,)), engine)
    assert not any(done.dropped for done in rounds)
    for sent in watched.seen.values():
        keeps_its_bound(watched.codec, sent)
    for done in rounds:
        for k, size in done.bytes.up.items():
            assert size == wire.size(watched.seen[done.t, k].coded)
    coded = any(set(sent.coded["letters"]) - {"."} for sent in watched.seen.values())
    assert coded == (name not in (UNTOUCHED if codec.startswith("top_k") else {"local_only"}))


@pytest.mark.parametrize("cast", ["bf16", "fp16"])
def test_a_cast_after_top_k_rounds_the_values_that_are_sent(cast: str) -> None:
    sent, down = message(0.0), message(0.0)
    moved = tree.map_tensors(
        lambda x: x + torch.linspace(0.1, 1.0, x.numel()).view(x.shape) if x.is_floating_point() else x, sent
    )
    top_k = get_codec("top_k", share=0.25)
    channel = Channel((top_k, get_codec(cast)))
    coded, memory = channel.encode(0, PEER, down, moved, {})
    assert coded["content"]["values"].dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[cast]
    assert coded["content"]["indices"].dtype == torch.int32
    assert list(memory) == ["top_k"]
    whole, _ = top_k.encode(0, PEER, down, moved, {})
    read, exact = channel.decode(0, PEER, down, coded), top_k.decode(0, PEER, down, whole)
    for x, y in zip(named(read).values(), named(exact).values(), strict=True):
        torch.testing.assert_close(x, y, rtol=2**-8, atol=0)
        assert x.dtype == y.dtype


def test_a_channel_without_codecs_is_that_of_a_config_that_names_none() -> None:
    assert channel_of(Federation()) == Channel()


# --- numbers by hand -------------------------------------------------------------------------------------------------


def message(value: float = 0.0) -> Message:
    """An adapter of one layer with a head, and what no codec may touch."""
    layers = {"layer": LoRA(torch.full((6, 2), value), torch.full((2, 5), value), 2.0)}
    dense = {"head.weight": torch.full((3, 4), value), "head.bias": torch.full((3,), value)}
    kept = {"steps": 4, "mask": torch.tensor([[True, False]]), "ids": torch.tensor([[3, 1]]), "norm": torch.tensor(0.5)}
    return {"adapter": Adapter(layers, dense, "base"), **kept}


def changed(seed: int) -> Message:
    generator = torch.Generator().manual_seed(seed)
    start = message()
    trained = tree.map_tensors(lambda x: torch.randn(x.shape, generator=generator), {"adapter": start["adapter"]})
    return {**start, **trained}


def test_int8_by_hand() -> None:
    """Each block has its own scale, the largest magnitude over 127; the last block may be short."""
    codec = get_codec("int8", block=2)
    coded, memory = codec.encode(0, PEER, {}, {"x": torch.tensor([[1270.0, -10.0, 1.27], [0.005, -0.0254, 0.0]])}, {})
    assert coded["content"]["x"].tolist() == [[127, -1, 127], [0, -127, 0]]
    torch.testing.assert_close(coded["scales"], torch.tensor([10.0, 0.01, 0.0002]))
    assert not memory  # a value, which has no sum over rounds
    assert coded["letters"] == "s"
    read = codec.decode(0, PEER, {}, coded)["x"]
    torch.testing.assert_close(read, torch.tensor([[1270.0, -10.0, 1.27], [0.0, -0.0254, 0.0]]))


def test_int8_codes_the_difference_to_what_was_sent() -> None:
    """A large value that hardly moved is read back almost exactly."""
    codec, down = get_codec("int8", block=4), {"adapter": Adapter({}, {"w": torch.full((2, 2), 100.0)})}
    up = {"dense": {"w": torch.full((2, 2), 100.0) + torch.tensor([[0.5, 0.25], [-0.5, 0.0]])}}
    coded, memory = codec.encode(0, PEER, down, up, {})
    assert coded["content"]["dense"]["w"].tolist() == [[127, 64], [-127, 0]]
    assert list(memory) == ["dense/w"]
    read = codec.decode(0, PEER, down, coded)["dense"]["w"]
    torch.testing.assert_close(read, up["dense"]["w"], atol=0.5 / 254, rtol=1e-6)


def test_top_k_by_hand() -> None:
    """The largest changes of each matrix, by magnitude, and their places in all of them."""
    codec = get_codec("top_k", share=0.5)
    down = {"A": {"x": torch.ones(1, 4), "y": torch.ones(1, 2)}}
    up = {"A": {"x": torch.tensor([[1.0, 3.0, 0.5, -4.0]]), "y": torch.tensor([[1.25, 1.0]])}}
    coded, memory = codec.encode(0, PEER, down, up, {})
    assert coded["indices"].tolist() == [1, 3, 4]
    assert coded["values"].tolist() == [2.0, -5.0, 0.25]
    assert memory["A/x"].tolist() == [[0.0, 0.0, -0.5, 0.0]]
    read = codec.decode(0, PEER, down, coded)
    assert read["A"]["x"].tolist() == [[1.0, 3.0, 1.0, -4.0]]
    assert read["A"]["y"].tolist() == [[1.25, 1.0]]


@pytest.mark.parametrize("largest", [0.0, 1e-45, 1e-43, 1e-40, 1e-37, 3e38])
def test_int8_keeps_its_bound_in_blocks_of_zeros_of_denormals_and_of_huge_numbers(largest: float) -> None:
    codec, x = get_codec("int8", block=8), torch.linspace(-1, 1, 24).view(2, 12) * largest
    coded, _ = codec.encode(0, PEER, {}, {"x": x}, {})
    read = codec.decode(0, PEER, {}, coded)["x"]
    assert bool(torch.isfinite(read).all())
    assert bool(((read - x).abs() <= codec.error(x)).all())


def test_a_block_larger_than_a_tensor_takes_no_memory() -> None:
    """A message of many short tensors could otherwise make a server take a block for each."""
    codec = get_codec("int8", block=10**13)
    coded, _ = codec.encode(0, PEER, {}, {"x": torch.tensor([[1.27, -0.5]])}, {})
    torch.testing.assert_close(codec.decode(0, PEER, {}, coded)["x"], torch.tensor([[1.27, -0.5]]))


@pytest.mark.parametrize(("name", "relative"), [("bf16", 2**-8), ("fp16", 2**-11)])
def test_a_cast_by_hand(name: str, relative: float) -> None:
    codec, x = get_codec(name), torch.tensor([[1.0, 1.0 + relative * 0.9, 1.0 + relative * 2.2]])
    coded, _ = codec.encode(0, PEER, {}, {"x": x}, {})
    assert coded["content"]["x"].element_size() == 2
    assert codec.decode(0, PEER, {}, coded)["x"].tolist() == [[1.0, 1.0, 1.0 + 2 * relative]]


def test_bytes_are_those_of_the_formula() -> None:
    """Matrices of 12, 10 and 12 numbers; beside them 3 + 1 floats, 2 bools and 2 int64, which travel as they are."""
    kept, matrices = 4 * 4 + 2 + 2 * 8, [12, 10, 12]
    formulas = {
        "bf16": 2 * (sum(matrices) + 3) + 4 + 2 + 2 * 8,  # the bias too; the one number stays
        "fp16": 2 * (sum(matrices) + 3) + 4 + 2 + 2 * 8,
        "int8": sum(n + 4 * math.ceil(n / BLOCK) for n in matrices) + kept,
        "top_k": sum((4 + 4) * round(0.25 * n) for n in matrices) + kept,
    }
    for name, formula in formulas.items():
        coded, _ = CODECS[name]().encode(0, PEER, message(), changed(0), {})
        assert sum(x.nbytes for _, x in tree.named_tensors(coded)) == formula, name
        encoded = wire.encode(coded)
        assert len(encoded) == wire.size(coded) == 8 + int.from_bytes(encoded[:8], "little") + formula, name


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_trained_matrix_travels_to_the_bit(codec: str) -> None:
    sent = changed(1)
    coded, _ = CODECS[codec]().encode(0, PEER, message(), sent, {})
    read = CODECS[codec]().decode(0, PEER, message(), coded)
    assert (read["steps"], read["adapter"].base, read["adapter"].layers["layer"].scale) == (4, "base", 2.0)
    for path in ("mask", "ids", "norm", *([] if codec in ("bf16", "fp16") else ["adapter/head.bias"])):
        assert torch.equal(named(read)[path], named(sent)[path]), path


# --- error feedback --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int8", "top_k"])
def test_the_sum_of_what_is_read_is_the_sum_of_what_was_sent_but_for_the_last_rest(name: str) -> None:
    codec, memory, down = CODECS[name](), {}, message(0.5)
    total, read = (dict.fromkeys(MATRICES, torch.zeros(())) for _ in range(2))
    for t in range(20):
        content = changed(t)
        coded, memory = codec.encode(t, PEER, down, content, wire.decode(wire.encode(memory)))
        decoded = named(codec.decode(t, PEER, down, coded))
        total = {path: total[path] + named(content)[path] - 0.5 for path in MATRICES}
        read = {path: read[path] + decoded[path] - 0.5 for path in MATRICES}
    for path in MATRICES:
        torch.testing.assert_close(read[path] + memory[path], total[path], atol=1e-4, rtol=0)


MATRICES = ("adapter/layer/B", "adapter/layer/A", "adapter/head.weight")


def test_what_top_k_leaves_out_is_sent_later() -> None:
    """A small change that lasts outgrows the larger ones that do not; without feedback it is never sent."""
    down = {"A": {"x": torch.zeros(1, 2)}}
    steady = {"A": {"x": torch.tensor([[0.4, 1.0]])}}
    for feedback, expected in ((True, [1, 1, 0, 1]), (False, [1, 1, 1, 1])):
        codec, memory, chosen = get_codec("top_k", share=0.5, feedback=feedback), {}, []
        for t in range(4):
            coded, memory = codec.encode(t, PEER, down, steady, memory)
            chosen += coded["indices"].tolist()
        assert chosen == expected


@pytest.mark.parametrize("name", ["int8", "top_k"])
def test_the_rest_of_a_factor_waits_for_the_round_that_sends_it_again(name: str) -> None:
    """Where factors alternate, what was left out of one is not lost in the round of the other."""
    codec, memory = CODECS[name](), dict[str, Any]()
    down = {"A": {"x": torch.zeros(2, 5)}, "B": {"x": torch.zeros(6, 2)}}
    moved = {k: {"x": torch.linspace(0.1, 1.0, x["x"].numel()).view(x["x"].shape)} for k, x in down.items()}
    total, read = torch.zeros(2, 5), torch.zeros(2, 5)
    for t in range(6):
        key = "AB"[t % 2]
        coded, memory = codec.encode(t, PEER, {key: down[key]}, {key: moved[key]}, memory)
        if key == "A":
            total, read = total + moved["A"]["x"], read + codec.decode(t, PEER, {"A": down["A"]}, coded)["A"]["x"]
    torch.testing.assert_close(read + memory["A/x"], total)
    assert bool(memory["A/x"].any())


def test_what_is_a_value_now_has_no_rest_any_more() -> None:
    codec, content = CODECS["int8"](), {"A": {"x": torch.linspace(0.1, 1.0, 10).view(2, 5)}}
    _, memory = codec.encode(0, PEER, {"A": {"x": torch.zeros(2, 5)}}, content, {})
    assert list(memory) == ["A/x"]
    assert not codec.encode(1, PEER, {}, content, memory)[1]


def test_of_equal_changes_top_k_sends_the_first() -> None:
    codec, down = get_codec("top_k", share=0.4), {"A": {"x": torch.zeros(1, 200), "still": torch.zeros(1, 200)}}
    level = torch.ones(1, 200) * torch.tensor([1.0, -1.0]).repeat(100)
    level[0, 150] = 2.0
    coded, _ = codec.encode(0, PEER, down, {"A": {"x": level, "still": torch.zeros(1, 200)}}, {})
    assert coded["indices"].tolist() == [*range(79), 150, *range(200, 280)]


@pytest.mark.parametrize("name", ["int8", "top_k"])
def test_a_tensor_of_another_shape_begins_anew(name: str) -> None:
    codec, down, content = CODECS[name](), message(0.5), changed(0)
    _, memory = codec.encode(0, PEER, down, content, {})
    memory = {**memory, "adapter/layer/B": torch.full((6, 3), 9.0)}  # of the round before, at rank 3
    fresh, _ = codec.encode(1, PEER, down, content, {k: x for k, x in memory.items() if k != "adapter/layer/B"})
    coded, _ = codec.encode(1, PEER, down, content, memory)
    assert wire.encode(coded) == wire.encode(fresh)


@pytest.mark.parametrize("engine", ["sequential", "batched"])
def test_the_rest_lies_in_the_clients_memory_and_a_run_goes_on_with_it(engine: str) -> None:
    channel = Channel((get_codec("top_k", share=0.25),))
    whole = run(get_method("fedavg"), channel, engine, rounds=4)
    (rest,) = {tuple(sorted(state[OWN]["top_k"])) for state in whole[-1].client_states.values()}
    assert "adapter/hidden/A" in rest
    resumed = run(get_method("fedavg"), channel, engine, rounds=4, start=whole[1].snapshot)
    assert wire.encode({"state": whole[-1].state}) == wire.encode({"state": resumed[-1].state})
    forgotten = replace(whole[1].snapshot, client_states={})
    lost = run(get_method("fedavg"), channel, engine, rounds=4, start=forgotten)
    assert not any(done.dropped for done in lost)
    assert wire.encode({"state": whole[-1].state}) != wire.encode({"state": lost[-1].state})


def test_the_rest_of_an_answer_that_does_not_count_is_not_kept() -> None:
    @dataclass(frozen=True)
    class Refused(Stage):
        def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
            if (t, peer.id) == (1, 0):
                raise ValueError("cut short")
            return content

    channel = Channel((Watched(get_codec("top_k", share=0.25)), Refused()))
    watched: Any = channel.stages[0]
    run(get_method("fedavg"), channel, rounds=3, debug=False)
    assert watched.seen[2, 0].before is watched.seen[0, 0].after
    assert watched.seen[2, 1].before is watched.seen[1, 1].after


# --- refused ---------------------------------------------------------------------------------------------------------


def coded_by(name: str) -> dict[str, Any]:
    return dict(CODECS[name]().encode(0, PEER, message(), changed(0), {})[0])


def with_hole(shape: tuple[int, ...], **own: Any) -> dict[str, Any]:
    """A message of top_k with one hole, of this shape, in the place of A."""
    nothing = {"values": torch.zeros(0), "indices": torch.zeros(0, dtype=torch.int32)}
    content = {"A": {"layer": torch.empty(shape, dtype=torch.uint8)}}
    return {"codec": "top_k", "content": content, "letters": "s", **nothing, **own}


HUGE = 10**12

HOSTILE: list[tuple[str, Callable[[], Any], str]] = [
    ("int8", lambda: changed(0), "no message of the codec int8"),
    ("int8", lambda: [1, 2], "no message of the codec int8"),
    ("int8", lambda: coded_by("bf16"), "no message of the codec int8"),
    ("int8", lambda: coded_by("int8") | {"more": 1}, "no message of the codec int8"),
    ("int8", lambda: coded_by("int8") | {"content": [1]}, "content is not a mapping"),
    ("int8", lambda: coded_by("int8") | {"letters": None}, "letters is not a text"),
    ("int8", lambda: coded_by("int8") | {"letters": "ss"}, "needs one of"),
    ("int8", lambda: coded_by("int8") | {"letters": "zzz...."}, "needs one of"),
    ("int8", lambda: coded_by("int8") | {"scales": 3.0}, "scales is not a tensor"),
    ("int8", lambda: coded_by("int8") | {"scales": torch.zeros(1)}, "scales needs 9 float32 numbers"),
    ("int8", lambda: coded_by("int8") | {"scales": torch.zeros(9, dtype=torch.float64)}, "scales needs 9 float32"),
    ("int8", lambda: coded_by("int8") | {"scales": torch.full((9,), math.nan)}, "NaN, Inf or a negative"),
    ("int8", lambda: coded_by("int8") | {"scales": torch.full((9,), math.inf)}, "NaN, Inf or a negative"),
    ("int8", lambda: coded_by("int8") | {"scales": torch.full((9,), -1.0)}, "NaN, Inf or a negative"),
    ("int8", lambda: coded_by("int8") | {"content": changed(0)}, "holds torch.float32, not int8"),
    ("bf16", lambda: coded_by("bf16") | {"content": changed(0)}, "holds torch.float32, not torch.bfloat16"),
    ("bf16", lambda: coded_by("int8"), "no message of the codec bf16"),
    ("top_k", lambda: with_hole((0, 5)) | {"letters": "ss"}, "needs one of"),
    ("top_k", lambda: with_hole((2, 5)), "is no tensor that was sent down|holds numbers"),
    ("top_k", lambda: with_hole((HUGE, 0)), "is no tensor that was sent down"),
    ("top_k", lambda: with_hole((0, HUGE)), "is no tensor that was sent down"),
    ("top_k", lambda: with_hole((0, 5), values=torch.ones(1)), "indices needs 1 int32 numbers"),
    ("top_k", lambda: pairs([10], [1.0]), "indices do not rise from 0 or more to below 10"),
    ("top_k", lambda: pairs([2**31 - 1], [1.0]), "indices do not rise"),
    ("top_k", lambda: pairs([-1], [1.0]), "indices do not rise"),
    ("top_k", lambda: pairs([3, 3], [1.0, 2.0]), "indices do not rise"),
    ("top_k", lambda: pairs([3, 20, 4], [1.0, 2.0, 3.0]), "indices do not rise"),
    ("top_k", lambda: pairs([3], [math.nan]), "values holds NaN or Inf"),
    ("top_k", lambda: pairs([3], [1.0]) | {"indices": torch.tensor([3])}, "indices needs 1 int32"),
    ("top_k", lambda: pairs([3], [1.0]) | {"values": torch.ones(1, 1)}, "values is not a row of float32"),
    ("top_k", lambda: twice(), "two tensors of one name"),
]


def pairs(indices: list[int], values: list[float]) -> dict[str, Any]:
    return with_hole((0, 5), values=torch.tensor(values), indices=torch.tensor(indices, dtype=torch.int32))


def twice() -> dict[str, Any]:
    """A message that asks for one tensor under one path again and again."""
    hole = torch.empty((0, 5), dtype=torch.uint8)
    return with_hole((0, 5)) | {"content": {"A": {"layer": hole}, "A/layer": hole}, "letters": "ss"}


@pytest.mark.parametrize(("name", "sent", "reason"), HOSTILE, ids=[f"{name}: {reason}" for name, _, reason in HOSTILE])
def test_a_hostile_message_is_refused_by_name(name: str, sent: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as found:
        CODECS[name]().decode(0, PEER, message(), sent())
    assert name in str(found.value)


@pytest.mark.parametrize("name", ["int8", "top_k"])
def test_a_client_that_lies_is_left_out_and_the_others_count(name: str) -> None:
    @dataclass(frozen=True)
    class Lying(Stage):
        def encode(self, t: int, peer: Peer, down: Message, content: Message, memory: Memory) -> tuple[Message, Memory]:
            own = "scales" if name == "int8" else "values"
            return ({**content, own: content[own] * math.nan} if peer.id == 1 else content), memory

    (done,) = run(get_method("fedavg"), Channel((CODECS[name](), Lying())), rounds=1, debug=False)
    assert list(done.dropped) == [1]
    assert name in done.dropped[1]
    assert "NaN" in done.dropped[1]


def test_an_upload_that_is_not_finite_is_refused_at_the_client() -> None:
    bad = {"A": {"x": torch.tensor([[math.nan, 1.0]])}}
    with pytest.raises(ValueError, match="client 7: A/x holds 1 NaN or Inf"):
        get_codec("int8").encode(0, PEER, {}, bad, {})
    for name, largest in (("int8", "scales"), ("top_k", "values")):
        down = {"A": {"x": torch.full((1, 2), -1e300, dtype=torch.float64)}}
        with pytest.raises(ValueError, match=f"client 7, codec {name}: {largest} holds"):
            get_codec(name).encode(0, PEER, down, {"A": {"x": -down["A"]["x"]}}, {})
    with pytest.raises(ValueError, match=r"A/x holds numbers beyond 65504.*bf16"):
        get_codec("fp16").encode(0, PEER, {}, {"A": {"x": torch.tensor([7e4])}}, {})


ORDERS = [
    (["int8", "top_k"], "top_k cannot follow int8"),
    (["top_k", "int8"], "int8 cannot follow top_k"),
    (["bf16", "int8"], "int8 cannot follow bf16"),
    (["bf16", "fp16"], "fp16 cannot follow bf16"),
    (["int8", "bf16"], "bf16 cannot follow int8"),
    (["bf16", "top_k"], "top_k cannot follow bf16.*or top_k before bf16"),
    (["int8", "int8"], "different names"),
]


@pytest.mark.parametrize(("names", "reason"), ORDERS, ids=[reason for _, reason in ORDERS])
def test_codecs_that_cannot_follow_one_another_are_refused(names: list[str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Channel(tuple(get_codec(name) for name in names))
    with pytest.raises(ValueError, match=f"federation.channel: .*{reason}"):
        check(RunConfig.model_validate({"federation": {"channel": names}}))


@pytest.mark.parametrize("name", list_codecs())
def test_a_graph_takes_the_codecs_that_a_neighbour_can_read(name: str) -> None:
    def nodes() -> list[Round]:
        clients = toy_federation((2, 2, 2, 2))
        channel = Channel((get_codec(name),))
        return list(gossip(get_method("fedavg"), clients, rounds=2, mixing=ring(4), channel=channel, debug=True))

    config = RunConfig.model_validate({"federation": {"channel": [name], "topology": "ring"}})
    if name in ("bf16", "fp16"):
        assert not any(done.dropped for done in nodes())
        check(config)
        return
    with pytest.raises(ValueError, match=f"{name} codes the difference"):
        nodes()
    with pytest.raises(ValueError, match=f"federation.channel: .*{name} codes the difference"):
        check(config)
