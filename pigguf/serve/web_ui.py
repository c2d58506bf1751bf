"""The chat page in a browser (static/), and the routes that it uses besides OpenAI's.

    /              the page; /static/ its files. They need no API key, as they reveal nothing of the model
    /about         the model, its context window, and its rope scaling
    /count         how many tokens a conversation has
    /documents     the bytes of a document -> its text, as it goes into a prompt, and its tokens

The page's Content-Security-Policy restricts it to this server, and a model's text is never inserted as
markup. A document's name is only a label: no file of that name is opened.
Not here: access checks (app.py), text extraction (document_subprocess.py).
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
from pigguf.operations.inspect import inspect_header
from pigguf.rope import rope_from_metadata
from pigguf.serve.document_subprocess import read_document_in_subprocess
from pigguf.serve.errors import RequestRefused
from pigguf.serve.openai_fields import parse_json
from pigguf.serve.openai_requests import parse_chat_request
from pigguf.serve.service import ModelService

DOCUMENT_TYPE = "application/octet-stream"  # a page of another origin cannot send it without a preflight
MAX_DOCUMENT_BYTES = 64 << 20
"""Size of an uploaded document. A PDF's pictures make it much larger than its text."""

_MAX_NAME_CHARACTERS = 200
_MAX_CONCURRENT, _MAX_WAITING = 2, 32  # documents that are read at once, and that wait for it
_STATIC = Path(__file__).with_name("static")
_MEDIA_TYPES = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_SECURITY_HEADERS = {
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


class RequestGuard(Protocol):
    """What app.py does before every endpoint: the access check, and limits of the body."""

    def guard(self, endpoint: _Endpoint, *, public: bool = False) -> _Endpoint:
        """Return the endpoint behind the access check."""

    async def read_body(
        self, request: Request, content_type: str = ..., max_bytes: int | None = ...
    ) -> bytes:
        """Read a request's body of this type and size."""


def web_ui_routes(service: ModelService, guard: RequestGuard) -> list[Route]:
    """Return the routes of the page."""
    endpoints = _WebUiEndpoints(service, guard)
    return [
        Route("/", guard.guard(_static_file(_STATIC / "index.html"), public=True)),
        *(
            Route(
                f"/static/{path.relative_to(_STATIC).as_posix()}",
                guard.guard(_static_file(path), public=True),
            )
            for path in sorted(_STATIC.rglob("*.*"))
        ),
        Route("/about", guard.guard(endpoints.about)),
        Route("/count", guard.guard(endpoints.count), methods=["POST"]),
        Route("/documents", guard.guard(endpoints.documents), methods=["POST"]),
    ]


def _static_file(path: Path) -> _Endpoint:
    data, media_type = path.read_bytes(), _MEDIA_TYPES[path.suffix]

    async def answer(request: Request) -> Response:
        return Response(data, media_type=media_type, headers=_SECURITY_HEADERS)

    return answer


class _WebUiEndpoints:
    """The endpoints of the page."""

    def __init__(self, service: ModelService, guard: RequestGuard) -> None:
        self._service = service
        self._guard = guard
        self._document_limiter = anyio.CapacityLimiter(_MAX_CONCURRENT)

    async def about(self, request: Request) -> Response:
        """Answer GET /about."""
        return JSONResponse(await run_in_threadpool(self._about))

    def _about(self) -> dict[str, Any]:
        model, service = self._service.model, self._service
        report = inspect_header(model.file)
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
            "most_document_bytes": MAX_DOCUMENT_BYTES,
            "rope": {**rope.as_data(), "explained": rope.explain(), "overridden": is_overridden},
            "position_notes": list(report.position_notes),
        }

    async def count(self, request: Request) -> Response:
        """Answer POST /count, whose body is one of /v1/chat/completions."""
        body = await self._guard.read_body(request)

        def count_tokens() -> int:
            return self._service.count_tokens(parse_chat_request(parse_json(body)))

        return JSONResponse(
            {"count": await run_in_threadpool(count_tokens), "context_length": self._service.context_length}
        )

    async def documents(self, request: Request) -> Response:
        """Answer POST /documents, whose body is a document.

        Its name is in the query, and decides the format if the bytes do not.
        """
        name = " ".join(request.query_params.get("name", "").split())[:_MAX_NAME_CHARACTERS] or "document"
        if self._document_limiter.statistics().tasks_waiting >= _MAX_WAITING:
            raise RequestRefused(
                429, "too many documents are waiting", "try again later", code="queue_full", retry_after=1
            )
        async with self._document_limiter:  # before the body is read: many at once would fill the memory
            data = await self._guard.read_body(request, DOCUMENT_TYPE, MAX_DOCUMENT_BYTES)
            text, notes = await self._extract_text(name, data)
        tokens = await run_in_threadpool(self._service.count_text_tokens, text)
        document = AttachedDocument(name, text, tokens)
        return JSONResponse(
            {"name": name, "text": document.as_prompt_text(), "tokens": tokens, "notes": notes}
        )

    async def _extract_text(self, name: str, data: bytes) -> tuple[str, list[str]]:
        """Return a document's text, and notes to show to the user.

        Raises:
            RequestRefused: it cannot be read, or is too long for the context window.
        """
        service = self._service
        max_characters = service.context_length * service.model.max_piece_bytes
        with tempfile.TemporaryDirectory(prefix="pigguf-") as folder:
            path = Path(folder, f"document{_format_suffix(name)}")
            await run_in_threadpool(path.write_bytes, data)
            try:
                text, notes = await read_document_in_subprocess(
                    path, max_characters, service.limits.document_seconds
                )
            except RequestRefused as refusal:
                if refusal.code == "document_too_long":
                    refusal.message = (
                        f"{name} is longer than the context window of {service.context_length:,} tokens"
                    )
                    refusal.hint = "use a part of it"
                refusal.message = refusal.message.replace(str(path), name)
                raise
        return text, [note.replace(str(path), name) for note in notes]


def _format_suffix(name: str) -> str:
    """Return the suffix of a known document format, or "": nothing else of a name reaches the disk."""
    suffix = PurePath(name).suffix.lower()
    return suffix if any(suffix in known.suffixes for known in DOCUMENT_FORMATS) else ""
