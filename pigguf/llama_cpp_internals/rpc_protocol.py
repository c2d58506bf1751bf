"""llama.cpp's RPC protocol, as far as those between its two ends have to know it (rpc.py, rpc_worker.py).

A request is its command (a byte), the length of its data (u64) and the data; an answer, where the command has
one, is the length (u64) and the data. There is one request at a time, and a connection begins with HELLO.
Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp, ggml/include/ggml-rpc.h.

Left out: what tensors and graphs look like, which only the library's own ends know.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from enum import IntEnum

from pigguf.errors import UsageError

VERSION = (7, 0, 0)  # of the pinned library: RPC_PROTO_MAJOR_VERSION and so on
HELLO_DATA = bytes(24)  # what the asker can do beside TCP: nothing
SMALL = 64 << 10  # bytes that no request with an answer reaches

_CHUNK = 1 << 20
_HEAD = struct.Struct("<BQ")
_LENGTH = struct.Struct("<Q")
# A peer whose machine is gone says nothing more: asked after ten seconds, and given up ten later.
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 2}


class Command(IntEnum):
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


# Bytes of an answer; that of GET_TENSOR is as long as the request says, in its last eight bytes.
_ANSWERS = {
    Command.ALLOC_BUFFER: 16,
    Command.GET_ALIGNMENT: 8,
    Command.GET_MAX_SIZE: 8,
    Command.BUFFER_GET_BASE: 8,
    Command.SET_TENSOR_HASH: 1,
    Command.COPY_TENSOR: 1,
    Command.GET_DEVICE_MEMORY: 16,
    Command.GET_ALLOC_SIZE: 8,
    Command.HELLO: 28,
    Command.DEVICE_COUNT: 4,
}
ANSWERED = frozenset((*_ANSWERS, Command.GET_TENSOR))
GRAPHS = (Command.GRAPH_COMPUTE, Command.GRAPH_RECOMPUTE)


def answer_bytes(command: Command, data: bytes) -> int:
    """How long the answer to a request of ANSWERED is."""
    return _ANSWERS[command] if command in _ANSWERS else int(_LENGTH.unpack(data[-8:])[0])


class Garbled(ConnectionError):
    """The other end does not speak this protocol."""


class Peer:
    """One end of a connection. Reading and writing are each for one thread at a time.

    Everything raises OSError where the connection fails (ConnectionError where the other end is gone,
    TimeoutError where a timeout was set).
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._connection = connection
        self._reader = connection.makefile("rb", _CHUNK)

    # ---- asking ----------------------------------------------------------------------------------

    def ask(self, command: Command, data: bytes = b"") -> bytes:
        """The answer to a request of ANSWERED."""
        self.send(command, len(data), data)
        expected = answer_bytes(command, data)
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        if length != expected:
            raise Garbled(f"{length} bytes in answer to {command.name}, not {expected}")
        return self._read(expected)

    def send(self, command: Command, length: int, data: bytes) -> None:
        """A request; of a long one the beginning, and `write` sends the rest."""
        self.write(_HEAD.pack(command, length) + data)

    def write(self, data: bytes) -> None:
        self._connection.sendall(data)

    # ---- answering -------------------------------------------------------------------------------

    def request(self) -> tuple[Command, int] | None:
        """The next request's command and length; None where the other end has left."""
        head = self._reader.read(_HEAD.size)
        if len(head) < _HEAD.size:
            return None
        command, length = _HEAD.unpack(head)
        try:
            command = Command(command)
        except ValueError as error:
            raise Garbled(f"a command {command}") from error
        if command in ANSWERED and length >= SMALL:
            raise Garbled(f"{length} bytes of {command.name}")
        return command, length

    def chunks(self, length: int) -> Iterator[bytes]:
        """A request's data; once b"" where it has none."""
        while True:
            yield self._read(min(length, _CHUNK))
            length -= min(length, _CHUNK)
            if not length:
                return

    def data(self, length: int) -> bytes:
        """All of a short request's data."""
        return self._read(length)

    def answer(self, data: bytes) -> None:
        self.write(_LENGTH.pack(len(data)) + data)

    # ---- ending ----------------------------------------------------------------------------------

    def settimeout(self, seconds: float | None) -> None:
        self._connection.settimeout(seconds)

    def hang_up(self) -> None:
        """End the connection; whoever waits for it in another thread is woken, and fails."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up and forget it; by the thread that reads."""
        self.hang_up()
        with suppress(OSError):
            self._reader.close()
        self._connection.close()

    def _read(self, count: int) -> bytes:
        data: bytes = self._reader.read(count)
        if len(data) < count:
            raise ConnectionError("the other end hung up")
        return data


def host_and_port(address: str) -> tuple[str, int]:
    """ "10.0.0.2:50052" in its parts.

    Raises:
        UsageError: it is no such thing.
    """
    host, _, port = address.rpartition(":")
    if not host or ":" in host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise UsageError(f"{address!r} is not HOST:PORT", "as 192.168.1.20:50052")
    return host, int(port)
