"""How a failure is told: one line, and a hint where there is one, on stderr."""

from __future__ import annotations

import os

import click

from pigguf.cli.formatting import printable
from pigguf.errors import PigError


def report(error: BaseException) -> None:
    """Say what went wrong as `error: ...` and perhaps `hint: ...`."""
    message, hint = _describe(error)
    _line("error:", "red", message)
    if hint:
        _line("hint:", "cyan", hint)


def _describe(error: BaseException) -> tuple[str, str | None]:
    """An error's message and hint, in the words of whoever knows it best."""
    if isinstance(error, PigError):
        return error.message, error.hint
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        return error.format_message(), f"try '{context.command_path} --help'" if context else None
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror, None
    if isinstance(error, MemoryError):
        return "out of memory", None
    if isinstance(error, ModuleNotFoundError) and not (error.name or "pigguf").startswith("pigguf"):
        return f"the package {error.name} is missing", "install what pigguf needs: python3 scripts/setup.py"
    return (
        f"unexpected {type(error).__name__}: {error}",
        "this is a bug in pigguf; PIGGUF_DEBUG=1 shows the traceback to report",
    )


def _line(label: str, colour: str, text: str) -> None:
    # click drops the colours where stderr is no terminal; NO_COLOR is not its business.
    wanted = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style(label, fg=colour, bold=True)} {printable(text)}", err=True, color=wanted)
