"""Output of commands other than errors: tables, key-value lists, JSON, notes and progress bars.

Results go to stdout (key_values, table, json), everything else to stderr (note, progress). A terminal gets
colours and a progress bar; a pipe or a file gets plain text that is never wrapped, and a line every few
seconds during long work. Control characters are made visible. NO_COLOR is honoured (by rich).
"""

from __future__ import annotations

import json as _json
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarTask
from rich.table import Table
from rich.text import Text

from pigguf.cli.formatting import format_duration, printable
from pigguf.common.format_bytes import format_bytes
from pigguf.progress import Progress, Unit

_PIPE_WIDTH = 10_000  # a pipe has no width to wrap at
_METER_WIDTH = 55  # usually, of the text next to a bar; on a narrow terminal the bar becomes shorter

# ---- results, on stdout --------------------------------------------------------------------------


def json(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(_json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def key_values(rows: Iterable[tuple[str, object]], title: str | None = None) -> None:
    """Print names and values, aligned, below an optional title."""
    lines = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in lines), default=0)
    out = _console(stderr=False)
    if title:
        out.print(Text(printable(title), style="bold"), soft_wrap=True)
    for name, value in lines:
        out.print(
            Text(f"{name:<{width}}  ", style="cyan") + Text(printable(value), style="default"), soft_wrap=True
        )


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned right, as numbers are."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    numbers = set(right)
    for header in headers:
        grid.add_column(header, justify="right" if header in numbers else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(printable(str(cell))) for cell in row))
    _console(stderr=False).print(grid)


# ---- everything else, on stderr ------------------------------------------------------------------


def note(text: str) -> None:
    """Print a line on stderr."""
    _console(stderr=True).print(Text(printable(text)), soft_wrap=True)


def progress(keep: bool = True) -> Progress:
    """Return the Progress for this terminal, or for a log if stderr is not a terminal.

    Args:
        keep: whether finished bars stay on the screen.
    """
    return TerminalProgress(keep) if _console(stderr=True).is_terminal else LogProgress()


class ProgressMeter:
    """The progress of a stage: amount, rate and time left, from the speed of the last seconds."""

    WINDOW = 15.0  # seconds; prefill gets slower with depth, so older speeds mislead

    def __init__(self, total: float, unit: Unit) -> None:
        self.total, self.unit, self.done = total, unit, 0.0
        self.started = time.monotonic()
        self._samples: deque[tuple[float, float]] = deque([(self.started, 0.0)])

    def advance(self, amount: float) -> None:
        """Count work that was done."""
        self.done += amount
        now = time.monotonic()
        self._samples.append((now, self.done))
        while len(self._samples) > 2 and now - self._samples[0][0] > self.WINDOW:
            self._samples.popleft()

    @property
    def rate(self) -> float | None:
        """Units per second, or None if it is not known yet."""
        (t0, d0), (t1, d1) = self._samples[0], self._samples[-1]
        return (d1 - d0) / (t1 - t0) if t1 > t0 and d1 > d0 else None

    def text(self) -> str:
        """Return amount, rate and time left: "1.2 of 2.3 GB, 310 MB/s, 4 s left"."""
        parts = [self._amount()]
        if self.rate and self.unit != "percent":
            parts.append(f"{_count(self.rate, self.unit)}/s")
        if self.done >= self.total:
            parts.append(format_duration(time.monotonic() - self.started))
        elif self.rate:
            parts.append(f"{format_duration((self.total - self.done) / self.rate)} left")
        return ", ".join(parts)

    def _amount(self) -> str:
        if self.unit == "bytes":
            return f"{format_bytes(self.done)} of {format_bytes(self.total)}"
        if self.unit == "percent":
            return f"{100 * self.done / self.total:.0f} %" if self.total else "100 %"
        return f"{self.done:,.0f} of {self.total:,.0f} {self.unit}"


def _count(count: float, unit: Unit) -> str:
    """Format an amount with its unit: "310 MB", "94 tokens", "0.083 steps"."""
    if unit == "bytes":
        return format_bytes(count)
    return f"{count:,.0f} {unit}" if count >= 10 else f"{count:.2g} {unit}"


class TerminalProgress:
    """Progress as one bar per stage on stderr, by rich."""

    def __init__(self, keep: bool) -> None:
        self._keep = keep
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._meter = ProgressMeter(0, "percent")

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        """Start a stage, and end the one before."""
        self.end()
        self._meter = ProgressMeter(total, unit)
        console = _console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(4, min(24, console.width - len(stage) - _METER_WIDTH))),
            _MeterColumn(self._meter),
            console=console,
            transient=not self._keep,
        )
        self._task = self._bar.add_task(stage, total=total)
        self._bar.start()

    def advance(self, amount: float) -> None:
        """Count work that was done, and update the bar."""
        self._meter.advance(amount)
        if self._bar:
            self._bar.update(self._task, completed=self._meter.done)

    def end(self) -> None:
        """End the stage, and its bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None


class _MeterColumn(ProgressColumn):
    def __init__(self, meter: ProgressMeter) -> None:
        super().__init__()
        self._meter = meter

    def render(self, task: BarTask) -> Text:
        """Return the text next to the bar."""
        return Text(self._meter.text(), style="dim")


class LogProgress:
    """Progress as a line on stderr every few seconds; nothing for short work."""

    INTERVAL = 5.0  # seconds

    def __init__(self) -> None:
        self._stage = ""
        self._meter = ProgressMeter(0, "percent")
        self._printed_at: float | None = None
        self._printed_amount = 0.0

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        """Start a stage."""
        self._stage, self._meter, self._printed_at = stage, ProgressMeter(total, unit), None

    def advance(self, amount: float) -> None:
        """Count work that was done, and print a line if the last one is old."""
        self._meter.advance(amount)
        since = self._printed_at or self._meter.started
        if time.monotonic() - since >= self.INTERVAL:
            self._print_line()

    def end(self) -> None:
        """End the stage; print a last line if there were any."""
        if self._printed_at and self._printed_amount != self._meter.done >= self._meter.total:
            self._print_line()

    def _print_line(self) -> None:
        self._printed_at, self._printed_amount = time.monotonic(), self._meter.done
        note(f"{self._stage}: {self._meter.text()}")


@cache
def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
