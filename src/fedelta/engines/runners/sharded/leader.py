"""Rank 0 of a sharded run: an engine that answers a part of each cohort here and has the other ranks answer theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from fedelta.engines.federation import Federation
from fedelta.engines.guards import ElsewhereError
from fedelta.engines.letters import Letter, Reply, Visit
from fedelta.engines.memories import InMemory
from fedelta.engines.runners._in_process import Answered, InProcess
from fedelta.engines.runners.sharded.ranks import Crew
from fedelta.engines.runners.sharded.shares import shared_out, work_of
from fedelta.engines.visits import VisitAll
from fedelta.method import ClientState, State
from fedelta.tree import BaseDelta, Message, find


def sharded(crew: Crew, here: VisitAll) -> Sharded:
    """Returns the engine over all ranks. Raises ValueError for one whose clients are not in this process."""
    if not isinstance(here, InProcess):
        raise ValueError(f"a {type(here).__name__} does not answer in this process, and cannot be split over several")
    return Sharded(crew, here)


@dataclass(eq=False)
class Sharded:
    """The sharded engine.

    A client's memory stays here: it goes with the letter and comes back beside the reply. So a snapshot holds all memories, and
    a run goes on over any number of processes.

    Args:
        crew: the other ranks.
        here: the engine of this rank's own part.
    """

    crew: Crew
    here: InProcess
    _work: dict[int, float] = field(default_factory=dict[int, float])
    _home: dict[int, int] = field(default_factory=dict[int, int])
    _restored: bool = False

    @property
    def memories(self) -> InMemory:
        """The memories of all clients."""
        return self.here.memories

    def __call__(self, federation: Federation, t: int, states: Mapping[int, State]) -> list[Visit]:
        """Returns the visits of a cohort, in order."""
        shares = self._shares(federation, states)
        if not self._restored:
            self._restore(federation, t, states)
        letters = {k: letter for rank in self.crew.ranks for k, letter in self._sent(federation, t, shares[rank], rank)}
        done: dict[int, Visit] = {}
        for letter, answered in self.here.answers(federation, self.here.asked(federation, t, shares[0])):
            done[letter.peer.id] = self.here.received(federation, states, letter, answered)
            while letters and (heard := self.crew.heard()) is not None:
                done |= self._taken(federation, states, letters, heard[1])
        while letters:
            done |= self._taken(federation, states, letters, self.crew.hear()[1])
        for rank in self.crew.ranks:
            self.crew.rest(rank)
        return [done[k] for k in states]

    def _shares(self, federation: Federation, states: Mapping[int, State]) -> list[dict[int, State]]:
        """Returns the part of the cohort that each rank answers.

        Where the base moves, a client is always answered at one rank: each rank's model then holds at least the base that its
        clients are said to hold, and gets each step of the base once. All other cohorts are dealt evenly.
        """
        count = 1 + len(self.crew.ranks)
        if federation.method.coordinates == "base":
            self._home = self._home or shared_out(self._work_of(federation, federation.clients), count)
            owner = self._home
        else:
            owner = shared_out(self._work_of(federation, states), count)
        return [{k: state for k, state in states.items() if owner[k] == rank} for rank in range(count)]

    def _work_of(self, federation: Federation, ids: Mapping[int, object]) -> dict[int, float]:
        self._work |= {k: work_of(federation.clients[k]) for k in ids if k not in self._work}
        return {k: self._work[k] for k in ids}

    def _restore(self, federation: Federation, t: int, states: Mapping[int, State]) -> None:
        """Gives the ranks the base that their clients held when the run was left; once, as this process got it itself."""
        self._restored = True
        held = [k for k in self._home if self._home[k] and federation.base_versions.get(k, 0)]
        if not held:
            return
        state = next(iter(states.values()))  # the server's: a base moves with a server only
        down = federation.method.broadcast(t, state, replace(federation.peer(held[0]), base_version=0))
        for rank in self.crew.ranks:
            ids = [k for k in held if self._home[k] == rank]
            for base in find(down, BaseDelta):
                self.crew.tell(rank, {"kind": "restore", "ids": ids, "base": base})

    def _sent(self, federation: Federation, t: int, share: Mapping[int, State], rank: int) -> Iterator[tuple[int, Letter]]:
        """Sends a rank its letters; yields them, by client."""
        for letter, memory in self.here.asked(federation, t, share):
            self.crew.tell(rank, {"kind": "letter", **_written(letter), "memory": memory})
            yield letter.peer.id, letter
        if share:
            self.crew.tell(rank, {"kind": "answer"})

    def _taken(
        self, federation: Federation, states: Mapping[int, State], letters: dict[int, Letter], message: Message
    ) -> dict[int, Visit]:
        """Returns the visit that a rank's message amounts to, by client; its letter is not waited for any more."""
        k = message["id"]
        return {k: self.here.received(federation, states, letters.pop(k), _answered(message, self.memories.get(k)))}


def _written(letter: Letter) -> Message:
    return {
        "id": letter.peer.id,
        "t": letter.t,
        "base_version": letter.peer.base_version,
        "remembered": letter.remembered,
        "size": letter.size,
        "message": letter.message,
    }


def _answered(message: Message, before: ClientState) -> Answered:
    if message["kind"] == "refusal":
        return ElsewhereError(message["reason"])
    memory = before if message["memory"] is None else message["memory"]
    return Reply(message["content"], message["metrics"], message["base_version"]), memory
