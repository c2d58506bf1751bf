"""The page that people talk to the model through: its files, and what it asks for beside OpenAI's routes.

    /              the page, and /static/ what it is made of; without a key, for they say nothing of the model
    /about         the model, its window, and what its file says of positions
    /count         how many tokens a conversation is
    /documents     a document's bytes -> its text as it goes into a prompt, and its tokens

Contract: the page asks this server alone, which its Content-Security-Policy holds it to; what a model writes
is never markup of the page. A document's name is a label: no file is opened by it.
Left out: who may ask (app.py), how documents become text (reader.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path, PurePath
from typing import Any, Protocol

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pigguf.chat.conversation import AttachedDocument
from pigguf.documents.formats import DOCUMENT_FORMATS
from pigguf.operations.inspect import report_of
from pigguf.rope import rope_from_metadata
from pigguf.serve.document_process import read_document_in_subprocess
from pigguf.serve.errors import RequestRefused
from pigguf.serve.openai_api import parse_chat_request, parse_json
from pigguf.serve.service import ModelService

DOCUMENT_TYPE = "application/octet-stream"  # which no foreign page can send without asking first
MOST_BYTES = 64 << 20
"""Of a document that is sent; a PDF holds pictures, which the window does not."""

_MOST_NAME = 200
_AT_ONCE, _MOST_WAITING = 2, 32  # documents that are read, and that wait for that
_STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

_Endpoint = Callable[[Request], Awaitable[Response]]


class _Door(Protocol):
    """What app.py puts in front of every route."""

    def guarded(self, endpoint: _Endpoint, *, public: bool = False) -> _Endpoint: ...

    async def body(self, request: Request, kind: str = ..., most: int | None = ...) -> bytes: ...


def web_ui_routes(service: ModelService, door: _Door) -> list[Route]:
    """The page's routes, behind the server's door."""
    page = _Page(service, door)
    return [
        Route("/", door.guarded(_file(_STATIC / "index.html"), public=True)),
        *(
            Route(f"/static/{path.relative_to(_STATIC).as_posix()}", door.guarded(_file(path), public=True))
            for path in sorted(_STATIC.rglob("*.*"))
        ),
        Route("/about", door.guarded(page.about)),
        Route("/count", door.guarded(page.count), methods=["POST"]),
        Route("/documents", door.guarded(page.documents), methods=["POST"]),
    ]


def _file(path: Path) -> _Endpoint:
    data, kind = path.read_bytes(), _TYPES[path.suffix]

    async def answer(request: Request) -> Response:
        return Response(data, media_type=kind, headers=_HEADERS)

    return answer


class _Page:
    """What the page asks for."""

    def __init__(self, service: ModelService, door: _Door) -> None:
        self._service = service
        self._door = door
        self._reading = anyio.CapacityLimiter(_AT_ONCE)

    async def about(self, request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(self._about))

    def _about(self) -> dict[str, Any]:
        model, service = self._service.model, self._service
        report = report_of(model.file)
        is_overridden = model.rope != rope_from_metadata(model.file.metadata, model.file.architecture)
        rope = model.rope if is_overridden or report.rope is None else report.rope
        return {
            "model": service.name,
            "name": report.name,
            "architecture": report.architecture,
            "parameters": report.parameters,
            "bytes": report.bytes,
            "types": dict(report.types),
            "slots": service.host.slot_count,
            "context_length": service.context_length,
            "most_document_bytes": MOST_BYTES,
            "rope": {**rope.as_data(), "explained": rope.explain(), "overridden": is_overridden},
            "position_notes": list(report.position_notes),
        }

    async def count(self, request: Request) -> Response:
        """Takes what /v1/chat/completions takes."""
        body = await self._door.body(request)

        def counted() -> int:
            return self._service.count_tokens(parse_chat_request(parse_json(body)))

        return JSONResponse(
            {"count": await run_in_threadpool(counted), "context_length": self._service.context_length}
        )

    async def documents(self, request: Request) -> Response:
        """Takes the document's bytes; its name is in the query, and tells the format where they do not."""
        name = " ".join(request.query_params.get("name", "").split())[:_MOST_NAME] or "document"
        if self._reading.statistics().tasks_waiting >= _MOST_WAITING:
            raise RequestRefused(
                429, "too many documents wait", "send it again in a while", code="queue_full", retry_after=1
            )
        async with self._reading:  # before its bytes are here, of which there may be many
            text, notes = await self._read(name, await self._door.body(request, DOCUMENT_TYPE, MOST_BYTES))
        tokens = await run_in_threadpool(self._service.count_text_tokens, text)
        document = AttachedDocument(name, text, tokens)
        return JSONResponse({"name": name, "text": document.as_prompt_text(), "tokens": tokens, "notes": notes})

    async def _read(self, name: str, data: bytes) -> tuple[str, list[str]]:
        """A document's text, and what is to be told of it.

        Raises:
            Refusal: it cannot be read, or is longer than any window of this model.
        """
        service = self._service
        most = service.context_length * service.model.max_piece_bytes  # a token is at most so many bytes
        with tempfile.TemporaryDirectory(prefix="pigguf-") as folder:
            path = Path(folder, f"document{_suffix(name)}")
            await run_in_threadpool(path.write_bytes, data)
            try:
                text, notes = await read_document_in_subprocess(path, most, service.limits.document_seconds)
            except RequestRefused as refusal:
                if refusal.code == "document_too_long":
                    refusal.message = f"{name} is longer than a window of {service.context_length:,} tokens"
                    refusal.hint = "take a part of it"
                refusal.message = refusal.message.replace(str(path), name)
                raise
        return text, [note.replace(str(path), name) for note in notes]


def _suffix(name: str) -> str:
    """What a name tells of a format; nothing else of it reaches the disk."""
    suffix = PurePath(name).suffix.lower()
    return suffix if any(suffix in known.suffixes for known in DOCUMENT_FORMATS) else ""
