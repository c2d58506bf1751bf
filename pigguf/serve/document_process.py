"""A document's text, read by a process of its own: one that takes for ever is ended, and one that a library
crashes over, or that unpacks to more than there is, ends nothing but that.

    text, notes = await read_apart(path, most, seconds)

The process is this module run as a program: the path and the most characters on its command line, its answer
as JSON on stdout.
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

_MOST_MEMORY = 4 << 30  # bytes, of addresses
# The nearest class in an error's ancestry decides.
_STATUS: dict[type[BaseException], tuple[int, str]] = {
    DocumentTooLong: (413, "document_too_long"),
    MissingPackage: (501, "document_unreadable"),
    PigError: (400, "document_unreadable"),
}


async def read_document_in_subprocess(path: Path, most: int, seconds: float) -> tuple[str, list[str]]:
    """A document's text, and what is to be told of it: pages that hold pictures only, say.

    Args:
        path: in a folder that holds nothing else.
        most: characters that are taken.

    Raises:
        Refusal: it cannot be read, or not within so many seconds.
    """
    # not what is found in the folder that the server was started in, but what the server itself imports
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    command = [sys.executable, "-m", __name__, str(path), str(most)]
    try:
        with anyio.fail_after(seconds):
            done = await anyio.run_process(command, check=False, cwd=path.parent, env=environment)
    except TimeoutError:
        raise _unreadable(f"was not read within {seconds:g} s", path) from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise _unreadable("cannot be read: what reads it failed over it", path) from None
    if "refused" in answer:
        status, message, hint, code = answer["refused"]
        raise RequestRefused(status, message, hint, code=code)
    return answer["text"], answer["notes"]


def _unreadable(what: str, path: Path) -> RequestRefused:
    return RequestRefused(400, f"{path} {what}", "save its text as a plain text file", code="document_unreadable")


# ---- the process ---------------------------------------------------------------------------------


def _main(path: str, most: str) -> None:
    _limit_memory()
    notes: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("pigguf").addHandler(handler)
    try:
        answer: dict[str, Any] = {"text": load_document(Path(path), int(most)).text, "notes": notes}
    except PigError as error:
        status, code = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
        answer = {"refused": [status, error.message, error.hint, code]}
    json.dump(answer, sys.stdout)


def _limit_memory() -> None:
    """Where the system has such limits; not all do."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
