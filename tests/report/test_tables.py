"""Tables say what the records say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from fedelta.report import tables
from fedelta.report.split_table import FARTHEST, MOST_CLIENTS, split_table

Record = Callable[..., dict[str, Any]]


def text_of(table: Any) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - only the recording is read
    console.print(table)
    return console.export_text()


def test_the_summary_gives_the_last_scores_with_the_majority_line(record: Record):
    shown = text_of(tables.summary([record(0), record(1)], majority=0.22, folder=Path("runs/x"), best=1))
    for part in ("0.6000", "mean 0.6000, worst 0.2500", "0.2200", "8.0 MiB", "3 min 0 s", "1, from 0", "runs/x"):
        assert part in shown
    assert "page" not in shown, "there is none"


def test_the_summary_shows_known_lines_and_what_made_them(record: Record):
    scores = {"local_only": {"test": {"accuracy": 0.41}}, "centralised": {"test": {"loss": 0.1}}}
    known = {"command": "fedelta compare lines.yaml", "commit": "abc1234", "scores": scores}
    shown = text_of(tables.summary([record(0)], majority=0.22, folder=Path("runs/x"), lines=known))
    assert "each client alone" in shown
    assert "0.4100" in shown
    assert "fedelta compare lines.yaml at abc1234" in shown
    assert "all rows in one place" not in shown, "it has no accuracy"


def test_the_summary_of_a_run_without_accuracy_has_no_majority_line(record: Record):
    shown = text_of(tables.summary([record(0, test={"loss": 2.0}, validation={}, clients={})], majority=0.22, folder=Path()))
    assert "test loss" in shown
    assert "majority" not in shown


def test_brackets_in_names_are_no_markup():
    row = {"setting": "", "label": "hetlora [bold]", "cells": 1, "done": 0, "tuning": 0, "steps": 1, "bytes": 1, "memory": 1}
    assert "hetlora [bold]" in text_of(tables.suite_plan_table([row | {"refused": ""}], 0.0, 1, {}))
    assert "runs/[red]" in text_of(tables.scores_table("runs/[red]", {"accuracy": 0.5}))
    clients = [{"client": 0, "name": "site [b]", "rank": 4, "examples": 2, "labels": {"[i]": 2}, "distance": 0.0}]
    shown = text_of(split_table(clients))
    assert "site [b]" in shown
    assert "[i] 100%" in shown


def test_the_split_table_has_a_line_for_each_client():
    rows = [
        {"client": 0, "rank": 4, "examples": 10, "labels": {"a": 2, "b": 8}, "top_share": 0.8, "distance": 0.3},
        {"client": 1, "rank": 2, "examples": 0, "labels": {"a": 0, "b": 0}, "top_share": None, "distance": None},
    ]
    lines = text_of(split_table(rows)).splitlines()
    assert next(line.split() for line in lines if line.startswith("0")) == ["0", "4", "10", "0.30", "b", "80%,", "a", "20%"]
    assert next(line.split() for line in lines if line.startswith("1")) == ["1", "2", "0", "–"]


def test_the_split_of_many_clients_is_summed_up_by_rank_and_names_the_farthest():
    def row(k: int) -> dict[str, Any]:
        labels = {"a": k, "b": 1}
        return {"client": k, "rank": 2 + k % 2, "examples": k + 1, "labels": labels, "top_share": 0.5, "distance": k / 100}

    few, many = [row(k) for k in range(MOST_CLIENTS)], [row(k) for k in range(MOST_CLIENTS + 1)]
    assert "by rank" not in text_of(split_table(few))
    lines = [line.split() for line in text_of(split_table(many)).splitlines()]
    assert ["2", "21", "1", "21", "41", "0.00", "0.20", "0.40"] in lines
    assert ["all", "41", "1", "21", "41", "0.00", "0.20", "0.40"] in lines
    clients = [line[0] for line in lines if (line and line[-1] == "2%") or (line and line[-1] == "3%")]
    assert clients[0] == str(MOST_CLIENTS)
    assert len(clients) == FARTHEST


def test_a_table_of_a_narrow_terminal_breaks_no_figure():
    console = Console(width=30, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - only the recording is read
    rows = [["some words that can go on below", "123456789012"]]
    console.print(tables.plain_table("", ["a rather long name", "figure"], rows))
    assert "123456789012" in console.export_text()
