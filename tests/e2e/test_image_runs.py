"""Whole runs on images: from a folder, from files of clients, shifted by client; scored elsewhere, exported and used."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

import fedelta
from fedelta.cli import app
from fedelta.report.model_card import answer_lines, load_lines
from fedelta.runs import export as deployment
from fedelta.runs.base import load_adapted, peft_config
from fedelta.runs.config import ConfigError
from fedelta.tasks.images.shifts import FIELD

Config = dict[str, Any]

PROGRAM = """
import json, sys
scope = {}
exec(sys.argv[1], scope)
print(json.dumps([scope["inputs"]["pixel_values"].tolist(), scope["logits"].tolist(), scope["answers"]]))
"""


@pytest.fixture(scope="module")
def finished(image_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "done"
    fedelta.run(image_config, {"output": str(folder), "training.learning_rate": 0.05})
    return folder


def succeed(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]


def test_a_run_is_scored_as_one_of_text_is(finished: Path):
    last = records(finished)[-1]
    assert set(last["test"]) == {"accuracy", "macro_f1", "loss"}
    facts = json.loads((finished / "run.json").read_text())
    assert facts["rows"]["test"] == 8
    assert facts["majority"] == 0.5
    page = (finished / "report.html").read_text()
    assert "image_classification" in page
    assert "Training rows by client and label" in page


def test_engines_agree_and_a_run_goes_on_where_it_was_stopped(image_config: Config, tmp_path: Path):
    whole = {"output": str(tmp_path / "whole"), "federation.engine": "sequential"}
    fedelta.run(image_config, whole)
    fedelta.run(image_config, {**whole, "output": str(tmp_path / "batched"), "federation.engine": "batched"})
    fedelta.run(image_config, {**whole, "output": str(tmp_path / "half"), "federation.rounds": 1})
    fedelta.run(resume=tmp_path / "half", overrides={"federation.rounds": 2})
    expected = fedelta.load_adapter(tmp_path / "whole/adapters/last")
    for name in ("batched", "half"):
        found = fedelta.load_adapter(tmp_path / name / "adapters/last")
        for layer, x in expected.layers.items():
            torch.testing.assert_close(found.layers[layer].dense(), x.dense(), rtol=1e-3, atol=1e-5)


def test_images_that_changed_are_another_data_set(image_config: Config, photos: Path, tmp_path: Path):
    here = tmp_path / "photos"
    for source in photos.rglob("*.png"):
        (here / source.relative_to(photos)).parent.mkdir(parents=True, exist_ok=True)
        (here / source.relative_to(photos)).write_bytes(source.read_bytes())
    fedelta.run(image_config, {"output": str(tmp_path / "run"), "data.source": str(here), "federation.rounds": 1})
    (tmp_path / "elsewhere").mkdir()
    moved = here.rename(tmp_path / "elsewhere/photos")
    fedelta.run(resume=tmp_path / "run", overrides={"federation.rounds": 2, "data.source": str(moved)})
    file = next(moved.rglob("*.png"))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(file)
    with pytest.raises((ConfigError, ValueError), match="data"):
        fedelta.run(resume=tmp_path / "run", overrides={"federation.rounds": 3, "data.source": str(moved)})


# --- sources ---------------------------------------------------------------------------------------------------------


def test_each_client_may_have_a_folder_or_a_file_that_names_images(image_config: Config, photos: Path, tmp_path: Path):
    rows = [(str(path.relative_to(photos)), path.parent.name) for path in sorted((photos / "test").rglob("*.png"))]
    with (photos / "listed.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    own = {"clients": {"north": str(photos / "train"), "south": str(photos / "listed.csv")}, "client_test_fraction": 0.25}
    config = {**image_config, "data": own, "lora": {"rank": [1, 2], "target_modules": ["q_proj"]}}
    config.pop("partition")
    fedelta.run(config, {"output": str(tmp_path / "run"), "federation.rounds": 1})
    split = json.loads((tmp_path / "run/split.json").read_text())["clients"]
    assert [(client["name"], client["rows"]) for client in split.values()] == [("north", 18), ("south", 6)]


def test_fashion_mnist_runs_from_any_folder(image_config: Config, tmp_path: Path):
    random = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        images, labels = random.integers(0, 255, (count, 28, 28), dtype=np.uint8), (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, dtype=">u4").tobytes()
            (tmp_path / f"{name}-{kind}-ubyte").write_bytes(head + array.tobytes())
    data = {"source": "fashion-mnist", "path": str(tmp_path), "validation_fraction": 0.1}
    fedelta.run({**image_config, "data": data}, {"output": str(tmp_path / "run"), "federation.rounds": 1})
    labels = json.loads((tmp_path / "run/split.json").read_text())["labels"]
    assert len(labels) == 10
    assert "Ankle boot" in labels


# --- synthetic shifts ------------------------------------------------------------------------------------------------


def test_a_feature_shift_is_dealt_by_client_and_called_synthetic(image_config: Config, tmp_path: Path):
    changes = {"partition.feature_shift": ["none", "inversion"], "output": str(tmp_path / "run")}
    fedelta.run(image_config, {**changes, "federation.rounds": 1})
    clients = json.loads((tmp_path / "run/split.json").read_text())["clients"]
    assert [client["feature_shift"] for client in clients.values()] == ["none", "inversion", "none"]
    page = (tmp_path / "run/report.html").read_text()
    assert "a synthetic feature shift by client (none, inversion)" in page
    assert "shift (synthetic)" in page
    (tmp_path / "config.yaml").write_text(json.dumps(image_config))
    shown = succeed("partition", tmp_path / "config.yaml", "--set", "partition.feature_shift=[none, blur]").stdout
    assert "blur" in shown
    assert "synthetic" in shown
    plain = fedelta.run(image_config, {"output": str(tmp_path / "plain"), "federation.rounds": 1})
    assert plain is not None
    one, other = (fedelta.load_adapter(tmp_path / name / "adapters/last") for name in ("run", "plain"))
    assert not torch.equal(one.dense["classifier.weight"], other.dense["classifier.weight"])


def test_rows_to_choose_and_report_by_are_not_shifted(image_config: Config):
    from fedelta.runs.config import load_config
    from fedelta.runs.config.checks import check
    from fedelta.runs.deal import deal

    config = load_config(image_config, {"partition.feature_shift": ["rotation"]})
    splits = deal(config, check(config).task).splits
    assert all(row[FIELD] == "rotation" for row in splits.train)
    assert not any(FIELD in row for row in [*splits.validation, *splits.test])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"task": "classification", "model": "minilm"}, r"partition\.feature_shift has no meaning for task 'Classification'"),
        ({"partition.feature_shift": ["swirl"]}, r"partition\.feature_shift\.0"),
        ({"partition.feature_shift": []}, r"partition\.feature_shift"),
    ],
)
def test_a_shift_that_cannot_be_is_refused(changes: Config, reason: str, image_config: Config):
    with pytest.raises(ConfigError, match=reason):
        fedelta.run(image_config, {"partition.feature_shift": ["blur"], **changes})


# --- use elsewhere ---------------------------------------------------------------------------------------------------


def test_an_adapter_is_scored_on_another_folder(finished: Path, photos: Path):
    own = json.loads(succeed("evaluate", finished, "--json").stdout)
    given = json.loads(succeed("evaluate", finished, photos, "--split", "test", "--json").stdout)
    assert own == given
    assert own["examples"] == 8


@pytest.mark.parametrize("side", [16, 12])
@pytest.mark.parametrize("merged", [False, True])
def test_the_printed_lines_answer_as_the_run_did(merged: bool, side: int, image_config: Config, photos: Path, tmp_path: Path):
    """In a new process without fedelta: its processor makes the same pixels, to a level of 255, and its model as good as the
    same logits."""
    fedelta.run(image_config, {"output": str(tmp_path / "run"), "task.image_size": side, "training.learning_rate": 0.05})
    source = deployment.find(tmp_path / "run")
    told = deployment.export(source, tmp_path / "out", merged=merged)
    card = (tmp_path / "out/README.md").read_text()
    assert "pipeline_tag: image-classification" in card
    assert f"Size of images in pixels: `{side} x {side}`" in card
    assert told.side == (side, side)
    assert told.between_positions == (side != 16)
    assert all(line in card for line in answer_lines(told))
    path = photos / "test/light/12.png"
    lines = "\n".join([*load_lines(told, str(tmp_path / "out")), "model.eval()", *answer_lines(told)])
    lines = (
        lines.replace("an-image.png", str(path))
        + f"\nlogits = model(**inputs{', interpolate_pos_encoding=True' * (side != 16)}).logits"
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM, lines], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pixels, logits, answers = json.loads(done.stdout)

    task = deployment.task_of(source)
    model, processor = load_adapted(source.config.model, task, peft_config(source.config.lora), device="cpu", seed=0)
    model.load(fedelta.load_adapter(source.adapter))
    model.mode(None)
    batch = task.collate(task.encode([{"image": path, "label": "light"}], processor), 0)
    torch.testing.assert_close(torch.tensor(pixels), batch["pixel_values"], rtol=0, atol=1.01 / 255 / 0.25)
    with torch.inference_mode():
        expected = task.decisions(model.module, batch).scores
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=0, atol=0.02)
    assert answers == [task.labels[int(expected.argmax())]]


def test_a_first_config_for_a_folder_of_images_runs(photos: Path, tiny_vision: Path, tmp_path: Path):
    said = succeed("init", photos, "-o", tmp_path / "config.yaml", "--model", tiny_vision).stdout
    assert "image classification of 24 rows: dark 50%, light 50%" in said
    changes = ["--set", "lora.target_modules=[q_proj, v_proj]", "--set", "task.image_size=16", "--set", "federation.rounds=1"]
    succeed("run", tmp_path / "config.yaml", *changes, "--set", f"output={tmp_path / 'run'}", "--set", "training.local_steps=1")
    assert json.loads((tmp_path / "run/run.json").read_text())["rows"]["test"] == 8


# --- hostile input ----------------------------------------------------------------------------------------------------


def test_a_damaged_image_is_named_before_a_round(image_config: Config, photos: Path, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"image": str(p), "label": p.parent.name}) + "\n" for p in sorted((photos / "train").rglob("*.png")))
    )
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n of no use")
    (tmp_path / "test.jsonl").write_text('{"image": "broken.png", "label": "dark"}\n')
    data = {"source": str(tmp_path / "rows.jsonl"), "test": str(tmp_path / "test.jsonl"), "validation_fraction": 0.2}
    with pytest.raises(
        ValueError, match=r"test rows: row 0: field 'image' holds the path '.*broken\.png', which cannot be read"
    ):
        fedelta.run({**image_config, "data": data}, {"output": str(tmp_path / "run")})
    (tmp_path / "test.jsonl").write_text('{"image": "gone.png", "label": "dark"}\n')
    with pytest.raises(ValueError, match=r"gone\.png', where there is no file"):
        fedelta.run({**image_config, "data": data}, {"output": str(tmp_path / "run")})
    assert not (tmp_path / "run/rounds.jsonl").exists()
