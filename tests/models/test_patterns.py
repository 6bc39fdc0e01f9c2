"""Patterns of layer names: PEFT's meaning, in time linear in a name, and a refusal by name of what could take longer."""

import json
import time
from pathlib import Path

import pytest
from peft import get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key

from fedelta.lowrank import LoRA
from fedelta.models.adapter_files import load_adapter, save_adapter
from fedelta.models.patterns import by_layer, exactly, harmless, matching
from fedelta.models.peft import PeftAdaptedModel
from fedelta.models.toy import random_adapter
from fedelta.runs.config import ConfigError, load_config
from fedelta.tree import Adapter

NAMES = [
    "q",
    "a.q",
    "a\nq",
    "h.1.\n.q",
    "aq",
    "h.1.q",
    "h.11.q",
    "hx1.q",
    "encoder.layer.0.attention.self.query",
    "encoder.layer.10.attention.self.query",
    "encoder.layer.1.intermediate.dense",
    "classifier",
]

PATTERNS = [
    {"q": 3},
    {"q": 3, "a.q": 5},
    {"a.q": 5, "q": 3},
    {"^q": 3},
    {"^q$": 3, "q$": 4},
    {"^q": 3, "q": 4},
    {"q": 4, "^q": 3},
    {r"^a\.q": 7, r"h\.1\.q": 2},
    {"h.1.q": 2},
    {r"layer\.\d+\.attention.*": 4, "query": 6},
    {r"layer\.(0|10)\..*": 4},
    {"query|dense": 6},
    {".*": 1},
    {"encoder": 9, "encoder.*": 8},
    {"[qa]": 2, "a?q": 3},
    {r"(?P<kind>query|dense)": 5},
    {r".*\.[0-9]{2}\..*": 5},
    {"": 4},
    {"nothing": 4},
    {".q": 3},
    {"h.1": 2, "..q": 5},
    {"...": 2},
    {"(?i:QUERY)": 7},
]

SLOW = ["(a+)+", "(a*)*b", ".*.*.*.*.*x", "(a|a)*b", "([a-z]+)*!"]
"""Patterns that a backtracking matcher takes seconds to years for."""

REFUSED = [r"(a)\1", "(?=a)a", "(?!a)b", "(?<=a)b", "(?<!a)b", "(?P<x>a)(?P=x)", "a++", "(?>a)", "(", "[[:alpha:]]", "a{,3}"]


@pytest.mark.parametrize("patterns", PATTERNS, ids=str)
def test_a_pattern_means_what_it_means_to_peft(patterns: dict[str, int]):
    theirs = {n: patterns.get(get_pattern_key(list(patterns), n), 0) for n in NAMES}
    found = by_layer(patterns, NAMES, "here")
    assert {n: found.get(n, 0) for n in NAMES} == theirs
    safe = harmless(patterns, NAMES, "here")
    assert {n: safe.get(get_pattern_key(list(safe), n), 0) for n in NAMES} == theirs


@pytest.mark.parametrize("pattern", ["q", r".*\.q", "encoder.*query|q", r"encoder\.layer\.\d\..*", "a.q", ".*"])
def test_target_modules_mean_what_they_mean_to_peft(linear, pattern: str):
    theirs = [n for n in NAMES if check_target_module_exists(linear.lora(target_modules=pattern), n)]
    assert matching(pattern, NAMES, "here") == theirs
    exact = linear.lora(target_modules=exactly(theirs)) if theirs else None
    assert exact is None or [n for n in NAMES if check_target_module_exists(exact, n)] == theirs


@pytest.mark.parametrize("pattern", SLOW)
def test_a_pattern_that_would_take_years_is_answered_in_milliseconds(pattern: str):
    names = ["a" * 192, "a." * 96, "b"]
    began = time.process_time()
    by_layer({pattern: 1}, names, "here")
    matching(pattern, names, "here")
    assert time.process_time() - began < 10  # hours, where it backtracks


@pytest.mark.parametrize("pattern", SLOW)
def test_an_adapter_folder_with_such_a_pattern_is_read_at_once(pattern: str, tmp_path: Path):
    source = random_adapter(2, seed=0).layers["hidden"]
    adapter = Adapter({"a" * 60: source, ".".join("a" * 60): source})
    save_adapter(adapter, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"rank_pattern": {f"{pattern}!": 2}, "alpha_pattern": {f"{pattern}!": 3.0}, "target_modules": pattern}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    began = time.process_time()
    assert load_adapter(tmp_path).layers.keys() == adapter.layers.keys()
    assert time.process_time() - began < 10


@pytest.mark.parametrize("pattern", REFUSED)
@pytest.mark.parametrize("entry", ["rank_pattern", "alpha_pattern", "target_modules"])
def test_what_the_matcher_does_not_take_is_refused_with_the_file_and_the_entry(entry: str, pattern: str, tmp_path: Path):
    save_adapter(Adapter(random_adapter(2, seed=0).layers), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config[entry] = pattern if entry == "target_modules" else {pattern: 2}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"adapter_config.json: {entry}: the pattern .* (accepted|differ)"):
        load_adapter(tmp_path)


@pytest.mark.parametrize("entry", ["rank_pattern", "alpha_pattern", "target_modules"])
def test_a_config_with_such_a_pattern_is_refused_by_its_key(entry: str):
    value = r"(a)\1" if entry == "target_modules" else {r"(a)\1": 2}
    with pytest.raises(ConfigError, match=rf"^lora.{entry}: the pattern .*1' is not accepted"):
        load_config({"lora": {entry: value}})


def test_flags_of_a_whole_pattern_are_refused_in_a_key_with_the_form_that_is_accepted():
    with pytest.raises(ValueError, match=r"rank_pattern: the pattern '\(\?i\)QUERY' holds the flags \(\?i\), .* \(\?i:query\)"):
        by_layer({"(?i)QUERY": 3}, NAMES, "rank_pattern")
    assert matching("(?i).*QUERY", NAMES, "target_modules") == [n for n in NAMES if n.endswith("query")]


def test_keys_that_are_names_are_looked_up_however_many_and_patterns_are_bounded(monkeypatch: pytest.MonkeyPatch):
    """Compiling 20,000 keys took five seconds; they come with a file."""
    names = {f"layer.{k}.query": k + 1 for k in range(20_000)}
    with monkeypatch.context() as without:
        without.setattr("fedelta.models.patterns.re2.compile", None)  # none of them is compiled
        assert by_layer(names, ["model.layer.7.query"], "rank_pattern") == {"model.layer.7.query": 8}
    patterns = {rf"layer\.{k}\.query": k for k in range(1001)}
    for resolve in (by_layer, harmless):
        with pytest.raises(ValueError, match=r"rank_pattern: 1001 patterns, where at most 1000 are accepted: list the layers'"):
            resolve(patterns, NAMES, "rank_pattern")


def test_peft_itself_evaluates_exact_names_only(linear):
    """The model has a module whose name a backtracking matcher would work on for hours."""
    model = linear.model()
    model.add_module("a" * 40 + "b", type(model.classifier)(2, 2))
    config = linear.lora(target_modules="(a+)+|.*query", rank_pattern={"(a+)+": 3}, exclude_modules="(a+)+")
    began = time.process_time()
    adapted = PeftAdaptedModel(model, config)
    assert time.process_time() - began < 20
    assert all(n.endswith("query") for n in adapted.adapted_layers)
    assert adapted.layout.config["exclude_modules"] == "(a+)+"


SETTINGS = {
    "target_modules": r"bert\.encoder\.layer\.\d+\.(attention\.self\.(query|value)|intermediate\.dense)",
    "rank_pattern": {r"layer\.0\..*query": 3, "value": 2, r".*\.dense": 5},
    "alpha_pattern": {r"layer\.1\..*": 7},
    "exclude_modules": r".*layer\.1\.attention\.self\.value",
}


def test_layers_ranks_and_scales_are_those_of_peft_on_the_pattern_itself(linear):
    ours, theirs = linear.adapted(**SETTINGS), get_peft_model(linear.model(), linear.lora(**SETTINGS)).get_base_model()
    modules = dict(theirs.named_modules())
    initial = ours.initial(linear.peer(4, **SETTINGS))
    assert set(ours.adapted_layers) == {n for n, m in modules.items() if hasattr(m, "lora_A")}
    for name, x in initial.layers.items():
        assert isinstance(x, LoRA)
        assert (x.rank, x.scale) == (modules[name].r["default"], modules[name].scaling["default"])
        assert ours.live().layers[name].rank == x.rank


def test_a_pattern_that_no_layer_is_like_is_refused_with_the_names_there_are(linear):
    with pytest.raises(ValueError, match=r"target_modules=.*nobody do not fit the model: .*targeted here: .*query"):
        linear.adapted(target_modules=r".*\.nobody")


def test_a_pattern_of_the_layers_pattern_is_refused(linear):
    with pytest.raises(ValueError, match=r"layers_pattern: '\(a\+\)\+' is a pattern"):
        linear.adapted(layers_to_transform=[0], layers_pattern="(a+)+")
