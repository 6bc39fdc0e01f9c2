"""The site's end of Flower: a ClientApp that hands each parcel on. It imports no torch: each message may start it anew.

What answers, a worker behind a socket or something built in this process, is the caller's to say.
"""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedelta.engines.runners.flower.packing import GRACE, pack, unpack
from fedelta.exchange.parcels import Parcel

Handle = Callable[[Parcel], Parcel]
"""A site behind one function."""


def client_app(handle_for: Callable[[Mapping[str, Any], float], Handle]) -> ClientApp:
    """Returns a ClientApp that answers parcels of every kind.

    Args:
        handle_for: (the node's config, as `flower-supernode --node-config` or a simulation gives it, seconds after which the
            server waits no longer) -> the site.
    """
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        parcel = unpack(message.content)
        try:
            reply = handle_for(context.node_config, message.metadata.ttl - GRACE)(parcel)
        except (ConnectionError, FileNotFoundError) as error:  # a worker that is not up yet, or was restarted
            reply = Parcel("refusal", {"reason": f"{type(error).__name__}: {error}", "again": True})
        except TimeoutError as error:  # a worker that hangs must not hold its node
            reply = Parcel("refusal", {"reason": f"{type(error).__name__}: {error}"})
        return Message(pack(reply), reply_to=message)

    for register in (app.query, app.train, app.evaluate):
        register()(answer)
    return app
