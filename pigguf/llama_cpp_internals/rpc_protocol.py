"""llama.cpp's RPC protocol, as far as relays between client and server need it (pigguf/inference/rpc/).

A request is its command (a byte), the length of its data (u64) and the data. A response, where the command
has one, is the length (u64) and the data. There is one request at a time, and a connection begins with HELLO.
Source: llama.cpp ggml/src/ggml-rpc/ggml-rpc.cpp, ggml/include/ggml-rpc.h.

Not here: how tensors and graphs are serialized; only the library reads those.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum

from pigguf.errors import UsageError

VERSION = (7, 0, 0)  # RPC_PROTO_MAJOR_VERSION, _MINOR_ and _PATCH_
HELLO_DATA = bytes(24)  # the client's transports besides TCP: none
MAX_SMALL_REQUEST = 64 << 10  # bytes; every request with a response is shorter

_CHUNK_BYTES = 1 << 20
_REQUEST_HEADER = struct.Struct("<BQ")
_LENGTH = struct.Struct("<Q")
# A machine that is down is detected 20 s after its last packet: first probe after 10 s, then two in 10 s.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2}


class RpcCommand(IntEnum):
    """enum rpc_cmd."""

    ALLOC_BUFFER = 0
    GET_ALIGNMENT = 1
    GET_MAX_SIZE = 2
    BUFFER_GET_BASE = 3
    FREE_BUFFER = 4
    BUFFER_CLEAR = 5
    SET_TENSOR = 6
    SET_TENSOR_HASH = 7
    GET_TENSOR = 8
    COPY_TENSOR = 9
    GRAPH_COMPUTE = 10
    GET_DEVICE_MEMORY = 11
    INIT_TENSOR = 12
    GET_ALLOC_SIZE = 13
    HELLO = 14
    DEVICE_COUNT = 15
    GRAPH_RECOMPUTE = 16
    MEMSET_TENSOR = 17


# Bytes of a response; GET_TENSOR's is as long as the last eight bytes of its request state.
_RESPONSE_BYTES = {
    RpcCommand.ALLOC_BUFFER: 16,
    RpcCommand.GET_ALIGNMENT: 8,
    RpcCommand.GET_MAX_SIZE: 8,
    RpcCommand.BUFFER_GET_BASE: 8,
    RpcCommand.SET_TENSOR_HASH: 1,
    RpcCommand.COPY_TENSOR: 1,
    RpcCommand.GET_DEVICE_MEMORY: 16,
    RpcCommand.GET_ALLOC_SIZE: 8,
    RpcCommand.HELLO: 28,
    RpcCommand.DEVICE_COUNT: 4,
}
COMMANDS_WITH_RESPONSE = frozenset((*_RESPONSE_BYTES, RpcCommand.GET_TENSOR))
GRAPH_COMMANDS = (RpcCommand.GRAPH_COMPUTE, RpcCommand.GRAPH_RECOMPUTE)


def response_bytes(command: RpcCommand, data: bytes) -> int:
    """Return the length of the response to a command of COMMANDS_WITH_RESPONSE with this data."""
    return _RESPONSE_BYTES[command] if command in _RESPONSE_BYTES else int(_LENGTH.unpack(data[-8:])[0])


class RpcProtocolError(ConnectionError):
    """The other end violates the protocol."""


class RpcConnection:
    """One end of a TCP connection that carries the protocol. One thread may read and another write at a time.

    Every method raises OSError if the connection fails: ConnectionError if the other end is gone,
    TimeoutError if a timeout is set and passes.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._reader = connection.makefile("rb", _CHUNK_BYTES)

    # ---- client ----------------------------------------------------------------------------------

    def request(self, command: RpcCommand, data: bytes = b"") -> bytes:
        """Send a request with a command of COMMANDS_WITH_RESPONSE, and return the response's data."""
        self.send(command, len(data), data)
        expected = response_bytes(command, data)
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length != expected:
            raise RpcProtocolError(f"{length} bytes in response to {command.name}, not {expected}")
        return self._read(expected)

    def send(self, command: RpcCommand, length: int, data: bytes) -> None:
        """Send a request of `length` bytes; `data` may be its beginning only, and `write` sends the rest."""
        self.write(_REQUEST_HEADER.pack(command, length) + data)

    def write(self, data: bytes) -> None:
        """Send bytes."""
        self._connection.sendall(data)

    # ---- server ----------------------------------------------------------------------------------

    def read_request(self) -> tuple[RpcCommand, int] | None:
        """Return the next request's command and length, or None if the other end has left."""
        header = self._reader.read(_REQUEST_HEADER.size)
        if len(header) < _REQUEST_HEADER.size:
            return None
        command, length = _REQUEST_HEADER.unpack(header)
        try:
            command = RpcCommand(command)
        except ValueError as error:
            raise RpcProtocolError(f"unknown command {command}") from error
        if command in COMMANDS_WITH_RESPONSE and length >= MAX_SMALL_REQUEST:
            raise RpcProtocolError(f"{length} bytes of {command.name}")
        return command, length

    def read_chunks(self, length: int) -> Iterator[bytes]:
        """Yield a request's data in chunks; a request without data yields b"" once."""
        while True:
            yield self._read(min(length, _CHUNK_BYTES))
            length -= min(length, _CHUNK_BYTES)
            if not length:
                return

    def read_data(self, length: int) -> bytes:
        """Return all data of a short request."""
        return self._read(length)

    def respond(self, data: bytes) -> None:
        """Send a response."""
        self.write(_LENGTH.pack(len(data)) + data)

    # ---- closing ---------------------------------------------------------------------------------

    def settimeout(self, seconds: float | None) -> None:
        """Set the timeout of each read and write in seconds; None waits without limit."""
        self._connection.settimeout(seconds)

    def shutdown(self) -> None:
        """End the connection; a thread that waits in a read or write then gets an OSError."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free it; to be called by the thread that reads."""
        self.shutdown()
        with suppress(OSError):
            self._reader.close()
        self._connection.close()

    def _read(self, count: int) -> bytes:
        data: bytes = self._reader.read(count)
        if len(data) < count:
            raise ConnectionError("the other end closed the connection")
        return data


def parse_host_port(address: str) -> tuple[str, int]:
    """Split "10.0.0.2:50052" into host and port.

    Raises:
        UsageError: the address has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or ":" in host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT", "for example 192.168.1.20:50052")
    return host, int(port)
