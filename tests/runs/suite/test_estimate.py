"""What a dry run says of a suite is what its report says."""

from pathlib import Path

from fedelta.report.cautions import cautions
from fedelta.report.numerals import listed
from fedelta.report.outcome import outcomes
from fedelta.runs.suite.estimate import separable
from fedelta.runs.suite.gather import comparison_of
from fedelta.runs.suite.start import Wanted, ready
from fedelta.runs.suite.work import Options, Work

DRIFT = Path(__file__).resolve().parents[3] / "experiments" / "drift" / "small.yaml"


def test_a_dry_run_names_as_many_seeds_as_the_report_against_the_best_mean_of_the_methods(tmp_path: Path) -> None:
    """`centralised` is a line to compare with: the best mean is a method's, however far it lies below that line."""
    made = ready(str(DRIFT), Wanted(output=tmp_path))
    found = comparison_of(Work(made.plan, made.book, Options()), made.text)
    (needed,) = separable(found).values()
    assert not {"centralised", "local_only"} & needed.keys()
    (setting,) = outcomes(found).values()
    said = next(mark.text for mark in cautions(setting) if mark.head == "more seeds")
    assert listed([f"{label} {seeds or 'more than 100'}" for label, seeds in needed.items()]) in said
