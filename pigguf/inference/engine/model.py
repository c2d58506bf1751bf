"""Model: weights and vocabulary of one GGUF file, checked before llama.cpp reads it.

Positions are the file's: no rope value reaches llama.cpp unless a RuntimeRope is given. What the library took
is then compared with what we read. Not here: loading itself (weight_loading.py), text and tokens
(tokenization.py).
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from pigguf.errors import EngineError, GGUFError
from pigguf.gguf_io import DEFAULT_ALIGNMENT, GGUFFile, read_header
from pigguf.gguf_io.metadata import get_value
from pigguf.inference.engine import file_checks
from pigguf.inference.engine.gpu_layers_setting import GpuLayers, choose_gpu_layers
from pigguf.inference.engine.memory_checks import check_weights_fit, kv_row_bytes
from pigguf.inference.engine.protocols import Closable, RemoteDevices
from pigguf.inference.engine.runtime_rope import RuntimeRope
from pigguf.inference.engine.tokenization import Vocabulary
from pigguf.inference.engine.weight_loading import load_weights
from pigguf.llama_cpp_internals.log_lines import parse_type_name
from pigguf.progress import SILENT, Progress
from pigguf.rope import Positions, rope_from_metadata


class Model(Vocabulary):
    """An open model, made by Model.open. A context manager; using it after close raises EngineError.

    Attributes:
        architecture: general.architecture, "llama".
        description: architecture, number of parameters and quantization, "llama 135M Q4_1".
        rope: the positions in force, from the file or the override.
        context_length: the model's context window in tokens, rope.context_length.
        embedding_length, layers: the model's sizes; head_dim: dimensions of a head.
        size_bytes, parameters: of the weights.
        gpu_layers: the number of layers on GPUs or workers, with the output as one of them.
        workers: the workers whose devices took layers, or None.
        sliding_window: tokens that sliding layers attend to, or 0 without such layers.
        chat_template: the file's jinja template, or None.
        vocab_only: whether only the vocabulary was loaded.
    """

    def __init__(
        self,
        handle: Any,
        file: GGUFFile,
        dimensions: file_checks.ModelDimensions,
        rope: Positions,
        gpu_layers: int,
        *,
        vocab_only: bool,
        workers: RemoteDevices | None = None,
    ) -> None:
        super().__init__(handle, file)
        self._dimensions = dimensions
        self._contexts: list[Closable] = []
        self.vocab_only = vocab_only
        self.architecture = file.architecture
        self.rope = rope
        self.context_length = rope.context_length
        self.embedding_length = dimensions.embedding_length
        self.layers = dimensions.layers
        self.head_dim = dimensions.head_dim
        self.size_bytes = sum(tensor.nbytes for tensor in file.tensors.values())
        self.parameters = sum(tensor.elements for tensor in file.tensors.values())
        self.gpu_layers = gpu_layers
        self.workers = workers
        self.sliding_window: int = self._llama.llama_model_n_swa(handle)
        self.description = f"{self.architecture} {_short_count(self.parameters)} {self._type_name()}"
        self.chat_template = get_value(file.metadata, "tokenizer.chat_template", str)

    # ---- opening and closing ---------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        gpu_layers: GpuLayers = "auto",
        vocab_only: bool = False,
        rope: RuntimeRope | None = None,
        use_mmap: bool = True,
        workers: RemoteDevices | None = None,
        progress: Progress = SILENT,
    ) -> Model:
        """Check a file and load it; Ctrl-C stops it.

        Args:
            path: the file, or the first of a split model.
            gpu_layers: how many layers go to GPUs; "auto" is as many as fit, "all" is all or an error.
            vocab_only: load the vocabulary only, to tokenize; no Context can be made.
            rope: rope values to use instead of the file's.
            use_mmap: map the file into memory instead of reading it.
            workers: devices of other machines that take the layers instead of this one's GPUs. They must stay
                connected as long as the model is open.
            progress: one stage, "loading", in percent.

        Raises:
            GGUFError: the file is damaged, or holds what llama.cpp cannot load or would abort on.
            UnsupportedModel: the file's architecture or tokenizer is not supported.
            DoesNotFit: there is not enough memory for the weights.
            BackendUnavailable: there is no engine, or no GPU where layers are to go to one.
            UsageError: the file cannot take an override.
            ContextOverflow: an override exceeds the file's table of learned positions.
            WorkerLost: a worker was lost meanwhile.
        """
        file = read_header(path)
        dimensions = file_checks.check_loadable(file)
        overrides = rope.metadata(file) if rope else {}
        positions = rope_from_metadata(file.metadata | overrides, file.architecture)
        n_offloaded = 0 if vocab_only else choose_gpu_layers(gpu_layers, file, dimensions.layers, workers)
        if not (vocab_only or n_offloaded):
            check_weights_fit(file)
        use_mmap = use_mmap and file.alignment >= DEFAULT_ALIGNMENT
        handle = load_weights(
            file,
            overrides,
            n_offloaded,
            vocab_only=vocab_only,
            use_mmap=use_mmap,
            workers=workers,
            progress=progress,
        )
        model = cls(handle, file, dimensions, positions, n_offloaded, vocab_only=vocab_only, workers=workers)
        try:
            model._check_loaded()
        except BaseException:
            model.close()
            raise
        return model

    def close(self) -> None:
        """Free the weights, and every context of this model before them; a second call does nothing."""
        for context in list(self._contexts):
            context.close()
        if self._handle is not None:
            self._llama.llama_model_free(self._handle)
            self._handle = self._vocab = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_workers(self) -> None:
        """Raise if a worker failed; to be called before a result of the library is used.

        Raises:
            WorkerLost: a worker failed, and what was computed is worthless.
        """
        if self.workers is not None:
            self.workers.check()

    def _check_loaded(self) -> None:
        """Raise if llama.cpp read positions differently than we did, or would add a missing token."""
        llama = self._llama
        if not self.vocab_only:
            theirs = (llama.llama_model_n_ctx_train(self._handle), self._freq_scale_in_force())
            ours = (self.context_length, 1 / self.rope.factor)
            if theirs[0] != ours[0] or not math.isclose(theirs[1], ours[1], rel_tol=1e-5):
                raise EngineError(
                    f"{self.path}: llama.cpp read (context length, rope scale) as {theirs}, not {ours}"
                )
        for name, is_added, token in (
            ("bos", llama.llama_vocab_get_add_bos(self._vocab), self.bos),
            ("eos", llama.llama_vocab_get_add_eos(self._vocab), self.eos),
        ):
            if is_added and token is None:
                raise GGUFError(
                    f"{self.path}: tokenizer.ggml.add_{name}_token is set and there is no {name} token",
                    "convert the model again, with its tokenizer",
                )

    def _freq_scale_in_force(self) -> float:
        """Return the library's rope scale; under the rope type "none" it ignores the one it read."""
        if self.rope.rope_type == "none":
            return 1.0
        return float(self._llama.llama_model_rope_freq_scale_train(self._handle))

    def _type_name(self) -> str:
        """Return llama.cpp's name of the quantization, without its size, which is a guess from the layers."""
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self._handle, buffer, len(buffer))
        return parse_type_name(buffer.value.decode("utf-8", "replace"))

    # ---- sizes and contexts ----------------------------------------------------------------------

    def kv_cache_bytes(self, tokens: int, cache_k: str = "f16", cache_v: str = "f16") -> int:
        """Return the size in bytes of a KV cache for `tokens` tokens, as llama.cpp allocates it.

        Raises:
            UsageError: the model's heads are not a whole number of a cache type's blocks.
        """
        return tokens * sum(
            kv_row_bytes(cache_type, self._dimensions.head_dim) * n_kv_heads
            for n_kv_heads in self._dimensions.kv_heads
            for cache_type in (cache_k, cache_v)
        )

    def register_context(self, context: Closable) -> None:
        """Close this context before the model is freed."""
        self._contexts.append(context)

    def unregister_context(self, context: Closable) -> None:
        """Remove a context that was closed; a second call does nothing."""
        if context in self._contexts:
            self._contexts.remove(context)


def _short_count(count: int) -> str:
    """Return a number of parameters as model cards write it: 134515008 is "135M"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)
