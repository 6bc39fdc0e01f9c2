"""The conformance kit: laws that every method obeys, and a battery for any function that aggregates adapters.

    from fedelta.testing import check_method
    check_method(MyMethod)      # raises with the law that is broken, where, and by how much

The project's own tests ask the same laws of every registered method; there is no other table of them.
"""

from __future__ import annotations

from fedelta.testing.aggregators import AGGREGATOR_LAWS, check_aggregator
from fedelta.testing.laws import LAWS, UNEQUAL_RANKS
from fedelta.testing.methods import check_method, method_from_file, named, scene_of
from fedelta.testing.reports import ConformanceError, Law, Report, Verdict, Violation, judge

__all__ = [
    "AGGREGATOR_LAWS",
    "LAWS",
    "UNEQUAL_RANKS",
    "ConformanceError",
    "Law",
    "Report",
    "Verdict",
    "Violation",
    "check_aggregator",
    "check_method",
    "judge",
    "method_from_file",
    "named",
    "scene_of",
]
