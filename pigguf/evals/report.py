"""What an evaluation found: figures for programs, tables and plots for people, and how to get them again.

Contract: frozen values that are plain data, so that a Report becomes JSON, a terminal's tables (cli/) or
a page (page.py) without another look at the model. Left out: how any of these look.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True)
class ReportTable:
    """Rows under headers; None is a figure that there is not."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class PlotPoint:
    """A figure, with its 95 % confidence interval where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PlotSeries:
    """Points in the order of x that belong together: one model under one reading of positions."""

    name: str
    points: tuple[PlotPoint, ...]


@dataclass(frozen=True)
class LinePlot:
    """A plot of one line a series."""

    title: str
    x_label: str
    y_label: str
    series: tuple[PlotSeries, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A plot of shares between 0 and 1 over two quantities.

    Attributes:
        x, y: the values along each side, ascending.
        values: values[row][column] at (x[column], y[row]); None where nothing was measured.
    """

    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    values: tuple[tuple[float | None, ...], ...]


Plot = LinePlot | HeatMap


@dataclass(frozen=True)
class EvalReport:
    """One evaluation's result.

    Attributes:
        evaluation: its name, "perplexity".
        subject: the file that was measured: path, sha256, bytes, architecture, type, rope.
        settings: everything that decides the figures.
        versions: of pigguf, the engine, Python and the machine.
        results: all figures, for programs.
        tables, plots: the same for people.
    """

    evaluation: str
    subject: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    results: Mapping[str, Any]
    tables: tuple[ReportTable, ...]
    plots: tuple[Plot, ...]

    def as_data(self) -> dict[str, Any]:
        """The report as JSON has it; a plot says what it is under "kind": "lines" or "heat map"."""
        data = asdict(self)
        for plot, plain in zip(self.plots, data["plots"], strict=True):
            plain["kind"] = "heat map" if isinstance(plot, HeatMap) else "lines"
        return data


def software_versions() -> dict[str, str]:
    """What computes here, as a report names it."""
    return {
        "pigguf": version("pigguf"),
        "llama-cpp-python": version("llama-cpp-python"),
        "python": platform.python_version(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _processor() -> str:
    """The processor's name as the kernel tells it, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
