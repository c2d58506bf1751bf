"""Memory estimate: what a model and a context would take, from llama.cpp itself, without allocation.

    with MemoryEstimator(read_header(path), gpu_layers=12) as estimator:
        [host, *gpus] = estimator.estimate(ContextOptions(length=8192))

A model loaded with `no_alloc` assigns each tensor to a buffer and allocates none; a context of it lays out
its KV cache and graphs in the same way. So there is no formula here that could drift from the library.
Weights and KV cache are the tensors of the smallest graph, each with its assigned buffer; compute and output
buffers are what the log states. Nothing may be computed with either.

It costs what reading the vocabulary costs (0.1 s and 20 MB for 49,152 tokens), and some milliseconds for each
context.

Upstream: llama.cpp src/llama-context.cpp (sched_reserve, llama_graph_reserve), src/llama-model.cpp and
src/llama-kv-cache.cpp (no_alloc), common/fit.cpp, which does the same for --fit.
Not here: whether it fits (inference/memory_planning/); memory outside the library's buffers (scratch space of
the CPU's operators, the vocabulary).
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from pigguf.errors import BackendUnavailable, DoesNotFit, EngineError
from pigguf.gguf_io import DEFAULT_ALIGNMENT, GGUFFile
from pigguf.gguf_io.metadata import get_array
from pigguf.inference.engine import devices, file_checks, library
from pigguf.inference.engine.context_options import ContextOptions, context_parameters
from pigguf.inference.engine.ggml_library import ggml_with_tensors
from pigguf.inference.engine.memory_checks import kv_row_bytes
from pigguf.inference.engine.protocols import RemoteDevices
from pigguf.inference.engine.runtime_rope import RuntimeRope
from pigguf.inference.engine.sigint import defer_sigint
from pigguf.inference.engine.weight_loading import load_weights
from pigguf.llama_cpp_internals import ENGINE_VERSION_HINT, symbols
from pigguf.llama_cpp_internals.ggml_tensor_layout import GgmlTensor
from pigguf.llama_cpp_internals.log_lines import (
    BUFFER_SIZE_LINES,
    KV_CACHE_TENSOR,
    LAYER_WEIGHT,
    PLAIN_HOST_BUFFER,
    LoggedBufferSize,
    parse_buffer_sizes,
)

HOST = "CPU"  # the computer's own memory, by ggml's name of the device that computes on it

# llama.cpp allocates KV_CELL_BYTES for each cell besides K and V even here: 256 MiB for as many.
MAX_CELLS = 1 << 22


@dataclass(frozen=True)
class BufferSizes:
    """Bytes that llama.cpp takes on one device.

    Attributes:
        device: ggml's name, HOST for the computer's memory.
        mapped: weights that stay in the file's own pages, which the system can drop and read again.
        weights: weights that are copied.
        cache_k, cache_v: the KV cache.
        compute: intermediate values of the largest batch.
        output: logits.
        layers: whose weights are there, counted from 0; the output is one more.
    """

    device: str
    mapped: int = 0
    weights: int = 0
    cache_k: int = 0
    cache_v: int = 0
    compute: int = 0
    output: int = 0
    layers: tuple[int, ...] = ()

    @property
    def cache(self) -> int:
        """Bytes of the KV cache."""
        return self.cache_k + self.cache_v

    @property
    def total(self) -> int:
        """Bytes of all buffers."""
        return sum(getattr(self, kind) for kind in BUFFER_KINDS)


BUFFER_KINDS = tuple(field.name for field in fields(BufferSizes) if field.name not in ("device", "layers"))


class MemoryEstimator:
    """A model that is loaded without its memory. A context manager.

    Args:
        file: the file's header; it is checked here.
        gpu_layers: the number of layers on GPUs, with the output as one of them.
        rope: rope values to use instead of the file's.
        use_mmap: the file is to be mapped into memory instead of read.
        workers: as for Model.open.

    Attributes:
        dimensions: the model's sizes.

    Raises:
        GGUFError, UnsupportedModel, UsageError, ContextOverflow: as Model.open.
        BackendUnavailable: there is no engine, or it lacks the functions for an estimate.
    """

    def __init__(
        self,
        file: GGUFFile,
        gpu_layers: int = 0,
        *,
        rope: RuntimeRope | None = None,
        use_mmap: bool = True,
        workers: RemoteDevices | None = None,
    ) -> None:
        self._handle: Any = None
        self.dimensions = file_checks.check_loadable(file)
        self._llama = library.load()
        self._graph_reserve = _graph_reserve()
        gpu_buffers = devices.gpu_buffer_devices()
        worker_buffers: Mapping[str, str] = workers.buffer_devices() if workers else {}
        self._device_of_buffer = {**gpu_buffers, **worker_buffers}
        self._workers = workers
        self._other_devices = dict.fromkeys((worker_buffers if workers else gpu_buffers).values())
        self._file = file
        self._use_mmap = use_mmap and file.alignment >= DEFAULT_ALIGNMENT
        self._vocab_size = len(get_array(file.metadata, "tokenizer.ggml.tokens") or ())
        overrides = rope.metadata(file) if rope else {}
        self._handle = load_weights(file, overrides, gpu_layers, no_alloc=True, workers=workers)

    def estimate(self, options: ContextOptions) -> tuple[BufferSizes, ...]:
        """Return what the model and a context take: on the host, then on GPUs that hold a part, or workers.

        Args:
            options: with a length; the flash-attention switch is ignored.

        Raises:
            UsageError: the model's heads are not a whole number of a cache type's blocks.
            DoesNotFit: the windows have more than MAX_CELLS tokens.
            EngineError: llama.cpp cannot make such a context.
        """
        for cache_type in (options.cache_k, options.cache_v):
            kv_row_bytes(cache_type, self.dimensions.head_dim)
        with defer_sigint():  # Ctrl-C in the log's callback would be lost: no exception passes through C
            return self._estimate(options)

    def _estimate(self, options: ContextOptions) -> tuple[BufferSizes, ...]:
        _check_cell_count(self._file, options)
        with library.capture_errors() as errors, library.capture_log() as lines:
            parameters = context_parameters(options, self._vocab_size)
            handle = self._llama.llama_init_from_model(self._handle, parameters)
        if self._workers is not None:
            self._workers.check()
        if not handle:
            raise EngineError(
                f"llama.cpp cannot make a context of {options.length:,} tokens of {self._file.path}: "
                f"{library.failure_reason(errors)}"
            )
        try:
            nbytes, layers = self._sum_by_device(self._graph_tensors(handle, options.sequences))
        finally:
            self._llama.llama_free(handle)
        for buffer in _logged_buffer_sizes(lines):
            nbytes[self._device_of_buffer.get(buffer.buffer_type, HOST)][buffer.use] += buffer.nbytes
        is_remote = self._workers is not None
        others = [device for device in self._other_devices if is_remote or device in nbytes]
        return tuple(
            BufferSizes(device, **nbytes[device], layers=tuple(sorted(layers[device])))
            for device in (HOST, *others)
        )

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        if self._handle is not None:
            self._llama.llama_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> MemoryEstimator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _graph_tensors(self, context: Any, n_sequences: int) -> list[GgmlTensor]:
        """Return every tensor that the graph of one token reads and does not compute itself.

        Raises:
            DoesNotFit: there is no memory for the graph.
        """
        ggml = ggml_with_tensors()
        graph = self._graph_reserve(context, n_sequences, n_sequences, n_sequences)
        if not graph:
            raise DoesNotFit(f"no memory to plan {self._file.path} with", "close other programs")
        nodes = (ggml.ggml_graph_node(graph, i) for i in range(ggml.ggml_graph_n_nodes(graph)))
        tensors: dict[int, GgmlTensor] = {}
        for node in map(GgmlTensor.from_address, nodes):
            for address in (*node.src, node.view_src):
                if address and address not in tensors:
                    tensors[address] = GgmlTensor.from_address(address)
        return list(tensors.values())

    def _sum_by_device(
        self, tensors: Iterable[GgmlTensor]
    ) -> tuple[defaultdict[str, dict[str, int]], defaultdict[str, set[int]]]:
        """Return by device the bytes of each kind of buffer, and the layers whose weights are there."""
        ggml = ggml_with_tensors()
        nbytes: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(BUFFER_KINDS, 0))
        layers: defaultdict[str, set[int]] = defaultdict(set)
        for tensor in tensors:
            name = tensor.text_name
            cache = KV_CACHE_TENSOR.match(name)
            if not tensor.buffer or not (cache or name in self._file.tensors):
                continue
            buffer_type = ggml.ggml_backend_buffer_get_type(tensor.buffer)
            buffer_name = ggml.ggml_backend_buft_name(buffer_type).decode()
            device = self._device_of_buffer.get(buffer_name, HOST)
            is_mapped = self._use_mmap and device == HOST and PLAIN_HOST_BUFFER.match(buffer_name)
            kind = f"cache_{cache[1]}" if cache else "mapped" if is_mapped else "weights"
            nbytes[device][kind] += ggml.ggml_backend_buft_get_alloc_size(buffer_type, ctypes.byref(tensor))
            if layer := LAYER_WEIGHT.match(name):
                layers[device].add(int(layer[1] or self.dimensions.layers))
        return nbytes, layers


def _logged_buffer_sizes(lines: Iterable[str]) -> list[LoggedBufferSize]:
    """Return the buffer sizes in the log.

    Raises:
        EngineError: the log states none of a kind.
    """
    sizes = parse_buffer_sizes(lines)
    for use in BUFFER_SIZE_LINES:
        if all(use != size.use for size in sizes):
            raise EngineError(f"llama.cpp does not log how large its {use} buffers are", ENGINE_VERSION_HINT)
    return sizes


def _check_cell_count(file: GGUFFile, options: ContextOptions) -> None:
    """Raise if llama.cpp's own records of the cells would take much memory and time.

    Raises:
        DoesNotFit: they would.
    """
    assert options.length is not None
    wanted = options.length * options.sequences
    if wanted > MAX_CELLS:
        raise DoesNotFit(
            f"{file.path}: windows of {wanted:,} tokens in all are more than the {MAX_CELLS:,} there can be",
            "take a shorter context",
        )


def _graph_reserve() -> Any:
    """Return llama.cpp's function that builds a graph of (context, tokens, sequences, outputs).

    Raises:
        BackendUnavailable: the installed build does not export it.
    """
    from llama_cpp.llama_cpp import _lib

    function = symbols.GRAPH_RESERVE
    try:
        return getattr(symbols.declare(_lib, (function,)), function.name)
    except AttributeError as error:
        raise BackendUnavailable(
            f"the engine cannot estimate memory: it has no function {function.name}", ENGINE_VERSION_HINT
        ) from error
