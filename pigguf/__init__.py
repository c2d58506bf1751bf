"""pigguf: extended-context checkpoints to GGUF with positions that are right, and long chats with them.

    import pigguf

    result = pigguf.convert("path/to/checkpoint", "model.gguf", type="Q4_K_M")
    print(pigguf.inspect("model.gguf").rope)
    with pigguf.open_model("model.gguf", ctx=32768) as model:
        for text in model.chat([{"role": "user", "content": "Hello"}]):
            print(text, end="")

Names are loaded when they are first used, so that importing pigguf costs next to nothing and
never imports torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What goes on in another way than was meant is told here; who wants to hear it adds a handler.
logging.getLogger("pigguf").addHandler(logging.NullHandler())

_HOMES = {
    "convert": "pigguf.verbs.convert",
    "ConversionResult": "pigguf.verbs.convert",
    "finetune": "pigguf.finetuning.run",
    "FinetuneSettings": "pigguf.finetuning.settings",
    "quantize": "pigguf.verbs.quantize",
    "imatrix": "pigguf.verbs.imatrix",
    "export": "pigguf.verbs.export",
    "inspect": "pigguf.verbs.inspect",
    "repair": "pigguf.verbs.repair",
    "diff": "pigguf.verbs.diff",
    "verify": "pigguf.verbs.against",
    "plan": "pigguf.planning",
    "tune": "pigguf.tuning.run",
    "bench": "pigguf.benchmark",
    "open_model": "pigguf.local",
    "ask": "pigguf.document_chat",
    "open_documents": "pigguf.document_chat",
    "DocumentChat": "pigguf.document_chat",
    "summarize": "pigguf.summary",
    "evaluate": "pigguf.evals",
    "LocalModel": "pigguf.local",
    "RopeOverrides": "pigguf.rope",
    "RunSettings": "pigguf.runtime",
    "RuntimeRope": "pigguf.engine.model",
    "Sampling": "pigguf.engine.sampling",
    "PigError": "pigguf.errors",
    "Progress": "pigguf.progress",
}

__all__ = [  # noqa: RUF022  (in the order a user meets them)
    "convert",
    "ConversionResult",
    "finetune",
    "FinetuneSettings",
    "quantize",
    "imatrix",
    "export",
    "inspect",
    "repair",
    "diff",
    "verify",
    "plan",
    "tune",
    "bench",
    "open_model",
    "LocalModel",
    "ask",
    "open_documents",
    "DocumentChat",
    "summarize",
    "evaluate",
    "RopeOverrides",
    "RunSettings",
    "RuntimeRope",
    "Sampling",
    "PigError",
    "Progress",
    "__version__",
]

if TYPE_CHECKING:
    from pigguf.benchmark import bench
    from pigguf.document_chat import DocumentChat, ask, open_documents
    from pigguf.engine.model import RuntimeRope
    from pigguf.engine.sampling import Sampling
    from pigguf.errors import PigError
    from pigguf.evals import evaluate
    from pigguf.finetuning.run import finetune
    from pigguf.finetuning.settings import FinetuneSettings
    from pigguf.local import LocalModel, open_model
    from pigguf.planning import plan
    from pigguf.progress import Progress
    from pigguf.rope import RopeOverrides
    from pigguf.runtime import RunSettings
    from pigguf.summary import summarize
    from pigguf.tuning.run import tune
    from pigguf.verbs.against import verify
    from pigguf.verbs.convert import ConversionResult, convert
    from pigguf.verbs.diff import diff
    from pigguf.verbs.export import export
    from pigguf.verbs.imatrix import imatrix
    from pigguf.verbs.inspect import inspect
    from pigguf.verbs.quantize import quantize
    from pigguf.verbs.repair import repair


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pigguf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
