"""Text extraction from a document in a subprocess, so that a malicious or broken file cannot harm the server.

A subprocess that takes too long is killed; one that crashes, or runs out of memory, fails alone.

    text, notes = await read_document_in_subprocess(path, max_characters, timeout)

The subprocess runs this module: it takes the path and the most characters as arguments, and writes the result
to stdout as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio

from pigguf.documents import load_document
from pigguf.documents.document import DocumentTooLong
from pigguf.errors import MissingPackage, PigError
from pigguf.serve.errors import RequestRefused

_MAX_ADDRESS_SPACE = 4 << 30  # bytes
# Error class -> HTTP status and code. The first match in an error's class hierarchy counts.
_STATUS_BY_ERROR: dict[type[BaseException], tuple[int, str]] = {
    DocumentTooLong: (413, "document_too_long"),
    MissingPackage: (501, "document_unreadable"),
    PigError: (400, "document_unreadable"),
}


async def read_document_in_subprocess(
    path: Path, max_characters: int, timeout: float
) -> tuple[str, list[str]]:
    """Extract the text of a document.

    Args:
        path: the document, in a folder that holds nothing else.
        max_characters: the longest text to accept.
        timeout: seconds.

    Returns:
        The text, and notes to show to the user, such as on pages without text.

    Raises:
        RequestRefused: the document cannot be read, or not in time.
    """
    # The subprocess imports what the server imports, not modules in the server's working directory.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, "-m", __name__, str(path), str(max_characters)]
    try:
        with anyio.fail_after(timeout):
            finished = await anyio.run_process(command, check=False, cwd=path.parent, env=environment)
    except TimeoutError:
        raise _unreadable(f"was not read within {timeout:g} s", path) from None
    try:
        result = json.loads(finished.stdout)
    except ValueError:
        raise _unreadable("cannot be read: the process that read it crashed", path) from None
    if "refused" in result:
        status, message, hint, code = result["refused"]
        raise RequestRefused(status, message, hint, code=code)
    return result["text"], result["notes"]


def _unreadable(problem: str, path: Path) -> RequestRefused:
    return RequestRefused(
        400, f"{path} {problem}", "save its text as a plain text file", code="document_unreadable"
    )


# ---- in the subprocess ---------------------------------------------------------------------------


def _main(path: str, max_characters: str) -> None:
    _limit_memory()
    notes: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pigguf").addHandler(handler)
    try:
        text = load_document(Path(path), int(max_characters)).text
        result: dict[str, Any] = {"text": text, "notes": notes}
    except PigError as error:
        status, code = next(
            _STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _STATUS_BY_ERROR
        )
        result = {"refused": [status, error.message, error.hint, code]}
    json.dump(result, sys.stdout)


def _limit_memory() -> None:
    """Limit the process's address space, on systems that support it."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_ADDRESS_SPACE, hard))


if __name__ == "__main__":
    _main(*sys.argv[1:])
