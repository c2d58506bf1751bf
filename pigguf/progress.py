"""Progress: how library code reports long work without printing.

A Progress gets stages, one after another: each begins, advances in its unit, and ends; stages do not nest.
Rates and remaining times are computed by the Progress. The command line's are in cli/progress_bars.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

Unit = Literal["bytes", "tokens", "tensors", "steps", "percent"]


class Progress(Protocol):
    """Receives the progress of one stage of work after another."""

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        """Start a stage; it is complete after `total` units."""

    def advance(self, amount: float) -> None:
        """Add `amount` completed units to the current stage."""

    def end(self) -> None:
        """End the current stage, complete or not."""


class SilentProgress:
    """A Progress that ignores everything; the default everywhere."""

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        """Ignore the start of a stage."""

    def advance(self, amount: float) -> None:
        """Ignore completed units."""

    def end(self) -> None:
        """Ignore the end of the stage."""


SILENT: Progress = SilentProgress()


@contextmanager
def stage(progress: Progress, name: str, total: float, unit: Unit) -> Iterator[None]:
    """Run a block as one stage, which ends even if the block raises."""
    progress.begin(name, total, unit)
    try:
        yield
    finally:
        progress.end()
