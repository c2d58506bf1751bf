"""Entry points of memory planning: `plan` looks at a model, `fit_to_memory` requires that it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from pigguf.gguf_io import GGUFFile, read_header
from pigguf.inference.engine import ContextOptions, GpuLayers, RuntimeRope
from pigguf.inference.engine.memory_estimate import BufferSizes, MemoryEstimator
from pigguf.inference.memory_planning.free_memory import FreeMemory, measure_free_memory
from pigguf.inference.memory_planning.gpu_layer_search import MemoryPlanner
from pigguf.inference.memory_planning.memory_plan import MemoryPlan
from pigguf.inference.rpc.client import Workers
from pigguf.rope import rope_from_metadata


def plan(
    source: str | Path | GGUFFile,
    options: ContextOptions | None = None,
    *,
    gpu_layers: GpuLayers = "auto",
    rope: RuntimeRope | None = None,
    use_mmap: bool = True,
    extra_bytes: Mapping[str, Callable[[int], int]] | None = None,
    free_memory: FreeMemory | None = None,
    workers: Workers | None = None,
) -> MemoryPlan:
    """Plan the memory of a model, whether it fits or not, with the longest context by KV cache type.

    Args:
        source: a GGUF file, or its header.
        options: the context's options; a length of None is decided by what fits.
        gpu_layers, rope, use_mmap, workers: as for Model.open.
        extra_bytes: what else needs the computer's memory: its name, and a function from the context's tokens
            to bytes.
        free_memory: how much memory there is; None measures what is free now.

    Raises:
        GGUFError, UnsupportedModel, BackendUnavailable, UsageError: as Model.open does.
        ContextOverflow: a length beyond the model's context length.
        EngineError: llama.cpp cannot make such a context.
    """
    file = source if isinstance(source, GGUFFile) else read_header(source)
    with _open_planner(file, rope, use_mmap, extra_bytes, free_memory, workers) as planner:
        planned = planner.plan(options or ContextOptions(), gpu_layers)
        return replace(planned, longest_contexts=planner.longest_contexts(planned.params))


def fit_to_memory(
    source: str | Path | GGUFFile,
    options: ContextOptions | None = None,
    *,
    gpu_layers: GpuLayers = "auto",
    rope: RuntimeRope | None = None,
    use_mmap: bool = True,
    extra_bytes: Mapping[str, Callable[[int], int]] | None = None,
    free_memory: FreeMemory | None = None,
    workers: Workers | None = None,
) -> MemoryPlan:
    """Return a plan that fits, before a load; arguments as for `plan`.

    Raises:
        DoesNotFit: it does not; the message has the sizes, the hint the nearest parameters that do.
        And as `plan` does.
    """
    file = source if isinstance(source, GGUFFile) else read_header(source)
    with _open_planner(file, rope, use_mmap, extra_bytes, free_memory, workers) as planner:
        return planner.plan(options or ContextOptions(), gpu_layers).require_fit()


@contextmanager
def _open_planner(
    file: GGUFFile,
    rope: RuntimeRope | None,
    use_mmap: bool,
    extra_bytes: Mapping[str, Callable[[int], int]] | None,
    free_memory: FreeMemory | None,
    workers: Workers | None,
) -> Iterator[MemoryPlanner]:
    overrides = rope.metadata(file) if rope else {}
    with _CachedEstimates(file, rope, use_mmap, workers) as estimates:
        yield MemoryPlanner(
            file.path,
            rope_from_metadata(file.metadata | overrides, file.architecture).context_length,
            estimates.n_layer + 1,
            estimates.estimate,
            free_memory or measure_free_memory(workers),
            extra_bytes or {},
        )


class _CachedEstimates:
    """Memory estimates of one file, each computed once, because a search returns to the same parameters.

    One estimator is open at a time, for the number of GPU layers that was asked for last.
    """

    def __init__(
        self, file: GGUFFile, rope: RuntimeRope | None, mapped: bool, workers: Workers | None
    ) -> None:
        self._file, self._rope, self._mapped, self._workers = file, rope, mapped, workers
        self._gpu_layers = 0
        self._cache: dict[tuple[int, ContextOptions], tuple[BufferSizes, ...]] = {}
        self._estimator = self._open_estimator(0)
        self.n_layer = self._estimator.dimensions.layers

    def _open_estimator(self, gpu_layers: int) -> MemoryEstimator:
        return MemoryEstimator(
            self._file, gpu_layers, rope=self._rope, use_mmap=self._mapped, workers=self._workers
        )

    def estimate(self, gpu_layers: int, options: ContextOptions) -> tuple[BufferSizes, ...]:
        """Return the buffer sizes by device, the host first."""
        key = (gpu_layers, options)
        if key not in self._cache:
            if gpu_layers != self._gpu_layers:
                self._estimator.close()
                self._estimator, self._gpu_layers = self._open_estimator(gpu_layers), gpu_layers
            self._cache[key] = self._estimator.estimate(options)
        return self._cache[key]

    def __enter__(self) -> _CachedEstimates:
        return self

    def __exit__(self, *_: object) -> None:
        self._estimator.close()
