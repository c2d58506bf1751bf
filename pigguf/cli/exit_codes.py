"""Exit codes by error class. They are stable for scripts; `pigguf --help` prints the table."""

from __future__ import annotations

from typing import NamedTuple

from pigguf import errors


class ExitCode(NamedTuple):
    """An exit code and its meaning."""

    code: int
    meaning: str


UNEXPECTED = ExitCode(1, "unexpected error: a bug in pigguf")
USAGE = ExitCode(2, "invalid usage")
MODEL = ExitCode(3, "checkpoint, tokenizer or model missing, damaged or not supported")
ROPE = ExitCode(4, "conflicting rope configuration")
CONVERSION = ExitCode(5, "conversion or its verification failed")
FILE = ExitCode(6, "file cannot be read or written, or disk full")
GGUF = ExitCode(7, "GGUF file missing or damaged")
ENGINE = ExitCode(8, "engine missing or failed")
MEMORY = ExitCode(9, "not enough memory")
OVERFLOW = ExitCode(10, "more tokens than fit in the context window")
TEXT = ExitCode(11, "text or data file invalid or too short")
TRAINING = ExitCode(12, "fine-tuning failed")
PACKAGE = ExitCode(13, "Python package of an extra not installed")
HUB = ExitCode(14, "Hugging Face hub unreachable, or request refused")
FOUND = ExitCode(15, "a comparison or check found differences or problems")
INTERRUPTED = ExitCode(130, "interrupted")
CLOSED = ExitCode(141, "output pipe closed")

ALL = (
    UNEXPECTED, USAGE, MODEL, ROPE, CONVERSION, FILE, GGUF, ENGINE, MEMORY, OVERFLOW,
    TEXT, TRAINING, PACKAGE, HUB, FOUND, INTERRUPTED, CLOSED,
)  # fmt: skip

# The nearest class in the MRO of an error decides.
BY_ERROR: dict[type[BaseException], ExitCode] = {
    errors.UsageError: USAGE,
    errors.CheckpointError: MODEL,
    errors.HubError: HUB,
    errors.TokenizerError: MODEL,
    errors.UnsupportedModel: MODEL,
    errors.ReadError: FILE,
    errors.RopeConflict: ROPE,
    errors.MissingPackage: PACKAGE,
    errors.TextError: TEXT,
    errors.TrainingError: TRAINING,
    errors.ConversionError: CONVERSION,
    errors.OutputError: FILE,
    errors.GGUFError: GGUF,
    errors.EngineError: ENGINE,
    errors.DoesNotFit: MEMORY,
    errors.ContextOverflow: OVERFLOW,
    errors.Interrupted: INTERRUPTED,
    MemoryError: MEMORY,
    OSError: FILE,
    KeyboardInterrupt: INTERRUPTED,
}


def exit_code(error: BaseException) -> int:
    """Return the exit code for an error: that of the nearest class in its MRO."""
    for kind in type(error).__mro__:
        if kind in BY_ERROR:
            return BY_ERROR[kind].code
    return UNEXPECTED.code


def table() -> str:
    """Format the codes and their meanings, one a line, for --help."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in (ExitCode(0, "success"), *ALL))
