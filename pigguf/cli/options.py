"""Options that several commands share, each defined once.

A command takes them as decorators. Left out: options of one command alone, which live with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def _set_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value and ctx.obj is not None:
        ctx.obj.verbose = True
    return value


def verbose_option(command: Command) -> Command:
    """-v: the engine's own log lines, and the traceback of an error. Passed as `verbose`."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        callback=_set_verbose,
        help="Show the engine's own log lines, and the traceback of an error.",
    )(command)


def json_option(command: Command) -> Command:
    """--json: the result for a program to read. Passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)
