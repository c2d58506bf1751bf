"""pigguf: convert checkpoints with extended context windows to GGUF, and run long chats with them.

    import pigguf

    result = pigguf.convert("path/to/checkpoint", "model.gguf", type="Q4_K_M")
    print(pigguf.inspect("model.gguf").rope)
    with pigguf.open_model("model.gguf", ctx=32768) as model:
        for text in model.chat([{"role": "user", "content": "Hello"}]):
            print(text, end="")

Names are imported on first use, so that `import pigguf` is fast and never imports torch.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

from pigguf._version import __version__

# Warnings of the library go to this logger; applications add a handler to see them.
logging.getLogger("pigguf").addHandler(logging.NullHandler())

_MODULES = {
    "convert": "pigguf.operations.convert",
    "ConversionResult": "pigguf.operations.convert",
    "finetune": "pigguf.finetuning.finetune",
    "FinetuneSettings": "pigguf.finetuning.settings",
    "quantize": "pigguf.operations.quantize",
    "imatrix": "pigguf.operations.imatrix",
    "export": "pigguf.operations.export",
    "inspect": "pigguf.operations.inspect",
    "repair": "pigguf.operations.repair",
    "diff": "pigguf.operations.diff",
    "verify": "pigguf.operations.verify",
    "plan": "pigguf.inference.memory_planning",
    "tune": "pigguf.inference.tuning.tune",
    "bench": "pigguf.inference.benchmark",
    "open_model": "pigguf.inference.local_model",
    "ask": "pigguf.chat.document_qa",
    "open_documents": "pigguf.chat.document_qa",
    "DocumentChat": "pigguf.chat.document_qa",
    "summarize": "pigguf.chat.summarization",
    "evaluate": "pigguf.evals",
    "LocalModel": "pigguf.inference.local_model",
    "RopeOverrides": "pigguf.rope",
    "RunConfig": "pigguf.inference.run_config",
    "RuntimeRope": "pigguf.inference.engine.runtime_rope",
    "SamplingParams": "pigguf.inference.engine.sampling_params",
    "PigError": "pigguf.errors",
    "Progress": "pigguf.progress",
}

__all__ = [  # noqa: RUF022  (in the order in which users need them)
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
    "RunConfig",
    "RuntimeRope",
    "SamplingParams",
    "PigError",
    "Progress",
    "__version__",
]

if TYPE_CHECKING:
    from pigguf.chat.document_qa import DocumentChat, ask, open_documents
    from pigguf.chat.summarization import summarize
    from pigguf.errors import PigError
    from pigguf.evals import evaluate
    from pigguf.finetuning.finetune import finetune
    from pigguf.finetuning.settings import FinetuneSettings
    from pigguf.inference.benchmark import bench
    from pigguf.inference.engine.runtime_rope import RuntimeRope
    from pigguf.inference.engine.sampling_params import SamplingParams
    from pigguf.inference.local_model import LocalModel, open_model
    from pigguf.inference.memory_planning import plan
    from pigguf.inference.run_config import RunConfig
    from pigguf.inference.tuning.tune import tune
    from pigguf.operations.convert import ConversionResult, convert
    from pigguf.operations.diff import diff
    from pigguf.operations.export import export
    from pigguf.operations.imatrix import imatrix
    from pigguf.operations.inspect import inspect
    from pigguf.operations.quantize import quantize
    from pigguf.operations.repair import repair
    from pigguf.operations.verify import verify
    from pigguf.progress import Progress
    from pigguf.rope import RopeOverrides


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'pigguf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
