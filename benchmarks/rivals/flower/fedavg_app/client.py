"""A client: its share of a round, by the same PEFT steps as the bare loop."""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUntypedFunctionDecorator=false
# It runs in an environment of its own: see rivals/make_envs.py.

from functools import cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from rivals import bare
from rivals.work import Work

app = ClientApp()


@cache  # an actor keeps it from client to client, which is the best that a user can do
def prepared(folder: Path) -> tuple[Any, Work]:
    torch.set_num_threads(1)  # as many actors as cores
    return bare.load_model(folder), Work.load(folder)


@app.train()
def train(message: Message, context: Context) -> Message:
    model, work = prepared(Path(str(context.run_config["work"])))
    client, t = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"]) - 1
    start = message.content["arrays"].to_torch_state_dict()
    trained = bare.train(model, start, work.batches(t, client), work.learning_rate)
    metrics = MetricRecord({"num-examples": work.labels.shape[1]})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)
