"""The command line within this process, as a program that runs it sees it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Done(NamedTuple):
    """The exit code, and what was written where."""

    returncode: Any
    stdout: str
    stderr: str
