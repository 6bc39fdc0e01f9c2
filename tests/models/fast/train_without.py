"""Trains a tiny model from a copy of the package, once for each way of lacking files of `models/fast`; run as a script.

All cases run in one process, so that torch and transformers are imported once; the package is imported anew for each.

    python train_without.py FOLDER_THAT_HOLDS_THE_COPY OUTPUT.json CASE ...

A case is the name of a file without its suffix, "nothing", or "all files".
"""

import importlib
import json
import logging
import shutil
import sys
import traceback
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import BertConfig, BertForSequenceClassification

TARGETS = ["query", "value"]
SETTINGS = {"frozen_gemm": {"gemm": "bf16"}, "activation_cache": {"cache_activations": 8}}  # asked for where the file is there


def main(home: Path, output: Path, cases: list[str]) -> None:
    sys.path.insert(0, str(home))
    fast, whole = home / "fedelta/models/fast", home / "whole"
    fast.rename(whole)
    found = {}
    for case in cases:
        shutil.copytree(whole, fast)
        remove(case, fast)
        for name in [n for n in sys.modules if n.partition(".")[0] == "fedelta"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        try:
            assert Path(importlib.import_module("fedelta").__file__).is_relative_to(home)
            found[case] = outcome({p.stem for p in fast.glob("*.py")})
        except Exception:
            found[case] = {"error": traceback.format_exc()}
        shutil.rmtree(fast, ignore_errors=True)
    output.write_text(json.dumps(found))


def remove(case: str, fast: Path) -> None:
    if case == "all files":
        shutil.rmtree(fast)
    elif case != "nothing":
        (fast / f"{case}.py").unlink()


def outcome(there: set[str]) -> dict[str, object]:
    """The passes that are installed, the trained state by either engine, what engines said, and what is refused."""
    from fedelta.models.peft import PeftAdaptedModel

    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("fedelta.engines").addHandler(handler)
    result: dict[str, object] = {}
    for engine in ("sequential", "batched"):
        asked = {k: v for name, settings in SETTINGS.items() if name in there for k, v in settings.items()}
        model = PeftAdaptedModel(bert(), lora(), **asked)
        result["passes"] = [type(fast).__name__ for fast in model.passes]
        result[engine] = trained(model, engine)
        model.unload()
    logging.getLogger("fedelta.engines").removeHandler(handler)
    return {**result, "said": said, "refused": {name: refusal(settings) for name, settings in SETTINGS.items()}}


def bert() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, pad_token_id=1, **sizes)).double().eval()


def lora() -> LoraConfig:  # without dropout, which draws for fewer rows where the last layer is cut
    return LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS, layers_to_transform=[2], task_type="SEQ_CLS")


def trained(model: object, engine: str) -> list[float]:
    from fedelta import federate, get_method, tree
    from fedelta.client import Training
    from fedelta.models.clients import clients_on
    from fedelta.tasks import Classification

    draw = torch.Generator().manual_seed(1)

    def row(k: int) -> dict[str, object]:
        ids = torch.randint(3, 40, (3 + 4 * k,), generator=draw).tolist()
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "label": k % 3}

    parts, task = [[row(k) for k in range(4)] for _ in range(3)], Classification(labels=(0, 1, 2))
    clients = clients_on(model, task, parts, lora(), [2, 3, 1], Training(batch_size=3, local_steps=3, learning_rate=0.01))
    *_, last = federate(get_method("flexlora"), clients, rounds=2, engine=engine, debug=True)
    return torch.cat([x.flatten().double() for _, x in tree.named_tensors(last.state)]).tolist()


def refusal(settings: dict[str, object]) -> str | None:
    from fedelta.models.peft import PeftAdaptedModel

    try:
        PeftAdaptedModel(bert(), lora(), **settings).unload()
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
