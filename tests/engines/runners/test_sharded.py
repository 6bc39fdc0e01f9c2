"""A cohort split over processes gives the numbers of one process, to the bit."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedelta.client import Training
from fedelta.engines.guards import ElsewhereError, reason_of, text_of
from fedelta.engines.runners.sharded.shares import shared_out, work_of
from fedelta.models.toy import toy_federation

SCRIPT = Path(__file__).with_name("toy_ranks.py")


def load() -> Any:
    spec = importlib.util.spec_from_file_location("toy_ranks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toys = load()


def ranks(count: int, *command: object) -> list[subprocess.Popen[str]]:
    """Starts the processes of a run, as a launcher would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
    }
    environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    given = [sys.executable, *map(str, command)]
    return [subprocess.Popen(given, env=e, stderr=subprocess.PIPE, text=True) for e in environments]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return {name: toys.played(name, lambda _: "sequential") for name in toys.METHODS}


@pytest.fixture(scope="module", params=[2, 3])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ranks") / "rounds.json"
    processes = ranks(request.param, SCRIPT, out)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * request.param, said
    return json.loads(out.read_text())


@pytest.mark.parametrize("name", toys.METHODS)
def test_several_ranks_give_the_rounds_of_one(name: str, alone: dict[str, Any], together: dict[str, Any]) -> None:
    whole, resumed = together[name]
    assert whole == alone[name][0]
    assert resumed == alone[name][1]
    assert resumed == whole[toys.STOP + 1 :]
    refused = [reason for done in whole for reason in done["dropped"].values()]
    assert refused, "nobody failed: nothing was tested of it"
    assert all(reason.startswith("local update: ValueError: no\\nluck xxx") for reason in refused)


def test_the_runs_that_are_compared_have_memories_and_a_base(alone: dict[str, Any]) -> None:
    assert alone["scaffold"][0][-1]["memories"]
    assert alone["flora"][0][-1]["versions"]
    assert not alone["fedavg"][0][-1]["memories"]


def test_an_error_from_elsewhere_has_the_reason_that_it_had_there() -> None:
    for error in (ValueError("a\nb" + "x" * 700), KeyError("k"), RuntimeError()):
        assert reason_of(ElsewhereError(text_of(error))) == reason_of(error)


# --- who answers what ------------------------------------------------------------------------------------------------


def test_the_longest_go_first_and_equal_work_is_dealt_by_id() -> None:
    assert shared_out({0: 1, 1: 1, 2: 5, 3: 3, 4: 1}, 2) == {2: 0, 3: 1, 0: 1, 1: 1, 4: 0}
    assert shared_out({7: 1.0, 3: 1.0, 5: 1.0}, 3) == {3: 0, 5: 1, 7: 2}
    assert shared_out({}, 2) == {}


def test_work_is_steps_times_what_a_step_computes() -> None:
    few, many = toy_federation((2, 2), num_examples=(3, 40), training=Training(local_steps=4, batch_size=8))
    assert (work_of(few), work_of(many)) == (4 * 3, 4 * 8)
    few.examples = [{"input_ids": [1] * n} for n in (2, 4, 6)]
    assert work_of(few) == 4 * 3 * 4
