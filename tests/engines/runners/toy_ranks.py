"""Toy runs whose every number is written down, and a process that plays them as one rank of several.

RANK=r WORLD_SIZE=n MASTER_ADDR=127.0.0.1 MASTER_PORT=p python toy_ranks.py OUT
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedelta import federate, get_method, sampling
from fedelta.client import LocalClient
from fedelta.engines.choice import runner_of
from fedelta.engines.rounds import Round, Snapshot
from fedelta.engines.settings import Choice
from fedelta.exchange import wire
from fedelta.exchange.channel import Channel
from fedelta.method import Client
from fedelta.models.toy import toy_federation

METHODS = ("scaffold", "flora", "fedgalore", "fedavg")  # memory at clients, a base that moves, both, neither
RANKS, PARTICIPATION = (1,) * 6, 0.5  # so little that a client which is nearly up to date is sent the steps that it missed
EXAMPLES = (3, 8, 5, 7, 4, 6)  # unequal work, so that cohorts are dealt in many ways
ROUNDS, STOP = 12, 2
SEQUENTIAL = Choice("sequential")


class Stumbling(LocalClient):
    """A client that fails in round 1, with a text that may not reach a log as it is."""

    def train(self, t: int, *arguments: Any, **request: Any) -> Any:
        if t == 1:
            raise ValueError("no\nluck " + "x" * 600)
        return super().train(t, *arguments, **request)


def clients() -> list[Client]:
    made = toy_federation(RANKS, num_examples=EXAMPLES)
    c = made[3]
    stumbling = Stumbling(c.peer, c.template, c.model, c.examples, c.collate, c.loss, c.training, c.seed)
    return [*made[:3], stumbling, *made[4:]]


def digest(value: Any) -> str:
    return hashlib.blake2b(wire.encode({"value": value}), digest_size=16).hexdigest()


def written(done: Round) -> dict[str, Any]:
    """All that a round leaves."""
    snapshot = done.snapshot
    return {
        "t": done.t,
        "state": digest(done.state),
        "loss": done.loss,
        "dropped": {str(k): reason for k, reason in done.dropped.items()},
        "bytes": [sorted(done.bytes.down.items()), sorted(done.bytes.up.items())],
        "memories": {str(k): digest(memory) for k, memory in sorted(snapshot.client_states.items())},
        "rounds": {str(k): t for k, t in sorted(snapshot.client_rounds.items())},
        "versions": {str(k): v for k, v in sorted(snapshot.base_versions.items())},
    }


def played(name: str, engine: Callable[[str], Any]) -> list[Any]:
    """A run to its end, and once more from a snapshot of round `STOP`, with clients that are new."""

    def run(start: Snapshot | None) -> list[Round]:
        rule = sampling.uniform(PARTICIPATION)
        return list(federate(get_method(name), clients(), rounds=ROUNDS, cohort=rule, engine=engine(name), start=start))

    whole = run(None)
    resumed = run(whole[STOP].snapshot)
    return json.loads(json.dumps([[written(done) for done in rounds] for rounds in (whole, resumed)]))


def main(out: Path) -> None:
    from fedelta.engines.runners.sharded.leader import sharded
    from fedelta.engines.runners.sharded.ranks import Crew
    from fedelta.engines.runners.sharded.worker import Shard, serve, shard_of

    def shard(name: str) -> Shard:
        return shard_of(get_method(name), clients(), Channel(), runner_of(SEQUENTIAL), {"name": name})

    if os.environ["RANK"] != "0":
        serve(shard)
        return
    with Crew() as crew:

        def engine(name: str) -> Any:
            assert crew.settle(name) == {rank: {"name": name} for rank in crew.ranks}
            return sharded(crew, runner_of(SEQUENTIAL))

        out.write_text(json.dumps({name: played(name, engine) for name in METHODS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
