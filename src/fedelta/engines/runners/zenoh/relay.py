"""Runs a relay, at which nodes meet that can only dial out. It sees all that it carries, and looks at names alone."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from fedelta.engines.runners.zenoh.session import opened, refusals_logged
from fedelta.engines.runners.zenoh.settings import Certificates, relay


def serve(names: Sequence[str], endpoint: str, certificates: Certificates, until: threading.Event | None = None) -> None:
    """Carries post between the nodes of these names until an event, or for ever.

    Raises:
        OSError: for an endpoint at which it cannot listen.
    """
    with refusals_logged():
        session = opened(relay(names, endpoint, certificates))
        try:
            (until or threading.Event()).wait()
        finally:
            session.close()
