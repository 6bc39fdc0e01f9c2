"""The conformance kit: laws that every method and every task obeys, and a battery for functions that aggregate adapters.

    from fedelta.testing import check_method
    check_method(MyMethod)      # raises with the law that is broken, where, and by how much; so does check_task(MyTask)

The project's own tests ask the same laws of every method and task; there is no other table of them.
"""

from __future__ import annotations

from fedelta.testing.aggregators import AGGREGATOR_LAWS, check_aggregator
from fedelta.testing.laws import LAWS, UNEQUAL_RANKS
from fedelta.testing.methods import check_method, scene_of
from fedelta.testing.reports import ConformanceError, Law, Report, Verdict, Violation, judge
from fedelta.testing.targets import check, class_from_file, named
from fedelta.testing.task_laws import TASK_LAWS
from fedelta.testing.tasks import check_task

__all__ = [
    "AGGREGATOR_LAWS",
    "LAWS",
    "TASK_LAWS",
    "UNEQUAL_RANKS",
    "ConformanceError",
    "Law",
    "Report",
    "Verdict",
    "Violation",
    "check",
    "check_aggregator",
    "check_method",
    "check_task",
    "class_from_file",
    "judge",
    "named",
    "scene_of",
]
