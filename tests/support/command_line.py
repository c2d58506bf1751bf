"""The result of a command line that ran within the test process."""

from __future__ import annotations

from typing import Any, NamedTuple


class CommandResult(NamedTuple):
    """The exit code and the output of a command."""

    returncode: Any
    stdout: str
    stderr: str
