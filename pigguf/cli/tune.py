"""`pigguf tune`: measure how a model runs fastest on this machine, and keep it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.formatting import duration
from pigguf.cli.options import PATH, gpu_layers_option, json_option, verbose_option
from pigguf.common.format_bytes import format_bytes
from pigguf.inference.engine import GpuLayers, log_to
from pigguf.inference.tuning import BUDGET, Measurement, TuningResult, tune


@click.command()
@click.argument("model", metavar="MODEL", type=PATH)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=BUDGET,
    show_default=True,
    metavar="N",
    help="How long it may take, about; what does not fit is left out and told.",
)
@gpu_layers_option
@json_option
@verbose_option
def command(model: Path, seconds: float, gpu_layers: GpuLayers, as_json: bool, verbose: bool) -> None:
    """Measure how the GGUF file MODEL runs fastest on this machine.

    Threads, batch, flash attention by depth and what reads long prompts are compared, and the fastest is
    kept for this machine and every model of this shape; chat, ask and whatever else runs a model go by it.
    Types of the KV cache are measured, and never chosen: they change answers. Let nothing else run meanwhile.

    \b
    Examples:
      pigguf tune model.gguf
      pigguf tune model.gguf --seconds 240 --json
    """
    if verbose:
        log_to(render.note)
    result = tune(model, gpu_layers=gpu_layers, budget=seconds, progress=render.progress(keep=False))
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
    render.note("prefill and decode in tokens/s; the cache at the model's full window")
    render.facts(((one.setting, f"{one.value}  ({one.reason})") for one in result.decisions), title="Chosen")
    render.facts([("kept", result.path), ("took", duration(result.seconds))])
    for line in result.skipped:
        render.note(f"left out: {line}")


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
        "choices": [
            {"what": one.setting, "value": one.value, "why": one.reason} for one in result.decisions
        ],
        "measurements": [asdict(one) for one in result.measurements],
        "left_out": list(result.skipped),
        "seconds": round(result.seconds, 3),
        "path": str(result.path),
    }
