"""A worker: this machine's devices, for one client of llama.cpp's RPC backend at a time.

    with Worker("127.0.0.1", 50052, memory=8 << 30) as worker:
        print(worker.address, worker.devices)
        worker.serve()

llama.cpp's own RPC server computes, behind a port of this process on the loopback interface. What it lacks is
done here: it keeps a second client waiting without a response, has no limit on memory, and does not respond
while it computes. So each client's requests are inspected and forwarded. Requests that do not concern tensors
(hello, devices, free memory) are answered here, at any time and for everyone. The first other request
acquires the worker until its connection ends; a second client is disconnected. Weights can be cached on disk
(weight_cache.py).

There is no authentication and no encryption: whoever reaches the port can use the worker, and a malicious
client can do more. A request that llama.cpp cannot execute ends the process.
Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp (ggml_backend_rpc_start_server). Not here: the client (client.py).
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from types import TracebackType

from pigguf.common.system_memory import available_memory
from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import devices
from pigguf.inference.engine.context_options import default_threads
from pigguf.inference.engine.devices import Device
from pigguf.inference.engine.ggml_library import ggml
from pigguf.inference.rpc.loopback_proxy import rpc_function
from pigguf.inference.rpc.weight_cache import WeightCache
from pigguf.llama_cpp_internals.rpc_protocol import (
    COMMANDS_WITH_RESPONSE,
    HELLO_DATA,
    RpcCommand,
    RpcConnection,
    RpcProtocolError,
)
from pigguf.llama_cpp_internals.symbols import RPC_START_SERVER

_START_TIMEOUT = 10.0  # seconds for llama.cpp's server to start
_ACQUIRE_TIMEOUT = 1.5  # seconds that a client waits for the previous one, and for its last graph
_ACCEPT_RETRY = 0.1  # seconds until the next connection is accepted, if the system refuses one
_NO_BUFFER = bytes(16)


class Worker:
    """A worker that listens; `serve` answers. A context manager.

    Args:
        host, port: where to listen, an IPv4 address or a name; port 0 is any free one.
        names: which devices to serve, by ggml's names; None is all GPUs, or the CPU if there are none.
        memory: bytes that clients may allocate on each device; None is what is free now.
        cache: where weights are cached; None caches none.

    Attributes:
        address: where it listens, "127.0.0.1:50052".
        devices: what it serves; memory_free is what clients may allocate.

    Raises:
        BackendUnavailable: the engine is missing, or was built without RPC.
        UsageError: no such device, or an address that cannot be listened on.
        EngineError: llama.cpp's server does not start.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        names: Sequence[str] | None = None,
        memory: int | None = None,
        cache: WeightCache | None = None,
    ) -> None:
        self._cache = cache
        self.devices = tuple(_with_memory_limit(device, memory) for device in _select_devices(names))
        try:
            self._server = socket.create_server((host, port), backlog=16)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "use an address of this machine and a port that no other program listens on",
            ) from error
        self.address = "{}:{}".format(*self._server.getsockname()[:2])
        self._library_port = _start_library_server([device.name for device in self.devices])
        self._hello = self._request_hello()
        self._client: ClientConnection | None = None  # that has acquired the worker
        self._released = threading.Condition()

    def serve(self) -> None:
        """Answer clients until `close` is called from another thread, or an exception is raised (Ctrl-C)."""
        while True:
            try:
                client = RpcConnection(self._server.accept()[0])
            except OSError:  # closed, or more connections than the system allows
                if self._server.fileno() < 0:
                    return
                time.sleep(_ACCEPT_RETRY)
                continue
            threading.Thread(target=self._serve_client, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Stop listening. llama.cpp's server cannot be stopped: it lives until the process ends."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- a client --------------------------------------------------------------------------------

    def _serve_client(self, client: RpcConnection) -> None:
        acquired = None
        try:
            while (request := client.read_request()) is not None:
                command, length = request
                if command in (RpcCommand.HELLO, RpcCommand.DEVICE_COUNT, RpcCommand.GET_DEVICE_MEMORY):
                    client.respond(self._answer_status(command, client.read_data(length)))
                    continue
                acquired = acquired or self._acquire()
                if acquired is None:
                    return
                acquired.forward(client, command, length)
        except (OSError, struct.error):  # it disconnected, or sent a wrong request
            pass
        finally:
            if acquired is not None:
                self._release(acquired)
            client.close()

    def _answer_status(self, command: RpcCommand, data: bytes) -> bytes:
        if command == RpcCommand.HELLO:
            return self._hello
        if command == RpcCommand.DEVICE_COUNT:
            return struct.pack("<I", len(self.devices))
        (number,) = struct.unpack("<I", data)
        if number >= len(self.devices):
            raise RpcProtocolError(f"there is no device {number}")
        device, client = self.devices[number], self._client
        allocated = client.allocated_bytes(number) if client else 0
        return struct.pack("<QQ", max(0, device.memory_free - allocated), device.memory_total)

    def _acquire(self) -> ClientConnection | None:
        """Acquire the worker for one client; None if another one keeps it.

        Raises:
            OSError: llama.cpp's server still computes for a client that disconnected.
        """
        with self._released:
            if not self._released.wait_for(lambda: self._client is None, _ACQUIRE_TIMEOUT):
                return None
            limits = [device.memory_free for device in self.devices]
            self._client = ClientConnection(self._connect_to_library(), limits, self._cache)
            return self._client

    def _release(self, client: ClientConnection) -> None:
        client.close()
        with self._released:
            self._client = None
            self._released.notify()

    # ---- llama.cpp's server ----------------------------------------------------------------------

    def _connect_to_library(self) -> RpcConnection:
        connection = RpcConnection(
            socket.create_connection(("127.0.0.1", self._library_port), timeout=_ACQUIRE_TIMEOUT)
        )
        try:
            connection.request(RpcCommand.HELLO, HELLO_DATA)
        except OSError:
            connection.close()
            raise
        connection.settimeout(None)
        return connection

    def _request_hello(self) -> bytes:
        """Return the response of llama.cpp's server to HELLO, once it has started.

        Raises:
            EngineError: it does not start.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while True:
            try:
                connection = RpcConnection(
                    socket.create_connection(("127.0.0.1", self._library_port), timeout=_START_TIMEOUT)
                )
                hello = connection.request(RpcCommand.HELLO, HELLO_DATA)
                connection.close()
                return hello
            except OSError as error:
                if time.monotonic() > deadline:
                    raise EngineError(f"the engine's RPC server does not start: {error}") from error
                time.sleep(0.02)


class ClientConnection:
    """One client's connection to llama.cpp's server, which frees the client's buffers when it ends.

    Args:
        library: the connection to llama.cpp's server.
        memory_limits: bytes that the client may allocate on each device.
        cache: where weights are cached; None caches none.
    """

    def __init__(
        self, library: RpcConnection, memory_limits: Sequence[int], cache: WeightCache | None
    ) -> None:
        self._library = library
        self._memory_limits = memory_limits
        self._cache = cache
        self._missing: tuple[bytes, bytes] | None = (
            None  # the start and the hash of a weight not in the cache
        )
        self._buffers: dict[bytes, tuple[int, int]] = {}  # by the server's pointer: device and bytes
        self._allocated: Counter[int] = Counter()

    def allocated_bytes(self, device: int) -> int:
        """Return the bytes of the client's buffers on a device."""
        return self._allocated[device]

    def forward(self, client: RpcConnection, command: RpcCommand, length: int) -> None:
        """Forward one request to llama.cpp's server, and its response back."""
        if command in COMMANDS_WITH_RESPONSE:
            client.respond(self._request(command, client.read_data(length)))
            return
        chunks = client.read_chunks(length)
        first = next(chunks)
        if command == RpcCommand.FREE_BUFFER:
            device, size = self._buffers.pop(first, (0, 0))
            self._allocated[device] -= size
        self._library.send(command, length, first)
        if command == RpcCommand.SET_TENSOR:
            chunks = self._store_if_missing(first, length, chunks)
        for data in chunks:
            self._library.write(data)

    def _request(self, command: RpcCommand, data: bytes) -> bytes:
        if command == RpcCommand.ALLOC_BUFFER:
            return self._allocate(data)
        if command == RpcCommand.SET_TENSOR_HASH and self._cache is not None:
            return self._set_tensor_from_cache(data, self._cache)
        return self._library.request(command, data)

    # Requests that set a tensor begin with the tensor. Then SET_TENSOR has a byte (1: cache it), the offset
    # and the bytes, SET_TENSOR_HASH the offset and the bytes' hash.

    def _set_tensor_from_cache(self, data: bytes, cache: WeightCache) -> bytes:
        """Set a tensor from the cache, and return the response: whether it was there."""
        tensor, offset, content_hash = data[:-16], data[-16:-8], data[-8:]
        cached = cache.load(content_hash)
        if cached is None:
            self._missing = (tensor + b"\1" + offset, content_hash)
            return b"\0"
        size, chunks = cached
        head = tensor + b"\0" + offset
        self._library.send(RpcCommand.SET_TENSOR, len(head) + size, head)
        for chunk in chunks:
            self._library.write(chunk)
        return b"\1"

    def _store_if_missing(self, first: bytes, length: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Return the rest of a SET_TENSOR; it is cached on its way if it is the weight that was missing."""
        missing, self._missing = self._missing, None
        if self._cache is None or missing is None or not first.startswith(missing[0]):
            return chunks
        head, content_hash = missing
        content = chain([first[len(head) :]], chunks)
        rest = self._cache.store(content_hash, length - len(head), content)
        next(rest)  # was sent already
        return rest

    def _allocate(self, data: bytes) -> bytes:
        """Allocate a buffer within the memory limit, and return the response."""
        device, size = struct.unpack("<IQ", data)
        if device >= len(self._memory_limits) or self._allocated[device] + size > self._memory_limits[device]:
            return _NO_BUFFER
        response = self._library.request(RpcCommand.ALLOC_BUFFER, data)
        pointer, size = response[:8], int.from_bytes(response[8:], "little")
        if any(pointer):
            self._buffers[pointer] = (device, size)
            self._allocated[device] += size
        return response

    def close(self) -> None:
        """Disconnect from llama.cpp's server."""
        self._library.close()


def _select_devices(names: Sequence[str] | None) -> tuple[Device, ...]:
    """Return the devices of these names; None is all GPUs, or the CPU.

    Raises:
        UsageError: there is no such device.
    """
    found = devices.list_devices()
    if names is None:
        return devices.list_gpus() or tuple(device for device in found if device.kind == "cpu")
    by_name = {device.name: device for device in found}
    hint = f"choose from {', '.join(by_name)}"
    if unknown := next((name for name in names if name not in by_name), None):
        raise UsageError(f"there is no device {unknown!r}", hint)
    if not names or len(set(names)) < len(names):
        raise UsageError("no device is given" if not names else "a device is given twice", hint)
    return tuple(by_name[name] for name in names)


def _with_memory_limit(device: Device, memory: int | None) -> Device:
    """Return the device with the bytes that clients may allocate as its memory."""
    free = (available_memory() if device.kind == "cpu" else None) or device.memory_free
    limit = free if memory is None else min(memory, free)
    return replace(device, memory_free=limit, memory_total=limit)


def _start_library_server(names: Sequence[str]) -> int:
    """Start llama.cpp's RPC server in a thread that ends with the process; return its loopback port.

    It writes its log to the process's standard output.
    """
    function = ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p
    )(rpc_function(RPC_START_SERVER))
    handles = [ggml().ggml_backend_dev_by_name(name.encode()) for name in names]
    array = (ctypes.c_void_p * len(handles))(*handles)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    arguments = (f"127.0.0.1:{port}".encode(), None, default_threads(), len(handles), array)
    threading.Thread(target=function, args=arguments, daemon=True).start()
    return port
