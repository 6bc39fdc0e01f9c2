"""The server: Flower's own FedAvg, which also notes when each round begins; no evaluation."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUntypedFunctionDecorator=false
# It runs in an environment of its own: see rivals/make_envs.py.

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from rivals import bare
from rivals.work import Work
from safetensors.torch import save_file

app = ServerApp()


class Timed(FedAvg):
    """FedAvg with a list of when its rounds began, and of when the last one ended."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stamps: list[float] = []

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: Any, grid: Grid) -> Iterable[Message]:
        self.stamps.append(time.perf_counter())
        return super().configure_train(server_round, arrays, config, grid)


@app.main()
def main(grid: Grid, context: Context) -> None:
    folder = Path(str(context.run_config["work"]))
    work = Work.load(folder)
    start = ArrayRecord(bare.state_of(bare.load_model(folder)))
    strategy = Timed(fraction_evaluate=0.0, fraction_train=1.0, min_train_nodes=work.clients, min_available_nodes=work.clients)
    result = strategy.start(grid=grid, initial_arrays=start, num_rounds=work.rounds)
    stamps = [*strategy.stamps, time.perf_counter()]
    save_file(result.arrays.to_torch_state_dict(), folder / "flower.safetensors")
    (folder / "flower.json").write_text(json.dumps({"stamps": stamps}), encoding="utf-8")
