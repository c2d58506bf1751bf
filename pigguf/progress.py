"""How library code tells of long work without printing: a Progress is handed in, and told.

A stage is begun, advanced in its unit, and ended; stages do not nest.
The terminal's bar lives in cli/render.py. Rates and ETAs are the listener's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

Unit = Literal["bytes", "tokens", "tensors", "steps", "percent"]


class Progress(Protocol):
    """Listens to one stage of work after another."""

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        """A stage named `stage` starts; it is done when `total` units have gone by."""

    def advance(self, amount: float) -> None:
        """`amount` more units of the current stage are done."""

    def end(self) -> None:
        """The current stage is over, done or given up."""


class Silent:
    """The Progress that tells nobody; the default everywhere."""

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        pass

    def advance(self, amount: float) -> None:
        pass

    def end(self) -> None:
        pass


SILENT: Progress = Silent()


@contextmanager
def stage(progress: Progress, name: str, total: float, unit: Unit) -> Iterator[None]:
    """Run a block as one stage: begun before it, ended after it whatever happens."""
    progress.begin(name, total, unit)
    try:
        yield
    finally:
        progress.end()
