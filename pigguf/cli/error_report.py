"""Errors on stderr: one line with the message, and one with the hint if there is one."""

from __future__ import annotations

import os

import click

from pigguf.cli.formatting import printable
from pigguf.cli.parameter_flags import parameters_as_flags
from pigguf.errors import PigError


def report(error: BaseException, command: click.Command | None = None) -> None:
    """Print an error on stderr as `error: ...`, followed by `hint: ...` if it has a hint.

    Args:
        error: the error to report.
        command: the command whose flags replace the parameters that a PigError names; by default the one that
            is running in this thread.
    """
    message, hint = _describe(error, command)
    _print_line("error:", "red", message)
    if hint:
        _print_line("hint:", "cyan", hint)


def _describe(error: BaseException, command: click.Command | None) -> tuple[str, str | None]:
    """Return an error's message and its hint, or None."""
    if isinstance(error, PigError):
        hint = parameters_as_flags(error.hint, command) if error.hint else None
        return parameters_as_flags(error.message, command), hint
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


def _print_line(label: str, color: str, text: str) -> None:
    # click itself omits colours if stderr is not a terminal, but does not honour NO_COLOR.
    use_color = False if os.environ.get("NO_COLOR") else None
    click.echo(f"{click.style(label, fg=color, bold=True)} {printable(text)}", err=True, color=use_color)
