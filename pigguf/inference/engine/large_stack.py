"""Room for llama.cpp's tokenizer to recurse: some texts would overflow the stack and end the process.

Vocabularies whose pre-tokenizer llama.cpp runs through std::regex (llama-vocab.cpp, unicode.cpp) recurse
once for each character of a match, and a match can be as long as a run of letters, of signs or of blanks:
a file of base64 has runs of any length. Where a text has a long run it is tokenized on a thread whose
stack is made for it; the memory is the system's until it is touched.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from pigguf.errors import UsageError
from pigguf.inference.engine.sigint import defer_sigint

T = TypeVar("T")

# libstdc++ was seen to take up to 1.6 KB for a character; threads have 8 MiB, on some systems 512 KiB.
BYTES_A_CHARACTER = 2048
HARMLESS_RUN = 256
LONGEST_RUN = 1 << 20

_LONG_RUNS = re.compile(rf"\S{{{HARMLESS_RUN},}}|\s{{{HARMLESS_RUN},}}")
_choosing = threading.Lock()


def longest_run(text: str) -> int:
    """Characters of the longest run without, or of nothing but, blanks; 0 where all are harmless."""
    return max((match.end() - match.start() for match in _LONG_RUNS.finditer(text)), default=0)


def run_with_large_stack(text: str, work: Callable[[], T]) -> T:
    """What `work` returns, computed with a stack that is deep enough to match the runs in the text.

    Raises:
        UsageError: a run of over a million characters.
        Whatever `work` raises.
    """
    run = longest_run(text)
    if run == 0:
        return work()
    if run > LONGEST_RUN:
        raise UsageError(
            f"the text holds {run:,} characters in a row without a break, more than {LONGEST_RUN:,}",
            "this is hardly text: leave that part out",
        )
    results: list[T] = []
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    with defer_sigint():  # the thread uses what the caller may free once it goes on
        thread = _started(attempt, (1 << 24) + run * BYTES_A_CHARACTER)
        thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _started(target: Callable[[], None], stack: int) -> threading.Thread:
    thread = threading.Thread(target=target, name="pigguf-tokenize", daemon=True)
    with _choosing:
        usual = threading.stack_size(stack)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    return thread
