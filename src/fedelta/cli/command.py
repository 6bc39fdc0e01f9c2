"""Defines the `fedelta` command itself: its own options, and the end of a command that fails."""

from __future__ import annotations

import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fedelta.cli.output import STOPPED, fail, note

MENDABLE = (ValueError, OSError, ImportError, ArithmeticError)
"""Errors whose message tells the user what to do; everything else is a fault, of fedelta or of a user's own file."""

FAULT = 1
"""The exit code of a fault, and of an output that nobody reads any more."""


class _Group(TyperGroup):
    """Turns errors into one message each."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            note("stopped at once; a run that has finished a round can be taken up after it with --resume")
            raise typer.Exit(STOPPED) from None
        except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
            raise
        except Exception as error:
            if ctx.params.get("debug") or _is_of_typer(error):
                raise
            if _is_mendable(error):
                fail(str(error) or type(error).__name__)
                raise typer.Exit(2) from error
            fail(_fault(error))
            raise typer.Exit(FAULT) from error


def _is_of_typer(error: Exception) -> bool:
    """Returns whether an error is one by which typer ends a command, such as that of a wrong option."""
    return isinstance(error, typer.Abort) or hasattr(error, "exit_code")


def _is_mendable(error: Exception) -> bool:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("fedelta"):
        return False
    # By name, since importing QuorumError imports torch. Its base, RuntimeError, is also that of many of torch's own errors.
    return isinstance(error, MENDABLE) or any(kind.__name__ == "QuorumError" for kind in type(error).__mro__)


def _fault(error: Exception) -> str:
    """Returns what to say of an error that no code of fedelta has raised on purpose: what it was, and where."""
    name, text = type(error).__name__, str(error).strip() or "no message"
    if isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text:
        return (
            f"out of memory ({text.splitlines()[0]}): lower training.batch_size, evaluation.batch_size or "
            "federation.token_budget; a run that has finished a round can be taken up after it with --resume"
        )
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {name} at {last.filename}:{last.lineno}: {text}\nfedelta --debug COMMAND shows the traceback"


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
