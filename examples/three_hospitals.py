"""Three hospitals with a file and a rank each train one adapter, which is then loaded with PEFT alone.

    python examples/three_hospitals.py

Each hospital has a file of its own, `north.jsonl`, `south.jsonl` and `coast.jsonl`, and adapters of rank 2, 4 and 8. The rows
are dealt by nobody: a client is a file. What `fedelta export` prints is executed in a process that knows nothing of fedelta,
with a Hub cache that holds the base alone; its answers are those of the model that was scored.
"""

# Tested with: {minilm}

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import yaml

from fedelta.models.adapter_files import load_adapter
from fedelta.models.aliases import ALIASES, folder_of
from fedelta.runs import export
from fedelta.runs.base import load_adapted, peft_config

NOTES = {
    "cardiology": ["chest pain on exertion", "irregular pulse and palpitations", "swollen ankles, raised blood pressure"],
    "dermatology": ["itching rash on both arms", "a mole that changed its colour", "dry, scaly skin behind the knees"],
    "orthopaedics": ["twisted knee while skiing", "pain in the hip when walking", "wrist fracture after a fall"],
}
PATIENTS = ["a man of 40", "a woman of 63", "a child of 9", "a woman of 28", "a man of 71"]
SHARES = {"north": [20, 4, 6], "south": [2, 16, 4], "coast": [10, 8, 30], "test": [12, 12, 12]}
"""The notes of each department in each file: no two hospitals are alike."""

CONFIG = {
    "name": "hospitals",
    "device": "cpu",
    "model": "minilm",
    "data": {"clients": {name: f"{name}.jsonl" for name in ("north", "south", "coast")}, "test": "test.jsonl"},
    "task": {"name": "classification", "max_length": 24},
    "lora": {"rank": [2, 4, 8], "target_modules": ["query", "value", "pooler.dense"]},
    "method": "flexlora",
    "training": {"batch_size": 8, "local_steps": 5, "learning_rate": 5.0e-3},
    "federation": {"rounds": 4},
    "evaluation": {"every": 2},
}

ASKED = ["a man of 55, pain in the knee when walking", "a woman of 34, itching skin on both arms"]

# What a reader of the adapter types after the printed lines.
QUESTION = """
import json, torch
inputs = tokenizer(json.loads(TEXTS), padding=True, return_tensors="pt")
with torch.inference_mode():
    logits = model.eval()(**inputs).logits
print(json.dumps({"logits": logits.tolist(), "labels": [model.config.id2label[k] for k in logits.argmax(1).tolist()]}))
"""

FEDELTA = shutil.which("fedelta", path=str(Path(sys.executable).parent)) or "fedelta"


def write_files() -> None:
    """Writes the hospitals' files, the rows to test by, and hospitals.yaml."""
    draws = random.Random(0)
    for name, shares in SHARES.items():
        departments = [label for label, count in zip(NOTES, shares, strict=True) for _ in range(count)]
        draws.shuffle(departments)
        rows = [{"text": f"{draws.choice(PATIENTS)}, {draws.choice(NOTES[label])}", "label": label} for label in departments]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    Path("hospitals.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")


def own_answers() -> torch.Tensor:
    """Returns the logits of the model that fedelta trained and scored, (texts, labels)."""
    source = export.find("runs/hospitals")
    config, task = source.config, export.task_of(source)
    model, tokenizer = load_adapted(config.model, task, peft_config(config.lora), device="cpu", seed=config.seeds().start)
    model.load(load_adapter(source.adapter))
    model.mode(None)
    with torch.inference_mode():
        return model.module(**tokenizer(ASKED, padding=True, return_tensors="pt")).logits


def put_into_cache(home: Path, base: Path) -> None:
    """Puts the base into the cache of the Hub that lies in a folder, as if it had been fetched."""
    commit = "0" * 40
    folder = home / "hub" / f"models--{ALIASES['minilm'].hub_id.replace('/', '--')}"
    shutil.copytree(base, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit, encoding="utf-8")


def their_answers(lines: str, base: Path) -> dict[str, list]:
    """Executes the printed lines where there is no fedelta; returns `logits` and `labels`."""
    program = f"{lines}\nTEXTS = {json.dumps(ASKED)!r}\n{QUESTION}"
    with tempfile.TemporaryDirectory() as home:
        put_into_cache(Path(home), base)
        known = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**known, "HF_HOME": home, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, "-c", program], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main(base: Path) -> None:
    write_files()
    subprocess.run([FEDELTA, "run", "hospitals.yaml"], check=True)
    exported = subprocess.run(
        [FEDELTA, "export", "runs/hospitals", "-o", "adapter"], check=True, stdout=subprocess.PIPE, text=True
    )
    lines = exported.stdout.split("hf upload")[0]
    print(f"\nthe lines that load it:\n\n{lines}")

    found = their_answers(lines, base)
    error = float((torch.tensor(found["logits"]) - own_answers()).abs().max())
    for text, label in zip(ASKED, found["labels"], strict=True):
        print(f"{label:14}{text}")
    print(f"logits differ by {error:.0e} from those of the model that was trained")
    assert error < 1e-5
    assert found["labels"] == ["orthopaedics", "dermatology"]


if __name__ == "__main__":
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else folder_of("minilm")
    main(given or sys.exit("MiniLM is not here: fedelta fetch minilm"))
