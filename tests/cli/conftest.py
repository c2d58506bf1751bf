"""What tests of single commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import Done

from pigguf import cli


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """The command line within this process, from its arguments to its exit code."""

    def run_with(*arguments: str | Path) -> Done:
        with pytest.raises(SystemExit) as exited:
            cli.main(list(map(str, arguments)))
        return Done(exited.value.code, *capsys.readouterr())

    return run_with
