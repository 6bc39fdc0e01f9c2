"""A comparison as files: page, terminal and csv have the same numbers, those of scipy; the same bytes twice."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

from fedelta.report import results
from fedelta.report.comparison import Comparison
from fedelta.report.numerals import two_digits
from fedelta.report.outcome import outcomes
from fedelta.report.page import page
from fedelta.report.results.latex import escaped

Make = Callable[..., Comparison]


def rows_of(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(results.results_csv(comparison))))


def compared_scores(comparison: Comparison, label: str, setting: str = "") -> list[float]:
    """Scores by seed as results.csv has them."""
    wanted = {"label": label, "setting": setting, "split": "test", "metric": "accuracy", "statistic": "value", "at": "last"}
    return [float(row["value"]) for row in rows_of(comparison) if all(row[k] == v for k, v in wanted.items())]


def statistic(comparison: Comparison, label: str, name: str) -> float:
    return next(float(r["value"]) for r in rows_of(comparison) if (r["label"], r["statistic"]) == (label, name))


def test_page_terminal_and_csv_have_the_numbers_of_scipy(a_comparison: Make):
    comparison = a_comparison(("a", "b", "c"), seeds=4)
    a, b = (compared_scores(comparison, label) for label in "ab")
    assert len(b) == 4
    test = stats.ttest_rel(b, a)
    bounds = test.confidence_interval()
    raw = [float(stats.ttest_rel(compared_scores(comparison, label), a).pvalue) for label in "bc"]
    assert statistic(comparison, "b", "difference") == pytest.approx(fmean(b) - fmean(a), abs=1e-12)
    assert statistic(comparison, "b", "low") == pytest.approx(bounds.low, abs=1e-12)
    assert statistic(comparison, "b", "high") == pytest.approx(bounds.high, abs=1e-12)
    assert statistic(comparison, "b", "p") == pytest.approx(test.pvalue, rel=1e-9)
    assert statistic(comparison, "b", "p_adjusted") == pytest.approx(max(2 * min(raw), raw[0]), rel=1e-9)
    assert statistic(comparison, "c", "p_adjusted") == pytest.approx(max(2 * min(raw), raw[1]), rel=1e-9)
    score = f"{100 * fmean(b):.1f} ± {100 * stats.tstd(b):.1f}"
    gap, low, high = (f"{100 * x:+.1f}".replace("-", "\u2212") for x in (fmean(b) - fmean(a), bounds.low, bounds.high))
    difference = f"{gap} {low} to {high}"
    row = next(line for line in results.terminal_table(comparison, 120).plain.splitlines() if line.startswith("■ b"))
    assert re.sub(r"\s+", " ", row).startswith(f"■ b {score} {difference}")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", page(comparison)))
    assert f"{score} sd {difference}" in text
    of_b = next(x for x in results.summary(comparison)["settings"][""]["methods"] if x["label"] == "b")
    assert of_b["mean"] == fmean(b)


def test_the_p_against_the_best_mean_is_that_of_the_studentised_range(a_comparison: Make):
    comparison = a_comparison(("a", "b", "c"), seeds=4)
    table = {label: compared_scores(comparison, label) for label in "abc"}
    seeds = [fmean(column) for column in zip(*table.values(), strict=True)]
    grand = fmean(seeds)
    left = [(x - fmean(row) - seed + grand) ** 2 for row in table.values() for x, seed in zip(row, seeds, strict=True)]
    error = (sum(left) / 6 / 4) ** 0.5
    best = max(fmean(row) for row in table.values())
    expected = stats.studentized_range.sf((best - fmean(table["a"])) / error, 3, 6)
    assert statistic(comparison, "a", "p_best") == pytest.approx(expected, rel=1e-6)


def test_a_row_says_which_cell_and_what_it_cost(a_comparison: Make):
    comparison = a_comparison(("a", "b"), ("x", "y"), seeds=2)
    rows = rows_of(comparison)
    assert list(rows[0])[:3] == ["suite", "setting", "partition.concentration"]
    first = next(row for row in rows if (row["setting"], row["label"], row["split"]) == ("y", "b", "test"))
    assert (first["partition.concentration"], first["state"], first["commit"]) == ("2.0", "done", "abc1234")
    assert (first["rows"], first["learning_rate"], first["tuned"]) == ("250", "0.01", "false")
    assert int(first["bytes_down"]) % 2**20 == 0
    assert {row["split"] for row in rows} >= {"test", "validation", "clients"}
    assert {row["statistic"] for row in rows if row["split"] == "clients"} == {"mean", "worst", "spread"}
    assert {row["at"] for row in rows} == {"last", "best"}


def test_steps_and_rows_are_of_all_participants(a_comparison: Make):
    comparison = a_comparison(("a",), seeds=1)
    run = comparison.cells[0].run
    assert run is not None
    config = {**run.config, "training": {"local_steps": 5, "batch_size": 8}}
    counted = replace(comparison, cells=[replace(comparison.cells[0], run=replace(run, config=config))])
    row = rows_of(counted)[0]
    assert (row["steps"], row["rows_seen"]) == ("80", "640"), "4 rounds of 4 clients with 5 steps of 8"


def test_cells_that_are_not_done_are_rows_without_a_value(a_comparison: Make):
    comparison = a_comparison(
        ("a", "b", "c"), without=[("", "b", "not applicable", "ranks <must> be equal"), ("", "c", "failed", "out of memory")]
    )
    states = {(row["label"], row["state"], row["value"] == "") for row in rows_of(comparison) if row["seed"]}
    assert states == {("a", "done", False), ("b", "not applicable", True), ("c", "failed", True)}
    plain = results.terminal_table(comparison).plain
    assert "b  not applicable: ranks <must> be equal" in plain
    assert "c  failed: out of memory" in plain
    tex = results.latex(comparison)
    assert r"p{0.7\linewidth}}{\small\raggedright not applicable: ranks \textless{}must\textgreater{} be equal}" in tex
    nothing = replace(comparison, cells=[cell for cell in comparison.cells if cell.run is None])
    assert set(results.files(nothing)) == {"results.csv", "summary.json"}
    assert "no run has finished a round" in results.terminal_table(nothing).plain


def test_lines_to_compare_with_take_no_part_in_the_correction(a_comparison: Make):
    beside = a_comparison(("a", "b", "local_only"), seeds=4)
    found = {r["statistic"] for r in rows_of(beside) if r["label"] == "local_only" and not r["seed"]}
    assert found == {"difference", "low", "high", "p"}
    assert statistic(beside, "b", "p_adjusted") == statistic(beside, "b", "p"), "b is the only one that is compared"


def test_rounds_have_every_number_of_every_record(a_comparison: Make):
    comparison = a_comparison(("a",), seeds=1, rounds=2)
    rows = list(csv.DictReader(io.StringIO(results.rounds_csv(comparison))))
    assert {row["round"] for row in rows} == {"1", "2"}
    found = {row["key"]: float(row["value"]) for row in rows if row["round"] == "2"}
    run = comparison.cells[0].run
    assert run is not None
    record = run.records[1]
    assert found["train_loss"] == record["train_loss"]
    assert found["test.accuracy"] == record["test"]["accuracy"]
    assert found["diagnostics.energy_by_band.1-2"] == 0.9
    assert not [key for key in found if "layer" in key or key == "t"]
    assert (rows[0]["method"], rows[0]["label"]) == ("a", "a")
    renamed = replace(comparison, methods={"a": "flexlora"})
    assert results.rounds_csv(renamed).splitlines()[1].startswith(",flexlora,a,0,1,")


def test_latex_is_escaped_and_whole(a_comparison: Make):
    assert escaped(r"a_b & 5% {x} $1 ~^#<>\ ±") == (
        r"a\_b \& 5\% \{x\} \$1 \textasciitilde{}\textasciicircum{}\#\textless{}\textgreater{}\textbackslash{} $\pm$"
    )
    assert escaped("`a|b") == r"\textasciigrave{}a\textbar{}b"
    assert escaped("[x]*") == "{[}x]*", "after the end of a row a bracket would be its argument"
    assert escaped("*x") == "{*}x"
    text = results.latex(a_comparison((r"flex_lora & co", "b"), ("x", "y")))
    assert r"flex\_lora \& co" in text
    assert "flex_lora &" not in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3
    widths = {line.count(" & ") for line in text.splitlines() if line.endswith(r"\\")}
    assert len(widths) == 2, "every row of a table has as many cells as its head"
    assert r"\textbf{" in text


def test_the_best_and_all_not_separated_from_it_are_bold(a_comparison: Make):
    comparison = a_comparison(("a", "b", "c"), seeds=5)
    bold = {label for label in "abc" if re.search(rf"^{label} & \\textbf", results.latex(comparison), re.MULTILINE)}
    assert bold == {"c"}
    assert "textbf" not in results.latex(a_comparison(("a", "b"), seeds=2)), "two seeds allow no verdict"


def test_narrow_terminals_lose_columns_from_the_right(a_comparison: Make):
    comparison = a_comparison(("flexlora", "a method of a name so long that no column could hold it"), seeds=5)
    heads: list[list[str]] = []
    for width in (200, 100, 80, 50):
        lines = results.terminal_table(comparison, width).plain.splitlines()
        table = lines[1 : lines.index("")]
        assert max(map(len, table)) <= max(width, 62), width
        heads.append(lines[1].split())
    assert heads[0][-3:] == ["rows", "seen", "s"]
    for wide, narrow in pairwise(heads):
        assert narrow == wide[: len(narrow)]
    assert heads[-1] == ["method", "mean", "±", "sd", "diff.", "95", "%", "interval"]


def test_the_forest_of_a_terminal_marks_zero_mean_and_bounds(a_comparison: Make):
    plain = results.terminal_table(a_comparison(("a", "b"), seeds=4), 120).plain
    row = next(line for line in plain.splitlines() if line.startswith("■ b"))
    forest = row[plain.splitlines()[1].index("0") :]
    assert forest.index("│") < forest.index("├") < forest.index("■") < forest.index("┤")


def test_one_seed_has_no_interval_anywhere(a_comparison: Make):
    comparison = a_comparison(seeds=1)
    plain = results.terminal_table(comparison, 200).plain
    assert "One seed: a difference may be chance." in plain
    assert "±" not in plain
    assert "95 %" not in plain
    assert "pm" not in results.latex(comparison)


def test_settings_stand_side_by_side(a_comparison: Make):
    comparison = a_comparison(("a", "b", "c"), ("x", "y"), without=[("y", "c", "not applicable", "no server")])
    plain = results.terminal_table(comparison, 100).plain
    row = next(line for line in plain.splitlines() if line.startswith("▲ c"))
    assert row.endswith("n/a")
    assert re.search(r"▲ c +\S+ ± \S+\*", row), "the best is marked"
    assert "No method has the best mean in every setting" in plain
    assert "x: c is ahead of" in plain


@pytest.mark.parametrize(("settings", "said"), [(("x", "y"), "both settings"), (("x", "y", "z"), "all 3 settings")])
def test_a_method_that_leads_everywhere_is_said_to(a_comparison: Make, settings: tuple[str, ...], said: str):
    plain = results.terminal_table(a_comparison(("a", "b"), settings), 100).plain
    assert f"b has the best mean in {said}, and is clearly best in" in plain


def test_a_method_keeps_its_key_and_colour_in_all_settings(a_comparison: Make):
    methods = [*"abcdefg", "local_only"]
    comparison = a_comparison(methods, ("x", "y"), without=[("y", "a", "not applicable", "no server")])
    found = outcomes(comparison)
    styles = {name: {g.label: (g.key, g.style) for g in c.study.groups} for name, c in found.items()}
    assert "a" not in styles["y"]
    assert all(styles["x"][label] == pair for label, pair in styles["y"].items())
    assert styles["x"]["a"][1] == "k0", "the baseline"
    assert styles["x"]["local_only"][1] == "kr"
    assert sum(style.startswith("k") and style[1].isdigit() for _, style in styles["x"].values()) == 5


def test_without_the_baseline_differences_are_to_a_method_and_to_no_line(a_comparison: Make):
    methods, gone = ("local_only", "a", "b"), [("y", "a", "not applicable", "no server")]
    comparison = a_comparison(methods, ("x", "y"), without=gone, baseline="a", named=True)
    studies = {name: c.study for name, c in outcomes(comparison).items()}
    assert {name: (study.baseline.label, study.named) for name, study in studies.items()} == {
        "x": ("a", True),
        "y": ("b", False),
    }


def test_a_named_baseline_changes_verdicts_and_not_what_is_bold(a_comparison: Make):
    comparison = a_comparison(("a", "b", "c"), seeds=5, named=True)
    assert "b and c are ahead of a" in results.terminal_table(comparison).plain.replace("c and b", "b and c")
    assert results.latex(comparison).count("(ahead)") == 2
    assert re.search(r"^c & \\textbf", results.latex(comparison), re.MULTILINE)


def test_a_run_that_diverged_is_a_constant_answer_and_says_so(a_comparison: Make):
    comparison = a_comparison(("a", "b"))
    run = comparison.cells[0].run
    assert run is not None
    lost = [*run.records[:-1], {**run.records[-1], "train_loss": None, "test": {"accuracy": None}}]
    cells = [replace(comparison.cells[0], run=replace(run, records=lost)), *comparison.cells[1:]]
    row = next(r for r in rows_of(replace(comparison, cells=cells)) if r["split"] == "test" and r["at"] == "last")
    assert (row["state"], row["value"]) == ("diverged", "0.3")


def with_run(comparison: Comparison, k: int, records: Callable[[Any], list[Any]]) -> Comparison:
    """The comparison whose cell k has other records."""
    cells = list(comparison.cells)
    run = cells[k].run
    assert run is not None
    cells[k] = replace(cells[k], run=replace(run, records=records(list(run.records))))
    return replace(comparison, cells=cells)


def lost_in_round(t: int) -> Callable[[Any], list[Any]]:
    return lambda records: [*records[:t], {**records[t], "train_loss": None, "test": None, "validation": None}]


def test_latex_marks_the_methods_of_which_a_run_diverged(a_comparison: Make):
    dagger = r"$^\dagger$"
    comparison = with_run(a_comparison(("a", "b"), ("x", "y")), 0, lost_in_round(2))
    settings, first, second = results.latex(comparison).split(r"\begin{table}")[1:]
    rows = [line for line in (settings + first).splitlines() if line.startswith(("a &", "b &"))]
    assert [dagger in row for row in rows] == [row.startswith("a") for row in rows]
    assert rows[0].count(dagger) + rows[1].count(dagger) == 1, "in the setting where it diverged"
    assert all(f"{dagger}: some run diverged" in table for table in (settings, first))
    assert dagger not in second


def test_a_run_that_diverged_early_is_in_every_mean_and_in_the_csv(a_comparison: Make):
    comparison = with_run(a_comparison(("a", "b")), 0, lost_in_round(2))
    rows = [
        r for r in rows_of(comparison) if r["label"] == "a" and r["seed"] and (r["split"], r["metric"]) == ("test", "accuracy")
    ]
    for at, name in (("last", "mean"), ("best", "best")):
        values = [float(r["value"]) for r in rows if r["at"] == at]
        assert len(values) == 3, at
        shown = next(x for x in results.summary(comparison)["settings"][""]["methods"] if x["label"] == "a")[name]
        assert shown == pytest.approx(fmean(values)), at
    assert "0 of 3" in page(comparison) or "2 of 3" in page(comparison), "one run never gets to the target"


def test_a_cell_whose_run_has_no_value_yet_is_a_row_all_the_same(a_comparison: Make):
    comparison = with_run(a_comparison(("a", "b")), 0, lambda records: [{**records[0], "test": None, "validation": None}])
    [row] = [r for r in rows_of(comparison) if (r["label"], r["seed"]) == ("a", "0") and r["split"] in ("", "test")]
    assert (row["value"], row["rounds"]) == ("", "1")


def test_from_ten_seeds_on_the_bootstrap_stands_beside_the_interval(a_comparison: Make):
    comparison = a_comparison(("a", "b"), seeds=10)
    low, high = (statistic(comparison, "b", f"bootstrap_{end}") for end in ("low", "high"))
    assert low < statistic(comparison, "b", "difference") < high
    assert results.summary(comparison)["settings"][""]["methods"][0]["bootstrap"] == [low, high]
    assert not [r for r in rows_of(a_comparison(("a", "b"), seeds=9)) if r["statistic"].startswith("bootstrap")]


def test_the_same_comparison_gives_the_same_bytes(a_comparison: Make):
    def made() -> dict[str, bytes]:
        return results.files(a_comparison(("a", "b"), ("x", "y")), rounds=True)

    first = made()
    names = {"results.csv", "rounds.csv", "results.tex", "results.pdf", "results.png", "summary.json", "report.html"}
    assert set(first) == names
    assert made() == first


def test_the_summary_is_json_that_can_be_read_back(a_comparison: Make):
    found: Any = json.loads(results.files(a_comparison(), picture=False)["summary.json"])
    setting = found["settings"][""]
    assert setting["verdict"].startswith("raflora is ahead of flexlora.")
    assert [x["label"] for x in setting["methods"]] == ["raflora", "flexlora"]
    assert found["cells"] == {"done": 6}


def test_an_untrained_model_is_a_line(a_comparison: Make):
    comparison = a_comparison(untrained={"": {"test": {"accuracy": 0.251}}})
    assert re.search(r"^  untrained +25\.1", results.terminal_table(comparison).plain, re.MULTILINE)


def test_a_rough_number_has_no_exponent():
    assert [two_digits(x) for x in (170.3, 1234.0, 99.4, 8.25, 0.031)] == ["170", "1,200", "99", "8.2", "0.031"]
