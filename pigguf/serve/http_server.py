"""The HTTP server: its socket, limits of connections, and graceful shutdown.

The only module that imports uvicorn.
An address that other machines can reach requires an API key. SIGTERM or Ctrl-C refuses waiting requests and
lets running ones finish, for `drain_seconds` at most; a second Ctrl-C stops at once.
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
from pigguf.serve.limits import ServerLimits
from pigguf.serve.model_host import ModelHost
from pigguf.serve.service import ModelService

API_KEY_VARIABLE = "PIGGUF_API_KEY"
_TOO_MANY_CONNECTIONS = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Retry-After: 5\r\n\r\n"
    b'{"error": {"message": "there are too many connections", "type": "server_error", "param": null, '
    b'"code": "too_many_connections"}}'
)


def listen(host: str, port: int, key: str | None) -> socket.socket:
    """Return a listening socket; clients that connect wait until `serve` is called.

    Args:
        host: a name or address of this machine.
        port: 0 takes any free port.
        key: the API key, or None.

    Raises:
        UsageError: other machines can reach the address and there is no API key; the address does not exist;
            the port is taken.
    """
    if key is None and not is_loopback(host):
        raise UsageError(
            f"{host} can be reached from other machines, and there is no API key",
            f"set `api_key`, or {API_KEY_VARIABLE} in the environment, or listen on 127.0.0.1",
        )
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} of {host} is taken by another program",
                "choose another `port`; 0 takes any free one",
            ) from error
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def listener_url(listener: socket.socket) -> str:
    """Return the URL of a listening socket, without a path."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    host: ModelHost,
    listener: socket.socket,
    *,
    key: str | None = None,
    limits: ServerLimits | None = None,
    on_ready: Callable[[ModelService], None] = lambda service: None,
) -> None:
    """Answer requests until a signal stops the server. Call it on the main thread.

    Args:
        host: an open host; it is drained at the end, but not closed.
        listener: from `listen`.
        key: the API key that clients must send; None for clients on this machine only.
        limits: sizes and times that clients may take.
        on_ready: called once requests are answered.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it.
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
        http=cast(Any, partial(_LimitedConnection, limits)),
        timeout_graceful_shutdown=round(limits.drain_seconds + ERROR_DELIVERY_SECONDS),
    )
    _UvicornServer(config, service, on_ready).run([listener])


class _LimitedConnection(H11Protocol):
    """uvicorn's connection, refused if there are too many, and closed if headers do not arrive."""

    def __init__(self, limits: ServerLimits, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limits = limits
        self._headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.write(_TOO_MANY_CONNECTIONS)
            transport.close()
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_timer()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._cancel_timer()

    def _update_timer(self) -> None:
        """Start the timer for headers, or cancel it once they are complete.

        Between two requests uvicorn's keep-alive timer runs until the next one begins.
        """
        if self.cycle is not None and not self.cycle.response_complete:
            self._cancel_timer()
        elif self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self._limits.headers_seconds, self._on_timeout)

    def _cancel_timer(self) -> None:
        if self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _on_timeout(self) -> None:
        self._headers_timer = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _UvicornServer(uvicorn.Server):
    """uvicorn's server, which calls `on_ready` once it is up, and drains the host when it shuts down."""

    def __init__(
        self, config: uvicorn.Config, service: ModelService, on_ready: Callable[[ModelService], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready(self._service)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.host.drain(self._service.limits.drain_seconds)
        await super().shutdown(sockets)
