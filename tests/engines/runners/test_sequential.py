"""One client after another: nothing of an answer stays while the next one is made."""

import weakref
from typing import Any

import pytest

from fedelta.engines.letters import Reply
from fedelta.engines.runners import sequential
from fedelta.engines.server import federate
from fedelta.methods import get_method
from fedelta.models.toy import toy_federation


def test_a_reply_is_gone_when_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Reply]] = []
    answered_by = sequential.answered_by

    def watched(*args: Any) -> Any:
        assert not any(reply() is not None for reply in made)
        found = answered_by(*args)
        assert not isinstance(found, Exception)
        made.append(weakref.ref(found[0]))
        return found

    monkeypatch.setattr(sequential, "answered_by", watched)
    list(federate(get_method("fedavg"), toy_federation(), rounds=2, engine="sequential", debug=True))
    assert len(made) == 6
