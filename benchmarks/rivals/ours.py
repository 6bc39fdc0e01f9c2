"""Federated averaging of a LoRA adapter with fedelta, in a process of its own, as the rivals run it in theirs.

python benchmarks/rivals/ours.py FOLDER --settings '{"model": "tiny", ...}' --engine auto --gemm auto --threads 2
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common.workloads import adapted_model, make_clients

from fedelta import federate, get_method, save_adapter


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, help="of what it leaves in the folder")
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--gemm", default="auto")
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    given: dict[str, Any] = args.settings
    adapted = adapted_model(given["model"], args.gemm)
    clients = make_clients(adapted, given["clients"], batch=given["batch"], length=given["length"], steps=given["steps"])
    stamps, trained = [time.perf_counter()], clients[0].template
    for done in federate(get_method("fedavg"), clients, rounds=given["rounds"], engine=args.engine):
        stamps.append(time.perf_counter())
        trained = done.state["adapter"]
    save_adapter(trained, args.folder / args.name, like=adapted.layout)
    (args.folder / args.name / "adapter_model.safetensors").replace(args.folder / f"{args.name}.safetensors")
    (args.folder / f"{args.name}.json").write_text(json.dumps({"stamps": stamps}), encoding="utf-8")


if __name__ == "__main__":
    main()
