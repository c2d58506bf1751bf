"""The result of memory planning: what each device has to hold, whether it fits, and what would fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pigguf.common.format_bytes import format_memory
from pigguf.errors import DoesNotFit
from pigguf.inference.engine import CacheType, ContextOptions
from pigguf.inference.engine.memory_estimate import HOST, BufferSizes


@dataclass(frozen=True)
class MeasuredSpeed:
    """The speed in tokens per second that was measured with `depth` tokens in the KV cache."""

    depth: int
    prefill: float
    decode: float


@dataclass(frozen=True)
class LoadParams:
    """The parameters of a load that decide how much memory it needs.

    Attributes:
        options: the context's options, with a length.
        gpu_layers: how many layers go to GPUs, the output layer counted as one.
    """

    options: ContextOptions
    gpu_layers: int


@dataclass(frozen=True)
class DeviceMemory:
    """What one device has to hold.

    Attributes:
        sizes: the sizes of llama.cpp's buffers.
        extra: other bytes, by what they are for.
        available: bytes that can be used; None if the device does not report it.
    """

    sizes: BufferSizes
    extra: Mapping[str, int]
    available: int | None

    @property
    def name(self) -> str:
        """The device's name, as ggml has it."""
        return self.sizes.device

    @property
    def total(self) -> int:
        """All bytes that are needed on this device."""
        return self.sizes.total + sum(self.extra.values())

    @property
    def fits(self) -> bool:
        """Whether the device has that much memory, or does not report how much it has."""
        return self.available is None or self.total <= self.available


@dataclass(frozen=True)
class LongestContext:
    """The longest context that fits with KV cache types.

    Attributes:
        cache_k, cache_v: the KV cache types.
        length: tokens; None if not even a short context fits.
        total: bytes on all devices; None likewise.
    """

    cache_k: CacheType
    cache_v: CacheType
    length: int | None
    total: int | None


@dataclass(frozen=True)
class MemoryPlan:
    """Parameters of a load, and the memory they need.

    Attributes:
        path: the model's file.
        model_context_length: tokens that the model is made for, or the overridden context length.
        offloadable_layers: how many layers can go to GPUs, the output layer counted as one.
        params: what was asked for, with everything left open decided.
        devices: what each device has to hold, the host first, then the GPUs.
        fits: whether all devices have that much memory.
        nearest: if it does not fit, parameters that do.
        hint: the same in words.
        longest_contexts: the longest context by KV cache type; only from `plan`.
        speed: the speed measured on this machine, or None.
    """

    path: Path
    model_context_length: int
    offloadable_layers: int
    params: LoadParams
    devices: tuple[DeviceMemory, ...]
    fits: bool
    nearest: tuple[LoadParams, ...] = ()
    hint: str = ""
    longest_contexts: tuple[LongestContext, ...] = ()
    speed: MeasuredSpeed | None = None

    @property
    def options(self) -> ContextOptions:
        """The options for `Context`, with a length."""
        return self.params.options

    @property
    def gpu_layers(self) -> int:
        """The number of layers on GPUs, for `Model.open`."""
        return self.params.gpu_layers

    @property
    def context_length(self) -> int:
        """The context window in tokens."""
        assert self.options.length is not None
        return self.options.length

    @property
    def total_bytes(self) -> int:
        """The bytes on all devices together."""
        return sum(device.total for device in self.devices)

    def require_fit(self) -> MemoryPlan:
        """Return the plan itself if it fits.

        Raises:
            DoesNotFit: it does not fit; the message has the sizes, the hint the nearest parameters that do.
        """
        if self.fits:
            return self
        device = next((device for device in self.devices if not device.fits), self.devices[0])
        owner = "this computer's" if device.name == HOST else f"{device.name}'s"
        # GPUs that use the computer's memory may each fit, but not together
        with_gpu = "" if not device.fits else f", {format_memory(self.total_bytes)} with its GPU"
        needed, available = format_memory(device.total), format_memory(device.available or 0)
        raise DoesNotFit(
            f"{self.path} with a context of {self.context_length:,} tokens needs {needed} of {owner} memory "
            f"({_list_sizes(device)}{with_gpu}), and {available} are available",
            self.hint,
        )


def _list_sizes(device: DeviceMemory) -> str:
    sizes = device.sizes
    by_use = {
        "weights": sizes.mapped + sizes.weights,
        "KV cache": sizes.cache,
        "compute buffers": sizes.compute + sizes.output,
        **device.extra,
    }
    return ", ".join(f"{use} {format_memory(count)}" for use, count in by_use.items() if count)
