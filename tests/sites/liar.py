"""A worker whose site claims a rank that nobody could hold: `liar.py CONFIG --node FILE`."""

import sys
from pathlib import Path

from fedelta.engines.runners.sites.worker import serve
from fedelta.exchange.parcels import Parcel
from fedelta.runs.config import read_config
from fedelta.runs.config.node import read_node
from fedelta.runs.sites import answerer

RANK = 10**9


def main(config: str, _: str, node_file: str) -> None:
    node = read_node(Path(node_file))
    honest = answerer(read_config(config), node)

    def lies(parcel: Parcel) -> Parcel:
        answer = honest(parcel)
        if answer.kind == "census":
            answer.header["peer"]["rank"] = RANK
        return answer

    serve(lies, node.folder(), name=node.name, most_body=node.allow.most_memory())


if __name__ == "__main__":
    main(*sys.argv[1:])
