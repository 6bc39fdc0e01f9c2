"""Codecs that code what training has changed, and remember what they left out.

A client and its server both know the adapter that was sent down. So what is coded is the difference to it: its numbers are
small, and an error of a share of them is a share of one round's change, not of all that was ever learned. Of a tensor
without such a counterpart (another rank than was sent, coordinates and moments in a gradient's subspace, changes of a control
variate) the value itself is coded, if the codec can.

What is left out of a difference is added to the next one (error feedback): the sum of all that the server has read is then
the sum of all differences but for the last rest. Values are not summed, so that nothing of them is remembered. A tensor that a
round does not send, as where factors alternate, keeps its rest for the round that does. One of another shape begins anew.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Size, Tensor

from fedelta import lowrank as lr
from fedelta import tree
from fedelta.exchange.channel import Memory
from fedelta.exchange.codecs._codec import LETTERS, Codec, check_setting, opened, replaced, seal
from fedelta.peers import Peer
from fedelta.tree import Adapter, Message, Tensors


@dataclass(frozen=True, eq=False)
class Part:
    """A tensor of a message, and where it stands.

    Attributes:
        position: among the message's tensors.
        path: its name, for persons and for the memory.
        tensor: itself; in a coded message, what is in its place.
        reference: its counterpart in what was sent down, in float32 or wider; None without one.
    """

    position: int
    path: str
    tensor: Tensor
    reference: Tensor | None


class DifferenceCodec(Codec):
    """Codes the matrices of an upload; vectors and single numbers, such as biases and counts, travel as they are.

    A subclass has a setting `feedback`: whether what was left out is added to the next round's difference.

    Class attributes:
        own: the names of the tensors that are sent beside the message.
    """

    first: ClassVar[bool] = True
    needs_server: ClassVar[bool] = True
    own: ClassVar[tuple[str, ...]] = ()
    feedback: bool

    def __post_init__(self) -> None:
        check_setting(self, "feedback", (bool,), lambda _: True, "true or false")

    def place_of(self, path: str, shape: Size) -> Size:
        """Returns the shape of what is in the place of a coded tensor."""
        return shape

    @abstractmethod
    def takes(self, part: Part) -> bool:
        """Returns whether a matrix is coded; asked at the client."""

    @abstractmethod
    def pack(self, parts: Sequence[Part], values: Sequence[Tensor]) -> tuple[list[Tensor], Tensors]:
        """Returns what stands in the places of the parts with these values, and the tensors beside the message, by `own`."""

    @abstractmethod
    def unpack(self, parts: Sequence[Part], own: Tensors) -> list[Tensor]:
        """Returns the values that are read from what `pack` returned, in float32 or wider.

        Args:
            parts: with what stands in their places.
            own: the tensors beside the message.

        Raises:
            ValueError: before memory is taken, for tensors that `pack` does not write.
        """

    def encode(self, t: int, peer: Peer, down: Message, content: Message, memory: Memory) -> tuple[Message, Memory]:
        tree.check_finite(content, f"client {peer.id}")
        present = _parts(down, content, _same)
        parts = [part for part in present if _is_matrix(part.tensor) and self.takes(part)]
        values = [_value(part, memory if self.feedback else {}) for part in parts]
        places, own = self.pack(parts, values)
        tree.check_finite(own, f"client {peer.id}, codec {self.name}")  # float32 does not hold all that float64 does
        coded = {part.position: (LETTERS[part.tensor.dtype], x) for part, x in zip(parts, places, strict=True)}
        sent = [replace(part, tensor=x) for part, x in zip(parts, places, strict=True)]
        if not self.feedback:
            return seal(self, content, coded, **own), {}
        absent = memory.keys() - {part.path for part in present}
        return seal(self, content, coded, **own), {k: memory[k] for k in sorted(absent)} | self._rest(sent, values, own)

    def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
        inner, dtypes = opened(self, content, self.own)
        parts = [part for part in _parts(down, inner, self.place_of) if part.position in dtypes]
        read = self.unpack(parts, {name: content[name] for name in self.own})
        whole = (x if part.reference is None else part.reference + x for part, x in zip(parts, read, strict=True))
        return replaced(inner, {part.position: x.to(dtypes[part.position]) for part, x in zip(parts, whole, strict=True)})

    def _rest(self, sent: Sequence[Part], values: Sequence[Tensor], own: Tensors) -> dict[str, Tensor]:
        """Returns what the server does not get of the differences, by path."""
        lost = zip(sent, values, self.unpack(sent, own), strict=True)
        return {part.path: value - read for part, value, read in lost if part.reference is not None}


def _same(path: str, shape: Size) -> Size:
    return shape


def _parts(down: Message, content: Message, shape_of: Callable[[str, Size], Size]) -> list[Part]:
    """Returns the tensors of a message in their order, each with its counterpart in what was sent down.

    Args:
        down: what was sent.
        content: the message, coded or not.
        shape_of: (path, shape of the counterpart) -> the shape that a tensor has here if it has that counterpart.
    """
    known = _references(down)

    def reference(path: str, x: Tensor) -> Tensor | None:
        found = known.get(path)
        if found is None or not found.is_floating_point() or shape_of(path, found.shape) != x.shape:
            return None
        return found.to(x.device, lr.wide(found.dtype))

    return [Part(k, path, x, reference(path, x)) for k, (path, x) in enumerate(tree.named_tensors(content))]


def _references(down: Message) -> dict[str, Tensor]:
    """Returns the trained tensors that were sent down, by the paths at which they may come back.

    Those of an adapter come back in an adapter, or one factor alone under "A", "B" and "dense". Nothing else is a
    reference: a second moment, say, must not fall below zero, as the sum of two tensors might.
    """
    adapter = down.get("adapter")
    alone: dict[str, object] = {key: down[key] for key in ("A", "B", "dense") if key in down}
    if isinstance(adapter, Adapter):
        alone = {**{key: tree.factors(adapter, key) for key in ("A", "B")}, "dense": adapter.dense, "adapter": adapter, **alone}
    return dict(tree.named_tensors(alone))


def _is_matrix(x: Tensor) -> bool:
    return x.dtype in LETTERS and x.ndim > 1 and x.numel() > 0


def _value(part: Part, memory: Memory) -> Tensor:
    """Returns what is to be coded of a tensor: its value, or its difference together with what was left out before."""
    value = part.tensor.to(lr.wide(part.tensor.dtype))
    if part.reference is None:
        return value
    difference = value - part.reference
    rest = memory.get(part.path)
    return difference if rest is None or rest.shape != difference.shape else difference + rest.to(difference)
