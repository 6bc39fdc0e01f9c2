"""A config is refused before data or a model is loaded, by a message that names the key and the remedy."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedelta.runs.config import ConfigError, RunConfig, dump_config, load_config, read_config
from fedelta.runs.config.choices import scheme_of
from fedelta.runs.config.resume import demand_rounds, demand_same_rows, demand_same_run, fixed_values, keep_choices

INF, NAN = float("inf"), float("nan")

MIXED = {"rank": {"choices": [2, 4]}}

UNKNOWN: list[tuple[dict[str, Any], str]] = [
    ({"metod": "fedavg"}, "unknown key 'metod'; did you mean 'method'?"),
    ({"model": {"nmae": "minilm"}}, "unknown key 'model.nmae'; did you mean 'model.name'?"),
    ({"lora": {"rnk": 8}}, "unknown key 'lora.rnk'; did you mean 'lora.rank'?"),
    ({"lora": {"rank": {"choises": [2]}}}, "unknown key 'lora.rank.choises'; did you mean 'lora.rank.choices'?"),
    ({"partition": {"concentraton": 1}}, "unknown key 'partition.concentraton'; did you mean 'partition.concentration'?"),
    ({"federation": {"round": 3}}, "unknown key 'federation.round'; did you mean 'federation.rounds'?"),
    ({"method": "flexlor"}, "no method is called 'flexlor'; did you mean 'flexlora'?"),
    ({"method": {"name": "flexlora", "sigma": "B"}}, "has no hyper-parameter 'sigma'; did you mean 'sigma_on'?"),
    ({"task": "clasification"}, "no task is called 'clasification'; did you mean 'classification'?"),
    ({"task": {"name": "classification", "labl": "x"}}, "has no setting 'labl'; did you mean 'label'?"),
    ({"training": {"optimizer": "adamww"}}, "no optimizer is called 'adamww'; did you mean 'adamw'?"),
    ({"federation": {"channel": ["in8"]}}, "federation.channel: no codec is called 'in8'; did you mean 'int8'?"),
    ({"federation": {"channel": [{"name": "int8", "blok": 8}]}}, "'int8' has no setting 'blok'; did you mean 'block'?"),
    ({"training": {"optimizer": {"name": "adamw", "beta": 1}}}, "'adamw' has no setting 'beta'; did you mean 'betas'?"),
]

IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"lora": MIXED}, "method 'fedavg' needs equal ranks, but lora.rank gives [2, 4]"),
    ({"lora": {"rank": [2, 4]}, "method": "flexlora"}, "lora.rank lists 2 ranks for partition.clients = 10"),
    ({"lora": {"rank": 0}}, "lora.rank: ranks must be at least 1, got 0"),
    ({"lora": {"rank": []}}, "lora.rank: ranks must be at least 1"),
    ({"lora": {"rank": "eight"}}, "lora.rank: must be a whole number, such as 10, but is 'eight'"),
    ({"federation": {"rounds": "1e3"}}, "federation.rounds: must be a whole number, such as 1000, but is '1e3'"),
    ({"federation": {"rounds": 10**20}}, "federation.rounds: Input should be less than or equal to 1000000000"),
    ({"federation": {"rounds": 1e20}}, "federation.rounds: is too large a number: 1e+20"),
    ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ({"seed": {"data": -1}}, "seed.data: Input should be greater than or equal to 0"),
    ({"federation": {"rounds": 2.5}}, "federation.rounds: must be a whole number, such as 10, but is 2.5"),
    ({"federation": {"rounds": True}}, "federation.rounds: must not be true or false, but is True"),
    ({"federation": {"quorum": True}}, "federation.quorum: must not be true or false, but is True"),
    ({"training": {"learning_rate": True}}, "training.learning_rate: must not be true or false, but is True"),
    ({"lora": {"rank": True}}, "lora.rank: must not be true or false, but is True"),
    ({"lora": {"rank": [True, 2]}}, "lora.rank: must not be true or false, but is [True, 2]"),
    ({"lora": {"rank": {"choices": [True]}}}, "lora.rank.choices: must not be true or false, but is [True]"),
    ({"lora": {"rank_pattern": {"query": True}}}, "lora.rank_pattern: must not be true or false, but is {'query': True}"),
    ({"data": {"limit": {"train": True}}}, "data.limit: must not be true or false"),
    ({"lora": {"rank": {"choices": []}}}, "lora.rank.choices: List should have at least 1 item"),
    (
        {"lora": {"rank": {"choices": [2, 4], "shares": [1]}}, "method": "flexlora"},
        "must be one number for each of the choices",
    ),
    ({"lora": {"rank": {"choices": [2, 4], "shares": [1, -1]}}, "method": "flexlora"}, "lora.rank.shares.1"),
    ({"lora": {"rank_pattern": {"query": 0}}}, "lora.rank_pattern.query"),
    ({"partition": {"clients": None}}, "partition.clients is missing: the scheme 'iid' needs a number"),
    ({"partition": {"scheme": "natural"}}, "partition.by is missing"),
    ({"partition": {"concentration": 0.3}}, "partition.concentration has no meaning for the scheme 'iid'"),
    ({"partition": {"scheme": "dirichlet"}}, "partition scheme 'dirichlet' needs its settings concentration"),
    ({"partition": {"scheme": "quantity"}}, "needs exactly one of concentration and sigma"),
    ({"partition": {"scheme": "dirichlet", "shards_per_client": 2}}, "partition.shards_per_client has no meaning"),
    ({"federation": {"max_share": 0}}, "federation.max_share: Input should be greater than 0"),
    ({"federation": {"max_share": 0.5, "topology": "ring"}}, "federation.max_share has no meaning without a server"),
    ({"federation": {"participation": 0}}, "federation.participation: Input should be greater than 0"),
    ({"federation": {"quorum": 11}}, "federation.quorum = 11 must be between 1 and the 10 there are"),
    ({"federation": {"quorum": 6, "participation": 0.5}}, "federation.quorum = 6 must be between 1 and the 5 there are"),
    ({"federation": {"quorum": 1.5}}, "federation.quorum = 1.5 must be a fraction in (0, 1]"),
    ({"federation": {"channel": [{"block": 8}]}}, "federation.channel: needs a name"),
    ({"federation": {"channel": "int8"}}, "federation.channel: Input should be a valid list"),
    ({"federation": {"channel": [{"name": "int8", "block": 0}]}}, "int8 needs a whole number of at least 1 for block, got 0"),
    ({"federation": {"channel": [{"name": "int8", "block": True}]}}, "federation.channel"),
    ({"federation": {"channel": [{"name": "int8", "block": "64"}]}}, "at least 1 for block, got '64'"),
    ({"federation": {"channel": [{"name": "int8", "feedback": 1}]}}, "int8 needs true or false for feedback, got 1"),
    ({"federation": {"channel": [{"name": "top_k", "share": 0}]}}, "top_k needs a number above 0 and at most 1 for share"),
    ({"federation": {"channel": [{"name": "top_k", "share": INF}]}}, "federation.channel"),
    ({"evaluation": {"best_by": "rouge"}}, "evaluation.best_by = 'rouge' is not measured: task.metrics has accuracy"),
    ({"task": {"name": "classification", "metrics": ["acuracy"]}}, "no metric is called 'acuracy'; did you mean 'accuracy'?"),
    ({"method": {"sigma_on": "B"}}, "method: needs a name"),
    ({"method": {"name": "flexlora", "sigma_on": "C"}}, "sigma_on must be 'A', 'B' or 'both'"),
    ({"training": {"learning_rate": -1}}, "training.learning_rate: Input should be greater than 0"),
    ({"federation": 5}, "federation: Input should be a valid dictionary"),
    ({"device": "gpu"}, "device: there is no device 'gpu': it is auto, cpu, cuda"),
    ({"device": "xyz"}, "device: there is no device 'xyz'"),
    ({"training": {"learning_rate": INF}}, "training.learning_rate: Input should be a finite number"),
    ({"training": {"learning_rate_decay": NAN}}, "training.learning_rate_decay: Input should be a finite number"),
    ({"training": {"max_grad_norm": INF}}, "training.max_grad_norm: Input should be a finite number"),
    ({"lora": {"scale": INF}}, "lora.scale: Input should be a finite number"),
    ({"lora": {"scale": 2, "rslora": True}}, "lora: scale = 2 is one for every rank: leave rslora or scale out"),
    ({"lora": {"lora_alpha": INF}}, "lora.lora_alpha: Input should be a finite number"),
    ({"lora": {"alpha_pattern": {"query": NAN}}}, "lora.alpha_pattern.query: Input should be a finite number"),
    ({"partition": {"scheme": "dirichlet", "concentration": INF}}, "partition.concentration: Input should be a finite"),
    ({"method": {"name": "fedprox", "mu": INF}}, "method: mu should be a finite number, got inf"),
    ({"method": {"name": "fedprox", "mu": NAN}}, "method: mu should be a finite number, got nan"),
    ({"method": {"name": "compose", "client": [{"name": "fedprox", "mu": INF}]}}, "method: client should be a finite number"),
    (
        {"training": {"optimizer": {"name": "adamw", "betas": [0.9, NAN]}}},
        "training.optimizer: betas should be a finite number",
    ),
    ({"federation": {"topology": {"name": "erdos_renyi", "p": NAN}}}, "federation.topology: p should be a finite number"),
    ({"method": {"name": "fedprox", "mu": "much"}}, "FedProx: mu must be a number, got 'much'"),
    ({"task": {"name": "classification", "labels": 3}}, "task.labels = 3 has the wrong type"),
    (
        {"task": {"name": "classification", "labels": 3, "text": "t"}},
        "task: one of labels = 3, text = 't' has the wrong type",
    ),
    ({"federation": {"topology": {"name": "ring", "weights": [1]}}}, "federation.topology.weights = [1] has the wrong type"),
    ({"federation": {"topology": {"name": "torus", "rows": "two"}}}, "federation.topology.rows = 'two' has the wrong type"),
    ({"training": {"optimizer": {"name": "sgd", "momentum": 1.5}}}, "training.optimizer: momentum must be below 1, got 1.5"),
    ({"training": {"optimizer": {"name": "sgd", "momentum": "x"}}}, "training.optimizer: momentum must be a number"),
    ({"training": {"optimizer": {"name": "adamw", "betas": [0.9]}}}, "training.optimizer: betas must be two numbers"),
    ({"training": {"optimizer": {"name": "adamw", "eps": 0}}}, "training.optimizer: eps must be above 0, got 0"),
    (
        {"training": {"optimizer": {"name": "adamw", "weight_decay": -1}}},
        "training.optimizer: weight_decay must be 0 or more",
    ),
    ({"training": {"local_steps": 10**30}}, "training.local_steps must be 1e+12 or less"),
    ({"lora": {"alpha_pattern": {"query": 0}}}, "lora.alpha_pattern.query: Input should be greater than 0"),
    ({"lora": {"target_modules": 3}}, "lora.target_modules: Input should be a valid list or Input should be a valid string"),
    ({"federation": {"quorum": 0}}, "federation.quorum = 0 must be 1 or more"),
    ({"task": {"name": "classification", "pad_to_multiple": 0}}, "pad_to_multiple must be 1 or more, got 0"),
    ({"task": {"name": "classification", "pad_to_multiple": 1.5}}, "pad_to_multiple must be a whole number, got 1.5"),
    ({"name": "a/b"}, "name: 'a/b' is no name of a folder"),
    ({"name": ".."}, "name: '..' is no name of a folder"),
    ({"name": "a\\b"}, "is no name of a folder"),
    ({"name": "a\nb"}, "is no name of a folder"),
    ({"name": ""}, "name: '' is no name of a folder"),
    ({"name": "x" * 101}, "is no name of a folder"),
]


@pytest.mark.parametrize(("raw", "message"), UNKNOWN, ids=[m for _, m in UNKNOWN])
def test_an_unknown_name_is_answered_with_the_nearest(raw: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    assert message in str(caught.value)


def test_a_config_that_is_no_text_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.yaml is not UTF-8 text"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("method", "task", "resolved"),
    [("FlexLoRA", "Classification", "flexlora"), ({"name": "rb-LoRA"}, {"name": "CLASSIFICATION"}, "rb_lora")],
)
def test_names_are_resolved_to_one_spelling(method: Any, task: Any, resolved: str):
    config = load_config({"method": method, "task": task})
    assert (config.method["name"], config.task["name"]) == (resolved, "classification")
    assert config == load_config({"method": resolved, "task": "classification"})


@pytest.mark.parametrize(("raw", "message"), IMPOSSIBLE, ids=[m for _, m in IMPOSSIBLE])
def test_an_impossible_combination_is_refused_before_a_model_is_loaded(
    raw: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "transformers", None)  # any import of it would raise
    with pytest.raises(ConfigError) as caught:
        load_config(raw)
    assert message in str(caught.value)


def test_a_graph_is_refused_without_a_matrix(monkeypatch: pytest.MonkeyPatch):
    """20,000 nodes would need 3.2 GB."""
    monkeypatch.delattr("fedelta.topology.Topology.mixing")
    load_config({"partition": {"clients": 20_000}, "federation": {"topology": "ring"}})
    with pytest.raises(ConfigError, match=r"makes? no torus"):
        load_config({"partition": {"clients": 10}, "federation": {"topology": "torus"}})


def test_every_wrong_key_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        load_config({"metod": "fedavg", "model": {"dtype": "float31"}, "training": {"batch_size": 0}})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "model.dtype",
        "training.batch_size",
        "unknown key 'metod'; did you mean 'method'?",
    ]


def test_unequal_ranks_are_taken_by_a_method_for_them():
    for method in ("flexlora", "zeropad", "hetlora", "flora", "ffa_lora"):
        load_config({"lora": MIXED, "method": method})
    load_config({"lora": {"rank": {"choices": [4, 4]}}, "method": "fedavg"})


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "iid"},
        {"scheme": "dirichlet", "concentration": 0.3},
        {"scheme": "shards", "shards_per_client": 3},
        {"scheme": "natural", "by": "speaker", "clients": None},
        {"scheme": "quantity", "concentration": 2.0},
    ],
    ids=lambda settings: settings["scheme"],
)
def test_every_scheme_takes_its_settings(settings: dict[str, Any]):
    scheme = scheme_of(load_config({"partition": settings}).partition)
    own = settings.keys() & {"concentration", "shards_per_client"}
    assert {key: getattr(scheme, key) for key in own} == {key: settings[key] for key in own}


def test_a_name_alone_is_a_choice_without_settings():
    config = load_config({"method": "flexlora", "task": "classification", "training": {"optimizer": "sgd"}})
    assert (config.method, config.task, config.training.optimizer) == (
        {"name": "flexlora"},
        {"name": "classification"},
        {"name": "sgd"},
    )


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"lora": {"rank": [2, 4, 8]}, "partition": {"clients": 3}, "method": {"name": "flexlora", "sigma_on": "A"}},
        {"lora": {"rank": {"choices": [2, 4], "shares": [0.25, 0.75]}}, "method": "zeropad"},
        {"partition": {"scheme": "natural", "by": "language", "clients": None}, "federation": {"quorum": 1.0}},
        {"federation": {"quorum": 3}, "training": {"learning_rate": "3e-3", "optimizer": {"name": "adamw", "eps": 1e-7}}},
    ],
    ids=str,
)
def test_what_is_written_is_read_as_the_same_config(raw: dict[str, Any], tmp_path: Path):
    config = load_config(raw)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == path.read_text(encoding="utf-8")
    assert type(load_config(path).federation.quorum) is type(config.federation.quorum)  # 1 and 1.0 mean different things


def test_every_key_is_written_out():
    written = yaml.safe_load(dump_config(load_config({})))
    assert set(written) == set(RunConfig.model_fields)
    assert set(written["federation"]) == {
        "where",
        "deadline",
        "over_selection",
        "server_model",
        "rounds",
        "participation",
        "weights",
        "max_share",
        "quorum",
        "topology",
        "link_drop",
        "engine",
        "token_budget",
        "spool",
        "channel",
    }


def test_overrides_change_single_keys():
    config = load_config(
        {"method": "flexlora", "lora": {"rank": 4}},
        [
            "federation.rounds=20",
            "method.sigma_on=A",
            "lora.rank={choices: [2, 8]}",
            "name=other",
            "training.learning_rate=3e-3",
        ],
    )
    assert config.federation.rounds == 20
    assert config.method == {"name": "flexlora", "sigma_on": "A"}
    assert config.lora.model_dump()["rank"] == {"choices": [2, 8], "shares": None}
    assert config.name == "other"
    assert config.training.learning_rate == 3e-3
    assert load_config(config, {"seed": 3}).seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("federation.rounds", "has no value: write it as key=value"),
        ("federation.ronds=3", "unknown key 'federation.ronds'; did you mean 'federation.rounds'?"),
        ("seed.x=3", "override 'seed.x': 'seed' is 0, not a section"),
        ("name=[", "'[' is not a YAML value"),
        ("name=" + "[" * 5000, "override 'name=[[[[["),
    ],
)
def test_a_bad_override_is_named(override: str, message: str):
    with pytest.raises(ConfigError) as caught:
        load_config({"seed": 0}, [override])
    assert message in str(caught.value)


def test_an_empty_file_is_said_to_be_empty(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match=r"config.yaml is empty: a config has keys and values"):
        load_config(path)


@pytest.mark.parametrize("name", ["run", "first-2", "über uns", "a.b", "x" * 100, "...a"])
def test_a_name_may_be_any_folders_name(name: str):
    assert load_config({"name": name}).folder() == Path("runs") / name
    assert load_config({"name": name, "output": "../elsewhere/a"}).folder() == Path("../elsewhere/a")


def test_a_file_that_is_not_a_config_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config file at .*missing\.yaml"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        load_config("quikstart")
    for text, message in (
        ("- a\n- b\n", "must hold keys and values, but holds a list"),
        ("a: [", "is not valid YAML"),
        ("a: " + "[" * 5000, "nested too deeply"),
    ):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_config(path)


def test_only_what_leaves_the_rounds_alone_may_change_on_resume():
    old = fixed_values(load_config({}))
    demand_same_run(old, load_config({}, ["federation.rounds=99", "evaluation.every=2", "name=x", "federation.quorum=0.1"]))
    with pytest.raises(
        ConfigError, match=r"seed, training\.learning_rate cannot change when a run is taken up.*seed was 0, is 1"
    ):
        demand_same_run(old, load_config({}, ["federation.rounds=99", "seed=1", "training.learning_rate=0.1"]))


def test_a_key_that_came_with_a_later_version_is_no_change_at_its_default():
    old = {k: v for k, v in fixed_values(load_config({})).items() if k != "model.compact"}
    demand_same_run(old, load_config({}))
    with pytest.raises(ConfigError, match=r"model\.compact cannot change"):
        demand_same_run(old, load_config({}, ["model.compact=false"]))


def test_a_resumed_run_keeps_what_was_chosen_for_it():
    old, asked = fixed_values(load_config({"model": {"gemm": "default"}})), load_config({"model": {"gemm": "auto"}, "seed": 3})
    assert keep_choices(old, asked).model.gemm == "default"
    assert keep_choices(old, asked).seed == 3
    with pytest.raises(ConfigError, match=r"model\.gemm cannot change"):
        demand_same_run(old, keep_choices(old, load_config({"model": {"gemm": "bf16"}})))


def test_a_digest_is_let_go_by_a_persons_own_change_and_by_nothing_else():
    old, asked = fixed_values(load_config({"model": {"digest": "1" * 64}})), load_config({"model": {"digest": None}})
    assert keep_choices(old, asked).model.digest == "1" * 64
    assert keep_choices(old, asked, ["federation.rounds=9"]).model.digest == "1" * 64
    for change in (["model.digest=null"], {"model.digest": None}):
        settled = keep_choices(old, asked, change)
        assert settled.model.digest is None
        demand_same_run(old, settled)
    with pytest.raises(ConfigError, match=r"model\.digest cannot change"):
        demand_same_run(old, load_config({"model": {"digest": "2" * 64}}))


def test_an_interval_that_a_graph_settled_is_kept_and_another_method_is_not_given_it():
    old = fixed_values(load_config({"method": {"name": "tad_lora", "interval": 4}}))
    same = keep_choices(old, load_config({"method": "tad_lora"}))
    demand_same_run(old, same)
    assert same.method["interval"] == 4
    with pytest.raises(ConfigError, match=r"method\.interval cannot change"):
        demand_same_run(old, keep_choices(old, load_config({"method": {"name": "tad_lora", "interval": 2}})))
    with pytest.raises(ConfigError, match=r"method\.name cannot change|method\.interval, method\.name cannot change"):
        demand_same_run(old, keep_choices(old, load_config({"method": "rolora"})))


def test_rounds_below_those_that_are_done_are_refused():
    demand_rounds(3, 3)
    with pytest.raises(ConfigError, match=r"federation\.rounds = 2 is below the 3 rounds that are done"):
        demand_rounds(2, 3)


def test_other_rows_are_refused_by_source_and_split():
    data = load_config({"data": {"source": "mine.csv"}}).data
    demand_same_rows({"train": "a", "test": "b"}, {"train": "a", "test": "b"}, data)
    with pytest.raises(ConfigError, match=r"mine\.csv has changed: the test rows .* are not those that the run began with"):
        demand_same_rows({"train": "a", "test": "b"}, {"train": "a", "test": "c"}, data)
    data = load_config({"data": {"source": "folder", "train": "a.csv", "test": "b.csv"}}).data
    with pytest.raises(ConfigError, match=r"folder \(a\.csv, b\.csv\) has changed"):
        demand_same_rows({"train": "a", "test": "b"}, {"train": "a", "test": "c"}, data)


def test_the_built_in_config_is_valid():
    config = load_config("quickstart")
    assert config.method["name"] == "flexlora"
    assert config.lora.model_dump()["rank"]["choices"] == [2, 4, 8, 16]
    assert (config.partition.scheme, config.partition.clients, config.partition.concentration) == ("dirichlet", 10, 0.3)


REPEATED = [
    ("seed: 1\nlora:\n  rank: 4\nseed: 2\n", "line 4: the key 'seed' is there already, in line 1"),
    ("data:\n  clients: {north: a.jsonl,\n    'north': b.jsonl}\n", "line 3: the key 'north' is there already, in line 2"),
    ("training: {optimizer: {name: sgd, name: adamw}}", "line 1: the key 'name' is there already, in line 1"),
]


@pytest.mark.parametrize(("text", "message"), REPEATED)
def test_a_repeated_key_is_refused_by_name_and_line(text: str, message: str, tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"{re.escape(str(path))}, {message}"):
        load_config(path)


def test_an_override_with_a_repeated_key_is_refused():
    with pytest.raises(ConfigError, match="the key 'name' is there already"):
        load_config({}, ["training.optimizer={name: sgd, name: adamw}"])


def test_a_key_may_stand_in_two_mappings_and_change_what_another_brings_in(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("method: {name: compose, local: [&a {name: fedprox, mu: 0.5}, {<<: *a, mu: 0.1}]}", encoding="utf-8")
    assert read_config(path).method["local"][1] == {"name": "fedprox", "mu": 0.1}


@pytest.mark.parametrize(
    "clients",
    [
        ["a.jsonl", "a.jsonl"],
        ["a.jsonl", "b.jsonl", "./a.jsonl"],
        {"north": "a.jsonl", "south": "x/../a.jsonl"},
    ],
)
def test_one_file_for_two_clients_is_refused(clients: object):
    with pytest.raises(ConfigError, match=r"data\.clients: .*a\.jsonl is given to two clients, "):
        read_config({"data": {"clients": clients}})
