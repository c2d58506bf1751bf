"""llama.cpp itself on a model without a vocabulary, with no pigguf code between file and logits."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from pigguf.architectures.hparams import HParams
from pigguf.common.lazy_tensor import LazyTensor
from pigguf.gguf_io import PlannedTensor, TensorType, write_gguf
from pigguf.gguf_io.metadata import string


def write_model(path: Path, hparams: HParams, tensors: Mapping[str, LazyTensor]) -> None:
    """Write a model in F32, without a vocabulary."""

    def planned(tensor: LazyTensor) -> PlannedTensor:
        def encode(start: int, stop: int) -> np.ndarray[Any, Any]:
            return np.ascontiguousarray(tensor.read(start, stop), np.float32).view(np.uint8)

        return PlannedTensor(tensor.name, tensor.shape, TensorType.F32, tuple(tensor.slabs(512)), encode)

    metadata = {
        "general.architecture": string(hparams.architecture),
        "tokenizer.ggml.model": string("no_vocab"),
        **hparams.to_metadata(),
    }
    write_gguf(path, metadata, [planned(tensor) for tensor in tensors.values()])


class LlamaCpp:
    """A model in the real library, on the CPU, without flash attention and with F32 caches."""

    def __init__(self, path: Path, context: int) -> None:
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        assert self.model
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context
        settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_F32
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.n_threads = settings.n_threads_batch = 2
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        assert self.context

    def log_probabilities(self, tokens: list[int]) -> torch.Tensor:
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position], batch.pos[position] = token, position
            batch.n_seq_id[position], batch.seq_id[position][0], batch.logits[position] = 1, 0, 1
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        assert llama_cpp.llama_decode(self.context, batch) == 0
        vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        address = ctypes.cast(llama_cpp.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        logits = np.ctypeslib.as_array(address, (len(tokens), vocab)).copy()
        llama_cpp.llama_batch_free(batch)
        return torch.from_numpy(logits).log_softmax(-1)

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


@contextmanager
def bare_engine(path: Path, context: int) -> Iterator[LlamaCpp]:
    engine = LlamaCpp(path, context)
    try:
        yield engine
    finally:
        engine.close()
