"""Progress of long work on stderr: a bar on a terminal, a line every few seconds elsewhere.

Both show the amount that is done, the rate and the time left.
"""

from __future__ import annotations

import time
from collections import deque

from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.progress import Task as BarTask
from rich.text import Text

from pigguf.cli.formatting import format_duration
from pigguf.cli.render import console, note
from pigguf.common.format_bytes import format_bytes
from pigguf.progress import Progress, Unit

_METER_WIDTH = 55  # usually, of the text next to a bar; on a narrow terminal the bar becomes shorter


def progress_bar(keep: bool = True) -> Progress:
    """Return the Progress for this terminal, or for a log if stderr is not a terminal.

    Args:
        keep: whether finished bars stay on the screen.
    """
    return TerminalProgress(keep) if console(stderr=True).is_terminal else LogProgress()


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
        stderr = console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=max(4, min(24, stderr.width - len(stage) - _METER_WIDTH))),
            _MeterColumn(self._meter),
            console=stderr,
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
