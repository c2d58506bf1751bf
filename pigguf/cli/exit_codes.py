"""The exit code of each kind of failure: the one place where errors become numbers.

Scripts may rely on these; `pigguf --help` prints the table.
"""

from __future__ import annotations

from typing import NamedTuple

from pigguf import errors


class ExitCode(NamedTuple):
    code: int
    meaning: str


UNEXPECTED = ExitCode(1, "something unexpected: a bug in pigguf")
USAGE = ExitCode(2, "wrong usage")
MODEL = ExitCode(3, "a checkpoint, tokenizer or model that is missing, damaged or not supported")
ROPE = ExitCode(4, "position facts that contradict each other")
CONVERSION = ExitCode(5, "a conversion that could not be finished or did not verify")
FILE = ExitCode(6, "a file that cannot be read or written, a full disk")
GGUF = ExitCode(7, "a GGUF file that is missing or damaged")
ENGINE = ExitCode(8, "the engine is missing or failed")
MEMORY = ExitCode(9, "not enough memory")
OVERFLOW = ExitCode(10, "more tokens than the context window holds")
TEXT = ExitCode(11, "a text or data file that is not what it should be, or too short")
TRAINING = ExitCode(12, "a fine-tuning that cannot go on")
PACKAGE = ExitCode(13, "a Python package of an extra that is not installed")
HUB = ExitCode(14, "a model hub that does not give what was asked of it, or cannot be reached")
FOUND = ExitCode(15, "a comparison or a check that found something: files that differ, positions to mend")
INTERRUPTED = ExitCode(130, "interrupted")
CLOSED = ExitCode(141, "whoever read the output went away")

ALL = (
    UNEXPECTED, USAGE, MODEL, ROPE, CONVERSION, FILE, GGUF, ENGINE, MEMORY, OVERFLOW,
    TEXT, TRAINING, PACKAGE, HUB, FOUND, INTERRUPTED, CLOSED,
)  # fmt: skip

# The nearest class in an error's ancestry decides.
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
    """The exit code for an error, by the nearest class of its ancestry in the table."""
    for kind in type(error).__mro__:
        if kind in BY_ERROR:
            return BY_ERROR[kind].code
    return UNEXPECTED.code


def table() -> str:
    """The codes and their meanings, one a line, for --help."""
    return "\n".join(f"  {code:>3}  {meaning}" for code, meaning in (ExitCode(0, "done"), *ALL))
