"""Options that several evaluations share.

    @click.command()
    @click.argument("model", metavar="MODEL", type=PATH)
    @engine_options            passed as `engine`: EngineConfig
    @compare_option            passed as `compare`: a tuple of names of position variants
    @seed_option               passed as `seed`
    @output_options            passed as `output`: ReportOutput
    def command(model, engine, compare, seed, output):
        run_evaluation(output, lambda progress: perplexity(model, ..., progress=progress))

Options of a single evaluation are in its own module; running it and printing its report, in report_output.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import click

from pigguf.cli.evals.report_output import ReportOutput
from pigguf.cli.options import FILE_PATH, Command, json_option, verbose_option, workers_options
from pigguf.cli.options import engine_options as _device_options
from pigguf.inference.engine import CacheType
from pigguf.inference.run_config import EngineConfig


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of how the engine runs the model. Passed as `engine`: EngineConfig."""

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
        **options: Any,
    ) -> Any:
        engine = EngineConfig(
            gpu_layers=gpu_layers,
            threads=threads,
            cache_k=cache_type,
            cache_v=cache_type,
            workers=workers,
            split=split,
        )
        return command(engine=engine, **options)

    return with_engine


def compare_option(command: Command) -> Command:
    """Add --compare, further position variants to evaluate. Passed as `compare`, a tuple."""
    return click.option(
        "--compare",
        metavar="NAME,...",
        default="",
        callback=_comma_separated_names,
        help="Evaluate other rope settings, too: none, linear:4, yarn:4, ntk.",
    )(command)


def text_option(command: Command) -> Command:
    """Add --text, one or more files. Passed as `text`, a tuple."""
    return click.option(
        "--text",
        metavar="FILE",
        type=FILE_PATH,
        multiple=True,
        required=True,
        help="A text file; may be repeated. No window spans two files.",
    )(command)


def max_windows_option(command: Command) -> Command:
    """Add --max-windows, to evaluate a sample of the windows. Passed as `max_windows`."""
    return click.option(
        "--max-windows",
        type=click.IntRange(min=1),
        metavar="N",
        help="Compute at most N windows, spread evenly over the text.",
    )(command)


def comma_separated(
    kind: type[int] | type[float], what: str = "numbers"
) -> Callable[..., tuple[float, ...] | None]:
    """Return a click callback that parses comma-separated numbers; None if the option is not given.

    Args:
        kind: int or float.
        what: how the error message names the numbers.
    """

    def parse(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            return tuple(kind(number) for number in value.split(","))
        except ValueError:
            raise click.BadParameter(
                f"{value!r} is not a comma-separated list of {what}", ctx, parameter
            ) from None

    return parse


def seed_option(command: Command) -> Command:
    """Add --seed, of what is random in the evaluation. Passed as `seed`."""
    return click.option(
        "--seed",
        type=int,
        metavar="N",
        default=0,
        show_default=True,
        help="Random seed; the same seed gives the same items.",
    )(command)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --html, --json and --verbose. Passed as `output`: ReportOutput, for `run_evaluation`."""

    @click.option("--html", type=FILE_PATH, metavar="FILE", help="Write an HTML page with tables and plots.")
    @json_option
    @verbose_option
    @functools.wraps(command)
    def with_output(*, html: Path | None, as_json: bool, verbose: bool, **options: Any) -> Any:
        return command(output=ReportOutput(as_json, html, verbose), **options)

    return with_output


def _comma_separated_names(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())
