"""The page: every state says what it is, every number is that of the statistics, and no name becomes markup."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from scipy import stats

from fedelta.report.compared import compared
from fedelta.report.comparison import Cell, Comparison, Tuned
from fedelta.report.grouping import study_of
from fedelta.report.page import page
from fedelta.report.standings import standings
from fedelta.report.study import Run
from fedelta.report.summary import summary

Study = Callable[..., list[Run]]
Make = Callable[..., Comparison]

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Reader(HTMLParser):
    """Collects elements and text, and notes what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.words = ""
        self.data = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.words += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data = data
        elif not self.open or self.open[-1] != "style":
            self.words += data


def words(text: str) -> str:
    return re.sub(r"\s+", " ", Reader(text).words)


def changed(run: Run, **config: Any) -> Run:
    return replace(run, config={**run.config, **config})


def test_the_facts_of_a_run_with_a_file_for_each_client_are_of_these_files(a_study: Study):
    (run,) = a_study(("flexlora",), seeds=1)
    files = {name: f"/home/somebody/{name}.jsonl" for name in "abcde"}
    run = changed(
        run,
        data={"source": "docstrings", "clients": files},
        partition={"scheme": "iid", "clients": 10},
        lora={"rank": [2, 4, 8, 4, 2]},
    )
    for shown in (page([replace(run, split=None, clients=None)]), page([replace(run, split=None)])):
        assert "5 clients, 4 a round" in words(shown)
        assert "split: a file for each client" in words(shown)
        assert "data in 5 files" in words(shown)
        assert "ranks 8 · 4 · 2" in words(shown)
    drawn = changed(run, data={"source": "docstrings"}, lora={"rank": {"choices": [2, 16], "shares": None}})
    shown = words(page([replace(drawn, split=None)]))
    assert "10 clients, 4 a round" in shown
    assert "data docstrings" in shown
    assert "ranks 16 · 2" in shown


def test_the_facts_of_a_run_of_a_program_name_no_default_of_a_config(a_study: Study):
    (run,) = a_study(("flexlora",), seeds=1)
    shown = words(page([changed(run, federation={"rounds": 4, "where": "program"}, data={"source": "program"})]))
    assert "data of a program" in shown
    assert "split: as the program dealt the rows" in shown


def test_the_command_behind_the_lines_stands_without_marks_that_nobody_renders(a_study: Study):
    (run,) = a_study(("flexlora",), seeds=1)
    lines = {"command": "fedelta compare study.yaml", "commit": "abc", "scores": {}}
    shown = words(page([replace(run, facts={**run.facts, "lines": lines})]))
    assert "lines to compare with: fedelta compare study.yaml at abc" in shown
    assert "`" not in shown


def test_a_page_is_one_file_without_script_or_network(a_study: Study):
    for runs in (a_study(), a_study(("flexlora",), seeds=1)):
        read = Reader(page(runs))
        assert not read.faults
        assert not read.open
        names = {tag for tag, _ in read.tags}
        scripts = [attributes for tag, attributes in read.tags if tag == "script"]
        assert scripts == [{"type": "application/json", "id": "summary"}], "data, which does not run"
        assert not names & {"img", "iframe", "object", "embed", "base", "form", "video", "audio"}
        policies = [a["content"] for tag, a in read.tags if tag == "meta" and a.get("http-equiv")]
        assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
        links = [value for _, a in read.tags for key, value in a.items() if key in ("href", "src", "xlink:href", "style")]
        assert all(str(link).startswith(("#", "data:,")) for link in links)
        assert not [key for _, a in read.tags for key in a if key.startswith("on")]
        assert "url(" not in page(runs)


HOSTILE = """<script>alert(1)</script>"><img src=x onerror=alert(2)>'&\u202e</style>{{7*7}}"""


def test_nothing_that_comes_from_a_folder_becomes_markup(a_study: Study):
    """A stranger may have sent the folder: names of runs, methods, settings, layers, labels, clients and reasons are his."""
    runs = a_study((HOSTILE, "b"), seeds=3)
    for i, run in enumerate(runs):
        layers = {"layer": [HOSTILE], "effective_rank": [1.5]}
        records = [{**r, "dropped": {HOSTILE: HOSTILE}} for r in run.records]
        for record in records:
            bands = {HOSTILE: 0.5, "3-": 0.5}
            record["diagnostics"] = {
                **record["diagnostics"],
                "layers": layers,
                "energy_by_band": bands,
                "aggregation_error": None,
            }
            record["diagnostics"]["aggregation_error_reason"] = HOSTILE
            record["clients"]["accuracy"]["worst_client"] = HOSTILE
        split = {"clients": {HOSTILE: {"rows": 3, "test_rows": 1, "rank": 2, "labels": {HOSTILE: 3}}}}
        lines = [{"t": 3, "clients": {HOSTILE: {"scores": {"accuracy": 0.5}}}}]
        facts = {**run.facts, "platform": {"torch": HOSTILE, "device": HOSTILE}, "rows": {HOSTILE: 3}}
        config = {**run.config, "name": HOSTILE, "data": {"source": HOSTILE}, "task": {HOSTILE: HOSTILE}}
        runs[i] = Run(HOSTILE + str(i), records, config, facts, split, lines)
    for shown in (runs, runs[:1], runs[:2]):
        text = page(shown, title=HOSTILE)
        read = Reader(text)
        assert not read.faults
        assert text.count("<script") == text.count("</script") == 1
        assert json.loads(read.data)["settings"], "no name ends the block of data"
        assert "</style>{{" not in text
        assert not [a for tag, a in read.tags if tag == "img" or "onerror" in a or (tag == "script" and a.get("type") is None)]
        assert text.count("<style>") == text.count("</style>") == 1
        assert HOSTILE in read.words, "it is shown, as text"
    plain = {tag for tag, _ in Reader(page(a_study())).tags}
    assert {tag for tag, _ in read.tags} <= plain | {"text"}


def test_the_same_runs_give_the_same_bytes(a_study: Study):
    assert page(a_study()) == page(a_study())


def test_the_table_has_the_numbers_of_scipy(a_study: Study):
    runs = a_study(("a", "b", "c"), seeds=4)
    last = {(run.method, run.seed): run.records[-1]["test"]["accuracy"] for run in runs}
    a, b = ([100 * last[name, seed] for seed in range(4)] for name in ("a", "b"))
    bounds = stats.ttest_rel(b, a).confidence_interval()
    difference = sum(b) / 4 - sum(a) / 4
    text = words(page(runs))
    assert f"{sum(b) / 4:.1f}" in text
    assert f"± {stats.tstd(b):.1f} sd" in text
    assert f"{difference:+.1f} {bounds.low:+.1f} to {bounds.high:+.1f}".replace("-", "\u2212") in text


def test_a_clear_winner_is_said_and_ties_are_ties(a_study: Study):
    assert "b is ahead of a." in words(page(a_study(("a", "b"), seeds=5)))
    level = a_study(("a", "b"), seeds=3, test=lambda r: {"accuracy": 0.5 + (r["train_loss"] * 7919) % 0.1})
    for run in level:
        run.records[-1]["test"] = {"accuracy": 0.5 + (hash_of(run) % 100) / 1000}
    text = words(page(level))
    assert "No method is clearly best." in text
    assert "3 seeds cannot tell it from" in text


def hash_of(run: Run) -> int:
    return {"a": (7, 50, 3), "b": (40, 2, 33)}[run.method][run.seed]


def test_a_named_baseline_is_what_verdicts_are_against(a_study: Study):
    text = words(page(a_study(("a", "b"), seeds=5), baseline="b"))
    assert "No method is ahead of b." in text
    assert "a is behind b." in text
    with pytest.raises(ValueError, match="no run of the baseline 'zeropad'"):
        page(a_study(), baseline="zeropad")


def test_seeds_that_would_separate_from_the_best_mean_are_of_methods_that_are_not(a_study: Study):
    # Against the baseline a nothing is left open, but b and c cannot be told apart.
    runs = a_study(("a", "b", "c"), seeds=5)
    level = {"b": (0.80, 0.82, 0.81, 0.80, 0.82), "c": (0.82, 0.80, 0.81, 0.82, 0.81), "a": (0.5, 0.5, 0.51, 0.5, 0.51)}
    for run in runs:
        run.records[-1].update(test={"accuracy": level[run.method][run.seed]})  # pyright: ignore
    text = words(page(runs, baseline="a"))
    assert "b and c are ahead of a." in text
    assert re.search(r"would separate from the best mean, roughly: b ", text)
    assert "roughly: a" not in text


def test_nobody_is_judged_who_lacks_seeds(a_study: Study):
    runs = [run for run in a_study(("a", "b"), seeds=4) if run.method == "a" or run.seed < 2]
    text = words(page(runs, baseline="a"))
    assert "No verdict against a." in text
    assert "The others lack seeds." in text


def test_a_method_without_a_score_stands_last_also_where_small_is_better(a_study: Study):
    runs = a_study(("a", "b", "c"), seeds=3)
    for run in runs:
        if run.method == "c" or (run.method == "b" and run.seed == 0):
            run.records[-1].update(train_loss=None, test=None)  # pyright: ignore
    c = compared(study_of(runs, metric="loss"))
    assert [group.label for group in c.ranked()] == ["a", "b", "c"]


def test_a_metric_that_is_better_when_small_turns_everything_round(a_study: Study):
    text = words(page(a_study(("a", "b"), seeds=5), metric="loss"))
    assert "b is ahead of a." in text
    assert "lowest mean" in text
    assert text.index("b best mean") < text.index("a behind"), "the smaller loss stands first"


def test_one_seed_speaks_of_no_interval(a_study: Study):
    text = words(page(a_study(seeds=1)))
    assert "One seed: a difference may be chance." in text
    body = text.split("What was run", 1)[1]
    for word in ("±", "95 %", "best mean", "not separated", "is behind", "bands overlap", "band:", "of the seeds", "and seeds"):
        assert word not in body, word


def test_two_seeds_allow_no_verdict(a_study: Study):
    text = words(page(a_study(seeds=2)))
    assert "Two seeds allow no verdict." in text
    assert "no verdicts below 3 seeds" in text
    for word in ("not separated", "b best mean", "a behind"):
        assert word not in text


def test_one_run_has_no_winner(a_study: Study):
    text = words(page(a_study(("flexlora",), seeds=1)))
    assert "flexlora ends at" in text
    assert "Who wins" not in text
    assert "Show methods" in text
    assert "/home/somebody" not in page(a_study()), "a path says who somebody is"


def test_one_run_stands_between_the_lines_that_came_with_its_config(a_study: Study):
    (run,) = a_study(("flexlora",), seeds=1)
    assert "each client alone" not in words(page([run]))
    scores = {"local_only": {"test": {"accuracy": 0.21}}, "centralised": {"test": {"accuracy": 0.987}, "validation": {}}}
    known = {"lines": {"command": "fedelta compare lines.yaml", "commit": "abc1234", "scores": scores}}
    text = words(page([replace(run, facts={**run.facts, **known})]))
    assert "To compare: each client alone 21.0 % and all rows in one place 98.7 %." in text
    assert "fedelta compare lines.yaml" in text
    assert "abc1234" in text
    # In the chart of scores, too.
    assert text.count("local_only") == text.count("centralised") > 0


def test_without_validation_there_is_no_best_round(a_study: Study):
    text = words(page(a_study(validation=None)))
    assert "no validation rows" in text
    assert "no validation rows to choose a round by" in words(page(a_study(("a",), seeds=1, validation=None)))


def test_without_test_rows_validation_is_shown_and_marked(a_study: Study):
    text = words(page(a_study(test=None)))
    assert "scored on the rows that chose" in text
    assert "validation accuracy" in text


def test_without_scores_there_are_losses_and_bytes(a_study: Study):
    text = words(page(a_study(test=None, validation=None, clients=None)))
    assert "No scores yet." in text
    assert "ends with the lowest training loss" in text
    assert "sent" in words(page(a_study(("a",), seeds=1, test=None, validation=None)))


def test_lines_alone_may_have_scores(a_study: Study):
    runs = a_study(("a", "centralised"), seeds=2)
    for run in runs:
        if run.method == "a":
            for record in run.records:
                record.update(test=None, validation=None)  # pyright: ignore
    assert "From " in words(page(runs))


def test_a_line_says_of_how_many_seeds_it_is(a_study: Study):
    runs = a_study(("a", "b"), seeds=3)
    runs[0].records[-1].update(train_loss=None, test=None)  # pyright: ignore
    assert "Line: mean of the seeds, 2 to 3;" in words(page(runs))


def test_a_diverged_run_counts_as_a_constant_answer_and_is_marked(a_study: Study):
    runs = a_study(("a", "b"), seeds=3)
    runs[0].records[-1].update(train_loss=None, test={"accuracy": None, "loss": None})  # pyright: ignore
    assert study_of(runs).table["m0"][0] == 0.3
    text = words(page(runs))
    assert "diverged runs/a-0: counted as the share of the commonest label" in text
    assert "The run diverged." in words(page(runs[:1]))


def test_a_run_that_ended_early_is_no_cost_and_hides_no_worst_client(a_study: Study):
    runs = a_study(("a", "b"), seeds=3)
    early = replace(runs[1], records=[{**runs[1].records[0], "train_loss": None}], facts={**runs[1].facts, "diverged": "nan"})
    cut = [runs[0], early, *runs[2:]]
    assert (early.seed, early.method, early.finished, early.whole) == (0, "b", True, False)
    whole, lossy = (next(s for s in standings(compared(study_of(each))) if s.group.label == "b") for each in (runs, cut))
    assert (lossy.sent, lossy.steps, lossy.seconds) == (whole.sent, whole.steps, whole.seconds)
    assert whole.worst is not None
    assert lossy.worst is None
    assert "unfinished" not in words(page(cut))
    lost = [replace(run, facts={**run.facts, "diverged": "nan"}, records=run.records[:1]) for run in runs if run.method == "b"]
    text = words(page([*(run for run in runs if run.method == "a"), *lost]))
    assert "b sends the least" not in text
    assert "the least is" not in text


def test_an_unfinished_run_is_a_missing_cell(a_study: Study):
    runs = a_study(("a", "b"), seeds=3)
    runs[2] = replace(runs[2], records=runs[2].records[:2])
    text = words(page(runs))
    assert "runs/a-1 ends after round 2 of 4" in text
    assert "a lacks seed 1" in text
    assert "2 of 3 seeds" in text
    assert text.index("b best mean") < text.index("a 2 of 3 seeds"), "a method that lacks cells stands last"
    assert "a is at" in words(page([runs[2]]))


def test_runs_that_are_all_unfinished_are_compared_where_all_are(a_study: Study):
    runs = [replace(run, records=run.records[: 2 + run.seed]) for run in a_study(("a", "b"), seeds=2)]
    assert study_of(runs).last == 1


def test_clients_that_are_withheld_are_said_to_be(a_study: Study):
    runs = [replace(run, clients=None, split=None) for run in a_study()]
    text = words(page(runs))
    assert "clients.jsonl is not with these runs; it was withheld" in text
    assert "split.json is not with these runs" in text
    assert "worst: client" not in text
    assert "client 2, seed 1:" in words(page(a_study()))


def test_nodes_of_a_graph_have_their_section(a_study: Study):
    graph = {"consensus_product_relative": 0.3, "cross_term_norm": 0.1}
    text = words(page(a_study(topology={}, diagnostics=lambda r: {**r["diagnostics"], **graph})))
    assert "Do the nodes agree?" in text
    assert "per edge, counted up" in text
    assert "Do the nodes agree?" not in words(page(a_study()))


def test_personal_models_are_said_to_be(a_study: Study):
    runs = [replace(run, facts={**run.facts, "personal": True}) for run in a_study()]
    assert "mean over the participants’ own models" in words(page(runs))


def test_runs_on_other_rows_are_not_compared(a_study: Study):
    runs = a_study(("a", "b"), seeds=3)
    runs = [changed(run, data={"source": f"{run.method}.jsonl"}) for run in runs]
    text = words(page(runs))
    assert "These runs answer different questions." in text
    assert "data.source" in text
    assert "95 % t-intervals" not in text


def test_the_seed_is_never_a_method_and_settings_tell_namesakes_apart(a_study: Study):
    runs = a_study(("a",), seeds=3)
    others = [changed(run, training={"learning_rate": 0.1}) for run in runs]
    assert [group.label for group in study_of([*runs, *others]).groups] == ["a, learning_rate 0.01", "a, learning_rate 0.1"]
    again = [replace(run, name="again") for run in runs]
    assert [len(group.runs) for group in study_of([*runs, *again]).groups] == [3, 3]
    more = [changed(run, federation={"rounds": 4, "engine": "batched"}) for run in runs[1:]]
    assert len(study_of([runs[0], *more]).groups) == 1, "how it was computed makes no other method"


def test_above_five_methods_the_best_and_the_baseline_have_colours(a_study: Study):
    study = study_of(a_study([*"abcdefgh", "local_only"], seeds=1))
    styles = {group.label: group.style for group in study.groups}
    assert {name for name, style in styles.items() if style.startswith("k") and style[1:].isdigit()} == {*"aefgh"}
    assert styles["local_only"] == "kr"


def test_a_page_of_24_runs_is_small(a_study: Study):
    text = page(a_study([*"abcdefgh"], seeds=3, rounds=30))
    assert len(text.encode()) < 1_500_000


def test_a_page_of_a_suite_of_24_cells_is_small(a_comparison: Make):
    assert len(page(a_comparison([*"abcdefgh"], seeds=3, rounds=30)).encode()) < 1_500_000


def test_absurd_numbers_are_left_out_and_do_not_end_the_page(a_study: Study):
    for value in (1e300, None, -1e300):
        text = page(a_study(train_loss=lambda r, v=value: v if r["t"] == 2 else 1.0, test={"accuracy": 0.5, "loss": value}))
        assert "nan" not in Reader(text).words.lower().split()
        assert "inf" not in Reader(text).words.lower().split()
    page(a_study(diagnostics={"layers": {"layer": 3, "effective_rank": "x"}, "energy_by_band": {"1-2": "x"}}))


def test_nothing_to_report_is_an_error(a_study: Study):
    with pytest.raises(ValueError, match="no run has finished a round"):
        page([replace(a_study()[0], records=[])])


def test_the_marks_of_honesty_are_computed(a_study: Study):
    text = words(page(a_study(("a", "b"), seeds=3)))
    assert "still rising a and b gained more than 2 pp" in text
    assert "not tuned" in text
    assert "few rows a client a client is tested on 10 to 10 rows" in text
    assert "below the commonest label" not in text
    low = words(page(a_study(("a", "b"), seeds=3, test={"accuracy": 0.2}, validation={"accuracy": 0.2})))
    assert "below the commonest label a and b: a constant answer scores 30" in low
    assert "still rising" not in low
    runs = a_study(("a", "b"), seeds=3)
    runs[0] = replace(runs[0], facts={**runs[0].facts, "platform": {"torch": "3"}})
    assert "other platform" in words(page(runs))


def test_records_are_plain_json_when_they_come_from_a_file(a_study: Study):
    """A page takes what `json.loads` gives."""
    runs = [replace(run, records=json.loads(json.dumps(list(run.records)))) for run in a_study()]
    assert page(runs) == page(a_study())


# --- a suite ---------------------------------------------------------------------------------------------------------


def lead_row(text: str, label: str) -> str:
    """The words of a method's row in the first table."""
    row = next(x for x in re.findall(r"<tr[^>]*>.*?</tr>", text.split('class="lead"')[1], re.DOTALL) if f">{label}</bdi>" in x)
    return words(row)


def test_a_suite_embeds_its_summary_and_its_text(a_comparison: Make):
    comparison = a_comparison(text="base: <mine>\nseeds: 3\n", command="fedelta compare trial.yaml")
    text = page(comparison)
    assert json.loads(Reader(text).data) == json.loads(json.dumps(summary(comparison)))
    assert "base: <mine> seeds: 3" in words(text)
    assert "fedelta compare trial.yaml" in words(text)
    assert "commit abc1234" in words(text)
    assert re.search("sha256 [0-9a-f]{64}", words(text))
    assert page(comparison) == page(comparison)


def test_a_refused_method_is_a_row_with_the_claims_sentence(a_comparison: Make):
    text = page(a_comparison(("a", "b", "c"), without=[("", "c", "not applicable", "c <needs> a server")]))
    assert lead_row(text, "c").split() == ["c", "not", "applicable", "c", "<needs>", "a", "server"]
    assert "not applicable c: the table says why" in words(text)
    assert "empty cells" not in words(text)
    assert 'id="m2"' in text, "it has a chip, too"


def test_a_failed_cell_is_greyed_and_says_why(a_comparison: Make):
    comparison = a_comparison(("a", "b"))
    cells = [*comparison.cells[:-1], Cell("", "b", 2, "failed", None, "out of memory")]
    text = page(replace(comparison, cells=cells))
    assert "2 of 3 seeds" in lead_row(text, "b")
    assert "failed b seed 2 (out of memory)" in words(text)
    row = next(x for x in re.findall(r"<tr[^>]*>.*?</tr>", text, re.DOTALL) if "failed: out of memory" in x)
    assert 'class="gone"' in row
    waiting = replace(comparison, cells=[*comparison.cells[:-1], Cell("", "b", 2, "missing")])
    assert "not all cells 1 missing of 6" in words(page(waiting))


def test_how_rates_were_found_stands_beside_them(a_comparison: Make):
    edge, inside = Tuned({"training.learning_rate": 0.01}, {}, True), Tuned({"training.learning_rate": 0.01}, {})
    text = page(a_comparison(tuned={("", "flexlora"): edge, ("", "raflora"): inside}))
    assert "at the edge of the grid flexlora (learning_rate 0.01)" in words(text)
    assert "0.01 at the edge" in lead_row(text, "flexlora")
    assert "at the edge" not in lead_row(text, "raflora")
    assert "rate tuned" in words(text)
    assert "not tuned" not in words(text)
    part = page(a_comparison(tuned={("", "flexlora"): inside}))
    assert "not tuned raflora: values are those of the config" in words(part)
    assert "0.01 not tuned" in lead_row(part, "raflora")


def test_cells_of_several_commits_are_marked(a_comparison: Make):
    comparison = a_comparison()
    text = words(page(replace(comparison, cells=[replace(comparison.cells[0], commit="9999999+"), *comparison.cells[1:]])))
    assert "several commits cells were run by the code of 9999999+ and abc1234" in text
    assert "local changes" in text
    assert "several commits" not in words(page(comparison))


def test_lines_to_compare_with_stand_in_the_forest_and_in_the_curves(a_comparison: Make):
    comparison = a_comparison(("a", "b", "local_only"), untrained={"": {"test": {"accuracy": 0.44}}})
    text = page(comparison)
    forest = re.search(r'<td class="fc">.*?</td>', text.split('data-m="m1"')[-1].join(["", text]), re.DOTALL)
    assert forest is not None
    assert text.count("<title>local_only</title>") >= 3, "each row has the line"
    assert lead_row(text, "untrained").split()[:2] == ["untrained", "44.0"]
    how = text.split('id="how"')[1].split("</figure>")[0]
    assert ">untrained</text>" in how
    assert ">commonest label</text>" in how


def test_macro_f1_stands_beside_accuracy_where_classes_are_unequal(a_comparison: Make):
    text = words(page(a_comparison()))
    assert "macro-F1, % the same round" in text
    comparison = a_comparison()
    cells = [replace(cell, run=with_labels(cell.run, {"cats": 20, "dogs": 20})) for cell in comparison.cells]
    assert "macro-F1" not in words(page(replace(comparison, cells=cells)))
    scored = [replace(cell, run=with_macro_f1(cell.run)) for cell in comparison.cells]
    assert "41.0" in lead_row(page(replace(comparison, cells=scored)), "raflora")


def with_labels(run: Run | None, labels: dict[str, int]) -> Run:
    assert run is not None
    return replace(run, split={"clients": {"0": {"rows": 40, "test_rows": 30, "rank": 4, "labels": labels}}})


def with_macro_f1(run: Run | None) -> Run:
    assert run is not None
    return replace(run, records=[{**r, "test": {**r["test"], "macro_f1": 0.41}} for r in run.records])


def test_settings_are_shown_side_by_side(a_comparison: Make):
    comparison = a_comparison(("a", "b", "c"), ("mild", "harsh"), without=[("harsh", "c", "not applicable", "no server")])
    cells = [replace(cell, run=cell.run and worse(cell.run)) if cell.setting == "harsh" else cell for cell in comparison.cells]
    text = page(replace(comparison, cells=cells))
    read = words(text)
    assert "Which setting matters?" in read
    assert "No method has the best mean in every setting: " in read
    assert "In mild: c is ahead of b and a." in read
    assert "Who wins in harsh" in read
    assert 'title="not applicable: no server"' in text
    section = text.split('id="settings"')[1]
    ticks = [re.findall(r'<text class="e"[^>]*>([^<]*)</text>', panel) for panel in section.split("<figure>")[2:]]
    assert len(ticks) == 2
    assert ticks[0] == ticks[1], "the panels share their axes"
    assert "Interquartile" not in read
    assert "Which setting matters?" not in words(page(a_comparison()))


def worse(run: Run) -> Run:
    return replace(run, records=[{**r, "test": {"accuracy": r["test"]["accuracy"] / 3}} for r in run.records])


def test_three_settings_are_put_together_and_five_are_ranked(a_comparison: Make):
    three = words(page(a_comparison(("a", "b", "c"), ("x", "y", "z"))))
    assert "highest interquartile mean" in three
    assert "Performance profile" in three
    assert "0 is commonest label, 1 is all right" in three
    assert "mean rank" not in three
    assert "which lack" not in three
    lacking = a_comparison(("a", "b", "c"), ("x", "y", "z"), without=[("y", "b", "failed", "")])
    assert words(page(lacking)).count("Without b, which lacks a run.") == 2
    five = words(page(a_comparison(("a", "b", "c"), [*"vwxyz"])))
    assert "5 settings part no method from" in five
    assert "interquartile" not in words(page(a_comparison(("a", "b"), ("x", "y", "z"), seeds=2)))


def test_bands_of_energy_come_from_the_spectrum_where_ranks_are_equal(a_study: Study):
    spectrum = [0.5, 0.2, 0.1, 0.1, 0.05, 0.03, 0.01, 0.01]
    text = words(page(a_study(diagnostics={"energy_by_band": None, "spectrum": spectrum})))
    for band in ("1–2", "3–4", "5–8"):
        assert f" {band} " in text
    assert "70 %" in text
    assert "10 %" in text
    rounded = [0.400001, 0.299999, 0.199999, 0.099999]
    assert "5 on" not in words(page(a_study(diagnostics={"spectrum": rounded}))), "six digits do not sum up to one"
    narrow = a_study(diagnostics=lambda r: {"spectrum": spectrum if r["t"] == 0 else [0.9, 0.1]})
    assert "5–8" in words(page(narrow)), "bands do not move when components vanish"


def test_what_a_run_was_made_of_stands_at_the_end(a_study: Study):
    origin = {
        "versions": {"python": "3.11.7", "peft": "0.21"},
        "commit": "abc1234+",
        "command": "fedelta run first.yaml",
        "cores": 2,
        "device": "NVIDIA H200",
        "base": "sha256:12",
        "license": "apache-2.0",
        "release": "4-bit release, dequantised",
        "data": {"train": "d" * 64},
        "start": "2026-11-30T10:00:00Z",
    }
    runs = [replace(run, facts={**run.facts, **origin}) for run in a_study(at="2026-11-30T11:00:00Z")]
    text = words(page(runs))
    for name, value in [("python", "3.11.7"), ("device", "NVIDIA H200"), ("command", "fedelta run first.yaml"), ("torch", "2")]:
        assert f"{name} {value}" in text, name
    assert "dates 2026-11-30T10:00:00Z to 2026-11-30T11:00:00Z" in text
    assert "digests train dddddddddddd" in text
    assert "license apache-2.0" in text
    assert "(4-bit release, dequantised)" in text
    assert "local changes" in text


def test_what_seeds_draw_is_said(a_study: Study):
    assert "the partition changes with the seed" in words(page(a_study()))
    assert "test rows change with the seed" in words(page(a_study()))
    fixed = [
        changed(run, seed={"data": 0, "partition": run.seed, "schedule": run.seed, "start": run.seed}) for run in a_study()
    ]
    assert "the partition changes with the seed" in words(page(fixed))
    assert "test rows change with the seed" not in words(page(fixed))
    still = [changed(run, seed={"data": 0, "partition": 0, "schedule": run.seed, "start": run.seed}) for run in a_study()]
    assert "the partition changes" not in words(page(still))


def test_clients_that_a_field_names_are_the_same_for_all_seeds(a_study: Study):
    named = [changed(run, partition={"scheme": "natural", "by": "site"}) for run in a_study()]
    assert "the partition changes" not in words(page(named))
    clients = {**(named[0].split or {})["clients"]}
    clients["0"] = {**clients["0"], "rows": clients["0"]["rows"] + 1}
    grouped_otherwise = [replace(named[0], split={"clients": clients}), *named[1:]]
    assert "the partition changes with the seed" in words(page(grouped_otherwise))


def test_a_busy_machine_is_said_to_be_one(a_study: Study):
    runs = [replace(run, facts={**run.facts, "cores": 2}) for run in a_study(load=2.5)]
    assert "busy machine 6 of 6 runs had more load than cores" in words(page(runs))
    quiet = [replace(run, facts={**run.facts, "cores": 4}) for run in a_study(load=2.5)]
    assert "busy machine" not in words(page(quiet))
    assert "busy machine" not in words(page(a_study()))


def test_seconds_by_stage_and_memory_are_shown_where_they_were_logged(a_study: Study):
    stages = {"round": 2.0, "train": 1.5, "aggregate": 0.5, "evaluation": 1.0, "save": 0.25}
    text = words(page(a_study(seconds=stages, memory={"peak": 3 * 2**30, "cuda": 2**29})))
    assert "Where the time goes" in text
    assert "train aggregate evaluation save memory, GiB GPU, GiB" in text
    assert "6.0 2.0 4.0 1.0 3.0 0.5" in text
    assert "Where the time goes" not in words(page(a_study()))
