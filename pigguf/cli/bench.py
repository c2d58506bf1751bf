"""`pigguf bench`: how fast a model reads and writes by depth, under one setting or two in turn."""

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
from pigguf.cli.evals.options import comma_separated, print_report
from pigguf.cli.options import PATH, json_option, setting_options, verbose_option
from pigguf.cli.signals import tidy_termination
from pigguf.common.files import atomic_write
from pigguf.errors import UsageError
from pigguf.evals.html_report import render_page, render_svg_document
from pigguf.evals.report import EvalReport, LinePlot
from pigguf.inference.benchmark import bench
from pigguf.inference.engine import log_to
from pigguf.inference.run_config import RunConfig

# a plot's ending -> how it is drawn
_DRAWN: dict[str, Callable[[EvalReport], str]] = {
    ".svg": lambda report: render_svg_document([plot for plot in report.plots if isinstance(plot, LinePlot)]),
    ".html": render_page,
}


@click.command(add_help_option=False)
@setting_options
def _setting(**values: Any) -> None:
    """The options of --vs."""


def _changed(settings: RunConfig, changes: str) -> RunConfig:
    """The second setting: the first one, with what --vs says of it.

    Raises:
        UsageError: it says nothing that is an option.
    """
    # a comma before what is no option belongs to a value: workers=A,B
    arguments = [f"--{change.strip()}" for change in re.split(r",(?=[^,]*=)", changes)]
    if not all("=" in argument for argument in arguments):
        raise UsageError(
            f"--vs {changes!r} is not OPTION=VALUE,...", "say, for instance, flash-attention=off"
        )
    context = _setting.make_context("--vs", arguments)
    given = {
        name: value
        for name, value in context.params.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    return replace(settings, **given)


@click.command()
@click.argument("model", metavar="MODEL", type=PATH)
@click.option(
    "--depths",
    callback=comma_separated(int, "depths"),
    metavar="N,...",
    help="Tokens of the documents that are read; default: 0, 2048 and 8192, as far as the window goes.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Measure each so many times, and take medians.",
)
@click.option(
    "--vs", metavar="OPTION=VALUE,...", help="Measure a second setting in turn: options below, changed."
)
@click.option(
    "--plot", type=PATH, metavar="FILE", help="Draw it: an .svg file, or an .html page with tables."
)
@setting_options
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
    """Measure how fast the GGUF file MODEL reads and writes, by depth.

    At each depth a document of so many tokens is really read, the way chat reads it, but for what is kept on
    disk: the time to a first token, cold and of another question about it, the speed of the answer and of
    512 tokens more. With --vs a second setting is measured in turn, and compared.

    \b
    Examples:
      pigguf bench model.gguf
      pigguf bench model.gguf --depths 0,4096 --vs flash-attention=on,prefill=llama.cpp --plot speed.svg
    """
    if verbose:
        log_to(render.note)
    if plot is not None and plot.suffix not in _DRAWN:
        raise UsageError(f"--plot {plot}: no such sort of plot", f"name a file in {' or '.join(_DRAWN)}")
    settings = RunConfig(**setting)
    other = None if vs is None else _changed(settings, vs)
    with ExitStack() as stack:
        stack.enter_context(tidy_termination())
        file = stack.enter_context(atomic_write(plot)) if plot else None
        report = bench(
            model,
            settings,
            other,
            depths=depths,
            rounds=rounds,
            names=("without --vs", vs) if vs else ("speed", ""),
            progress=render.progress(keep=False),
        )
        if plot and file:
            file.write(_DRAWN[plot.suffix](report).encode())
    if as_json:
        render.json(report.as_data())
    else:
        print_report(report)
