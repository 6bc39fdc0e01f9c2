"""A node of a toy federation on a ring, in a process of its own over zenoh: the tests start several, and kill some.

    python peer.py PLAN.json NAME

The plan has: names, endpoints (null for a peer that only dials), relay (endpoint or null), certificates (folder), method,
rounds, folder, silence, deadline, pause (seconds a round), hold (a round after which all wait for the file `go`).
By name, for tests of what goes wrong: authority (a folder of other certificates), speaks_as (another's name), detours
(endpoints to dial in place of those, by position).
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fedelta import topology
from fedelta.engines import checkpoint
from fedelta.engines.federation import largest_template
from fedelta.engines.neighbours import Patience
from fedelta.engines.node import neighbours_of, take_part
from fedelta.engines.runners.zenoh.session import Post, refusals_logged
from fedelta.engines.runners.zenoh.settings import Certificates, addresses, direct, through_relay
from fedelta.engines.settings import RunSettings
from fedelta.exchange import files, wire
from fedelta.methods import get_method
from fedelta.models.toy import toy_federation


def clients_for(name: str, count: int) -> list[Any]:
    ranks = [(2, 4, 5, 3)[k % 4] for k in range(count)] if get_method(name).hetero_rank else [3] * count
    return toy_federation(ranks, lora_alpha=8.0, dtype=torch.float32)


def settings_for(plan: dict[str, Any], me: int, near: list[int], certificates: Certificates) -> Any:
    names = plan["names"]
    if plan["relay"]:
        return through_relay(names[me], "relay", plan["relay"], certificates)
    detours = {int(k): endpoint for k, endpoint in plan.get("detours", {}).get(names[me], {}).items()}
    at = addresses(me, {**dict(enumerate(plan["endpoints"])), **detours}, near)
    return direct(names[me], [names[k] for k in near], at, certificates)


def main(plan: dict[str, Any], name: str) -> None:
    names, rounds = plan["names"], plan["rounds"]
    me, count = names.index(name), len(names)
    folder = Path(plan["folder"]) / name
    folder.mkdir(exist_ok=True)
    mixing = topology.ring(count)
    speaks_as = plan.get("speaks_as", {}).get(name, name)
    near = neighbours_of(mixing, me, range(count), rounds)
    certificates = Certificates.of(Path(plan.get("authority", {}).get(name, plan["certificates"])), name)
    clients = clients_for(plan["method"], count)
    start = checkpoint.load(folder) if checkpoint.exists(folder) else None
    settings = settings_for(plan, me, near, certificates)
    if speaks_as != name:
        del settings["access_control"]  # a forger does not hold itself to rules
    post = Post(speaks_as, {k: names[k] for k in near}, settings, every=0.3)
    try:
        with (folder / "rounds.jsonl").open("a", buffering=1) as log:
            log.write(json.dumps({"start": 0 if start is None else start.t}) + "\n")
            for turn in take_part(
                get_method(plan["method"]),
                clients[me],
                [client.peer for client in clients],
                largest_template(clients),
                post,
                mixing=mixing,
                settings=RunSettings(rounds=rounds, engine="sequential", start=start),
                names=dict(enumerate(names)),
                patience=Patience(silence=plan["silence"], deadline=plan.get("deadline", 60.0), every=2.0),
            ):
                checkpoint.save(folder, turn.done.snapshot)
                record = {"t": turn.done.t, "linked": turn.linked, "one_sided": turn.one_sided, "seconds": turn.done.seconds}
                log.write(json.dumps(record) + "\n")
                time.sleep(plan.get("pause", 0.0))
                while turn.done.t >= plan.get("hold", rounds) and not (folder.parent / "go").exists():
                    time.sleep(0.05)
                state = turn.done.state[str(me)]
        files.commit(folder / "state.bin", wire.encode(state))
    finally:
        post.close()


if __name__ == "__main__":
    import logging

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(1)
    with refusals_logged():
        main(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2])
