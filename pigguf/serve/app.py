"""The routes: keys and limits in front, a Service behind, errors in OpenAI's form.

Contract: a route answers in OpenAI's form whatever happens. Without a key only a client on this machine is
answered, and only under a name of it: a web page that has a foreign name point here is refused, and so is
what a page can send without asking, for its type is not JSON. There is no CORS.
Left out: what an answer is (service.py), sockets (server.py).
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import os
import re
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from pigguf.errors import PigError
from pigguf.serve.errors import RequestRefused, error_response, internal_error
from pigguf.serve.metrics import ServerMetrics
from pigguf.serve.openai_api import (
    MAX_DETOKENIZED_TOKENS,
    CompletionRequest,
    ChatResponseWriter,
    GeneratedChoice,
    RequestFields,
    CompletionResponseWriter,
    EmbeddingRequest,
    parse_chat_request,
    parse_completion_request,
    parse_embedding_request,
    embeddings_body,
    parse_json,
    usage_counts,
)
from pigguf.serve.openapi import openapi_document
from pigguf.serve.scheduler import Finished, TextChunk, PrefillProgress, QueuePosition
from pigguf.serve.scheduler import GenerationRequest as Wanted
from pigguf.serve.service import EventStream, ServerLimits, ModelService
from pigguf.serve.web_ui import web_ui_routes

Endpoint = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

_PING = 15  # seconds between signs of life in a stream that has nothing to say
JSON = "application/json"
ERROR_DELIVERY_SECONDS = 5.0  # seconds for clients to be told that an answer was given up
_MOST_WAITING = 64  # requests for embeddings
_HOST = re.compile(r"(?:\[([^]]+)\]|([^][:/?#@\\]+))(?::[0-9]*)?")


def create_app(service: ModelService, *, key: str | None = None) -> Starlette:
    """The server's ASGI application.

    Args:
        key: what clients must bring as `Authorization: Bearer KEY`; None answers this machine's names only.
    """
    routes = _Routes(service, key)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.guarded(routes.chat), methods=["POST"]),
            Route("/v1/completions", routes.guarded(routes.completions), methods=["POST"]),
            Route("/v1/embeddings", routes.guarded(routes.embeddings), methods=["POST"]),
            Route("/v1/models", routes.guarded(routes.models)),
            Route("/tokenize", routes.guarded(routes.tokenize), methods=["POST"]),
            Route("/detokenize", routes.guarded(routes.detokenize), methods=["POST"]),
            Route("/health", routes.guarded(routes.health, public=True)),
            Route("/metrics", routes.guarded(routes.metrics)),
            *web_ui_routes(service, routes),
            Route("/openapi.json", routes.guarded(routes.openapi, public=True)),
        ],
        exception_handlers={HTTPException: _no_route},
    )


class _Routes:
    """What each route does."""

    def __init__(self, service: ModelService, key: str | None) -> None:
        self._service = service
        self._key = key
        self._metrics = ServerMetrics(service.host)
        self._embedding = anyio.CapacityLimiter(1)

    # ---- before and after ------------------------------------------------------------------------

    def guarded(self, endpoint: Endpoint, *, public: bool = False) -> Endpoint:
        """The endpoint behind its key, with every error in OpenAI's form."""

        async def answer(request: Request) -> Response:
            try:
                self._refuse_strangers(request, public)
                response = await endpoint(request)
            except PigError as error:
                response = _error(error)
            except Exception as error:
                response = _error(internal_error(error))
            self._metrics.count_request(request.scope["path"], response.status_code)
            return response

        return answer

    def _refuse_strangers(self, request: Request, public: bool) -> None:
        """
        Raises:
            Refusal: no or a wrong key; without one, a name that is not this machine's.
        """
        if self._key is None:
            if not is_loopback(_name(request)):
                raise RequestRefused(
                    403,
                    "the server answers to this machine's own names only",
                    "start it with --api-key to reach it under another",
                )
        elif not public:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode("latin-1"), os.fsencode(self._key))
            if scheme.lower() != "bearer" or not is_right:
                raise RequestRefused(401, "the API key is missing or wrong", code="invalid_api_key")

    async def body(self, request: Request, kind: str = JSON, most: int | None = None) -> bytes:
        """A request's body, of this type and of so many bytes at most, by default the limits'.

        Raises:
            Refusal: it is of another type, too large, or does not come.
        """
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != kind:
            raise RequestRefused(415, f"the body is {given[:80] or 'of no type'}", f"send it as {kind}")
        limits, body = self._service.limits, bytearray()
        most = limits.max_body_bytes if most is None else most
        try:
            with anyio.fail_after(limits.body_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise RequestRefused(413, f"the body is over {most:,} bytes", code="body_too_large")
        except TimeoutError:
            raise RequestRefused(408, f"the body did not come within {limits.body_seconds:g} s") from None
        return bytes(body)

    # ---- answers ---------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, parse_chat_request, ChatResponseWriter)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, parse_completion_request, CompletionResponseWriter)

    async def _answer(
        self, request: Request, read: Callable[[Any], CompletionRequest], form_of: type[ChatResponseWriter] | type[CompletionResponseWriter]
    ) -> Response:
        service = self._service
        body = await self.body(request)
        asked, requests = await run_in_threadpool(self._understood, read, body, _client(request))
        piece = partial(service.model.token_to_piece, special=True)
        form = form_of(service.name, piece, asked.logprobs is not None, service.tool_call_parser(asked))
        answers = service.submit(requests)
        prompt_tokens = sum(len(wanted.prompt) for wanted in requests[:: asked.choice_count])
        if asked.stream:
            choices = [GeneratedChoice() for _ in requests]
            chunks = self._chunks(answers, form, choices, prompt_tokens, asked)
            return _Stream(answers, chunks, service.limits)
        try:
            choices = await _unless_gone(request, self._gathered(answers, len(requests)))
        finally:
            answers.cancel()
        counts = usage_counts(prompt_tokens, choices, asked.choice_count)
        return await run_in_threadpool(lambda: JSONResponse(form.whole(choices, counts)))

    def _understood(
        self, read: Callable[[Any], CompletionRequest], body: bytes, client: str
    ) -> tuple[CompletionRequest, list[Wanted]]:
        asked = read(parse_json(body))
        return asked, self._service.generation_requests(asked, client)

    async def _gathered(self, answers: EventStream, count: int) -> list[GeneratedChoice]:
        choices = [GeneratedChoice() for _ in range(count)]
        async for index, event in self._timed(answers):
            _grow(choices[index], event)
        return choices

    async def _chunks(
        self,
        answers: EventStream,
        form: ChatResponseWriter | CompletionResponseWriter,
        choices: list[GeneratedChoice],
        prompt_tokens: int,
        asked: CompletionRequest,
    ) -> AsyncGenerator[dict[str, str], None]:
        """A stream's events. An error is one of them: the status was sent before."""
        try:
            for index in range(len(choices)):
                if first := form.first(index):
                    yield _data(first)
            async for index, event in self._timed(answers):
                if isinstance(event, Finished):
                    choices[index].finished = event
                    yield _data(form.last(index, choices[index]))
                elif isinstance(event, QueuePosition | PrefillProgress):
                    yield _data(form.progress(index, event))
                elif piece := form.piece_of(index, event.text, event.tokens):
                    yield _data(piece)
            if asked.include_usage:
                yield _data(form.counts(usage_counts(prompt_tokens, choices, asked.choice_count)))
            yield {"data": "[DONE]"}
        except PigError as error:
            yield _data(error_response(error).body)

    async def _timed(
        self, answers: EventStream
    ) -> AsyncGenerator[tuple[int, QueuePosition | PrefillProgress | TextChunk | Finished], None]:
        begun, is_first = time.monotonic(), True
        async for arrived in answers:
            if is_first and not isinstance(arrived[1], QueuePosition | PrefillProgress):
                self._metrics.observe_first_token(time.monotonic() - begun)
                is_first = False
            yield arrived

    async def embeddings(self, request: Request) -> Response:
        body, gone = await self.body(request), threading.Event()

        def understood() -> tuple[EmbeddingRequest, list[list[int]]]:
            asked = parse_embedding_request(parse_json(body))
            return asked, self._service.embedding_inputs(asked)

        def computed() -> Response:
            vectors = self._service.embed(asked, texts, gone.is_set)
            tokens = sum(map(len, texts))
            return JSONResponse(embeddings_body(self._service.name, vectors, tokens, is_base64=asked.is_base64))

        asked, texts = await run_in_threadpool(understood)
        if self._embedding.statistics().tasks_waiting >= _MOST_WAITING:
            raise RequestRefused(
                429, "too many wait for embeddings", "ask again in a while", code="queue_full", retry_after=1
            )
        computing = anyio.to_thread.run_sync(computed, limiter=self._embedding, abandon_on_cancel=True)
        try:
            return await _unless_gone(request, computing)
        finally:
            gone.set()

    # ---- the rest --------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        one = {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "pigguf",
            "context_length": self._service.context_length,
            "embeddings": self._service.pooling is not None,
        }
        return JSONResponse({"object": "list", "data": [one]})

    async def tokenize(self, request: Request) -> Response:
        body = await self.body(request)

        def tokens() -> Response:
            fields = RequestFields(parse_json(body))
            text = fields.text("content")
            special = {name: fields.flag(name) for name in ("add_special", "parse_special")}
            fields.refuse_rest()
            if text is None:
                raise RequestRefused(400, "content is missing", param="content")
            found = self._service.model.tokenize(text, **special)
            return JSONResponse({"tokens": found, "count": len(found)})

        return await run_in_threadpool(tokens)

    async def detokenize(self, request: Request) -> Response:
        body = await self.body(request)

        def text() -> str:
            fields = RequestFields(parse_json(body))
            tokens = fields.take("tokens")
            fields.refuse_rest()
            if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
                raise RequestRefused(400, "tokens must be a list of token ids", param="tokens")
            if len(tokens) > MAX_DETOKENIZED_TOKENS:
                raise RequestRefused(400, f"tokens must be {MAX_DETOKENIZED_TOKENS:,} at most", param="tokens")
            return self._service.model.detokenize(tokens)

        return JSONResponse({"content": await run_in_threadpool(text)})

    async def health(self, request: Request) -> Response:
        host = self._service.host
        counts = {"slots": host.slot_count, "running": host.running, "waiting": host.waiting}
        if host.is_shutting_down:
            return JSONResponse({"status": "ending", **counts}, 503)
        if trouble := host.failure:
            return JSONResponse({"status": "unavailable", "reason": trouble.message, **counts}, 503)
        return JSONResponse({"status": "ok", **counts})

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi_document(with_key=self._key is not None))

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics.exposition(), media_type=ServerMetrics.content_type)


class _Stream(EventSourceResponse):
    """A stream whose answers are given up when it ends, however it does."""

    def __init__(
        self, answers: EventStream, chunks: AsyncGenerator[dict[str, str], None], limits: ServerLimits
    ) -> None:
        super().__init__(
            chunks,
            ping=_PING,
            send_timeout=limits.send_seconds,
            shutdown_grace_period=limits.drain_seconds + ERROR_DELIVERY_SECONDS,
        )
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own, that nobody else can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _name(request: Request) -> str:
    """The name under which a client reaches the server, "" where it is none. Starlette's URL has the server's
    own address then."""
    found = _HOST.fullmatch(request.headers.get("host", ""))
    return found[1] or found[2] if found else ""


def _client(request: Request) -> str:
    """Who asks: an address and a program. A connection tells nobody apart, for clients open many; on this
    machine, programs have one address."""
    return f"{request.client.host if request.client else ''} {request.headers.get('user-agent', '')}"


def _grow(choice: GeneratedChoice, event: QueuePosition | PrefillProgress | TextChunk | Finished) -> None:
    if isinstance(event, Finished):
        choice.finished = event
    elif isinstance(event, TextChunk):
        choice.text += event.text
        choice.tokens += event.tokens


def _data(value: Any) -> dict[str, str]:
    return {"data": json.dumps(value, ensure_ascii=False, separators=(",", ":"))}


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work comes to; given up where the client goes away.

    Raises:
        Refusal: it went.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestRefused(499, "the client went away", code="cancelled")
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(error: PigError) -> Response:
    status, body, headers = error_response(error)
    return JSONResponse(body, status_code=status, headers=headers)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reasons = {404: "there is no such path", 405: "the path does not take this method"}
    refusal = RequestRefused(error.status_code, reasons.get(error.status_code, error.detail))
    response = _error(refusal)
    response.headers.update(error.headers or {})
    return response
