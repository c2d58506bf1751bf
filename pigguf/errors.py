"""Every way pigguf can refuse, as one tree.

    PigError                  anything pigguf refuses to do; always carries a message, often a hint
    ├── UsageError            options that do not fit together
    ├── MissingPackage        a Python package of an extra that is not installed
    ├── ReadError             a file that cannot be opened, or read to its end
    ├── CheckpointError       a checkpoint on disk that cannot be read as it says
    ├── HubError              a model hub that does not give what was asked of it, or cannot be reached
    ├── TokenizerError        a tokenizer rule, token or template that is not understood
    ├── UnsupportedModel      an architecture or a feature of one that pigguf does not know
    ├── TextError             a text file or record that is not what it should be, or too short
    ├── RopeConflict          position facts that contradict each other
    ├── ConversionError       a conversion that cannot go on
    │   ├── UnmappedTensor    a tensor nothing in the rename table speaks of
    │   ├── MissingTensor     a tensor the rename table demands and the checkpoint lacks
    │   ├── InvalidTensor     a tensor of the wrong shape or with values that are not numbers
    │   ├── OutputError       a target that cannot be written (no room, no right, in use)
    │   └── VerificationFailed  the written file does not say what it should
    ├── GGUFError             a GGUF file that is damaged or not understood
    ├── TrainingError         a fine-tuning that cannot go on
    └── EngineError           llama.cpp could not do what was asked
        ├── BackendUnavailable  the library is missing, broken or crashes on this machine
        ├── DoesNotFit          weights or cache do not fit into memory
        ├── ContextOverflow     more tokens than the context window holds
        ├── WorkerLost          another machine that cannot be reached, or went away
        └── Interrupted         work that was stopped on request before its end

A message names the file, the key and the value; a hint says what the person can do.
`cli` maps classes to exit codes (cli/exit_codes.py).
"""

from __future__ import annotations


class PigError(Exception):
    """Base of everything pigguf refuses to do.

    Args:
        message: one line that names the file, the key and the value.
        hint: one line on what to do about it; by default the class's usual one.
    """

    usual_hint: str | None = None

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint


class UsageError(PigError):
    """Options that do not fit together."""


class MissingPackage(PigError):
    """A Python package that an extra brings, and that is not installed."""


class ReadError(PigError):
    """A file that cannot be opened, or read to its end."""

    usual_hint = "see that the disk is sound and that nothing else writes the file"


class CheckpointError(PigError):
    """A checkpoint on disk that cannot be read as it says."""

    usual_hint = "correct the file, or download it again"


class HubError(PigError):
    """A model hub that does not give what was asked of it, or cannot be reached."""


class TokenizerError(PigError):
    """A tokenizer rule, token or chat template that is not understood."""

    usual_hint = "compare the tokenizer's files with the original model's; rules llama.cpp lacks are refused"


class UnsupportedModel(PigError):
    """An architecture, or a feature of one, that pigguf does not know."""

    usual_hint = "this version does not know such models; it never converts what it does not know"


class TextError(PigError):
    """A text file, or a record in one, that is not what it should be, or too short."""


class RopeConflict(PigError):
    """Position facts that contradict each other."""

    usual_hint = "give the right values: `rope.factor`, `rope.original_context` and `rope.context`"


class ConversionError(PigError):
    """A conversion that cannot go on."""


class UnmappedTensor(ConversionError):
    """A tensor that nothing in the family's rename table speaks of."""

    usual_hint = (
        "a fine-tune or a family of its own: what the tensor does is not known, so it cannot be left out"
    )


class MissingTensor(ConversionError):
    """A tensor that the rename table demands and the checkpoint lacks."""


class InvalidTensor(ConversionError):
    """A tensor of the wrong shape, or with values that are not finite numbers."""

    usual_hint = "the weights are damaged: download the checkpoint again"


class OutputError(ConversionError):
    """A target file that cannot be written."""


class VerificationFailed(ConversionError):
    """The written file does not say what its specification says."""


class GGUFError(PigError):
    """A GGUF file that is damaged, cut short or not understood."""

    usual_hint = "the file is damaged or was not made for llama.cpp: download or convert it again"


class TrainingError(PigError):
    """A fine-tuning that cannot go on."""


class EngineError(PigError):
    """llama.cpp could not do what was asked."""


class BackendUnavailable(EngineError):
    """The engine library is missing, broken, or crashes on this machine."""


class DoesNotFit(EngineError):
    """Weights or KV cache do not fit into memory."""


class ContextOverflow(EngineError):
    """More tokens than the context window holds."""


class WorkerLost(EngineError):
    """A worker on another machine that cannot be used, went away or stalls."""


class Interrupted(EngineError):
    """Work that was stopped on request before its end."""
