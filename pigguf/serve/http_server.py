"""Sockets, and how a server begins and ends.

Contract: an address that others can reach demands a key. SIGTERM and Ctrl-C end what waits, and finish what
runs, within a limit; Ctrl-C once more ends it at once.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from pigguf.errors import UsageError
from pigguf.serve.app import ERROR_DELIVERY_SECONDS, create_app, is_loopback
from pigguf.serve.model_host import ModelHost
from pigguf.serve.service import ServerLimits, ModelService

_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Retry-After: 5\r\n\r\n"
    b'{"error": {"message": "there are too many connections", "type": "server_error", "param": null, '
    b'"code": "too_many_connections"}}'
)
API_KEY_VARIABLE = "PIGGUF_API_KEY"


def listen(host: str, port: int, key: str | None) -> socket.socket:
    """A socket that clients can connect to from now on; they wait until `serve` answers.

    Args:
        port: 0 is any that is free.

    Raises:
        UsageError: an address that others can reach, without a key; no such address; the port is taken.
    """
    if key is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and there is no API key",
            f"give --api-key, or {API_KEY_VARIABLE} in the environment, or listen on 127.0.0.1",
        )
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} of {host} is taken by another program",
                "give another with --port; 0 takes any that is free",
            ) from error
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def listener_url(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    host: ModelHost,
    listener: socket.socket,
    *,
    key: str | None = None,
    limits: ServerLimits | None = None,
    ready: Callable[[ModelService], None] = lambda service: None,
) -> None:
    """Answer requests until a signal ends it; on the main thread.

    Args:
        host: open; it is drained, and stays open.
        ready: called when requests are answered.

    Raises:
        KeyboardInterrupt: Ctrl-C ended it.
    """
    limits = limits or ServerLimits()
    service = ModelService(host, limits)
    config = uvicorn.Config(
        create_app(service, key=key),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        http=cast(Any, partial(_Connection, limits)),
        timeout_graceful_shutdown=round(limits.drain_seconds + ERROR_DELIVERY_SECONDS),
    )
    _Server(config, service, ready).run([listener])


class _Connection(H11Protocol):
    """uvicorn's, which is closed where headers do not come, and refused where there are too many."""

    def __init__(self, limits: ServerLimits, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._limits = limits
        self._waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.write(_TOO_MANY)
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._forget()

    def _watch(self) -> None:
        """Wait for headers, or no more. Between two requests uvicorn does, until the next begins."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(self._limits.headers_seconds, self._give_up)

    def _forget(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        self._waiting = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's, which tells when it is up, and when it is about to end."""

    def __init__(self, config: uvicorn.Config, service: ModelService, ready: Callable[[ModelService], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready(self._service)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.host.drain(self._service.limits.drain_seconds)
        await super().shutdown(sockets)
