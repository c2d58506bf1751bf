"""`pigguf tune`: find the fastest settings for a model on this machine, and store them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.formatting import format_duration
from pigguf.cli.options import FILE_PATH, gpu_layers_option, json_option, verbose_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.common.format_bytes import format_bytes
from pigguf.inference.engine import GpuLayers, log_to
from pigguf.inference.tuning import BUDGET, Measurement, TuningResult, tune


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=BUDGET,
    show_default=True,
    metavar="N",
    help="Approximate time limit; measurements that do not fit are skipped and listed.",
)
@gpu_layers_option
@json_option
@verbose_option
def command(model: Path, seconds: float, gpu_layers: GpuLayers, as_json: bool, verbose: bool) -> None:
    """Find the fastest settings for the GGUF file MODEL on this machine.

    Compares threads, batch sizes, flash attention by depth, and prefill backends, and stores the fastest for
    this machine and all models of the same shape; every command that runs a model uses them. KV cache types
    are measured but not chosen, because they change answers. Run it without other load.

    \b
    Examples:
      pigguf tune model.gguf
      pigguf tune model.gguf --seconds 240 --json
    """
    if verbose:
        log_to(render.note)
    result = tune(model, gpu_layers=gpu_layers, budget=seconds, progress=progress_bar(keep=False))
    if as_json:
        render.json(_as_data(result))
    else:
        _show(result)


def _show(result: TuningResult) -> None:
    render.table(
        ("compared", "setting", "depth", "prefill", "decode", "samples", "cache"),
        [_row(one) for one in result.measurements],
        right=("depth", "prefill", "decode", "samples", "cache"),
    )
    render.note("prefill and decode in tokens/s; cache size at the model's full window")
    render.key_values(
        ((one.setting, f"{one.value}  ({one.reason})") for one in result.decisions), title="Chosen"
    )
    render.key_values([("stored in", result.path), ("time", format_duration(result.seconds))])
    for line in result.skipped:
        render.note(f"skipped: {line}")


def _row(one: Measurement) -> tuple[str, ...]:
    return (
        one.group,
        one.setting,
        f"{one.speed.depth:,}",
        *("–" if rate is None else f"{rate:,.1f}" for rate in (one.speed.prefill, one.speed.decode)),
        str(one.samples),
        "" if one.cache_bytes is None else format_bytes(one.cache_bytes),
    )


def _as_data(result: TuningResult) -> dict[str, Any]:
    return {
        "tuning": result.profile.to_json(),
        "choices": [{"what": one.setting, "value": one.value, "why": one.reason} for one in result.decisions],
        "measurements": [asdict(one) for one in result.measurements],
        "left_out": list(result.skipped),
        "seconds": round(result.seconds, 3),
        "path": str(result.path),
    }
