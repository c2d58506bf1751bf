"""The search for load parameters that fit into memory: layers on GPUs and the context length.

What the caller left open is decided here. As many layers go to GPUs as fit with their KV cache and compute
buffers. A context length that was not asked for is the model's own, or as many tokens as fit in half of the
free memory. A flash-attention switch is given up if it alone does not fit. Memory-mapped weights count like
all others: a model that is read from disk for every token is not usable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pigguf.errors import (
    BackendUnavailable,
    ContextOverflow,
    DoesNotFit,
    EngineError,
    Interrupted,
    UsageError,
    WorkerLost,
)
from pigguf.inference.engine import CacheType, ContextOptions, GpuLayers
from pigguf.inference.engine.context_options import UNQUANTIZED_CACHE_TYPES
from pigguf.inference.engine.gpu_layers_setting import resolve_gpu_layers
from pigguf.inference.engine.memory_estimate import BUFFER_KINDS, HOST, BufferSizes
from pigguf.inference.memory_planning.free_memory import FreeMemory
from pigguf.inference.memory_planning.memory_plan import DeviceMemory, LoadParams, LongestContext, MemoryPlan
from pigguf.llama_cpp_internals.limits import KV_CELL_PADDING

CACHE_TYPES: tuple[CacheType, ...] = ("f16", "q8_0", "q4_0")  # whose longest contexts are reported

_UNASKED_DIVISOR = 2  # a context length that was not asked for uses this part of the free memory at most
_GOOD_CONTEXT = 8192  # tokens; one this long on GPUs alone is better than a longer one partly on the CPU
_MIN_CONTEXT = 1024  # tokens, even if they need more than half of the memory


@dataclass(frozen=True)
class MemoryPlanner:
    """Search parameters that fit, using any function that estimates memory.

    Attributes:
        path: the model's file, for messages.
        model_context_length: the longest context, in tokens.
        offloadable_layers: how many layers can go to GPUs, the output layer counted as one.
        estimate: buffer sizes by device for a number of GPU layers and options with a length; the host first.
        free_memory: how much memory there is.
        extra_bytes: as for `plan`.
    """

    path: Path
    model_context_length: int
    offloadable_layers: int
    estimate: Callable[[int, ContextOptions], tuple[BufferSizes, ...]]
    free_memory: FreeMemory
    extra_bytes: Mapping[str, Callable[[int], int]] = field(default_factory=dict)

    def plan(self, options: ContextOptions, gpu_layers: GpuLayers) -> MemoryPlan:
        """Decide what is left open, and find out whether it fits and what would.

        Raises:
            As the function of this name does.
        """
        if options.length is not None and options.length > self.model_context_length:
            raise ContextOverflow(
                f"a context of {options.length:,} tokens is longer than the "
                f"{self.model_context_length:,} that {self.path} is made for",
                f"use {self.model_context_length:,} at most, or override its rope scaling (`rope.factor`)",
            )
        params = self._decide(options, gpu_layers)
        try:
            devices = self.device_memory(params)
        except DoesNotFit as error:
            raise DoesNotFit(error.message, self._hint(params, self._nearest(params))) from None
        fits = self._all_fit(devices)
        nearest = () if fits else self._nearest(params)
        hint = "" if fits else self._hint(params, nearest)
        return MemoryPlan(
            self.path,
            self.model_context_length,
            self.offloadable_layers,
            params,
            devices,
            fits,
            nearest,
            hint,
        )

    def device_memory(self, params: LoadParams) -> tuple[DeviceMemory, ...]:
        """Return what each device has to hold, the host first.

        Raises:
            DoesNotFit: contexts of more tokens than memory can be estimated for.
            UsageError, EngineError: no such context can be made.
        """
        options = params.options
        switch = options.flash_attention_switch
        if switch is None:
            estimates = [self.estimate(params.gpu_layers, options)]
        else:  # a context with flash attention and one without follow each other
            estimates = [
                self.estimate(
                    params.gpu_layers, replace(options, flash_attention_switch=None, flash_attention=flash)
                )
                for flash in (True, False)
            ]
        sizes = [_elementwise_max(*of_device) for of_device in zip(*estimates, strict=True)]
        assert options.length is not None
        extra = {use: count_bytes(options.length) for use, count_bytes in self.extra_bytes.items()}
        if switch is not None:
            extra["flash-attention switch: copy of the KV cache"] = sum(size.cache for size in sizes)
        return tuple(
            DeviceMemory(size, extra if size.device == HOST else {}, self.free_memory.available(size.device))
            for size in sizes
        )

    def longest_contexts(self, params: LoadParams) -> tuple[LongestContext, ...]:
        """Return the longest context by KV cache type: the usual types, and those of the parameters."""
        own = (params.options.cache_k, params.options.cache_v)
        type_pairs = dict.fromkeys([*((type_, type_) for type_ in CACHE_TYPES), own])
        return tuple(self._longest_context(params, *pair) for pair in type_pairs)

    # ---- what fits -------------------------------------------------------------------------------

    def _fits(self, params: LoadParams) -> bool:
        try:
            return self._all_fit(self.device_memory(params))
        except (BackendUnavailable, Interrupted, WorkerLost):
            raise
        except (EngineError, UsageError):  # no such context can be made
            return False

    def _all_fit(self, devices: tuple[DeviceMemory, ...]) -> bool:
        in_host = sum(device.total for device in devices if self.free_memory.shares_host_memory(device.name))
        available = self.free_memory.available(HOST)
        return all(device.fits for device in devices) and (available is None or in_host <= available)

    def _gpus_fit(self, params: LoadParams) -> bool:
        return all(device.fits for device in self.device_memory(params) if device.name != HOST)

    def _fits_in_half(self, params: LoadParams) -> bool:
        """Return whether it fits and leaves half of the free memory to other programs."""
        if not self._fits(params):
            return False
        host = self.device_memory(params)[0]
        needed = host.total - host.sizes.mapped - host.sizes.weights
        return self.free_memory.host is None or needed <= self.free_memory.host // _UNASKED_DIVISOR

    # ---- decide what is left open ----------------------------------------------------------------

    def _decide(self, options: ContextOptions, gpu_layers: GpuLayers) -> LoadParams:
        params = self._decide_layers(options, gpu_layers)
        without_switch = replace(params, options=replace(params.options, flash_attention_switch=None))
        if params != without_switch and not self._fits(params) and self._fits(without_switch):
            return without_switch
        return params

    def _decide_layers(self, options: ContextOptions, gpu_layers: GpuLayers) -> LoadParams:
        if gpu_layers != "auto":
            count = resolve_gpu_layers(gpu_layers, self.offloadable_layers, self.free_memory.gpus)
            return self._decide_length(options, count)
        if not any(gpu.memory_total for gpu in self.free_memory.gpus):
            return self._decide_length(options, 0)
        if options.length is None:
            on_gpu = self._longest(LoadParams(options, self.offloadable_layers), self._fits_in_half)
            if on_gpu is not None and on_gpu >= min(_GOOD_CONTEXT, self.model_context_length):
                return LoadParams(replace(options, length=on_gpu), self.offloadable_layers)
            options = self._decide_length(options, 0).options
        return LoadParams(options, self._most_layers(options))

    def _decide_length(self, options: ContextOptions, gpu_layers: int) -> LoadParams:
        if options.length is not None:
            return LoadParams(options, gpu_layers)
        shortest = min(_MIN_CONTEXT, self.model_context_length)
        in_half = self._longest(LoadParams(options, gpu_layers), self._fits_in_half) or 0
        return LoadParams(replace(options, length=max(in_half, shortest)), gpu_layers)

    def _most_layers(self, options: ContextOptions) -> int:
        """Return how many layers the GPUs hold with their KV cache and compute buffers."""
        return (
            _largest_count(self.offloadable_layers, lambda count: self._gpus_fit(LoadParams(options, count)))
            or 0
        )

    def _longest(
        self, params: LoadParams, fits: Callable[[LoadParams], bool], most: int | None = None
    ) -> int | None:
        """Return the longest context up to `most` tokens; None if not even a short one fits.

        A `most` of None is the model's own context length.
        """
        most = most or self.model_context_length
        blocks = -(-most // KV_CELL_PADDING)

        def blocks_fit(count: int) -> bool:
            length = min(most, count * KV_CELL_PADDING)
            return fits(replace(params, options=replace(params.options, length=length)))

        count = _largest_count(blocks, blocks_fit)
        return min(most, count * KV_CELL_PADDING) if count else None

    def _longest_context(self, params: LoadParams, k: CacheType, v: CacheType) -> LongestContext:
        params = LoadParams(_with_cache_types(params.options, k, v), params.gpu_layers)
        length = self._longest(params, self._fits)
        if length is None:
            return LongestContext(k, v, None, None)
        devices = self.device_memory(replace(params, options=replace(params.options, length=length)))
        return LongestContext(k, v, length, sum(device.total for device in devices))

    # ---- what would fit --------------------------------------------------------------------------

    def _nearest(self, params: LoadParams) -> tuple[LoadParams, ...]:
        """Return parameters that fit by one change: a shorter context, a smaller cache, other GPU layers."""
        options, candidates = params.options, []
        shorter = self._longest(params, self._fits, options.length)
        if shorter is not None:
            candidates.append(replace(params, options=replace(options, length=shorter)))
        smaller_caches = (
            LoadParams(_with_cache_types(options, type_, type_), params.gpu_layers)
            for type_ in CACHE_TYPES
            if type_ not in (options.cache_k, options.cache_v)
        )
        candidates += [next((smaller for smaller in smaller_caches if self._fits(smaller)), params)]
        if self.free_memory.gpus:
            candidates.append(replace(params, gpu_layers=self._most_layers(options)))
        return tuple(other for other in dict.fromkeys(candidates) if other != params and self._fits(other))

    def _hint(self, params: LoadParams, nearest: tuple[LoadParams, ...]) -> str:
        if not nearest:
            return "use a smaller quantization of the model, or close other programs"
        return "these fit: " + "; ".join(self._describe_change(params, other) for other in nearest)

    def _describe_change(self, params: LoadParams, other: LoadParams) -> str:
        options = other.options
        changes = []
        if options.length != params.options.length:
            changes.append(f"a context of {options.length:,} tokens")
        if (options.cache_k, options.cache_v) != (params.options.cache_k, params.options.cache_v):
            changes.append(f"a KV cache of {options.cache_k}")
        if other.gpu_layers != params.gpu_layers:
            changes.append(f"{other.gpu_layers} layers on {self.free_memory.gpu_owner}")
        return " with ".join(changes)


def _largest_count(most: int, holds: Callable[[int], bool]) -> int | None:
    """Return the largest count from 1 to `most` for which `holds` is true, or None; by bisection."""
    if holds(most):
        return most
    low, high = 0, most  # holds(low), or low is 0; not holds(high)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or None


def _elementwise_max(*sizes: BufferSizes) -> BufferSizes:
    """Return the sizes that hold any one of several, by kind of buffer."""
    return replace(sizes[0], **{kind: max(getattr(size, kind) for size in sizes) for kind in BUFFER_KINDS})


def _with_cache_types(options: ContextOptions, k: CacheType, v: CacheType) -> ContextOptions:
    """Return the options with other KV cache types; a quantized V always needs flash attention."""
    if v in UNQUANTIZED_CACHE_TYPES:
        return replace(options, cache_k=k, cache_v=v)
    return replace(
        options,
        cache_k=k,
        cache_v=v,
        flash_attention_switch=None,
        flash_attention=options.flash_attention or None,
    )
