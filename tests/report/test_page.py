"""The page: every state says what it is, every number is that of the statistics, and no name becomes markup."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from scipy import stats

from fedelta.report.grouping import study_of
from fedelta.report.page import page
from fedelta.report.study import Run

Study = Callable[..., list[Run]]

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Reader(HTMLParser):
    """Collects elements and text, and notes what is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.faults: list[str] = []
        self.words = ""
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
        if not self.open or self.open[-1] != "style":
            self.words += data


def words(text: str) -> str:
    return re.sub(r"\s+", " ", Reader(text).words)


def changed(run: Run, **config: Any) -> Run:
    return replace(run, config={**run.config, **config})


def test_a_page_is_one_file_without_script_or_network(a_study: Study):
    for runs in (a_study(), a_study(("flexlora",), seeds=1)):
        read = Reader(page(runs))
        assert not read.faults
        assert not read.open
        names = {tag for tag, _ in read.tags}
        assert not names & {"script", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
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
        assert "<script" not in text
        assert "</style>{{" not in text
        assert not [a for tag, a in read.tags if tag in ("script", "img") or "onerror" in a]
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


def test_a_diverged_run_counts_as_a_constant_answer_and_is_marked(a_study: Study):
    runs = a_study(("a", "b"), seeds=3)
    runs[0].records[-1].update(train_loss=None, test={"accuracy": None, "loss": None})  # pyright: ignore
    assert study_of(runs).table["m0"][0] == 0.3
    text = words(page(runs))
    assert "diverged runs/a-0: counted as the share of the commonest label" in text
    assert "The run diverged." in words(page(runs[:1]))


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
