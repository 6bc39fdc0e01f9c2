"""Stages between a method and the wire: the form of a quantiser, a clip, a mask or central noise.

A message passes the stages of a `Channel` in order on its way down and up, and in reverse order when the server reads a reply.
Without stages it stays as it is, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from fedelta.merging import ClientUpdate
from fedelta.peers import Peer
from fedelta.tree import Message

Memory: TypeAlias = Mapping[str, Any]
"""The values that one client keeps from round to round and never sends."""

OWN = "channel"
"""The entry of a client's memory that belongs to the stages; a method's own entries have other names."""


class Stage:
    """One step between a method and the wire. Each function is the identity until a subclass says otherwise.

    A stage is a frozen dataclass of settings, as a method is. What it must remember at a client is the `memory` that `encode`
    takes and returns; a client that was lost begins with an empty one.

    Class attributes:
        needs_server: `decode` reads `down`, which a neighbour on a graph does not know of the sender.
    """

    needs_server: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Returns the name under which the stage's memory is kept; stages of one channel have different names."""
        return type(self).__name__

    def check(self, before: Sequence[Stage]) -> None:
        """Raises ValueError if the stage cannot follow those before it; called when a channel is made."""

    def down(self, t: int, peer: Peer, message: Message) -> Message:
        """Returns what is sent to `peer` in round t; called at the server."""
        return message

    def arrived(self, t: int, peer: Peer, message: Message) -> Message:
        """Returns what the method at the client gets; called at the client, and at the server for what it began from."""
        return message

    def encode(self, t: int, peer: Peer, down: Message, content: Message, memory: Memory) -> tuple[Message, Memory]:
        """Returns what is sent up, and what to remember; called at the client.

        Args:
            t: the round.
            peer: the client.
            down: the message that the method got, which many stages take a difference to.
            content: what the method, or the stage before, sends.
            memory: what this stage returned here last time; empty at first and after a loss.
        """
        return content, memory

    def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
        """Returns what `encode` was given, as far as it can be had; called at the server for each reply, before any check.

        Args:
            t: the round.
            peer: the sender.
            down: what `encode` was given under this name, to the bit.
            content: what arrived, from anybody.

        What needs the whole cohort, such as taking masks away, is done in `taken`, which comes later: a stage whose numbers
        are masked by another one reads them there, too.
        """
        return content

    def taken(self, t: int, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        """Returns the updates of the cohort that arrived as `aggregate` is to get them; called once where it is aggregated:
        at the server, or at each node of a graph.
        """
        return updates

    def after(self, t: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the method's next state; called once where a round is aggregated: at the server, or at each node of a graph.

        Args:
            t: the round.
            before: the state that the round began with.
            after: the state that `aggregate` returned.
        """
        return after


@dataclass(frozen=True)
class Channel:
    """The stages of a run, as one.

    Args:
        stages: in the order in which a message passes them on its way up: quantise, sparsify, clip, mask.

    Raises:
        ValueError: for two stages of one name, whose memories would be mixed up, or in an order that they do not allow.
    """

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"the stages of a channel must have different names, got {names}: leave one out, or rename it")
        for k, stage in enumerate(self.stages):
            stage.check(self.stages[:k])

    def demand_no_server(self) -> None:
        """Raises ValueError for a stage that needs a server, in a run without one."""
        for stage in self.stages:
            if stage.needs_server:
                raise ValueError(
                    f"the channel's stage {stage.name} codes the difference to what its sender began from, which its "
                    "neighbours on a graph do not know: take bf16 or fp16, which code values, or a server"
                )

    def down(self, t: int, peer: Peer, message: Message) -> Message:
        """Returns what is sent to a peer in place of the method's message."""
        for stage in self.stages:
            message = stage.down(t, peer, message)
        return message

    def arrived(self, t: int, peer: Peer, message: Message) -> Message:
        """Returns the message that the method at the client gets; undoes the stages of `down` in reverse."""
        for stage in reversed(self.stages):
            message = stage.arrived(t, peer, message)
        return message

    def encode(self, t: int, peer: Peer, down: Message, content: Message, memory: Memory) -> tuple[Message, Memory]:
        """Returns what is sent up, and the stages' memories by name."""
        kept: dict[str, Memory] = {}
        for stage in self.stages:
            content, own = stage.encode(t, peer, down, content, memory.get(stage.name, {}))
            if own:
                kept[stage.name] = own
        return content, kept

    def decode(self, t: int, peer: Peer, down: Message, content: Message) -> Message:
        """Returns what the method sent, as the server can read it."""
        for stage in reversed(self.stages):
            content = stage.decode(t, peer, down, content)
        return content

    def taken(self, t: int, updates: Sequence[ClientUpdate]) -> Sequence[ClientUpdate]:
        """Returns the cohort's updates as `aggregate` is to get them."""
        for stage in reversed(self.stages):
            updates = stage.taken(t, updates)
        return updates

    def after(self, t: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns the state that a round ends with."""
        for stage in self.stages:
            after = stage.after(t, before, after)
        return after
