"""The number of layers on GPUs, from what the user asked for: a number, "all" or "auto".

Not here: how many layers fit with their part of the KV cache (inference/memory_planning/).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pigguf.errors import BackendUnavailable, UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.inference.engine import devices
from pigguf.inference.engine.protocols import RemoteDevices

GpuLayers = int | Literal["all", "auto"]

_AUTO_GPU_SHARE = 0.8  # of free GPU memory for weights under "auto"; the rest is for the KV cache and buffers


def choose_gpu_layers(wanted: GpuLayers, file: GGUFFile, n_layers: int, workers: RemoteDevices | None) -> int:
    """Return how many layers to offload, where llama.cpp counts the output as one more.

    "auto" is a guess from the size of the weights; inference/memory_planning/ also knows the context.

    Raises:
        BackendUnavailable: layers are to be offloaded and there is no GPU.
    """
    if wanted == 0:
        return 0
    gpus = workers.devices if workers else devices.list_gpus()
    if wanted != "auto":
        return resolve_gpu_layers(wanted, n_layers + 1, gpus)
    budget = _AUTO_GPU_SHARE * sum(gpu.memory_free for gpu in gpus)
    return min(n_layers + 1, int(budget / file.size * (n_layers + 1)))


def resolve_gpu_layers(wanted: int | Literal["all"], n_layers: int, gpus: Sequence[devices.Device]) -> int:
    """Return how many of `n_layers` layers, with the output as one of them, go to GPUs.

    Raises:
        BackendUnavailable: layers are to be offloaded and there is no GPU.
        UsageError: the number is negative.
    """
    if wanted != "all" and wanted < 0:
        raise UsageError(f"`gpu_layers={wanted}` is negative", "give a number from 0, `all` or `auto`")
    if wanted and not gpus:
        raise BackendUnavailable(
            f"`gpu_layers={wanted}` needs a GPU, and the engine finds no GPU",
            "run `pigguf doctor` to see why, or use `gpu_layers=auto`",
        )
    return n_layers if wanted == "all" else min(wanted, n_layers)
