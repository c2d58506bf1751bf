"""The engine: llama.cpp through llama-cpp-python's low-level API, which only this package imports.

A Model holds weights and vocabulary, a Context the KV cache for one or many sequences, a Session one
sequence's tokens in it. Each is a context manager and closes what belongs to it.

    with Model.open(path) as model, Context(model, ContextOptions(length=8192)) as context:
        with context.sequence() as session:
            session.prefill(model.tokenize("Once upon a time"))
            tokens = session.generate(SamplingParams(), max_tokens=64)
            text = b"".join(model.token_to_piece(token) for token in tokens)

Not here: chat templates (pigguf/chat/), text streams (inference/local_model.py), the build of the library
(inference/engine_build/), and what is known of llama.cpp's internals (pigguf/llama_cpp_internals/).
"""

from pigguf.inference.engine.context import Context
from pigguf.inference.engine.context_options import CacheType, ContextOptions, FlashAttentionSwitch
from pigguf.inference.engine.generation import StopReason
from pigguf.inference.engine.gpu_layers_setting import GpuLayers
from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.engine.library import log_to
from pigguf.inference.engine.llama_context import LlamaContext
from pigguf.inference.engine.model import Model
from pigguf.inference.engine.runtime_rope import RuntimeRope
from pigguf.inference.engine.sampling_params import SamplingParams
from pigguf.inference.engine.session import Session

__all__ = [
    "CacheType",
    "Context",
    "ContextOptions",
    "FlashAttentionSwitch",
    "GpuLayers",
    "KVSequence",
    "LlamaContext",
    "Model",
    "RuntimeRope",
    "SamplingParams",
    "Session",
    "StopReason",
    "log_to",
]
