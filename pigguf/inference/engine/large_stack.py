"""A larger stack for llama.cpp's tokenizer, which some texts would overflow and so end the process.

Vocabularies whose pre-tokenizer llama.cpp runs through std::regex (llama-vocab.cpp, unicode.cpp) recurse once
for each character of a match, and a match can be as long as a run of letters, of punctuation or of
whitespace: a file of base64 has runs of any length. A text with a long run is tokenized on a thread with a
stack of that size; the system provides the memory only as it is touched.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import TypeVar

from pigguf.errors import UsageError
from pigguf.inference.engine.sigint import defer_sigint

T = TypeVar("T")

# libstdc++ was measured to use up to 1.6 KB for a character; threads have 8 MiB, on some systems 512 KiB.
STACK_BYTES_PER_CHARACTER = 2048
MAX_RUN_ON_DEFAULT_STACK = 256
MAX_RUN = 1 << 20

_LONG_RUNS = re.compile(rf"\S{{{MAX_RUN_ON_DEFAULT_STACK},}}|\s{{{MAX_RUN_ON_DEFAULT_STACK},}}")
_stack_size_lock = threading.Lock()  # threading.stack_size is a setting of the process


def longest_run(text: str) -> int:
    """Return the length of the longest run without whitespace, or of only whitespace.

    Returns:
        Characters; 0 if every run fits on a thread's default stack.
    """
    return max((match.end() - match.start() for match in _LONG_RUNS.finditer(text)), default=0)


def run_with_large_stack(text: str, work: Callable[[], T]) -> T:
    """Return what `work` returns, called with a stack that is deep enough to match the runs in the text.

    Raises:
        UsageError: the text has a run of more than a million characters.
        BaseException: whatever `work` raises.
    """
    run = longest_run(text)
    if run == 0:
        return work()
    if run > MAX_RUN:
        raise UsageError(
            f"the text holds {run:,} characters in a row without a break, more than {MAX_RUN:,}",
            "this is hardly text: leave that part out",
        )
    results: list[T] = []
    failures: list[BaseException] = []

    def call_work() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    with defer_sigint():  # the thread uses what the caller may free once it continues
        thread = _start_thread(call_work, (1 << 24) + run * STACK_BYTES_PER_CHARACTER)
        thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _start_thread(target: Callable[[], None], stack_bytes: int) -> threading.Thread:
    thread = threading.Thread(target=target, name="pigguf-tokenize", daemon=True)
    with _stack_size_lock:
        default = threading.stack_size(stack_bytes)
        try:
            thread.start()
        finally:
            threading.stack_size(default)
    return thread
