"""The server's end of Flower: a ServerApp that carries out one run over its grid, and ends with it."""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false, reportUntypedFunctionDecorator=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedelta.engines.runners.flower.sites import FlowerCarrier


def server_app(carry_out: Callable[[FlowerCarrier, Mapping[str, Any]], object]) -> ServerApp:
    """Returns a ServerApp.

    Args:
        carry_out: (the way to the sites, the app's config of the run, as `flwr run -c` changes it) -> nothing.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # pyright: ignore[reportUnusedFunction] - Flower calls it
        carry_out(FlowerCarrier(grid), context.run_config)

    return app
