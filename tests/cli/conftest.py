"""Fixtures for the tests of single commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import CommandResult

from pigguf import cli


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Return a function that runs the command line in this process."""

    def run_with(*arguments: str | Path) -> CommandResult:
        with pytest.raises(SystemExit) as exited:
            cli.main(list(map(str, arguments)))
        return CommandResult(exited.value.code, *capsys.readouterr())

    return run_with
