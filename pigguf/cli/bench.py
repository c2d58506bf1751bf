"""`pigguf bench`: prefill and decode speed by depth, with one configuration or two in turn."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from pigguf.cli import render
from pigguf.cli.evals.options import comma_separated
from pigguf.cli.evals.report_output import print_report
from pigguf.cli.options import FILE_PATH, json_option, performance_options, verbose_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.cli.signals import cleanup_on_termination
from pigguf.common.atomic_write import atomic_write
from pigguf.errors import UsageError
from pigguf.evals.html_report import render_page
from pigguf.evals.report import EvalReport, LinePlot
from pigguf.evals.svg_document import render_svg_document
from pigguf.inference.benchmark import bench
from pigguf.inference.engine import log_to
from pigguf.inference.run_config import RunConfig

# file extension of --plot -> how the report is rendered
_PLOT_FORMATS: dict[str, Callable[[EvalReport], str]] = {
    ".svg": lambda report: render_svg_document([plot for plot in report.plots if isinstance(plot, LinePlot)]),
    ".html": render_page,
}


@click.command(add_help_option=False)
@performance_options
def _vs_options(**values: Any) -> None:
    """Parse the options that --vs may change."""


def _with_changes(config: RunConfig, changes: str) -> RunConfig:
    """Return the second configuration: a copy of the first one with the changes of --vs.

    Raises:
        UsageError: `changes` is not a list of OPTION=VALUE.
    """
    # A comma that no OPTION= follows is part of a value: workers=A,B
    arguments = [f"--{change.strip()}" for change in re.split(r",(?=[^,]*=)", changes)]
    if not all("=" in argument for argument in arguments):
        raise UsageError(
            f"--vs {changes!r} is not OPTION=VALUE,...", "give, for instance, --vs flash-attention=off"
        )
    context = _vs_options.make_context("--vs", arguments)
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    return replace(config, **given)


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.option(
    "--depths",
    callback=comma_separated(int, "depths"),
    metavar="N,...",
    help="Depths to measure at, in tokens; default: 0, 2048 and 8192, up to the window.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Number of measurements, of which the median counts.",
)
@click.option(
    "--vs",
    metavar="OPTION=VALUE,...",
    help="Compare with a second configuration: the options below, with these changes.",
)
@click.option(
    "--plot",
    type=FILE_PATH,
    metavar="FILE",
    help="Write a plot (.svg), or a page with plots and tables (.html).",
)
@performance_options
@json_option
@verbose_option
def command(
    model: Path,
    depths: tuple[int, ...] | None,
    rounds: int,
    vs: str | None,
    plot: Path | None,
    as_json: bool,
    verbose: bool,
    **setting: Any,
) -> None:
    """Measure the prefill and decode speed of the GGUF file MODEL by depth.

    At each depth a document of that many tokens is prefilled as in chat, without the prompt cache. Measured
    are the time to first token (with an empty cache, and of a second question about the document), decode
    speed, and the prefill speed of 512 more tokens. With --vs a second configuration is measured in turn, and
    compared.

    \b
    Examples:
      pigguf bench model.gguf
      pigguf bench model.gguf --depths 0,4096 --vs flash-attention=on,prefill=llama.cpp --plot speed.svg
    """
    if verbose:
        log_to(render.note)
    if plot is not None and plot.suffix not in _PLOT_FORMATS:
        raise UsageError(f"--plot {plot}: unknown file extension", f"use {' or '.join(_PLOT_FORMATS)}")
    config = RunConfig(**setting)
    other = None if vs is None else _with_changes(config, vs)
    with ExitStack() as stack:
        stack.enter_context(cleanup_on_termination())
        file = stack.enter_context(atomic_write(plot)) if plot else None
        report = bench(
            model,
            config,
            other,
            depths=depths,
            rounds=rounds,
            names=("without --vs", vs) if vs else ("speed", ""),
            progress=progress_bar(keep=False),
        )
        if plot and file:
            file.write(_PLOT_FORMATS[plot.suffix](report).encode())
    if as_json:
        render.json(report.as_data())
    else:
        print_report(report)
