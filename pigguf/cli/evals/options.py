"""Options that the evaluations share, and the one way in which each of them runs and shows its report.

    @click.command()
    @click.argument("model", metavar="MODEL", type=PATH)
    @engine_options            passed as `engine`: EngineConfig
    @compare_option            passed as `compare`: names of readings of positions, as written
    @seed_option               passed as `seed`
    @output_options            passed as `output`: Output
    def command(model, engine, compare, seed, output):
        run(output, lambda progress: perplexity(model, ..., progress=progress))

Left out: an evaluation's own options, which live with it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click

from pigguf.cli import render, terminal
from pigguf.cli.options import PATH, Command, json_option, verbose_option, workers_options
from pigguf.cli.options import engine_options as _device_options
from pigguf.common.files import atomic_write
from pigguf.evals.html_markup import format_cell
from pigguf.evals.report import EvalReport, ReportTable
from pigguf.inference.engine import CacheType, log_to
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import Progress


@dataclass(frozen=True)
class ReportOutput:
    """Where a report goes: tables on stdout, or JSON; and a page, if a file is named."""

    as_json: bool
    html: Path | None
    verbose: bool


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How the engine runs the model. Passed as `engine`: EngineConfig."""

    @_device_options
    @workers_options
    @click.option(
        "--cache-type",
        type=click.Choice(get_args(CacheType)),
        metavar="TYPE",
        default="f16",
        show_default=True,
        help=f"Type of the KV cache: {', '.join(get_args(CacheType))}.",
    )
    @functools.wraps(command)
    def with_engine(
        *,
        gpu_layers: Any,
        threads: int | None,
        cache_type: CacheType,
        workers: tuple[str, ...],
        split: tuple[float, ...] | None,
        **rest: Any,
    ) -> Any:
        engine = EngineConfig(
            gpu_layers=gpu_layers,
            threads=threads,
            cache_k=cache_type,
            cache_v=cache_type,
            workers=workers,
            split=split,
        )
        return command(engine=engine, **rest)

    return with_engine


def compare_option(command: Command) -> Command:
    """--compare: readings of positions to measure beside the file's own. Passed as `compare`, a tuple."""
    return click.option(
        "--compare",
        metavar="NAME,...",
        default="",
        callback=_names,
        help="Measure also with positions read in other ways: none, linear:4, yarn:4, ntk.",
    )(command)


def text_option(command: Command) -> Command:
    """--text, one or more files. Passed as `text`, a tuple."""
    return click.option(
        "--text",
        metavar="FILE",
        type=PATH,
        multiple=True,
        required=True,
        help="A text file; may be repeated. No window spans two.",
    )(command)


def max_windows_option(command: Command) -> Command:
    """--max-windows, for a sample of the windows. Passed as `max_windows`."""
    return click.option(
        "--max-windows",
        type=click.IntRange(min=1),
        metavar="N",
        help="Compute N windows at most, spread evenly over the text.",
    )(command)


def comma_separated(kind: type[int] | type[float], what: str = "numbers") -> Callable[..., tuple[float, ...] | None]:
    """The callback of an option that takes numbers with commas; None where it is not given."""

    def read(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            return tuple(kind(number) for number in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value!r} are not {what} with commas", ctx, parameter) from None

    return read


def seed_option(command: Command) -> Command:
    """--seed, for what is drawn at random. Passed as `seed`."""
    return click.option(
        "--seed", type=int, metavar="N", default=0, show_default=True, help="Draw the same items again."
    )(command)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--html, --json and --verbose. Passed as `output`: Output, for `run`."""

    @click.option("--html", type=PATH, metavar="FILE", help="Write one page with tables and plots.")
    @json_option
    @verbose_option
    @functools.wraps(command)
    def with_output(*, html: Path | None, as_json: bool, verbose: bool, **rest: Any) -> Any:
        return command(output=ReportOutput(as_json, html, verbose), **rest)

    return with_output


def run_evaluation(output: ReportOutput, evaluate: Callable[[Progress], EvalReport]) -> None:
    """Evaluate, and show the report. A page that could not be written is refused before the work.

    Raises:
        OutputError: the page cannot be written.
        Whatever the evaluation raises.
    """
    if output.verbose:
        log_to(render.note)
    with ExitStack() as stack:
        stack.enter_context(terminal.left_as_found())
        page = stack.enter_context(atomic_write(output.html)) if output.html else None
        report = _evaluated(evaluate)
        if page is not None:
            from pigguf.evals.html_report import render_page as as_page

            page.write(as_page(report).encode())
    if output.as_json:
        render.json(report.as_data())
    else:
        print_report(report)
    if output.html:
        render.note(f"The page is {output.html}.")


def _evaluated(evaluate: Callable[[Progress], EvalReport]) -> EvalReport:
    try:
        return evaluate(render.progress(keep=False))
    except KeyboardInterrupt:
        render.note("What is finished is kept: the same command goes on from there.")
        raise


def print_report(report: EvalReport) -> None:
    """Print a report's tables, and its verdict if it has one."""
    for number, table in enumerate(report.tables):
        render.facts((), title=f"\n{table.title}" if number else table.title)
        rows = [[format_cell(cell) for cell in row] for row in table.rows]
        render.table(table.headers, rows, right=_numeric(table))
    if verdict := report.results.get("verdict"):
        render.facts((), title="")
        render.facts((), title=verdict)


def _numeric(table: ReportTable) -> list[str]:
    """The headers of the columns that hold numbers only."""
    columns = zip(*table.rows, strict=True)
    return [
        header
        for header, column in zip(table.headers, columns, strict=False)
        if not any(isinstance(cell, str) for cell in column)
    ]


def _names(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())
