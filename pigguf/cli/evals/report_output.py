"""Run an evaluation for the command line and print its report: as tables, as JSON, and as an HTML page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pigguf.cli import render, terminal
from pigguf.cli.progress_bars import progress_bar
from pigguf.common.atomic_write import atomic_write
from pigguf.evals.html_markup import format_cell
from pigguf.evals.report import EvalReport, ReportTable
from pigguf.inference.engine import log_to
from pigguf.progress import Progress


@dataclass(frozen=True)
class ReportOutput:
    """Where a report is written.

    Attributes:
        as_json: whether stdout gets JSON instead of tables.
        html: the file to write as an HTML page, if any.
        verbose: whether to print the engine's own log lines.
    """

    as_json: bool
    html: Path | None
    verbose: bool


def run_evaluation(output: ReportOutput, evaluate: Callable[[Progress], EvalReport]) -> None:
    """Run an evaluation and print its report.

    The file of the HTML page is opened first, to fail before the evaluation if it cannot be written.

    Raises:
        OutputError: if the page cannot be written.
        PigError: whatever the evaluation raises.
    """
    if output.verbose:
        log_to(render.note)
    with ExitStack() as stack:
        stack.enter_context(terminal.restore_on_termination())
        page = stack.enter_context(atomic_write(output.html)) if output.html else None
        report = _evaluate(evaluate)
        if page is not None:
            from pigguf.evals.html_report import render_page

            page.write(render_page(report).encode())
    if output.as_json:
        render.json(report.as_data())
    else:
        print_report(report)
    if output.html:
        render.note(f"The page is {output.html}.")


def _evaluate(evaluate: Callable[[Progress], EvalReport]) -> EvalReport:
    try:
        return evaluate(progress_bar(keep=False))
    except KeyboardInterrupt:
        render.note("finished items are stored: the same command resumes")
        raise


def print_report(report: EvalReport) -> None:
    """Print the tables of a report, and its verdict if it has one."""
    for number, table in enumerate(report.tables):
        render.key_values((), title=f"\n{table.title}" if number else table.title)
        rows = [[format_cell(cell) for cell in row] for row in table.rows]
        render.table(table.headers, rows, right=_numeric_headers(table))
    if verdict := report.results.get("verdict"):
        render.key_values((), title="")
        render.key_values((), title=verdict)


def _numeric_headers(table: ReportTable) -> list[str]:
    """Return the headers of the columns that have numbers only."""
    columns = zip(*table.rows, strict=True)
    return [
        header
        for header, column in zip(table.headers, columns, strict=False)
        if not any(isinstance(cell, str) for cell in column)
    ]
