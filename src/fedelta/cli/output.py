"""Says what a command has to say beside its result: lines on stderr, and an exit code."""

from __future__ import annotations

import typer

STOPPED = 130
"""The exit code after Ctrl-C, as shells have it."""


def fail(message: str) -> None:
    """Says why a command ends."""
    typer.secho(f"error: {message}", fg="red", err=True)


def note(message: str) -> None:
    """Says what is no result."""
    typer.secho(message, dim=True, err=True)
