"""The engine: llama.cpp through llama-cpp-python's low-level API, and nothing else imports it.

A Model holds weights and the vocabulary, a Context holds the KV cache for one or many sequences,
a Session is one sequence's tokens in it. Each is a context manager and closes what hangs on it.

    with Model.open(path) as model, Context(model, ContextOptions(length=8192)) as context:
        with context.sequence() as session:
            session.feed(model.tokenize("Once upon a time"))
            text = b"".join(model.piece(token) for token in session.generate(SamplingParams(), limit=64))

Not here: chat templates (tokenizer/), text streams (inference/local_model.py), the build of the library (build.py).
"""

from pigguf.inference.engine.context import CacheType, Context, ContextOptions, FlashAttentionSwitch
from pigguf.inference.engine.library import log_to
from pigguf.inference.engine.model import GpuLayers, Model, RuntimeRope
from pigguf.inference.engine.sampling import SamplingParams
from pigguf.inference.engine.session import Session, StopReason

__all__ = [
    "CacheType",
    "Context",
    "ContextOptions",
    "FlashAttentionSwitch",
    "GpuLayers",
    "Model",
    "RuntimeRope",
    "SamplingParams",
    "Session",
    "StopReason",
    "log_to",
]
