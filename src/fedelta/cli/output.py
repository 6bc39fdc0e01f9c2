"""Prints what a command says beside its result, on stderr."""

from __future__ import annotations

import typer

STOPPED = 130
"""The exit code after Ctrl-C, as shells have it."""


def fail(message: str) -> None:
    """Prints the error that ends a command."""
    typer.secho(f"error: {message}", fg="red", err=True)


def note(message: str) -> None:
    """Prints a remark that is no part of the result."""
    typer.secho(message, dim=True, err=True)
