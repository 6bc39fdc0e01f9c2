"""Each file of `models/fast` can be deleted, and the rest trains as before."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fedelta

PACKAGE = Path(fedelta.__file__).parent
FAST = PACKAGE / "models/fast"
PASSES = {
    "frozen_gemm": "FrozenProducts",
    "no_padding": "NoPadding",
    "first_token": "LastLayerCut",
    "activation_cache": "ActivationCache",
}
FILES = sorted(p.stem for p in FAST.glob("*.py"))
CASES = ["nothing", *FILES, "all files"]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What came of each case."""
    home = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, home / "fedelta", ignore=shutil.ignore_patterns("__pycache__"))
    script, output = Path(__file__).with_name("train_without.py"), home / "outcomes.json"
    subprocess.run([sys.executable, "-B", script, home, output, *CASES], check=True, capture_output=True)
    return json.loads(output.read_text())


def test_every_file_of_the_folder_is_a_pass_that_this_test_knows():
    assert sorted(PASSES) == [name for name in FILES if name != "__init__"]


@pytest.mark.parametrize("case", CASES)
def test_the_rest_trains_as_before(case, outcomes):
    found, whole = outcomes[case], outcomes["nothing"]
    assert "error" not in found, found["error"]
    assert found["passes"] == [p for name, p in PASSES.items() if case not in (name, "all files")]
    assert found["said"] == [], "the batched engine is to train in joint passes"
    for engine in ("sequential", "batched"):
        torch.testing.assert_close(torch.tensor(found[engine]), torch.tensor(whole[engine]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "setting"), [("frozen_gemm", "gemm"), ("activation_cache", "cache_activations")])
def test_a_pass_that_is_asked_for_outright_and_not_there_is_refused_by_its_setting(name, setting, outcomes):
    assert outcomes["nothing"]["refused"][name] is None
    for case in (name, "all files"):
        assert f"has no file for {setting}:" in outcomes[case]["refused"][name]
