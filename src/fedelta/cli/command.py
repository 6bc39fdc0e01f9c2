"""Defines the `fedelta` command itself: its own options, and the end of a command that fails."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fedelta.cli.output import STOPPED, fail, note

MENDABLE = (ValueError, OSError, ImportError, ArithmeticError)
"""Errors whose message tells the user what to do; everything else is a fault of fedelta and keeps its traceback."""


class _Group(TyperGroup):
    """Turns errors into one message each."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note("stopped at once; a run that has finished a round can be taken up after it with --resume")
            raise typer.Exit(STOPPED) from None
        except Exception as error:
            if ctx.params.get("debug") or not _is_mendable(error):
                raise
            fail(str(error) or type(error).__name__)
            raise typer.Exit(2) from error


def _is_mendable(error: Exception) -> bool:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("fedelta"):
        return False
    # By name, since importing QuorumError imports torch. Its base, RuntimeError, is also that of many of torch's own errors.
    return isinstance(error, MENDABLE) or type(error).__name__ == "QuorumError"


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from fedelta import __version__

        typer.echo(f"fedelta {__version__}")
        raise typer.Exit


@app.callback()
def fedelta(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and stop.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Federated low-rank adaptation of Hugging Face models."""
