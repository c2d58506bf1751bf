"""The report of an evaluation: results for programs, tables and plots for people, and how to reproduce them.

All are frozen dataclasses of plain data, so that a report can be written as JSON (`EvalReport.as_data`),
printed in a terminal (cli/evals/) or rendered as HTML (html_report.py) without the model.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Cell = str | int | float | None  # None: there is no value


@dataclass(frozen=True)
class ReportTable:
    """A table.

    Attributes:
        title: its heading.
        headers: a header for each column.
        rows: the cells of each row; None where there is no value.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class PlotPoint:
    """A point of a line plot.

    Attributes:
        x: the value on the x axis.
        y: the value on the y axis.
        low: the lower end of the 95 % confidence interval of y, if there is one.
        high: its upper end.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PlotSeries:
    """A line of a line plot, such as one position variant.

    Attributes:
        name: its name in the legend.
        points: its points, in ascending order of x.
    """

    name: str
    points: tuple[PlotPoint, ...]


@dataclass(frozen=True)
class LinePlot:
    """A plot with one line for each series.

    Attributes:
        title: its heading.
        x_label: what the x axis shows, with its unit.
        y_label: what the y axis shows, with its unit.
        series: the lines.
        log_x: whether the x axis is logarithmic.
        log_y: whether the y axis is logarithmic.
    """

    title: str
    x_label: str
    y_label: str
    series: tuple[PlotSeries, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A heat map of shares between 0 and 1 over two quantities.

    Attributes:
        title: its heading.
        x_label: what the columns are.
        y_label: what the rows are.
        x: the value of each column, ascending.
        y: the value of each row, ascending.
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
    """The result of one evaluation.

    Attributes:
        evaluation: the evaluation's name, such as "perplexity".
        subject: the model file: path, sha256, bytes, architecture, type, rope.
        settings: everything that determines the results.
        versions: the versions of pigguf, the engine and Python, and the machine.
        results: all results, for programs.
        tables: the results as tables, for people.
        plots: the results as plots.
    """

    evaluation: str
    subject: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    results: Mapping[str, Any]
    tables: tuple[ReportTable, ...]
    plots: tuple[Plot, ...]

    def as_data(self) -> dict[str, Any]:
        """Return the report for JSON; the key "kind" of a plot is "lines" or "heat map"."""
        data = asdict(self)
        for plot, plot_data in zip(self.plots, data["plots"], strict=True):
            plot_data["kind"] = "heat map" if isinstance(plot, HeatMap) else "lines"
        return data


def software_versions() -> dict[str, str]:
    """Return the software versions and the machine, for a report."""
    return {
        "pigguf": version("pigguf"),
        "llama-cpp-python": version("llama-cpp-python"),
        "python": platform.python_version(),
        "machine": f"{_processor_name()}, {os.cpu_count()} cores, {platform.system()}",
    }


def _processor_name() -> str:
    """Return the processor's name from /proc/cpuinfo, or its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
