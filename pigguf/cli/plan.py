"""`pigguf plan`: memory that a model and its context window need, and what fits on this machine."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import click

from pigguf.cli import render
from pigguf.cli.options import (
    FILE_PATH,
    cache_options,
    context_options,
    gpu_layers_option,
    json_option,
    workers_options,
)
from pigguf.common.format_bytes import format_memory
from pigguf.inference.engine import CacheType, RuntimeRope
from pigguf.inference.engine.memory_estimate import HOST
from pigguf.inference.memory_planning import DeviceMemory, LongestContext, MeasuredSpeed, MemoryPlan
from pigguf.inference.resolve_run import plan_run
from pigguf.inference.run_config import RunConfig


@click.command()
@click.argument("path", metavar="MODEL", type=FILE_PATH)
@context_options
@gpu_layers_option
@cache_options
@workers_options
@json_option
def command(
    path: Path,
    ctx: int | None,
    rope: RuntimeRope | None,
    gpu_layers: int | Literal["all", "auto"],
    cache_k: CacheType,
    cache_v: CacheType,
    workers: tuple[str, ...],
    split: tuple[float, ...] | None,
    as_json: bool,
) -> None:
    """Show the memory that the GGUF file MODEL needs on each device, and the windows that fit.

    \b
    Examples:
      pigguf plan model.gguf
      pigguf plan model.gguf --ctx 32768 --cache-type-k q8_0 --cache-type-v q8_0
      pigguf plan model.gguf --workers 10.0.0.2:50052,10.0.0.3:50052
      pigguf plan model.gguf --json | jq '.windows[] | {cache_k, length}'

    The numbers are the engine's own; nothing is loaded. The exit code is 9 if the model does not fit.
    """
    settings = RunConfig(
        ctx,
        gpu_layers=gpu_layers,
        rope=rope,
        cache_k=cache_k,
        cache_v=cache_v,
        workers=workers,
        split=split,
    )
    planned = plan_run(path, settings)
    if as_json:
        render.json(_as_data(planned))
    else:
        _show(planned, bool(workers))
    planned.require_fit()


def _show(planned: MemoryPlan, workers: bool) -> None:
    options = planned.options
    rows = [
        ("model", str(planned.path)),
        ("context", f"{planned.context_length:,} of {planned.model_context_length:,} tokens"),
        ("KV cache", f"K {options.cache_k}, V {options.cache_v}"),
        (
            "layers on workers" if workers else "layers on a GPU",
            f"{planned.gpu_layers} of {planned.offloadable_layers}",
        ),
    ]
    if planned.speed is not None:
        rows.append(("measured speed", _speed(planned.speed)))
    render.key_values([*rows, ("fits", "yes" if planned.fits else "no")])
    names = [_name(device) for device in planned.devices]
    layers = [("layers", *(_layers(device, planned.offloadable_layers) for device in planned.devices))]
    render.table(
        ("memory", *names), (layers if len(names) > 1 else []) + _memory(planned.devices), right=names
    )
    render.table(
        ("KV cache", "longest context", "memory"),
        map(_window, planned.longest_contexts),
        right=("longest context", "memory"),
    )


def _speed(speed: MeasuredSpeed) -> str:
    return f"prefill {speed.prefill:,.0f}, decode {speed.decode:,.1f} tokens/s at depth {speed.depth:,}"


def _name(device: DeviceMemory) -> str:
    return "computer" if device.name == HOST else device.name


def _layers(device: DeviceMemory, layers: int) -> str:
    """Format the layers of a device, of which the last is the output: "0-10, 12, output"."""
    output = layers - 1
    spans: list[list[int]] = []
    for number in device.sizes.layers:
        if spans and spans[-1][1] == number - 1 and number != output:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    texts = [f"{first}-{last}" if last > first else str(first) for first, last in spans if first != output]
    return ", ".join([*texts, *(["output"] if output in device.sizes.layers else [])]) or "none"


def _memory(devices: tuple[DeviceMemory, ...]) -> list[tuple[str, ...]]:
    """Return the memory table: a row for each kind of allocation, a column for each device."""
    rows: dict[str, list[int | None]] = {
        "weights, in the file's pages": [device.sizes.mapped for device in devices],
        "weights": [device.sizes.weights for device in devices],
        "KV cache, K": [device.sizes.cache_k for device in devices],
        "KV cache, V": [device.sizes.cache_v for device in devices],
        "compute buffers": [device.sizes.compute for device in devices],
        "logits": [device.sizes.output for device in devices],
        **{what: [device.extra.get(what, 0) for device in devices] for what in devices[0].extra},
    }
    shown = {what: sizes for what, sizes in rows.items() if any(sizes)}
    shown["total"] = [device.total for device in devices]
    shown["available"] = [device.available for device in devices]
    return [
        (what, *("?" if count is None else format_memory(count) for count in row))
        for what, row in shown.items()
    ]


def _window(longest: LongestContext) -> tuple[str, str, str]:
    kinds = dict.fromkeys((longest.cache_k, longest.cache_v))
    if longest.length is None or longest.total is None:
        return "/".join(kinds), "none", ""
    return "/".join(kinds), f"{longest.length:,}", format_memory(longest.total)


def _as_data(planned: MemoryPlan) -> dict[str, Any]:
    return {
        "path": str(planned.path),
        "fits": planned.fits,
        **_settings(planned),
        "model_window": planned.model_context_length,
        "layers": planned.offloadable_layers,
        "total_bytes": planned.total_bytes,
        "devices": [
            {
                **asdict(device.sizes),
                "extra": dict(device.extra),
                "total": device.total,
                "room": device.available,
            }
            for device in planned.devices
        ],
        "windows": [asdict(window) for window in planned.longest_contexts],
        "nearest": [_settings(replace(planned, params=params)) for params in planned.nearest],
        "speed": None if planned.speed is None else asdict(planned.speed),
    }


def _settings(planned: MemoryPlan) -> dict[str, Any]:
    return {
        "context_length": planned.context_length,
        "gpu_layers": planned.gpu_layers,
        "cache_k": planned.options.cache_k,
        "cache_v": planned.options.cache_v,
    }
