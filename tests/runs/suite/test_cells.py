"""A suite is expanded into cells whose configs are all checked before any is run."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedelta.runs import digests
from fedelta.runs.config import ConfigError, RunConfig, read_config
from fedelta.runs.config.checks import check
from fedelta.runs.deal import deal, row_digests
from fedelta.runs.digests import digest_of, is_same_cell
from fedelta.runs.suite.cells import plan_of
from fedelta.runs.suite.schema import suite_of


def plan(base: Any, changes: Any = (), **keys: Any):
    return plan_of(
        suite_of({"base": base, "methods": ["flexlora", "zeropad"], **keys}, "mine", Path()), Path("runs/mine"), changes
    )


def test_all_faults_come_in_one_message_with_their_cells(tiny_config: dict[str, Any]):
    methods = ["flexlora", "flexlra", {"name": "hetlora", "gama": 1}]
    with pytest.raises(ConfigError) as error:
        plan(tiny_config, methods=methods, sweep={"training.batch_size": [2, 0]})
    faults = str(error.value).splitlines()
    assert len(faults) == 3
    assert any("flexlra" in fault and "did you mean 'flexlora'" in fault for fault in faults)
    assert any("gama" in fault for fault in faults)
    assert any(fault.startswith("batch_size=0: training.batch_size") for fault in faults)


@pytest.mark.parametrize(
    ("keys", "begins"),
    [
        ({"changes": {"training.lr": 3}}, "unknown key"),
        ({"sweep": {"training.batch_size": [2, 0]}}, "batch_size=0: training.batch_size"),
        ({"methods": ["flexlora", {"name": "hetlora", "gama": 1}], "sweep": {"training.batch_size": [2, 4]}}, "hetlora: "),
    ],
    ids=["all", "setting", "method"],
)
def test_a_fault_of_all_methods_names_none_of_them(tiny_config: dict[str, Any], keys: dict[str, Any], begins: str):
    with pytest.raises(ConfigError) as error:
        plan(tiny_config, **{"methods": ["flexlora", "zeropad", "hetlora", "flora"], **keys})
    assert str(error.value).startswith(begins)
    assert "\n" not in str(error.value)


def test_a_refusal_by_a_claim_is_no_fault(tiny_config: dict[str, Any]):
    made = plan(tiny_config, methods=["flexlora", "fedavg"], sweep={"lora.rank": [[1, 2, 4], 2]})
    assert list(made.refused) == [("rank=[1, 2, 4]", "fedavg")]
    assert "needs equal ranks" in made.refused["rank=[1, 2, 4]", "fedavg"]


def test_a_claim_of_a_methods_own_settings_is_no_fault(tiny_config: dict[str, Any]):
    methods = [{"name": "subspace_reg", "label": "kept", "gauge": "keep"}, "subspace_reg"]
    made = plan(tiny_config, methods=methods, sweep={"lora.rank": [[1, 2, 4], 2]})
    assert list(made.refused) == [("rank=[1, 2, 4]", "kept")]


def test_a_sweep_is_a_grid_or_a_list_of_named_settings(tiny_config: dict[str, Any]):
    grid = plan(tiny_config, sweep={"training.learning_rate": [0.01, 0.1], "federation.rounds": [1, 2]})
    assert next(iter(grid.settings)) == "learning_rate=0.01 rounds=1"
    assert len(grid.settings) == 4
    listed = plan(tiny_config, sweep=[{"name": "short", "federation.rounds": 1}, {"federation.rounds": 3}])
    assert listed.settings == {"short": {"federation.rounds": 1}, "rounds=3": {"federation.rounds": 3}}
    entry = listed.file.entries[0]
    assert listed.config("rounds=3", entry, {}).federation.rounds == 3
    assert list(plan(tiny_config).settings) == [""]


def test_seeds_of_a_setting_change_no_digest(tiny_config: dict[str, Any]):
    plain = plan(tiny_config, sweep=[{"name": "a", "lora.rank": 2}, {"name": "b", "lora.rank": 4}], seeds=5)
    own = plan(tiny_config, sweep=[{"name": "a", "lora.rank": 2}, {"name": "b", "lora.rank": 4, "seeds": 3}], seeds=5)
    assert (own.seeds, own.seeds_of("a"), own.seeds_of("b")) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2])
    entry = own.file.entries[0]
    assert [own.task("b", entry, s, {}).digest for s in range(3)] == [plain.task("b", entry, s, {}).digest for s in range(3)]
    assert "seeds" not in own.settings["b"]


def test_a_methods_own_changes_go_before_the_setting_and_the_tuned_value_before_both(tiny_config: dict[str, Any]):
    made = plan(
        tiny_config,
        methods=[{"name": "flexlora", "set": {"training.learning_rate": 0.5}}],
        sweep={"training.learning_rate": [0.1]},
    )
    (setting,), entry = made.settings, made.file.entries[0]
    assert made.config(setting, entry, {}).training.learning_rate == 0.5
    assert made.config(setting, entry, {"training.learning_rate": 0.7}).training.learning_rate == 0.7


def test_seeds_draw_all_but_the_test_rows(tiny_config: dict[str, Any]):
    made = plan(tiny_config, seeds=[3, 4])
    configs = [made.task("", made.file.entries[0], seed, {}).config for seed in made.seeds]
    deals = [deal(config, check(config).task) for config in configs]
    rows = [row_digests(found.splits) for found in deals]
    assert rows[0] == rows[1]
    assert [p.tolist() for p in deals[0].parts] != [p.tolist() for p in deals[1].parts]
    assert configs[0].seeds().start == 3


def test_a_digest_counts_files_by_their_content_and_not_by_their_place(tiny_config: dict[str, Any], tmp_path: Path):
    config = read_config(tiny_config)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(Path(config.data.source).read_bytes())

    def with_source(path: Path) -> RunConfig:
        return read_config(tiny_config, {"data.source": str(path)})

    assert digest_of(with_source(moved)) == digest_of(config)
    moved.write_bytes(moved.read_bytes() + b"\n")
    assert digest_of(with_source(moved)) != digest_of(config)


def test_a_digest_counts_every_file_that_a_config_can_name(tiny_config: dict[str, Any], tmp_path: Path):
    def named(folder: str, content: str) -> RunConfig:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for name in ("rows.jsonl", "site.py"):
            (place / name).write_text(content, encoding="utf-8")
        changes = {"data.train": str(place / "rows.jsonl"), "training.trainer": f"{place / 'site.py'}:make"}
        return read_config(tiny_config, changes)

    found = named("here", "1")
    assert digest_of(named("there", "1")) == digest_of(found), "it depends on where the files lie"
    for key, other in (("data.train", "rows.jsonl"), ("training.trainer", "site.py:make")):
        edited = read_config(found, {key: f"{tmp_path / 'edited' / other}"})
        named("edited", "2")
        assert digest_of(edited) != digest_of(found), key
    of_another_function = read_config(found, {"training.trainer": f"{tmp_path / 'here' / 'site.py'}:make_other"})
    assert digest_of(of_another_function) != digest_of(found)


def test_a_digest_leaves_out_name_folder_and_machine_but_nothing_else(tiny_config: dict[str, Any]):
    config = read_config(tiny_config)
    same = {"name": "other", "output": "there", "device": "auto", "federation.engine": "batched", "model.gemm": "onednn"}
    assert digest_of(read_config(tiny_config, same)) == digest_of(config)
    for key, value in {"seed": 1, "lora.rank": 3, "federation.rounds": 3, "method": "zeropad", "evaluation.every": 2}.items():
        assert digest_of(read_config(tiny_config, {key: value})) != digest_of(config)


def test_a_run_of_fewer_rounds_is_the_same_cell_and_one_of_more_is_not(tiny_config: dict[str, Any]):
    two, three = (read_config(tiny_config, {"federation.rounds": n}) for n in (2, 3))
    settled = read_config(two, {"model.gemm": "default", "federation.engine": "batched", "federation.token_budget": 2048})
    assert is_same_cell(settled, two)
    assert is_same_cell(settled, three)
    assert not is_same_cell(three, two)
    assert not is_same_cell(read_config(two, {"method": "zeropad"}), two)


def test_a_config_survives_the_way_to_a_worker(tiny_config: dict[str, Any]):
    made = plan(tiny_config, seeds=[5])
    config = made.task("", made.file.entries[0], 5, {}).config
    again = RunConfig.model_validate(json.loads(json.dumps(config.model_dump(mode="json"))))
    assert again == config


AT_DEFAULT = {
    "lora.rank": 8,
    "lora.lora_alpha": 16.0,
    "training.batch_size": 16,
    "training.learning_rate": 1e-3,
    "training.optimizer.name": "adamw",
    "federation.participation": 1.0,
    "federation.weights": "examples",
    "federation.quorum": 0.5,
    "data.validation_fraction": 0.1,
    "data.test_fraction": 0.1,
    "data.empty": "error",
    "partition.scheme": "iid",
    "partition.clients": 10,
    "model.name": "minilm",
    "model.base_dropout": False,
    "method.name": "fedavg",
    "task.name": "classification",
}


def test_a_changed_default_makes_other_cells_of_those_that_left_the_key_out(monkeypatch: pytest.MonkeyPatch):
    found = {key: digests.DEFAULTS[key] for key in AT_DEFAULT}
    assert found == AT_DEFAULT, "cells in stores left these keys out: count digests.CHANGED_DEFAULTS up with the change"
    before = digests.digest_of(RunConfig())
    monkeypatch.setattr(digests, "CHANGED_DEFAULTS", digests.CHANGED_DEFAULTS + 1)
    assert digests.digest_of(RunConfig()) != before


def test_a_base_file_is_read_once(tmp_path: Path, tiny_config: dict[str, Any]):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(tiny_config), encoding="utf-8")
    file = suite_of({"base": "base.yaml", "methods": ["flexlora", "zeropad"]}, "mine", tmp_path)
    before = plan_of(file, tmp_path / "runs").config("", file.entries[0], {})
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**tiny_config, "seed": 3}), encoding="utf-8")
    assert plan_of(file, tmp_path / "runs").config("", file.entries[0], {}) == before


def test_a_metric_that_is_not_measured_is_refused(tiny_config: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"metric = 'acuracy' is not measured: task\.metrics has accuracy"):
        plan(tiny_config, metric="acuracy")
