"""How much memory each device has to give: the host's, and that of GPUs or workers' devices.

A reserve is subtracted for what no buffer of llama.cpp holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from pigguf.common.system_memory import available_memory
from pigguf.inference.engine.devices import Device, list_gpus
from pigguf.inference.engine.memory_estimate import HOST
from pigguf.inference.rpc.client import Workers

_HOST_RESERVE = 128 << 20  # the vocabulary, operators' scratch space, a batch of logits where all are wanted
_GPU_RESERVE = 1 << 30  # as llama.cpp's --fit-target leaves free: pools of the driver and of matrix products
_GPU_RESERVE_DIVISOR = 8  # ... or this part of a small GPU


@dataclass(frozen=True)
class FreeMemory:
    """The memory that is free on the host and on each GPU.

    Attributes:
        host: bytes of the computer's memory; None if the system does not report it.
        gpus: GPUs with their free memory; the workers' devices if there are workers.
        gpu_owner: what the GPUs are called in messages: "the GPU" or "the workers".
    """

    host: int | None
    gpus: tuple[Device, ...] = ()
    gpu_owner: str = "the GPU"

    def available(self, device: str) -> int | None:
        """Return the bytes to plan with on the device of this name; None if the device does not report it."""
        if device == HOST:
            return None if self.host is None else max(0, self.host - _HOST_RESERVE)
        gpu = next(gpu for gpu in self.gpus if gpu.name == device)
        reserve = min(_GPU_RESERVE, gpu.memory_total // _GPU_RESERVE_DIVISOR)
        return max(0, gpu.memory_free - reserve) if gpu.memory_total else None

    def shares_host_memory(self, device: str) -> bool:
        """Return whether the device uses the computer's memory: the host, an integrated GPU, or Metal."""
        return device == HOST or any(
            gpu.name == device and (gpu.kind == "integrated gpu" or gpu.backend == "MTL") for gpu in self.gpus
        )


def measure_free_memory(workers: Workers | None = None) -> FreeMemory:
    """Return the memory that is free now, on the workers' devices instead of the GPUs if there are workers.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    if workers:
        return FreeMemory(available_memory(), workers.devices, "the workers")
    return FreeMemory(available_memory(), list_gpus())
