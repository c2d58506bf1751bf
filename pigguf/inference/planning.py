"""What of a model fits into this machine, before any of it is loaded.

    plan("model.gguf", ContextOptions(length=32768))    a Plan to look at: memory by device, longest windows
    choose("model.gguf", options).settings              what fits, or DoesNotFit with settings that would

Every number of bytes is llama.cpp's own, from a dry run (inference/engine/memory_estimate.py). Compared with it is what the
system says is free (common/system_memory.py) and what each GPU says (inference/engine/devices.py), less a reserve for what is
in no buffer. Weights that stay in the file's pages count as all others: a model that is read from disk for
every token is of no use.

What is left open is settled here: the layers on GPUs are as many as leave room for their cache and buffers; a
window that nobody asked for is the model's own, or what half of the free memory holds. A handoff that is all
that does not fit is given up.
Left out: how fast it will be, which only measuring tells (a Speedometer may be given).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from pigguf.common.system_memory import available_memory, in_words
from pigguf.errors import (
    BackendUnavailable,
    ContextOverflow,
    DoesNotFit,
    EngineError,
    Interrupted,
    UsageError,
    WorkerLost,
)
from pigguf.gguf_io import GGUFFile, read_header
from pigguf.inference.engine import CacheType, ContextOptions, GpuLayers, RuntimeRope
from pigguf.inference.engine.context import CACHE_BLOCK, UNQUANTIZED
from pigguf.inference.engine.devices import Device, list_gpus
from pigguf.inference.engine.memory_estimate import HOST, PARTS, BufferSizes, DryRun
from pigguf.inference.engine.model import layers_on_gpu
from pigguf.inference.rpc.client import Workers
from pigguf.rope import rope_from_metadata

CACHE_TYPES: tuple[CacheType, ...] = ("f16", "q8_0", "q4_0")  # whose longest windows are told

_RESERVE = 128 << 20  # the vocabulary, the operators' scratch space, a batch of logits where all are wanted
_GPU_RESERVE = 1 << 30  # as llama.cpp's --fit-target leaves free: pools of the driver and of matrix products
_GPU_RESERVE_SHARE = 8  # ... or this part of a small GPU
_FREELY = 2  # a window that nobody asked for takes this part of the free memory at most
_GOOD_WINDOW = 8192  # so long a window on the GPU alone is better than a longer one half beside it
_LEAST_WINDOW = 1024  # half of the memory or not

Measure = Callable[[int, ContextOptions], tuple[BufferSizes, ...]]
ExtraBytes = Callable[[int], int]


@dataclass(frozen=True)
class MeasuredSpeed:
    """Tokens a second on this machine with a plan's settings, at a depth of so many tokens."""

    depth: int
    prefill: float
    decode: float


@dataclass(frozen=True)
class Settings:
    """What there is to choose: options with a length, and layers on GPUs, the output counted as one."""

    options: ContextOptions
    gpu_layers: int


Speedometer = Callable[[GGUFFile, Settings], MeasuredSpeed | None]


@dataclass(frozen=True)
class Resources:
    """What can be taken of this machine.

    Attributes:
        memory: bytes of the computer's memory; None where the system does not tell.
        gpus: with their free memory; workers' devices, where there are workers.
        helpers: what the gpus are, in words.
    """

    memory: int | None
    gpus: tuple[Device, ...] = ()
    helpers: str = "the GPU"

    def room(self, device: str) -> int | None:
        """Bytes to plan with on a device by its name; None where nobody tells."""
        if device == HOST:
            return None if self.memory is None else max(0, self.memory - _RESERVE)
        gpu = next(gpu for gpu in self.gpus if gpu.name == device)
        reserve = min(_GPU_RESERVE, gpu.memory_total // _GPU_RESERVE_SHARE)
        return max(0, gpu.memory_free - reserve) if gpu.memory_total else None

    def is_in_host(self, device: str) -> bool:
        """Whether the device works in the computer's memory."""
        return device == HOST or any(
            gpu.name == device and (gpu.kind == "integrated gpu" or gpu.backend == "MTL") for gpu in self.gpus
        )


def find_resources(workers: Workers | None = None) -> Resources:
    """What is free now; on workers' devices in place of this machine's GPUs, if there are workers.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    if workers:
        return Resources(available_memory(), workers.devices, "the workers")
    return Resources(available_memory(), list_gpus())


@dataclass(frozen=True)
class DevicePlan:
    """What a device has to hold.

    Attributes:
        sizes: llama.cpp's buffers.
        extra: other bytes by what they are for.
        room: what there is to take; None where nobody tells.
    """

    sizes: BufferSizes
    extra: Mapping[str, int]
    room: int | None

    @property
    def name(self) -> str:
        return self.sizes.device

    @property
    def total(self) -> int:
        return self.sizes.total + sum(self.extra.values())

    @property
    def fits(self) -> bool:
        return self.room is None or self.total <= self.room


@dataclass(frozen=True)
class LongestWindow:
    """The longest window that fits with these types of cache, and bytes on all devices; None if none fits."""

    cache_k: CacheType
    cache_v: CacheType
    length: int | None
    total: int | None


@dataclass(frozen=True)
class Plan:
    """Settings, and what they take.

    Attributes:
        path: the model's file.
        model_window: tokens that the model is made for, or an override said.
        layers: how many there are to put on GPUs, the output counted as one.
        settings: what was asked for, and what was settled for what was left open.
        devices: the host first, then GPUs.
        nearest: where it does not fit, settings that do.
        hint: the same in words.
        windows: the longest window by cache type; only of `plan`.
        speed: as measured on this machine, or None.
    """

    path: Path
    model_window: int
    layers: int
    settings: Settings
    devices: tuple[DevicePlan, ...]
    fits: bool
    nearest: tuple[Settings, ...] = ()
    hint: str = ""
    windows: tuple[LongestWindow, ...] = ()
    speed: MeasuredSpeed | None = None

    @property
    def options(self) -> ContextOptions:
        """For a Context; the length is settled."""
        return self.settings.options

    @property
    def gpu_layers(self) -> int:
        """For Model.open."""
        return self.settings.gpu_layers

    @property
    def length(self) -> int:
        """The window in tokens."""
        assert self.options.length is not None
        return self.options.length

    @property
    def total(self) -> int:
        """Bytes on all devices."""
        return sum(device.total for device in self.devices)

    def check(self) -> Plan:
        """The plan itself.

        Raises:
            DoesNotFit: it does not fit; the message has the sizes, the hint the nearest settings that do.
        """
        if self.fits:
            return self
        device = next((device for device in self.devices if not device.fits), self.devices[0])
        whose = "this computer's" if device.name == HOST else f"{device.name}'s"
        # GPUs that work in the computer's memory may fit each, and not together
        others = "" if not device.fits else f", {in_words(self.total)} with its GPU"
        raise DoesNotFit(
            f"{self.path} with a window of {self.length:,} tokens takes {in_words(device.total)} of {whose} "
            f"memory ({_parts(device)}{others}), and there is room for {in_words(device.room or 0)}",
            self.hint,
        )


def plan(
    source: str | Path | GGUFFile,
    options: ContextOptions | None = None,
    *,
    gpu_layers: GpuLayers = "auto",
    rope: RuntimeRope | None = None,
    use_mmap: bool = True,
    extra: Mapping[str, ExtraBytes] | None = None,
    speedometer: Speedometer | None = None,
    resources: Resources | None = None,
    workers: Workers | None = None,
) -> Plan:
    """Plan a model, whether it fits or not, and the longest windows for the usual types of KV cache.

    Args:
        source: a GGUF file.
        options: of the context; a length of None is settled.
        gpu_layers, rope, use_mmap, workers: as for Model.open.
        extra: what else will be taken of the computer's memory: what for, and bytes by the window's tokens.
        speedometer: what was measured on this machine.
        resources: what there is to take; None is what is free now.

    Raises:
        GGUFError, UnsupportedModel, BackendUnavailable, UsageError: as Model.open.
        ContextOverflow: a length past the model's window.
        EngineError: llama.cpp cannot make such a context.
    """
    file = source if isinstance(source, GGUFFile) else read_header(source)
    with _planner(file, rope, use_mmap, extra, resources, workers) as planner:
        planned = planner.plan(options or ContextOptions(), gpu_layers)
        speed = speedometer(file, planned.settings) if speedometer else None
        return replace(planned, windows=planner.windows(planned.settings), speed=speed)


def choose(
    source: str | Path | GGUFFile,
    options: ContextOptions | None = None,
    *,
    gpu_layers: GpuLayers = "auto",
    rope: RuntimeRope | None = None,
    use_mmap: bool = True,
    extra: Mapping[str, ExtraBytes] | None = None,
    resources: Resources | None = None,
    workers: Workers | None = None,
) -> Plan:
    """A plan that fits, before a load; arguments as for `plan`.

    Raises:
        DoesNotFit: it does not; the message has the sizes, the hint the nearest settings that do.
        And as plan does.
    """
    file = source if isinstance(source, GGUFFile) else read_header(source)
    with _planner(file, rope, use_mmap, extra, resources, workers) as planner:
        return planner.plan(options or ContextOptions(), gpu_layers).check()


@contextmanager
def _planner(
    file: GGUFFile,
    rope: RuntimeRope | None,
    use_mmap: bool,
    extra: Mapping[str, ExtraBytes] | None,
    resources: Resources | None,
    workers: Workers | None,
) -> Iterator[Planner]:
    overrides = rope.metadata(file) if rope else {}
    with _DryRuns(file, rope, use_mmap, workers) as measure:
        yield Planner(
            file.path,
            rope_from_metadata(file.metadata | overrides, file.architecture).context_length,
            measure.layers + 1,
            measure,
            resources or find_resources(workers),
            extra or {},
        )


class _DryRuns:
    """A Measure: one dry model at a time, for the last asked number of layers on GPUs. What was measured once
    is not measured again: a search comes back to the same settings."""

    def __init__(
        self, file: GGUFFile, rope: RuntimeRope | None, mapped: bool, workers: Workers | None
    ) -> None:
        self._file, self._rope, self._mapped, self._workers = file, rope, mapped, workers
        self._gpu_layers = 0
        self._measured: dict[tuple[int, ContextOptions], tuple[BufferSizes, ...]] = {}
        self._run = self._open(0)
        self.layers = self._run.dimensions.layers

    def _open(self, gpu_layers: int) -> DryRun:
        return DryRun(self._file, gpu_layers, rope=self._rope, mapped=self._mapped, workers=self._workers)

    def __call__(self, gpu_layers: int, options: ContextOptions) -> tuple[BufferSizes, ...]:
        asked = (gpu_layers, options)
        if asked not in self._measured:
            if gpu_layers != self._gpu_layers:
                self._run.close()
                self._run, self._gpu_layers = self._open(gpu_layers), gpu_layers
            self._measured[asked] = self._run.sizes(options)
        return self._measured[asked]

    def __enter__(self) -> _DryRuns:
        return self

    def __exit__(self, *_: object) -> None:
        self._run.close()


@dataclass(frozen=True)
class Planner:
    """The search for settings that fit, over whatever measures them.

    Attributes:
        path: to speak of.
        model_window: the longest window, in tokens.
        layers: how many there are to put on GPUs, the output counted as one.
        measure: bytes by device, for layers on GPUs and options with a length; the host first.
        resources: what there is.
        extra: as for `plan`.
    """

    path: Path
    model_window: int
    layers: int
    measure: Measure
    resources: Resources
    extra: Mapping[str, ExtraBytes] = field(default_factory=dict)

    def plan(self, options: ContextOptions, gpu_layers: GpuLayers) -> Plan:
        """Settle what is open, and say whether it fits, and what would.

        Raises:
            As the function of this name does.
        """
        if options.length is not None and options.length > self.model_window:
            raise ContextOverflow(
                f"a context of {options.length:,} tokens is longer than the {self.model_window:,} that "
                f"{self.path} is made for",
                f"take {self.model_window:,} at most, or override its rope factor and context length",
            )
        settings = self._settled(options, gpu_layers)
        try:
            devices = self.devices(settings)
        except DoesNotFit as error:
            raise DoesNotFit(error.message, self._hint(settings, self._nearest(settings))) from None
        fits = self._fit(devices)
        nearest = () if fits else self._nearest(settings)
        hint = "" if fits else self._hint(settings, nearest)
        return Plan(self.path, self.model_window, self.layers, settings, devices, fits, nearest, hint)

    def devices(self, settings: Settings) -> tuple[DevicePlan, ...]:
        """What each device has to hold.

        Raises:
            DoesNotFit: windows of more tokens than a dry run is made with.
            UsageError, EngineError: no such context can be made.
        """
        options, measured = settings.options, []
        if options.handoff is None:
            measured = [self.measure(settings.gpu_layers, options)]
        else:  # with flash attention and without, one after the other
            ways = (replace(options, handoff=None, flash_attention=flash) for flash in (True, False))
            measured = [self.measure(settings.gpu_layers, way) for way in ways]
        sizes = [_largest(*same) for same in zip(*measured, strict=True)]
        assert options.length is not None
        extra = {what: bytes_(options.length) for what, bytes_ in self.extra.items()}
        if options.handoff is not None:
            extra["handoff: the cache on its way"] = sum(size.cache for size in sizes)
        return tuple(
            DevicePlan(size, extra if size.device == HOST else {}, self.resources.room(size.device))
            for size in sizes
        )

    def windows(self, settings: Settings) -> tuple[LongestWindow, ...]:
        """The longest window by cache type: the usual ones, and those of the settings."""
        own = (settings.options.cache_k, settings.options.cache_v)
        pairs = dict.fromkeys([*((kind, kind) for kind in CACHE_TYPES), own])
        return tuple(self._longest_window(settings, *pair) for pair in pairs)

    # ---- what fits -------------------------------------------------------------------------------

    def _fits(self, settings: Settings) -> bool:
        try:
            return self._fit(self.devices(settings))
        except (BackendUnavailable, Interrupted, WorkerLost):
            raise
        except (EngineError, UsageError):  # no such context
            return False

    def _fit(self, devices: tuple[DevicePlan, ...]) -> bool:
        in_host = sum(device.total for device in devices if self.resources.is_in_host(device.name))
        room = self.resources.room(HOST)
        return all(device.fits for device in devices) and (room is None or in_host <= room)

    def _fits_gpus(self, settings: Settings) -> bool:
        return all(device.fits for device in self.devices(settings) if device.name != HOST)

    def _fits_freely(self, settings: Settings) -> bool:
        """Whether it fits and leaves others enough."""
        if not self._fits(settings):
            return False
        host = self.devices(settings)[0]
        taken = host.total - host.sizes.mapped - host.sizes.weights
        return self.resources.memory is None or taken <= self.resources.memory // _FREELY

    # ---- what is open ----------------------------------------------------------------------------

    def _settled(self, options: ContextOptions, wanted: GpuLayers) -> Settings:
        settings = self._with_layers(options, wanted)
        without = replace(settings, options=replace(settings.options, handoff=None))
        if settings != without and not self._fits(settings) and self._fits(without):
            return without
        return settings

    def _with_layers(self, options: ContextOptions, wanted: GpuLayers) -> Settings:
        if wanted != "auto":
            return self._with_window(options, layers_on_gpu(wanted, self.layers, self.resources.gpus))
        if not any(gpu.memory_total for gpu in self.resources.gpus):
            return self._with_window(options, 0)
        if options.length is None:
            on_gpu = self._longest(Settings(options, self.layers), self._fits_freely)
            if on_gpu is not None and on_gpu >= min(_GOOD_WINDOW, self.model_window):
                return Settings(replace(options, length=on_gpu), self.layers)
            options = self._with_window(options, 0).options
        return Settings(options, self._most_layers(options))

    def _with_window(self, options: ContextOptions, gpu_layers: int) -> Settings:
        if options.length is not None:
            return Settings(options, gpu_layers)
        least = min(_LEAST_WINDOW, self.model_window)
        freely = self._longest(Settings(options, gpu_layers), self._fits_freely) or 0
        return Settings(replace(options, length=max(freely, least)), gpu_layers)

    def _most_layers(self, options: ContextOptions) -> int:
        """As many layers as the GPUs hold with their cache and buffers."""
        return _most(self.layers, lambda count: self._fits_gpus(Settings(options, count))) or 0

    def _longest(
        self, settings: Settings, fits: Callable[[Settings], bool], most: int | None = None
    ) -> int | None:
        """The longest window up to `most`, the model's own; None where not even a short one fits."""
        most = most or self.model_window
        blocks = -(-most // CACHE_BLOCK)

        def block_fits(count: int) -> bool:
            length = min(most, count * CACHE_BLOCK)
            return fits(replace(settings, options=replace(settings.options, length=length)))

        found = _most(blocks, block_fits)
        return min(most, found * CACHE_BLOCK) if found else None

    def _longest_window(self, settings: Settings, k: CacheType, v: CacheType) -> LongestWindow:
        settings = Settings(_with_cache(settings.options, k, v), settings.gpu_layers)
        length = self._longest(settings, self._fits)
        if length is None:
            return LongestWindow(k, v, None, None)
        devices = self.devices(replace(settings, options=replace(settings.options, length=length)))
        return LongestWindow(k, v, length, sum(device.total for device in devices))

    # ---- what would fit --------------------------------------------------------------------------

    def _nearest(self, settings: Settings) -> tuple[Settings, ...]:
        """One change each: a shorter window, a smaller cache, other layers on the GPU."""
        options, found = settings.options, []
        shorter = self._longest(settings, self._fits, options.length)
        if shorter is not None:
            found.append(replace(settings, options=replace(options, length=shorter)))
        smaller = (
            Settings(_with_cache(options, kind, kind), settings.gpu_layers)
            for kind in CACHE_TYPES
            if kind not in (options.cache_k, options.cache_v)
        )
        found += [next((other for other in smaller if self._fits(other)), settings)]
        if self.resources.gpus:
            found.append(replace(settings, gpu_layers=self._most_layers(options)))
        return tuple(other for other in dict.fromkeys(found) if other != settings and self._fits(other))

    def _hint(self, settings: Settings, nearest: tuple[Settings, ...]) -> str:
        if not nearest:
            return "take a smaller quantization of the model, or close other programs"
        return "these fit: " + "; ".join(self._difference(settings, other) for other in nearest)

    def _difference(self, settings: Settings, other: Settings) -> str:
        """What `other` says otherwise, in words."""
        options = other.options
        said = []
        if options.length != settings.options.length:
            said.append(f"a context of {options.length:,} tokens")
        if (options.cache_k, options.cache_v) != (settings.options.cache_k, settings.options.cache_v):
            said.append(f"a KV cache of {options.cache_k}")
        if other.gpu_layers != settings.gpu_layers:
            said.append(f"{other.gpu_layers} layers on {self.resources.helpers}")
        return " with ".join(said)


def _most(most: int, holds: Callable[[int], bool]) -> int | None:
    """The largest count from 1 to `most` for which it holds, if it holds for all below; None for none."""
    if holds(most):
        return most
    low, high = 0, most  # holds for low, or low is 0; does not for high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or None


def _largest(*sizes: BufferSizes) -> BufferSizes:
    """What it takes to hold any one of them, part by part."""
    return replace(sizes[0], **{part: max(getattr(size, part) for size in sizes) for part in PARTS})


def _with_cache(options: ContextOptions, k: CacheType, v: CacheType) -> ContextOptions:
    """With other types of the cache; a quantized V needs flash attention, always."""
    if v in UNQUANTIZED:
        return replace(options, cache_k=k, cache_v=v)
    return replace(
        options, cache_k=k, cache_v=v, handoff=None, flash_attention=options.flash_attention or None
    )


def _parts(device: DevicePlan) -> str:
    sizes = device.sizes
    parts = {
        "weights": sizes.mapped + sizes.weights,
        "KV cache": sizes.cache,
        "buffers to compute in": sizes.compute + sizes.output,
        **device.extra,
    }
    return ", ".join(f"{what} {in_words(count)}" for what, count in parts.items() if count)
