"""The engine of the page on engines: it serves one run after another, and a run that is taken up."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedelta import federate, get_method
from fedelta.client import LocalClient
from fedelta.exchange import wire
from fedelta.models.toy import toy_federation

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "own-engine.md"


@pytest.fixture(scope="module", name="engine")
def engine_of_the_page() -> Any:
    found = re.search(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found is not None
    assert len(found[1].splitlines()) < 60
    names: dict[str, Any] = {}
    exec(found[1], names)  # what the page tells the reader to run
    return names["Threads"]


def apart() -> list[LocalClient]:
    return [toy_federation((2, 2, 2))[k] for k in range(3)]


def test_nothing_of_one_run_stays_in_the_next(engine: Any) -> None:
    used = engine()
    for mu in (0.1, 100.0):
        method = get_method("fedprox", mu=mu)
        *_, again = federate(method, apart(), rounds=2, engine=used)
        *_, fresh = federate(method, apart(), rounds=2, engine=engine())
        assert wire.encode(again.state) == wire.encode(fresh.state)


def test_a_run_is_taken_up_with_a_new_engine(engine: Any) -> None:
    method = get_method("scaffold")
    *_, first = federate(method, apart(), rounds=2, engine=engine())
    *_, last = federate(method, apart(), rounds=4, start=first.snapshot, engine=engine())
    assert (last.t, last.dropped) == (3, {})
