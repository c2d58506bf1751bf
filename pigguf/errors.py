"""All errors of pigguf, as one tree.

    PigError                  base class; always has a message, often a hint
    ├── UsageError            invalid or incompatible parameters
    ├── MissingPackage        a Python package of an extra that is not installed
    ├── ReadError             a file that cannot be opened or read
    ├── CheckpointError       a checkpoint that is damaged or contradicts its own config
    ├── HubError              a model hub that cannot be reached, or lacks what was requested
    ├── TokenizerError        a tokenizer, token or chat template that is not supported
    ├── UnsupportedModel      an architecture, or a feature of one, that is not supported
    ├── TextError             a text file or record that is invalid or too short
    ├── RopeConflict          rope parameters that contradict each other
    ├── ConversionError       a conversion that failed
    │   ├── UnmappedTensor    a tensor that the architecture's tensor map does not have
    │   ├── MissingTensor     a tensor of the tensor map that the checkpoint lacks
    │   ├── InvalidTensor     a tensor of the wrong shape, or with values that are not finite
    │   ├── OutputError       an output file that cannot be written (disk full, no permission)
    │   └── VerificationFailed  a written file that differs from what was planned
    ├── GGUFError             a GGUF file that is damaged or invalid
    ├── TrainingError         a fine-tuning that failed
    └── EngineError           a failure of llama.cpp
        ├── BackendUnavailable  the library is missing, broken, or crashes on this machine
        ├── DoesNotFit          the weights or the KV cache do not fit in memory
        ├── ContextOverflow     more tokens than fit in the context window
        ├── WorkerLost          a worker that cannot be reached, or is gone
        └── Interrupted         work that was stopped on request

A message names the file, the key and the value; a hint states what the user can do. Both name parameters in
backticks, with a value or not: `ctx=4096`, `rope.factor`; on the command line these are shown as flags
(cli/parameter_flags.py). The exit code of each class is in cli/exit_codes.py.
"""

from __future__ import annotations


class PigError(Exception):
    """Base class of all errors of pigguf.

    Args:
        message: one line that names the file, the key and the value.
        hint: one line on what to do about it; by default the `usual_hint` of the class.
    """

    usual_hint: str | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint


class UsageError(PigError):
    """Parameters that are invalid or incompatible."""


class MissingPackage(PigError):
    """A Python package of an extra that is not installed."""


class ReadError(PigError):
    """A file that cannot be opened or read."""

    usual_hint = "check the disk, and that no other program writes to the file"


class CheckpointError(PigError):
    """A checkpoint that is damaged or contradicts its own config."""

    usual_hint = "correct the file, or download it again"


class HubError(PigError):
    """A model hub that cannot be reached, or lacks what was requested."""


class TokenizerError(PigError):
    """A tokenizer, token or chat template that is not supported."""

    usual_hint = (
        "compare the tokenizer's files with the original model's; "
        "tokenizers that llama.cpp lacks are not supported"
    )


class UnsupportedModel(PigError):
    """An architecture, or a feature of one, that is not supported."""

    usual_hint = (
        "this version does not support such models, and never converts a model that it does not fully support"
    )


class TextError(PigError):
    """A text file, or a record in one, that is invalid or too short."""


class RopeConflict(PigError):
    """Rope parameters that contradict each other."""

    usual_hint = "give the right values: `rope.factor`, `rope.original_context` and `rope.context`"


class ConversionError(PigError):
    """A conversion that failed."""


class UnmappedTensor(ConversionError):
    """A tensor that the architecture's tensor map does not have."""

    usual_hint = "the model may be modified: what this tensor does is not known, so it cannot be ignored"


class MissingTensor(ConversionError):
    """A tensor of the tensor map that the checkpoint lacks."""


class InvalidTensor(ConversionError):
    """A tensor of the wrong shape, or with values that are not finite numbers."""

    usual_hint = "the weights are damaged: download the checkpoint again"


class OutputError(ConversionError):
    """An output file that cannot be written."""


class VerificationFailed(ConversionError):
    """A written file that differs from what was planned."""


class GGUFError(PigError):
    """A GGUF file that is damaged, truncated or invalid."""

    usual_hint = "the file is damaged, or was not made for llama.cpp: download or convert it again"


class TrainingError(PigError):
    """A fine-tuning that failed."""


class EngineError(PigError):
    """A failure of llama.cpp."""


class BackendUnavailable(EngineError):
    """The llama.cpp library is missing, broken, or crashes on this machine."""


class DoesNotFit(EngineError):
    """The weights or the KV cache do not fit in memory."""


class ContextOverflow(EngineError):
    """More tokens than fit in the context window."""


class WorkerLost(EngineError):
    """A worker on another machine that cannot be reached, is gone or does not answer."""


class Interrupted(EngineError):
    """Work that was stopped on request."""
