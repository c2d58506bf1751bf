"""What a model and a context of it would take, told by llama.cpp itself: everything is made but the memory.

    with DryRun(read_header(path), gpu_layers=12) as run:
        [host, *gpus] = run.sizes(ContextOptions(length=8192))

A model loaded with `no_alloc` decides where each tensor goes and allocates none; a context of it lays out
its KV cache and graphs in the same way. So there is no formula here that could drift from the library.
Weights and cache are the tensors of the smallest graph, each with the buffer it was promised; the compute and
output buffers are what the log says of them. Nothing may be computed with either.

It costs what reading the vocabulary costs (0.1 s and 20 MB for 49,152 tokens), and some milliseconds for each
context.

Upstream: llama.cpp src/llama-context.cpp (sched_reserve, llama_graph_reserve), src/llama-model.cpp and
src/llama-kv-cache.cpp (no_alloc), common/fit.cpp, which does the same for --fit.
Left out: whether there is room for it (inference/planning.py); what is not in the library's buffers (scratch space of
the CPU's operators, the vocabulary).
"""

from __future__ import annotations

import ctypes
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pigguf.errors import BackendUnavailable, DoesNotFit, EngineError
from pigguf.gguf_io import DEFAULT_ALIGNMENT, GGUFFile
from pigguf.gguf_io.metadata import elements
from pigguf.inference.engine import devices, library, load_checks
from pigguf.inference.engine.context import ContextOptions, context_parameters
from pigguf.inference.engine.ggml_tensor import Tensor, ggml
from pigguf.inference.engine.model import RuntimeRope, cache_row_bytes, load_weights
from pigguf.inference.engine.sigint import defer_sigint

if TYPE_CHECKING:
    from pigguf.inference.rpc.client import Workers

HOST = "CPU"  # the computer's own memory, by the name of the device that works on it

_PLAIN_HOST_BUFFERS = re.compile(
    r"CPU$|.*_Host$"
)  # others hold weights in an order of their own, not the file's
_CACHE = re.compile(r"cache_\w*([kv])_l\d+$")  # llama-kv-cache.cpp: the names of its tensors

_OF_LAYER = re.compile(r"blk\.(\d+)\.|output")  # llama-arch.cpp: the names of weights

# What is read off the log, and the size it gives: of one buffer type, in MiB.
_LOGGED = {
    "compute": re.compile(r"\s*(\S+) compute buffer size =\s*([\d.]+) MiB"),
    "output": re.compile(r"\s*(\S+)\s+output buffer size =\s*([\d.]+) MiB"),
}

# A cell takes 64 bytes beside its K and V, dry run or not (llama-kv-cells.h: position, sequences): 256 MiB.
MOST_CELLS = 1 << 22

# llama-ext.h's llama_graph_reserve(llama_context *, uint32_t, uint32_t, uint32_t), as C++ names it.
_RESERVE = "_Z19llama_graph_reserveP13llama_contextjjj"


@dataclass(frozen=True)
class BufferSizes:
    """Bytes that llama.cpp takes on one device.

    Attributes:
        device: ggml's name, HOST for the computer's memory.
        mapped: weights that stay in the file's own pages, which the system can take back and read again.
        weights: weights that are copied.
        cache_k, cache_v: of the KV cache.
        compute: for the values between, of the largest batch.
        output: for logits.
        layers: whose weights lie there, counted from 0; the output is one more.
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
        return self.cache_k + self.cache_v

    @property
    def total(self) -> int:
        return sum(getattr(self, part) for part in PARTS)


PARTS = tuple(field.name for field in fields(BufferSizes) if field.name not in ("device", "layers"))


class DryRun:
    """A model that is there but for its memory. A context manager.

    Args:
        file: as read; it is checked here.
        gpu_layers: how many layers go to GPUs, the output counted as one.
        mapped: the file is to be mapped into memory rather than read.
        workers: as for Model.open; they tell what buffers take there.

    Attributes:
        dimensions: the model's sizes.

    Raises:
        GGUFError, UnsupportedModel, UsageError, ContextOverflow: as Model.open.
        BackendUnavailable: no engine, or one that cannot be asked.
    """

    def __init__(
        self,
        file: GGUFFile,
        gpu_layers: int = 0,
        *,
        rope: RuntimeRope | None = None,
        mapped: bool = True,
        workers: Workers | None = None,
    ) -> None:
        self._handle: Any = None
        self.dimensions = load_checks.check(file)
        self._llama = library.load()
        self._reserve = _graph_reserve()
        self._homes = devices.buffer_homes() | (workers.buffer_homes() if workers else {})
        self._workers = workers
        self._others = dict.fromkeys((workers.buffer_homes() if workers else self._homes).values())
        self._file = file
        self._mapped = mapped and file.alignment >= DEFAULT_ALIGNMENT
        self._vocab_size = len(elements(file.metadata, "tokenizer.ggml.tokens") or ())
        overrides = rope.metadata(file) if rope else {}
        self._handle = load_weights(file, overrides, gpu_layers, dry=True, workers=workers)

    def sizes(self, options: ContextOptions) -> tuple[BufferSizes, ...]:
        """What a context takes together with its model, the host first, then GPUs that hold some of it, or
        all workers.

        Args:
            options: with a length; what they say of a handoff is not looked at.

        Raises:
            UsageError: a cache type that does not fit the model's heads.
            DoesNotFit: windows of more than MOST_CELLS tokens.
            EngineError: llama.cpp cannot make such a context.
        """
        for cache_type in (options.cache_k, options.cache_v):
            cache_row_bytes(cache_type, self.dimensions.head_length)
        with defer_sigint():  # in the log's callback Ctrl-C would be lost
            return self._sizes(options)

    def _sizes(self, options: ContextOptions) -> tuple[BufferSizes, ...]:
        with library.complaints() as said, library.log_lines() as lines:
            handle = self._llama.llama_init_from_model(self._handle, self._parameters(options))
        if self._workers is not None:
            self._workers.check()
        if not handle:
            raise EngineError(
                f"llama.cpp cannot make a context of {options.length:,} tokens of {self._file.path}: "
                f"{said[0] if said else 'it gave no reason'}"
            )
        try:
            found, layers = self._promised(self._tensors(handle, options.sequences))
        finally:
            self._llama.llama_free(handle)
        for field, buffer, size in _logged(lines):
            found[self._homes.get(buffer, HOST)][field] += size
        others = [device for device in self._others if device in found or self._workers is not None]
        return tuple(
            BufferSizes(device, **found[device], layers=tuple(sorted(layers[device])))
            for device in (HOST, *others)
        )

    def close(self) -> None:
        """Forget the model. Twice is fine."""
        if self._handle is not None:
            self._llama.llama_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> DryRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _parameters(self, options: ContextOptions) -> Any:
        """As Context makes them."""
        _refuse_too_many(self._file, options)
        return context_parameters(options, self._vocab_size)

    def _tensors(self, context: Any, sequences: int) -> list[Tensor]:
        """Every tensor that the graph of a token is computed from and that is not computed itself.

        Raises:
            DoesNotFit: there is no memory for the graph.
        """
        graph = self._reserve(context, sequences, sequences, sequences)
        if not graph:
            raise DoesNotFit(f"no memory to plan {self._file.path} with", "close other programs")
        nodes = (ggml().ggml_graph_node(graph, i) for i in range(ggml().ggml_graph_n_nodes(graph)))
        found: dict[int, Tensor] = {}
        for node in map(Tensor.from_address, nodes):
            for address in (*node.src, node.view_src):
                if address and address not in found:
                    found[address] = Tensor.from_address(address)
        return list(found.values())

    def _promised(
        self, tensors: Iterable[Tensor]
    ) -> tuple[defaultdict[str, dict[str, int]], defaultdict[str, set[int]]]:
        """By device, bytes by part, and the layers whose weights lie there."""
        found: defaultdict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(PARTS, 0))
        layers: defaultdict[str, set[int]] = defaultdict(set)
        for tensor in tensors:
            name = str(tensor.name, "utf-8", "replace")
            cache = _CACHE.match(name)
            if not tensor.buffer or not (cache or name in self._file.tensors):
                continue
            kind = ggml().ggml_backend_buffer_get_type(tensor.buffer)
            buffer = ggml().ggml_backend_buft_name(kind).decode()
            device = self._homes.get(buffer, HOST)
            mapped = self._mapped and device == HOST and _PLAIN_HOST_BUFFERS.match(buffer)
            field = f"cache_{cache[1]}" if cache else "mapped" if mapped else "weights"
            found[device][field] += ggml().ggml_backend_buft_get_alloc_size(kind, ctypes.byref(tensor))
            if of_layer := _OF_LAYER.match(name):
                layers[device].add(int(of_layer[1] or self.dimensions.layers))
        return found, layers


def _logged(lines: Iterable[str]) -> list[tuple[str, str, int]]:
    """(field of BufferSizes, name of the buffer type, bytes) that the log tells.

    Raises:
        EngineError: it does not speak of what is looked for.
    """
    found = [
        (field, match[1], round(float(match[2]) * 2**20))
        for line in lines
        for field, pattern in _LOGGED.items()
        if (match := pattern.match(line))
    ]
    for field in _LOGGED:
        if all(field != name for name, _, _ in found):
            raise EngineError(
                f"llama.cpp does not say how large its {field} buffers are",
                "`pigguf doctor` shows which llama-cpp-python is installed, and which one pigguf is made for",
            )
    return found


def _refuse_too_many(file: GGUFFile, options: ContextOptions) -> None:
    """
    Raises:
        DoesNotFit: llama.cpp's own notes on so many cells would take memory and time to speak of.
    """
    assert options.length is not None
    wanted = options.length * options.sequences
    if wanted > MOST_CELLS:
        raise DoesNotFit(
            f"{file.path}: windows of {wanted:,} tokens in all are more than the {MOST_CELLS:,} there can be",
            "take a shorter context",
        )


def _graph_reserve() -> Any:
    """llama.cpp's function that builds a graph of (context, tokens, sequences, outputs).

    Raises:
        BackendUnavailable: this build of it has none.
    """
    from llama_cpp.llama_cpp import _lib

    try:
        function = getattr(_lib, _RESERVE)
    except AttributeError as error:
        raise BackendUnavailable(
            "the engine cannot be asked what a model would take",
            "`pigguf doctor` shows which llama-cpp-python is installed, and which one pigguf is made for",
        ) from error
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32]
    return function
