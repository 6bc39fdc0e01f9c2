"""Commands on PEFT folders: what is written, and what is refused."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from typer.testing import Result

from fedelta.models.adapter_files import load_adapter, save_adapter
from fedelta.runs.runner import run

Call = Callable[..., Result]
Lines = Callable[[Result], list[Any]]


def test_aggregate_writes_adapters_that_load(succeed: Call, finished: Path, tmp_path: Path):
    inputs = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    out = tmp_path / "merged"
    succeed("aggregate", *inputs, "--method", "flexlora", "--ranks", "2", "--weights", "1,3", "-o", out)
    assert {x.rank for x in load_adapter(out).layers.values()} == {2}
    succeed("aggregate", *inputs, "--method", "flexlora", "--ranks", "2,4", "-o", tmp_path / "both")
    assert {x.rank for x in load_adapter(tmp_path / "both" / "rank-4").layers.values()} == {4}
    succeed("aggregate", *inputs, "--method", "flexlora", "--set", "sigma_on=A", "-o", tmp_path / "each")
    assert {x.rank for x in load_adapter(tmp_path / "each" / "rank-1").layers.values()} == {1}


def test_aggregate_tells_how_near_the_result_is(succeed: Call, json_lines: Lines, finished: Path, tmp_path: Path):
    inputs = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    call = ("aggregate", *inputs, "--method", "flexlora", "--ranks", "1,4")
    found = json_lines(succeed(*call, "-o", tmp_path / "a", "--json"))[0]["results"]
    assert [result["folder"] for result in found] == [str(tmp_path / "a" / name) for name in ("rank-1", "rank-4")]
    assert found[0]["distance"] == pytest.approx(found[0]["least"], rel=1e-4)
    assert found[0]["distance"] > 1e-3 > found[1]["distance"]
    assert {layer["layer"] for layer in found[0]["layers"]} == set(load_adapter(inputs[0]).layers)
    shown = succeed(*call, "-o", tmp_path / "b").stdout
    assert "all 4 layers" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_aggregate_refuses_other_bases_and_takes_the_users_word(call: Call, succeed: Call, finished: Path, tmp_path: Path):
    for name in ("mine", "yours"):
        succeed("export", finished, "-o", tmp_path / name, "--rank", 2)
        for file in ("fedelta.json", "README.md"):
            (tmp_path / name / file).unlink()
        save_adapter(
            replace(load_adapter(tmp_path / name), base=None), tmp_path / name, like=tmp_path / name, base_model_name=name
        )
    arguments = ("aggregate", tmp_path / "mine", tmp_path / "yours", "--ranks", "2", "-o", tmp_path / "out")
    assert "on base model 'mine'" in call(*arguments).stderr
    succeed(*arguments, "--same-base")


@pytest.mark.parametrize("width", [80, 200])
def test_inspect_breaks_no_figure_and_no_line(succeed: Call, finished: Path, width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fedelta.report.terminal.out.width", width)
    shown = succeed("inspect", finished / "adapters/rank-1", finished / "adapters/rank-4").stdout
    layers = load_adapter(finished / "adapters/rank-4").layers
    assert max(map(len, shown.splitlines())) <= width
    rows = [line.split() for line in shown.splitlines() if line.split()[0].endswith(("query", "value"))]
    found = [[n for n in layers if re.fullmatch(re.escape(row[0]).replace("…", ".*"), n)] for row in rows]
    assert found == [[name] for name in layers] * 3, "of two adapters and their overlap, each layer is told from the others"
    assert all(len(row) > 5 for row in rows)


def test_export_prints_the_lines_to_use_it_by(succeed: Call, finished: Path, tmp_path: Path):
    result = succeed("export", finished, "-o", tmp_path / "mine", "--round", "last")
    python, upload = result.stdout.rstrip().rsplit("\n", 1)
    assert f"from_pretrained('{tmp_path / 'mine'}', num_labels=2, id2label={{0: 'cats', 1: 'dogs'}})" in python
    compile(python, "printed", "exec")
    assert upload == f"hf upload YOUR-NAME/mine {tmp_path / 'mine'}"
    assert python.splitlines()[0] in (tmp_path / "mine/README.md").read_text()


def test_aggregate_does_not_write_over_an_adapter(call: Call, succeed: Call, finished: Path, tmp_path: Path):
    succeed("export", finished, "-o", tmp_path / "mine", "--rank", 2)
    before = (tmp_path / "mine/adapter_model.safetensors").read_bytes()
    result = call("aggregate", tmp_path / "mine", finished / "adapters/rank-2", "--ranks", "2", "-o", tmp_path / "mine")
    assert result.exit_code == 2
    assert "mine is not empty: give another folder" in result.stderr
    assert (tmp_path / "mine/adapter_model.safetensors").read_bytes() == before
    several = call("aggregate", tmp_path / "mine", tmp_path / "mine", "--ranks", "1,2", "-o", tmp_path / "mine")
    assert several.exit_code == 2
    assert "mine is not empty: give another folder" in several.stderr
    assert not list((tmp_path / "mine").glob("rank-*"))


def test_aggregate_says_where_a_result_has_another_rank_than_was_asked_for(succeed: Call, finished: Path, tmp_path: Path):
    inputs = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    said = succeed("aggregate", *inputs, "--method", "flora", "--ranks", "2,4", "-o", tmp_path / "whole").stderr
    assert "flora does not cut to the rank that was asked for: its result has rank 5. flexlora does" in said
    for method, ranks in (("flora", "8"), ("flexlora", "2")):
        assert (
            "asked for"
            not in succeed("aggregate", *inputs, "--method", method, "--ranks", ranks, "-o", tmp_path / method).stderr
        )


def test_aggregate_leaves_training_out_of_its_remedies(call: Call, succeed: Call, finished: Path, tmp_path: Path):
    for name in ("mine", "broken"):
        succeed("export", finished, "-o", tmp_path / name, "--rank", 2)
    adapter = load_adapter(tmp_path / "broken")
    next(iter(adapter.layers.values())).A[0, 0] = float("nan")
    save_adapter(adapter, tmp_path / "broken", like=tmp_path / "mine")
    said = call("aggregate", tmp_path / "mine", tmp_path / "broken", "--ranks", "2", "-o", tmp_path / "out").stderr
    assert "leave this adapter out" in said
    assert "learning rate" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "fedavg"], "equal ranks"),
        (["--method", "flexlor"], "did you mean 'flexlora'?"),
        (["--method", "flexlora", "--ranks", "two"], "--ranks 'two' is not a list of numbers between commas"),
        (["--method", "flexlora", "--weights", "1"], "weights"),
        (["--method", "flexlora", "--ranks", "2,100000"], "--ranks 100000: no layer here has more than"),
        (["--method", "flexlora", "--set", "sigma=B"], "did you mean 'sigma_on'?"),
    ],
)
def test_aggregate_refuses_what_does_not_fit(call: Call, arguments: list[str], message: str, finished: Path, tmp_path: Path):
    inputs = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    result = call("aggregate", *inputs, *arguments, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


def test_inspect_shows_spectra_and_overlaps(succeed: Call, json_lines: Lines, finished: Path, tmp_path: Path):
    folders = [finished / "adapters" / name for name in ("rank-1", "rank-4")]
    found = json_lines(succeed("inspect", *folders, "--json", "--plot", tmp_path / "spectra.png"))[0]
    assert set(found["adapters"]) == {str(folder) for folder in folders}
    (pair,) = found["overlaps"]
    # FlexLoRA gives rank 1 the first component of what it gives rank 4, so its subspaces lie in the other's.
    assert all(layer["A"]["overlap"] == pytest.approx(1, abs=1e-5) for layer in pair["layers"])
    assert (tmp_path / "spectra.png").stat().st_size > 1000
    assert "stable" in succeed("inspect", *folders).stdout


def test_inspect_takes_the_folder_of_a_run(
    succeed: Call, call: Call, json_lines: Lines, finished: Path, tmp_path: Path, tiny_config: dict[str, Any]
):
    found = json_lines(succeed("inspect", finished, "--json"))[0]
    assert list(found["adapters"]) == [str(finished / "adapters" / "best")]
    shutil.copytree(finished, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved/adapters/best")
    found = json_lines(succeed("inspect", tmp_path / "moved", "--json"))[0]
    assert list(found["adapters"]) == [str(tmp_path / "moved/adapters/last")]
    personal = run(tiny_config, {"method": "local_only", "output": str(tmp_path / "personal"), "federation.rounds": 1}).folder
    found = json_lines(succeed("inspect", personal, "--json"))[0]
    assert list(found["adapters"]) == [str(personal / "adapters" / f"client-{k}") for k in range(3)]
    shutil.rmtree(personal / "adapters")
    result = call("inspect", personal)
    assert result.exit_code == 2
    assert "has no adapter 'last'; it has none yet" in " ".join(result.stderr.split())


def test_evaluate_scores_a_run_and_its_adapters_alike(succeed: Call, json_lines: Lines, finished: Path, rows_file: Path):
    best = json_lines(succeed("evaluate", finished, rows_file, "--json"))[0]
    folder = json_lines(succeed("evaluate", finished / "adapters" / "best", rows_file, "--json"))[0]
    assert best["examples"] == 90
    assert {**best, "adapter": ""} == {**folder, "adapter": ""}
    assert "accuracy" in succeed("evaluate", finished, rows_file, "--rank", 2, "--limit", 10).stdout


def test_evaluate_takes_a_peft_folder_of_no_run(
    succeed: Call, json_lines: Lines, finished: Path, rows_file: Path, tiny_model: Path, tmp_path: Path
):
    succeed("export", finished, "-o", tmp_path / "adapter", "--round", "last")
    alone = json_lines(succeed("evaluate", tmp_path / "adapter", rows_file, "--json", "--set", f"model.name={tiny_model}"))[0]
    of_run = json_lines(succeed("evaluate", finished, rows_file, "--json", "--round", "last"))[0]
    assert alone["loss"] == pytest.approx(of_run["loss"], abs=1e-6)


def test_export_copies_an_adapter_or_merges_it(
    succeed: Call, json_lines: Lines, finished: Path, rows_file: Path, tmp_path: Path
):
    succeed("export", finished, "-o", tmp_path / "adapter", "--rank", 4)
    exported, kept = (
        folder / "adapter_model.safetensors" for folder in (tmp_path / "adapter", finished / "adapters" / "rank-4")
    )
    assert exported.read_bytes() == kept.read_bytes()
    succeed("export", finished, "-o", tmp_path / "model", "--merged", "--round", "last")
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert merged.config.id2label == {0: "cats", 1: "dogs"}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    with torch.inference_mode():
        logits = merged(**tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)).logits
    right = sum(merged.config.id2label[int(i)] == row["label"] for i, row in zip(logits.argmax(-1), rows, strict=True))
    assert json_lines(succeed("evaluate", finished, rows_file, "--json", "--round", "last"))[0]["accuracy"] == right / 90


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--round", "best", "--rank", "2"], "leave --round out, or say last"),
        (["--rank", "3"], "has no adapter 'rank-3'; it has best, last, rank-1, rank-2, rank-4"),
        (["--client", "0"], "has no adapter 'client-0'"),
    ],
)
def test_export_names_what_there_is(call: Call, arguments: list[str], message: str, finished: Path, tmp_path: Path):
    result = call("export", finished, "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_export_does_not_write_into_a_folder_in_use(call: Call, finished: Path, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    result = call("export", finished, "-o", tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.stderr
