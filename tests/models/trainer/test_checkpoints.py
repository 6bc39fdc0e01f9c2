"""A round that is cut short goes on from the Trainer's own checkpoint, to the same bits, and from no other one."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from fedelta import tree
from fedelta.models.trainer.checkpoints import MARK
from fedelta.tree import Adapter

SAVING = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 2}
STEPS = 6

KILLED = """
import os, sys
from pathlib import Path
import importlib.util
from transformers import TrainerCallback

spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = importlib.util.module_from_spec(spec)
sys.modules["conftest"] = conftest
spec.loader.exec_module(conftest)

class Die(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        if state.global_step == 3:
            os._exit(9)

site = conftest.Site(Path(sys.argv[2]), options=eval(sys.argv[3]), trainer={"callbacks": [Die()]})
client = site.client()
client.train(int(sys.argv[4]), client.template)
"""


class Counting(TrainerCallback):
    """Counts the steps that are really taken."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.steps += 1


class Stop(TrainerCallback):
    """Cuts training short in the third step, when the checkpoint of the second is on disk."""

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def kill_in_round(t: int, folder: Path) -> None:
    """Does the same in a process that dies at once."""
    script = [sys.executable, "-c", KILLED, str(Path(__file__).with_name("conftest.py")), str(folder)]
    done = subprocess.run([*script, repr(SAVING), str(t)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 9, done.stderr


def interrupt_in_round(t: int, site: Any, trainable: Any = None, **options: Any) -> None:
    stopped = replace(site, trainer={"callbacks": [Stop()]}, options={**site.options, **options}).client()
    with pytest.raises(KeyboardInterrupt):
        stopped.train(t, stopped.template, trainable=trainable)


def same(x: Adapter, y: Adapter) -> bool:
    mine, other = tree.parameters(x), tree.parameters(y)
    return all(torch.equal(value, other[name]) for name, value in mine.items())


@pytest.fixture
def saving(classifier: Any) -> Any:
    counting = Counting()
    return replace(classifier, options=SAVING, trainer={"callbacks": [counting]}), counting


@pytest.fixture
def whole(classifier: Any, tmp_path: Path) -> Adapter:
    """Round 1 without a death."""
    client = replace(classifier, folder=tmp_path / "elsewhere", options=SAVING).client()
    return client.train(1, client.template).adapter


def test_a_killed_round_goes_on_from_its_checkpoint_to_the_same_bits(saving: Any, whole: Adapter) -> None:
    site, counting = saving
    kill_in_round(1, site.folder)
    assert json.loads((site.folder / "checkpoint-2" / MARK).read_text())["round"]
    client = site.client()
    result = client.train(1, client.template)
    assert (counting.steps, result.num_steps) == (STEPS - 2, STEPS)
    assert same(result.adapter, whole)
    assert not list(site.folder.glob(f"*/{MARK}"))  # the round is done: nothing goes on from it


def test_without_checkpoints_a_killed_round_is_done_again_to_the_same_bits(saving: Any, whole: Adapter) -> None:
    site, counting = saving
    interrupt_in_round(1, site, save_strategy="no")
    client = site.client()
    assert same(client.train(1, client.template).adapter, whole)
    assert counting.steps == STEPS


@pytest.mark.parametrize("other", ["round", "start", "rate", "frozen"])
def test_no_round_goes_on_from_the_checkpoint_of_another(saving: Any, other: str) -> None:
    site, counting = saving
    interrupt_in_round(1, site)
    client = site.client()
    start, request = client.template, {"rate": {"lr_scale": 2.0}, "frozen": {"trainable": "B"}}.get(other, {})
    if other == "start":
        start = tree.with_parameters(start, {n: x + 1e-3 for n, x in tree.parameters(start).items()})
    client.train(2 if other == "round" else 1, start, **request)
    assert counting.steps == STEPS


def test_a_checkpoint_whose_mark_is_cut_short_is_passed_over(saving: Any, whole: Adapter) -> None:
    site, counting = saving
    interrupt_in_round(1, site)
    (site.folder / "checkpoint-2" / MARK).write_text('{"rou')
    client = site.client()
    assert same(client.train(1, client.template).adapter, whole)
    assert counting.steps == STEPS - 1


def test_checkpoints_without_an_optimiser_bear_no_mark(saving: Any) -> None:
    site, _ = saving
    interrupt_in_round(1, site, save_only_model=True)
    assert (site.folder / "checkpoint-2").is_dir()
    assert not list(site.folder.glob(f"*/{MARK}"))


def test_frozen_factors_keep_their_bits_in_a_round_that_goes_on(saving: Any) -> None:
    site, counting = saving
    interrupt_in_round(0, site, trainable="B")
    client = site.client()
    after = client.train(0, client.template, trainable="B").adapter
    assert counting.steps == STEPS - 2
    for name, x in after.layers.items():
        assert torch.equal(x.A, client.template.layers[name].A)
        assert x.B.any()
