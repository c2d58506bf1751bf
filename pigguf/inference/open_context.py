"""A model opened the way it runs best on this machine: planned, tuned, and with what was read before.

    with open_session("model.gguf", RunConfig(ctx=32768)) as session:
        session.set_prompt(session.context.model.tokenize(text))
    with open_context("model.gguf", sequences=4) as context: ...      for several users (serve/)

What fits is settled before anything is loaded (inference/planning.py); threads, batches and flash attention are what
was measured here, or the built-in rule (tuning/); long prompts go through PyTorch where that is faster
(hybrid/); what was read stays read on disk (sessions/). All of it keeps to what llama.cpp alone computes,
within roundings.
Left out: evaluations and checks, which measure llama.cpp's own figures and open models themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pigguf.errors import UsageError
from pigguf.gguf_io import GGUFFile, read_header
from pigguf.inference.engine import (
    CacheType,
    Context,
    ContextOptions,
    GpuLayers,
    Model,
    RuntimeRope,
    Session,
)
from pigguf.inference.engine.context import UNQUANTIZED
from pigguf.inference.planning import MeasuredSpeed, Plan, Settings, choose, plan
from pigguf.inference.prompt_cache import open_store
from pigguf.inference.rpc.client import Workers, connected
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.inference.tuning import Tuning, find_tuning
from pigguf.progress import SILENT, Progress

Prefill = Literal["auto", "llama.cpp", "torch"]

_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class RunConfig:
    """How a model is run; what is None or "auto" is settled by what fits and by what was measured.

    Attributes:
        ctx: window in tokens; None is the file's, or what half of the free memory holds.
        gpu_layers: how many layers go to GPUs; "auto" is as many as fit.
        threads: CPU threads.
        rope: positions other than the file's, for a file that is known to be wrong.
        cache_k, cache_v: types of the KV cache; a quantized one is smaller, and slower on a CPU.
        flash_attention: on or off for good; None changes it by depth where that is faster.
        prefill: what reads long prompts; "auto" is PyTorch where it is installed and faster.
        sessions: keep on disk what was read, and start from it.
        workers: "host:port" of other machines' `pigguf worker`; their devices take the layers in place of
            this machine's GPUs.
        split: each of the workers' devices' share of the layers; None is in proportion to free memory.

    Raises:
        UsageError: PyTorch is to read prompts for layers that workers have.
    """

    ctx: int | None = None
    gpu_layers: GpuLayers = "auto"
    threads: int | None = None
    rope: RuntimeRope | None = None
    cache_k: CacheType = "f16"
    cache_v: CacheType = "f16"
    flash_attention: bool | None = None
    prefill: Prefill = "auto"
    prompt_cache: bool = True
    workers: tuple[str, ...] = ()
    split: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.workers and self.prefill == "torch":
            raise UsageError(
                "PyTorch reads prompts on this machine alone, and workers are to take the layers",
                "leave prefill to auto, or the workers out",
            )


@contextmanager
def open_session(
    path: str | Path, settings: RunConfig | None = None, progress: Progress = SILENT
) -> Iterator[Session]:
    """An empty session of a model, everything closed behind it; its context and model hang on it.

    Raises:
        GGUFError, UnsupportedModel: the file cannot be run.
        ContextOverflow: a window longer than the file claims.
        DoesNotFit: not enough memory; the hint has the nearest settings that do fit.
        UsageError: settings that do not fit together, or that this model or machine does not have.
        BackendUnavailable: the engine is missing or broken.
        WorkerLost: a worker cannot be used; also later, from whatever the session is asked, where one fails.
    """
    with open_context(path, settings, progress) as context, context.sequence() as session:
        yield session


@contextmanager
def open_context(
    path: str | Path, settings: RunConfig | None = None, progress: Progress = SILENT, *, sequences: int = 1
) -> Iterator[Context]:
    """A context for so many sequences, everything closed behind it; each has the settings' window.

    Raises:
        As open_session does.
    """
    settings = settings or RunConfig()
    store = open_store() if settings.prompt_cache else None
    with ExitStack() as opened:
        workers = opened.enter_context(connected(settings.workers, settings.split))
        planned, tuning = _settled(path, settings, sequences, workers)
        if workers and settings.gpu_layers == "auto" and planned.gpu_layers < planned.layers:
            _log.warning(
                "%d of %d layers fit on the workers: the others stay on this machine",
                planned.gpu_layers,
                planned.layers,
            )
        model = opened.enter_context(
            Model.open(
                path, gpu_layers=planned.gpu_layers, rope=settings.rope, workers=workers, progress=progress
            )
        )
        reader = _reader(model, planned.options, settings.prefill, tuning)
        yield opened.enter_context(Context(model, planned.options, prefiller=reader, prompt_cache=store))


def plan_session(path: str | Path, settings: RunConfig) -> Plan:
    """What open_session would take of the memory, whether it fits or not; nothing is loaded.

    Raises:
        As open_session does, but for DoesNotFit.
    """
    file = read_header(path)
    tuning = _tuning(file, settings)

    def speed(_: GGUFFile, settled: Settings) -> MeasuredSpeed | None:
        return _deepest(tuning, settled.options.length)

    with connected(settings.workers, settings.split) as workers:
        return plan(
            file,
            _options(settings, tuning),
            gpu_layers=settings.gpu_layers,
            rope=settings.rope,
            speedometer=speed,
            workers=workers,
        )


def _deepest(tuning: Tuning, length: int | None) -> MeasuredSpeed | None:
    """What was measured nearest to a full window."""
    found = [
        MeasuredSpeed(speed.depth, speed.prefill, speed.decode)
        for speed in tuning.speeds
        if speed.prefill and speed.decode and speed.depth <= (length or 0)
    ]
    return max(found, key=lambda speed: speed.depth, default=None)


def settle(path: str | Path, settings: RunConfig, sequences: int = 1) -> tuple[Plan, Tuning]:
    """The settings with nothing left open, and what they were taken from; nothing is loaded.

    Raises:
        As open_session does.
    """
    with connected(settings.workers, settings.split) as workers:
        return _settled(path, settings, sequences, workers)


def _settled(
    path: str | Path, settings: RunConfig, sequences: int, workers: Workers | None
) -> tuple[Plan, Tuning]:
    file = read_header(path)
    tuning = _tuning(file, settings)
    options = _options(settings, tuning)
    if sequences > 1:  # they share a context, which no one of them may hand off
        options = replace(options, sequences=sequences, handoff=None)
    planned = choose(file, options, gpu_layers=settings.gpu_layers, rope=settings.rope, workers=workers)
    return planned, tuning


def _tuning(file: GGUFFile, settings: RunConfig) -> Tuning:
    """What was measured here; llama.cpp's own settings where other machines compute."""
    return Tuning() if settings.workers else find_tuning(file, settings.gpu_layers)


def _options(settings: RunConfig, tuning: Tuning) -> ContextOptions:
    """What was asked for, and of the tuning what is not at odds with it."""
    flash = settings.flash_attention
    if flash is None and settings.cache_v in UNQUANTIZED:
        flash = tuning.flash_attention
    moves = flash is None and settings.cache_v in UNQUANTIZED
    return ContextOptions(
        length=settings.ctx,
        threads=settings.threads or tuning.threads,
        prefill_threads=settings.threads or tuning.prefill_threads,
        batch=tuning.batch,
        cache_k=settings.cache_k,
        cache_v=settings.cache_v,
        flash_attention=flash,
        handoff=tuning.handoff if moves else None,
    )


def _reader(model: Model, options: ContextOptions, prefill: Prefill, tuning: Tuning) -> TorchPrefiller | None:
    """
    Raises:
        UsageError: PyTorch was asked for, and cannot read for this model.
    """
    if prefill == "llama.cpp" or (prefill == "auto" and tuning.torch_from is None):
        return None
    reader = TorchPrefiller(model, options, *([tuning.torch_from] if tuning.torch_from else []))
    if prefill == "torch" and not reader.is_supported:
        raise UsageError(
            f"PyTorch cannot read prompts for {model.path} on this machine",
            'it takes `pip install -e ".[torch]"` in the clone, a CPU with bfloat16 arithmetic, a model like '
            "Llama or Qwen, and an unquantized KV cache; --prefill auto takes what there is",
        )
    return reader
