"""The ASGI application: routes, API keys, and every error in OpenAI's form.

Without an API key, only clients on this machine are answered, and only under one of its own names: that
refuses a web page that points a foreign name at this machine (DNS rebinding). Bodies must be JSON, which a
page cannot send to another origin without a preflight request; there is no CORS.
Not here: what an answer is (service.py), sockets and signals (http_server.py).
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
from pigguf.serve.event_stream import EventStream, StreamEvent
from pigguf.serve.events import Finished, PrefillProgress, QueuePosition, TextChunk
from pigguf.serve.generation_request import GenerationRequest
from pigguf.serve.limits import MAX_DETOKENIZED_TOKENS, ServerLimits
from pigguf.serve.metrics import ServerMetrics
from pigguf.serve.openai_fields import RequestFields, parse_json
from pigguf.serve.openai_requests import (
    CompletionRequest,
    EmbeddingRequest,
    parse_chat_request,
    parse_completion_request,
    parse_embedding_request,
)
from pigguf.serve.openai_responses import (
    ChatResponseWriter,
    CompletionResponseWriter,
    GeneratedChoice,
    ResponseWriter,
    embeddings_body,
    usage_counts,
)
from pigguf.serve.openapi import openapi_document
from pigguf.serve.service import ModelService
from pigguf.serve.web_ui import web_ui_routes

Endpoint = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")

JSON = "application/json"
ERROR_DELIVERY_SECONDS = 5.0  # for a failed request's error to reach its client at shutdown
_PING_SECONDS = 15  # between keep-alive comments in a stream without events
_MAX_WAITING_EMBEDDINGS = 64  # requests
_HOST_HEADER = re.compile(r"(?:\[([^]]+)\]|([^][:/?#@\\]+))(?::[0-9]*)?")


def create_app(service: ModelService, *, key: str | None = None) -> Starlette:
    """Return the server's ASGI application.

    Args:
        service: the model.
        key: the API key that clients send as `Authorization: Bearer KEY`; None answers only clients that
            reach the server under a name of this machine.
    """
    routes = _Routes(service, key)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", routes.guard(routes.chat_completions), methods=["POST"]),
            Route("/v1/completions", routes.guard(routes.completions), methods=["POST"]),
            Route("/v1/embeddings", routes.guard(routes.embeddings), methods=["POST"]),
            Route("/v1/models", routes.guard(routes.models)),
            Route("/tokenize", routes.guard(routes.tokenize), methods=["POST"]),
            Route("/detokenize", routes.guard(routes.detokenize), methods=["POST"]),
            Route("/health", routes.guard(routes.health, public=True)),
            Route("/metrics", routes.guard(routes.metrics)),
            *web_ui_routes(service, routes),
            Route("/openapi.json", routes.guard(routes.openapi, public=True)),
        ],
        exception_handlers={HTTPException: _http_error},
    )


class _Routes:
    """The endpoints of the API."""

    def __init__(self, service: ModelService, key: str | None) -> None:
        self._service = service
        self._key = key
        self._metrics = ServerMetrics(service.host)
        self._embedding_limiter = anyio.CapacityLimiter(1)

    # ---- before and after each endpoint ----------------------------------------------------------

    def guard(self, endpoint: Endpoint, *, public: bool = False) -> Endpoint:
        """Return the endpoint behind the access check, with errors in OpenAI's form, counted in metrics.

        Args:
            public: whether it is answered without an API key.
        """

        async def guarded(request: Request) -> Response:
            try:
                self._check_access(request, public)
                response = await endpoint(request)
            except PigError as error:
                response = _json_error(error)
            except Exception as error:
                response = _json_error(internal_error(error))
            self._metrics.count_request(request.scope["path"], response.status_code)
            return response

        return guarded

    def _check_access(self, request: Request, public: bool) -> None:
        """Raise if the client may not use the server.

        Raises:
            RequestRefused: the API key is missing or wrong; without one, the Host header is not a name of
                this machine.
        """
        if self._key is None:
            if not is_loopback(_requested_host(request)):
                raise RequestRefused(
                    403,
                    "without an API key, the server answers only under this machine's own names",
                    "start it with `api_key` to reach it under another name",
                )
        elif not public:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(given.strip().encode("latin-1"), os.fsencode(self._key))
            if scheme.lower() != "bearer" or not is_right:
                raise RequestRefused(401, "the API key is missing or wrong", code="invalid_api_key")

    async def read_body(
        self, request: Request, content_type: str = JSON, max_bytes: int | None = None
    ) -> bytes:
        """Read the body of a request.

        Args:
            content_type: the type that the body must have.
            max_bytes: the largest body to accept; None is the server's limit.

        Raises:
            RequestRefused: it has another type, is too large, or does not arrive in time.
        """
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if given != content_type:
            raise RequestRefused(
                415,
                f"the content type of the body is {given[:80] or 'missing'}",
                f"send it as {content_type}",
            )
        limits, body = self._service.limits, bytearray()
        max_bytes = limits.max_body_bytes if max_bytes is None else max_bytes
        try:
            with anyio.fail_after(limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > max_bytes:
                        raise RequestRefused(
                            413, f"the body is over {max_bytes:,} bytes", code="body_too_large"
                        )
        except TimeoutError:
            raise RequestRefused(408, f"the body did not arrive within {limits.body_seconds:g} s") from None
        return bytes(body)

    # ---- chat completions and completions --------------------------------------------------------

    async def chat_completions(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        return await self._complete(request, parse_chat_request, ChatResponseWriter)

    async def completions(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        return await self._complete(request, parse_completion_request, CompletionResponseWriter)

    async def _complete(
        self,
        request: Request,
        parse: Callable[[Any], CompletionRequest],
        writer_class: type[ChatResponseWriter] | type[CompletionResponseWriter],
    ) -> Response:
        service = self._service
        body = await self.read_body(request)

        def parsed() -> tuple[CompletionRequest, list[GenerationRequest]]:
            completion = parse(parse_json(body))
            return completion, service.generation_requests(completion, _client_of(request))

        completion, requests = await run_in_threadpool(parsed)
        token_bytes = partial(service.model.token_to_piece, special=True)
        parser = service.tool_call_parser(completion)
        writer = writer_class(service.name, token_bytes, completion.logprobs is not None, parser)
        events = service.submit(requests)
        prompt_tokens = sum(len(one.prompt) for one in requests[:: completion.choice_count])
        if completion.stream:
            choices = [GeneratedChoice() for _ in requests]
            chunks = self._stream_chunks(events, writer, choices, prompt_tokens, completion)
            return _EventStreamResponse(events, chunks, service.limits)
        try:
            choices = await _run_unless_disconnected(request, self._collect(events, len(requests)))
        finally:
            events.cancel()
        usage = usage_counts(prompt_tokens, choices, completion.choice_count)
        return await run_in_threadpool(lambda: JSONResponse(writer.whole(choices, usage)))

    async def _collect(self, events: EventStream, count: int) -> list[GeneratedChoice]:
        """Return the choices once all are finished."""
        choices = [GeneratedChoice() for _ in range(count)]
        async for index, event in self._with_metrics(events):
            if isinstance(event, Finished):
                choices[index].finished = event
            elif isinstance(event, TextChunk):
                choices[index].text += event.text
                choices[index].tokens += event.tokens
        return choices

    async def _stream_chunks(
        self,
        events: EventStream,
        writer: ResponseWriter,
        choices: list[GeneratedChoice],
        prompt_tokens: int,
        completion: CompletionRequest,
    ) -> AsyncGenerator[dict[str, str], None]:
        """Yield a stream's server-sent events. An error is one of them: the status was sent before."""
        try:
            for index in range(len(choices)):
                if first := writer.first_chunk(index):
                    yield _sse_data(first)
            async for index, event in self._with_metrics(events):
                if isinstance(event, Finished):
                    choices[index].finished = event
                    yield _sse_data(writer.last_chunk(index, choices[index]))
                elif isinstance(event, QueuePosition | PrefillProgress):
                    yield _sse_data(writer.progress_chunk(index, event))
                elif chunk := writer.text_chunk(index, event.text, event.tokens):
                    yield _sse_data(chunk)
            if completion.include_usage:
                usage = usage_counts(prompt_tokens, choices, completion.choice_count)
                yield _sse_data(writer.usage_chunk(usage))
            yield {"data": "[DONE]"}
        except PigError as error:
            yield _sse_data(error_response(error).body)

    async def _with_metrics(self, events: EventStream) -> AsyncGenerator[tuple[int, StreamEvent], None]:
        """Yield the events, and record the time to the first token."""
        started, is_first = time.monotonic(), True
        async for index, event in events:
            if is_first and not isinstance(event, QueuePosition | PrefillProgress):
                self._metrics.observe_first_token(time.monotonic() - started)
                is_first = False
            yield index, event

    # ---- the other endpoints ---------------------------------------------------------------------

    async def embeddings(self, request: Request) -> Response:
        """Answer POST /v1/embeddings."""
        body, is_cancelled = await self.read_body(request), threading.Event()

        def parsed() -> tuple[EmbeddingRequest, list[list[int]]]:
            embedding = parse_embedding_request(parse_json(body))
            return embedding, self._service.embedding_inputs(embedding)

        def computed() -> Response:
            vectors = self._service.embed(embedding, inputs, is_cancelled.is_set)
            tokens = sum(map(len, inputs))
            return JSONResponse(
                embeddings_body(self._service.name, vectors, tokens, is_base64=embedding.is_base64)
            )

        embedding, inputs = await run_in_threadpool(parsed)
        if self._embedding_limiter.statistics().tasks_waiting >= _MAX_WAITING_EMBEDDINGS:
            raise RequestRefused(
                429,
                "too many requests for embeddings are waiting",
                "try again later",
                code="queue_full",
                retry_after=1,
            )
        computing = anyio.to_thread.run_sync(
            computed, limiter=self._embedding_limiter, abandon_on_cancel=True
        )
        try:
            return await _run_unless_disconnected(request, computing)
        finally:
            is_cancelled.set()

    async def models(self, request: Request) -> Response:
        """Answer GET /v1/models."""
        model = {
            "id": self._service.name,
            "object": "model",
            "created": self._service.created,
            "owned_by": "pigguf",
            "context_length": self._service.context_length,
            "embeddings": self._service.pooling is not None,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def tokenize(self, request: Request) -> Response:
        """Answer POST /tokenize."""
        body = await self.read_body(request)

        def tokenized() -> Response:
            fields = RequestFields(parse_json(body))
            text = fields.string("content")
            options = {name: fields.boolean(name) for name in ("add_special", "parse_special")}
            fields.refuse_unread()
            if text is None:
                raise RequestRefused(400, "content is missing", param="content")
            tokens = self._service.model.tokenize(text, **options)
            return JSONResponse({"tokens": tokens, "count": len(tokens)})

        return await run_in_threadpool(tokenized)

    async def detokenize(self, request: Request) -> Response:
        """Answer POST /detokenize."""
        body = await self.read_body(request)

        def detokenized() -> str:
            fields = RequestFields(parse_json(body))
            tokens = fields.take("tokens")
            fields.refuse_unread()
            if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
                raise RequestRefused(400, "tokens must be a list of token ids", param="tokens")
            if len(tokens) > MAX_DETOKENIZED_TOKENS:
                raise RequestRefused(
                    400, f"tokens must be {MAX_DETOKENIZED_TOKENS:,} at most", param="tokens"
                )
            return self._service.model.detokenize(tokens)

        return JSONResponse({"content": await run_in_threadpool(detokenized)})

    async def health(self, request: Request) -> Response:
        """Answer GET /health, with status 503 while no answers can be expected."""
        host = self._service.host
        counts = {"slots": host.slot_count, "running": host.running, "waiting": host.waiting}
        if host.is_shutting_down:
            return JSONResponse({"status": "ending", **counts}, 503)
        if failure := host.failure:
            return JSONResponse({"status": "unavailable", "reason": failure.message, **counts}, 503)
        return JSONResponse({"status": "ok", **counts})

    async def openapi(self, request: Request) -> Response:
        """Answer GET /openapi.json."""
        return JSONResponse(openapi_document(with_key=self._key is not None))

    async def metrics(self, request: Request) -> Response:
        """Answer GET /metrics."""
        return Response(self._metrics.exposition(), media_type=ServerMetrics.content_type)


class _EventStreamResponse(EventSourceResponse):
    """A streamed response that cancels its requests when it ends, for whatever reason."""

    def __init__(
        self, events: EventStream, chunks: AsyncGenerator[dict[str, str], None], limits: ServerLimits
    ) -> None:
        super().__init__(
            chunks,
            ping=_PING_SECONDS,
            send_timeout=limits.send_seconds,
            shutdown_grace_period=limits.drain_seconds + ERROR_DELIVERY_SECONDS,
        )
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._events.cancel()


def is_loopback(host: str) -> bool:
    """Return whether a name or address is this machine's own and cannot be reached from other machines."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _requested_host(request: Request) -> str:
    """Return the name in the Host header, "" if there is none.

    Starlette's request.url would fall back on the server's own address.
    """
    match = _HOST_HEADER.fullmatch(request.headers.get("host", ""))
    return match[1] or match[2] if match else ""


def _client_of(request: Request) -> str:
    """Return what identifies a client: its address and its program.

    A client may open many connections, so these do not identify it; on this machine all programs share one
    address, so this alone does not either.
    """
    return f"{request.client.host if request.client else ''} {request.headers.get('user-agent', '')}"


def _sse_data(value: Any) -> dict[str, str]:
    return {"data": json.dumps(value, ensure_ascii=False, separators=(",", ":"))}


async def _run_unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it if the client disconnects.

    Raises:
        RequestRefused: the client disconnected.
    """
    working, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({working, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestRefused(499, "the client went away", code="cancelled")
        return working.result()
    finally:
        working.cancel()
        disconnected.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json_error(error: PigError) -> Response:
    status, body, headers = error_response(error)
    return JSONResponse(body, status_code=status, headers=headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Answer an unknown path, or a path with another method, in OpenAI's form."""
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path", 405: "the path does not accept this method"}
    response = _json_error(RequestRefused(error.status_code, messages.get(error.status_code, error.detail)))
    response.headers.update(error.headers or {})
    return response
