"""Every table of a study's README is what its files say, what these say is in the store, and full suites can be reckoned."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedelta.report.comparison import Cell, Comparison
from fedelta.report.study import Run
from fedelta.runs.config.checks import check
from fedelta.runs.outline import built
from fedelta.runs.suite.cells import combinations, plan_of
from fedelta.runs.suite.estimate import cost_built
from fedelta.runs.suite.schema import read_suite
from fedelta.runs.suite.store import Store

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"

STUDIES = sorted(readme.parent.name for readme in EXPERIMENTS.glob("*/README.md"))

OF_ITS_OWN = {"trust"}
"""A study that writes its table by itself, and has tests of its own for it."""


@pytest.fixture
def studies(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("studies")


@pytest.fixture
def tables(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("study_tables")


@pytest.fixture
def claims(tool: Callable[[str], ModuleType]) -> ModuleType:
    return tool("study_claims")


@pytest.mark.parametrize("name", STUDIES)
def test_the_tables_are_what_the_files_say(studies: ModuleType, name: str) -> None:
    readme = EXPERIMENTS / name / "README.md"
    assert studies.written(readme) == readme.read_text(encoding="utf-8"), f"stale: python tools/studies.py {name}"


def test_the_tables_of_the_documentation_are_what_the_files_say(studies: ModuleType) -> None:
    pages = studies.documentation_pages()
    assert "choosing.md" in [page.name for page in pages]
    for page in pages:
        assert studies.written(page) == page.read_text(encoding="utf-8"), f"{page} is stale: python tools/studies.py"


@pytest.mark.parametrize("name", STUDIES)
def test_results_are_shown(tables: ModuleType, name: str) -> None:
    text = (EXPERIMENTS / name / "README.md").read_text(encoding="utf-8")
    assert tables.TABLE.search(text) or name in OF_ITS_OWN or not (EXPERIMENTS / name / "results.csv").is_file()


@pytest.mark.parametrize("name", STUDIES)
def test_a_score_is_in_the_store(studies: ModuleType, name: str) -> None:
    stores = {studies.store_of(path) for path in studies.suites_of(EXPERIMENTS / name)}
    lines = {digest: line for path in stores for digest, line in _lines(path).items()}
    results = EXPERIMENTS / name / "results.csv"
    for row in _rows(results) if stores and results.is_file() else []:
        if row["value"] and row["config_sha256"]:
            if row["state"] == "diverged" and row["at"] == "last":
                assert float(row["value"]) == lines[row["config_sha256"]]["facts"]["majority"]
                continue
            record = lines[row["config_sha256"]]["records"][int(row["round"]) - 1]
            assert float(row["value"]) in [(record.get(part) or {}).get(row["metric"]) for part in ("test", "validation")]


def test_a_run_that_diverged_does_not_keep_the_score_that_it_had_before(studies: ModuleType) -> None:
    records = [
        {"t": t, "test": test, "train_loss": loss, "bytes": {"up": 1, "down": 1}, "seconds": {}}
        for t, test, loss in ((0, {"accuracy": 0.9}, 1.0), (1, None, None))
    ]
    config = {"training": {"learning_rate": 1e-3}, "federation": {"rounds": 10}}
    run = Run("one", records, config, {"diverged": "round 1: 0 of 2 updates can be used", "majority": 0.3})
    comparison = Comparison("small", {"one": "fedavg"}, {"": {}}, [0], "one", "accuracy", [Cell("", "one", 0, "done", run)])
    found = [(row["round"], row["value"], row["at"], row["state"]) for row in studies.rows_of(comparison)]
    assert found == [(1, 0.9, "", "diverged"), (10, 0.3, "last", "diverged")]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*/full.yaml")), ids=lambda path: path.parent.name)
def test_a_full_suite_is_reckoned_without_its_model_and_rows(path: Path, tmp_path: Path) -> None:
    plan = plan_of(read_suite(path), tmp_path)
    entry, setting = plan.file.entries[0], next(iter(plan.settings))
    config = plan.config(setting, entry, combinations(entry)[0])
    cost = cost_built(built(config, check(config, plan.own), scored=False))
    assert min(cost.values()) > 0


def _lines(path: Path) -> Mapping[str, Any]:
    store = Store(path)
    store.refresh()
    return store.lines


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# --- the tables themselves -------------------------------------------------------------------------------------------

HEAD = "suite,setting,label,seed,metric,round,value,at,learning_rate,bytes,seconds"

PAGE = "<!-- table: scores suite=small -->\n{}<!-- end of table -->\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The results of two methods and the line to compare with, three seeds each, scored after rounds 5 and 10."""
    rows = [
        f"small,,{label},{seed},accuracy,{number},{value + 0.01 * seed},{at},0.001,1048576,60"
        for label, early, late in (("one", 0.60, 0.61), ("two", 0.69, 0.70), ("centralised", 0.64, 0.65))
        for seed in range(3)
        for number, value, at in ((5, early, ""), (10, late, "last"))
    ]
    (tmp_path / "results.csv").write_text("\n".join([HEAD, *rows]) + "\n", encoding="utf-8")
    return tmp_path


def test_a_number_that_was_changed_is_noticed(tables: ModuleType, folder: Path) -> None:
    page = tables.filled(PAGE.format(""), folder)
    assert "| two | 0.001 | 70.0, 71.0, 72.0 | 71.0 ± 1.0 | +1.0 | +9.0 (+9.0 to +9.0) | 1.0 | 1.0 |" in page
    assert tables.filled(page, folder) == page
    assert tables.filled(page.replace("71.0 ± 1.0", "74.0 ± 1.0"), folder) == page


def test_what_has_not_been_run_is_said(tables: ModuleType, tmp_path: Path) -> None:
    assert tables.NOTHING in tables.filled(PAGE.format("| an old table |\n"), tmp_path)


def test_a_verdict_says_mean_spread_difference_and_bytes(tables: ModuleType, folder: Path) -> None:
    """Holm's correction is over methods: a line to compare with has no p, and does not count among them."""
    path = folder / "results.csv"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(",2,accuracy,10,0.72,", ",2,accuracy,10,0.75,"), encoding="utf-8")
    page = "<!-- table: verdicts study={} suite=small against=one lines=centralised -->\n<!-- end of table -->\n"
    lines = tables.filled(page.format(folder.name), folder.parent).splitlines()[3:-1]
    assert lines == [
        "| `two` | 3 | 72.0, sd 2.6 | +10.0 | +5.7 to +14.3 | 0.01 | 1.0 |",
        "| `centralised` | 3 | 66.0, sd 1.0 | +4.0 | +4.0 to +4.0 | – | 1.0 |",
        "| `one` | 3 | 62.0, sd 1.0 | – | – | – | 1.0 |",
    ]


def test_a_method_with_too_few_seeds_has_no_verdict(tables: ModuleType, folder: Path) -> None:
    path = folder / "results.csv"
    rows = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if ",two,2," not in line]
    path.write_text("".join(rows), encoding="utf-8")
    asked = {"suite": "small", "against": "one", "lines": "centralised"}
    assert "`two`" not in tables.verdicts_table(folder, asked)
    assert tables.verdicts_table(folder, {**asked, "against": "two"}) == tables.NOTHING


CLAIM: Mapping[str, Any] = {
    "claim": "two above one",
    "suite": "small",
    "compared": ["two", "one"],
    "needed": 1.5,
    "baseline": "one",
}


def _claimed(tables: ModuleType, folder: Path, **changes: object) -> str:
    """Returns the verdict on `CLAIM`, some of whose keys may be others, as the table has it."""
    (folder / "claims.yaml").write_text(json.dumps([{**CLAIM, **changes}]), encoding="utf-8")
    return tables.claims_table(folder, {}).splitlines()[2].split(" | ")[-1].removesuffix(" |")


def _change(folder: Path, change: Callable[[dict[str, str]], Mapping[str, str] | None]) -> None:
    """Changes rows of results.csv as `change` says of each; None leaves one as it is."""
    rows = [{**row, **(change(row) or {})} for row in _rows(folder / "results.csv")]
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEAD.split(","))
        writer.writeheader()
        writer.writerows(rows)


def test_a_claim_has_its_verdict(tables: ModuleType, folder: Path) -> None:
    assert _claimed(tables, folder) == "**confirmed**"
    row = "| two above one | two and one | 3 | +9.0 (+9.0 to +9.0) | 0.0 | 1.5 | **confirmed** |"
    assert row in tables.claims_table(folder, {})


@pytest.mark.parametrize(
    ("label", "number", "value", "reason"),
    [("centralised", "10", "0.75", "one is 13 points below centralised"), ("two", "5", "0.66", "two still rising")],
)
def test_a_comparison_that_does_not_count_says_why(
    tables: ModuleType, folder: Path, label: str, number: str, value: str, reason: str
) -> None:
    _change(folder, lambda row: {"value": value} if (row["label"], row["round"]) == (label, number) else None)
    assert f"**does not count** ({reason}; of the start: " in _claimed(tables, folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("centralised", "10", "19.0"), ""),
        (("centralised", "10", "17.0"), "one is 18 % above centralised"),
        (("two", "5", "21.6"), "two still falling"),
    ],
)
def test_perplexities_are_near_or_falling_by_percent(
    tables: ModuleType, folder: Path, change: tuple[str, str, str], reason: str
) -> None:
    """A lower one is better, so that a baseline is behind where it is above centralised training."""
    label, number, value = change

    def as_perplexity(row: dict[str, str]) -> Mapping[str, str]:
        changed = (row["label"], row["round"]) == (label, number)
        usual = 21.0 if row["label"] == "two" else 20.0
        return {"metric": "perplexity", "value": value if changed else f"{usual + 0.1 * int(row['seed'])}"}

    _change(folder, as_perplexity)
    found = _claimed(tables, folder, needed=0.2)
    assert found == (f"**does not count** ({reason}; of the start: confirmed)" if reason else "**confirmed**")


def test_a_gain_of_two_points_is_not_more_than_two(tables: ModuleType, folder: Path) -> None:
    scores = {"5": ("0.842", "0.667", "0.486"), "10": ("0.561", "0.809", "0.685")}
    _change(folder, lambda row: {"value": scores[row["round"]][int(row["seed"])]} if row["label"] == "two" else None)
    assert _claimed(tables, folder) == "**cannot say**"


def test_a_claim_across_settings_names_them(tables: ModuleType, folder: Path) -> None:
    _change(folder, lambda row: {"setting": "near" if row["label"] == "two" else "far"})
    found = _claimed(tables, folder, settings=["near", "far"])
    assert found.startswith("**does not count** (centralised or the baseline is unrun")
    assert "| two in near and one in far | 3 |" in tables.claims_table(folder, {})


def test_a_claim_may_ask_for_other_lines_near_centralised(tables: ModuleType, folder: Path) -> None:
    _change(folder, lambda row: {"suite": "server"} if row["label"] == "centralised" else None)
    near = [{"suite": "small", "label": "one"}, {"suite": "small", "label": "absent"}]
    assert _claimed(tables, folder, beside="server", near=near[:1]) == "**confirmed**"
    assert "the baseline is unrun" in _claimed(tables, folder, beside="server", near=near)


def test_a_seed_that_diverged_does_not_lower_the_gain_of_the_others(tables: ModuleType, folder: Path) -> None:
    """It has the score of a constant answer after the last round, and none before."""

    def diverged(row: dict[str, str]) -> Mapping[str, str] | None:
        if row["label"] != "two" or row["seed"] != "2":
            return {"value": "0.66"} if (row["label"], row["round"]) == ("two", "5") else None
        return {"value": "0.1" if row["at"] == "last" else ""}

    _change(folder, diverged)
    assert "two still rising" in _claimed(tables, folder)


@pytest.mark.parametrize(
    ("differences", "claim", "expected"),
    [
        ([], {"needed": 1.5}, "unrun"),
        ([5.0, 5.1], {"needed": 1.5}, "cannot say"),
        ([5.0, 5.1, 5.2], {"needed": 1.5}, "confirmed"),
        ([-5.0, -5.1, -5.2], {"needed": 1.5}, "contradicted"),
        ([1.0, 1.1, 1.2], {"needed": 1.5}, "cannot say"),  # separated from 0, but less than half of what is claimed
        ([9.0, 12.0, 16.0], {"needed": 1.5}, "cannot say"),  # these seeds cannot separate 1.5 points
        ([9.0, 12.0, 16.0], {"needed": None}, "confirmed"),
        ([0.1, -0.1, 0.0], {"needed": 1.0, "within": 2.0}, "confirmed"),
        ([-5.0, -5.1, -5.2], {"needed": 1.0, "within": 2.0}, "contradicted"),
        ([5.0, -5.0, 1.0], {"needed": 1.0, "within": 2.0}, "cannot say"),
        ([5.0, 5.1, 5.2], {"needed": 1.0, "within": 2.0}, "cannot say"),  # ahead, where only falling behind was denied
        ([5.0, 5.1, 5.2], {"needed": 1.0, "within": 2.0, "either": True}, "contradicted"),
    ],
)
def test_the_rule(claims: ModuleType, differences: list[float], claim: Mapping[str, Any], expected: str) -> None:
    assert claims.verdict(differences, claim) == expected
