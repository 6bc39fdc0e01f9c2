"""Continues a round that was cut short, from the checkpoints that the Trainer itself wrote.

A Trainer's checkpoint does not say which round it is of. So each gets a mark with the digest of all that the round began with;
a round goes on from the newest checkpoint that bears its mark. The marks go when the round is done.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fedelta.exchange import wire
from fedelta.tree import Adapter

MARK = "fedelta-round.json"
"""The file in a checkpoint's folder that says which round it is of."""

ELSEWHERE = ("output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "push_to_hub_token", "hub_token")
"""Arguments of a Trainer that do not change what it computes."""


def round_digest(start: Adapter, args: TrainingArguments, **facts: Any) -> str:
    """Returns 64 hexadecimal digits that name a round of a client.

    Args:
        start: what it begins from.
        args: of its Trainer.
        facts: what else tells it from others, as JSON.
    """
    settings = {name: value for name, value in args.to_dict().items() if name not in ELSEWHERE}
    text = json.dumps([settings, facts], sort_keys=True, default=str)
    return hashlib.sha256(wire.digest({"adapter": start}) + text.encode()).hexdigest()


def newest_of(folder: Path, digest: str) -> Path | None:
    """Returns the newest checkpoint of a round, and takes the mark from all others, which may be written over."""
    found: Path | None = None
    for mark in sorted(folder.glob(f"checkpoint-*/{MARK}"), key=_step, reverse=True):
        if found is None and _digest_in(mark) == digest:
            found = mark.parent
        else:
            mark.unlink()
    return found


def forget(folder: Path) -> None:
    """Takes the marks from all checkpoints, so that none is gone on from."""
    for mark in folder.glob(f"checkpoint-*/{MARK}"):
        mark.unlink()


class Marking(TrainerCallback):
    """Marks each checkpoint that a Trainer has written in full.

    Args:
        digest: of the round.
    """

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the mark, unless the checkpoint lacks what training would go on from."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and not args.save_only_model:
            (folder / MARK).write_text(json.dumps({"round": self.digest}), encoding="utf-8")


def _step(mark: Path) -> int:
    step = mark.parent.name.rpartition("-")[2]
    return int(step) if step.isdecimal() else -1


def _digest_in(mark: Path) -> str | None:
    try:
        return json.loads(mark.read_text(encoding="utf-8")).get("round")
    except (ValueError, AttributeError):  # cut short as it was written
        return None
