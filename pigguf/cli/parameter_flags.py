"""Parameters named in the library's messages, as the command line's flags.

The library names its parameters in backticks: `ctx`, `ctx=4096`, `rope.factor=4`. On the command line the
user gave flags, so each such word becomes the flag of the running command whose click parameter has that
name: --ctx, --ctx 4096, --rope-factor 4. Words that are not parameters of the command stay as they are.
"""

from __future__ import annotations

import re
import shlex

import click

_PARAMETER = re.compile(r"`(?P<name>[A-Za-z_][\w.]*)(?:=(?P<value>[^`]+))?`")


def parameters_as_flags(text: str, command: click.Command | None = None) -> str:
    """Replace the parameters that a message names in backticks with the flags of a command.

    Args:
        text: a message or hint of the library.
        command: the command whose flags count; by default the one that is running in this thread, and
            without one the text stays as it is.
    """
    if command is None:
        context = click.get_current_context(silent=True)
        command = context.command if context else None
    if command is None:
        return text
    parameters = {parameter.name: parameter for parameter in command.params}

    def replacement(match: re.Match[str]) -> str:
        parameter = parameters.get(match["name"].replace(".", "_"))
        return match[0] if parameter is None else _flag(parameter, match["value"])

    return _PARAMETER.sub(replacement, text)


def _flag(parameter: click.Parameter, value: str | None) -> str:
    """Return a parameter as it is given on the command line, with its value if there is one."""
    if not isinstance(parameter, click.Option):
        return parameter.human_readable_name
    flag = _long(parameter.opts)
    if parameter.is_flag:
        return _long(parameter.secondary_opts) if value == "False" and parameter.secondary_opts else flag
    return flag if value is None else f"{flag} {shlex.quote(value)}"


def _long(flags: list[str]) -> str:
    """Return the spelled-out one of an option's flags."""
    return max(flags, key=len)
