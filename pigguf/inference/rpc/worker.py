"""A worker: this machine's devices, for one client of llama.cpp's RPC backend at a time.

    with Worker("127.0.0.1", 50052, memory=8 << 30) as worker:
        print(worker.address, worker.devices)
        worker.serve()

The library's own server computes, behind a port of this process on the loopback interface. What it cannot do
is done here: it lets a second client wait without a word, knows no bound on memory, and is silent while it
computes. So each client's requests are looked at and handed on; those that say nothing of tensors (is anybody
there, which devices, how much memory) are answered here, at any time and to anybody. The first other request
takes the worker, until its connection ends; a second client is hung up on. Weights may be kept on disk
(rpc_cache.py).

Contract: nobody is asked who they are, and nothing is encrypted; whoever reaches the port may use the worker,
and a client with ill intent may do more. A request that the library cannot do ends the process.
Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp (ggml_backend_rpc_start_server). Left out: the client (rpc.py).
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
from pigguf.inference.engine.context import default_threads
from pigguf.inference.engine.devices import Device
from pigguf.inference.rpc.client import rpc_function
from pigguf.inference.rpc.weight_cache import WeightCache
from pigguf.llama_cpp_internals.rpc_protocol import ANSWERED, HELLO_DATA, Command, Garbled, Peer

_START = 10.0  # seconds that the library's server has to come up
_GRACE = (
    1.5  # seconds that a client waits for the one before it to be gone, and for what that one left behind
)
_PAUSE = 0.1  # seconds until another client is tried, where the system refuses one
_NO_BUFFER = bytes(16)


class Worker:
    """A worker that listens; `serve` answers. A context manager.

    Args:
        host, port: where to listen, an IPv4 address or a name; port 0 is any free one.
        names: which devices to serve, by ggml's names; None is all GPUs, or the CPU where there are none.
        memory: bytes that clients may take of each device; None is what is free now.
        cache: where weights are kept for the next time; None keeps none.

    Attributes:
        address: where it listens, "127.0.0.1:50052".
        devices: what it serves; memory_free is what it grants.

    Raises:
        BackendUnavailable: the engine is missing, or was built without RPC.
        UsageError: no such device, or an address that cannot be listened on.
        EngineError: the library's server does not start.
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
        self.devices = tuple(_granted(device, memory) for device in _chosen(names))
        try:
            self._server = socket.create_server((host, port), backlog=16)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror or error}",
                "name an address of this machine and a port that nothing else listens on",
            ) from error
        self.address = "{}:{}".format(*self._server.getsockname()[:2])
        self._inner = _start_library_server([device.name for device in self.devices])
        self._hello = self._ask_hello()
        self._lease: _Lease | None = None
        self._left = threading.Condition()

    def serve(self) -> None:
        """Answer clients until `close` is called from another thread, or an exception comes (Ctrl-C)."""
        while True:
            try:
                client = Peer(self._server.accept()[0])
            except OSError:  # closed, or more connections than the system gives
                if self._server.fileno() < 0:
                    return
                time.sleep(_PAUSE)
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Listen no more. The library's server, which cannot be stopped, stays until the process ends."""
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

    def _serve(self, client: Peer) -> None:
        lease = None
        try:
            while (request := client.request()) is not None:
                command, length = request
                if command in (Command.HELLO, Command.DEVICE_COUNT, Command.GET_DEVICE_MEMORY):
                    client.answer(self._tell(command, client.data(length)))
                    continue
                lease = lease or self._take()
                if lease is None:
                    return
                lease.carry(client, command, length)
        except (OSError, struct.error):  # it left, or what it said is not understood, here or by the library
            pass
        finally:
            if lease is not None:
                self._give_back(lease)
            client.close()

    def _tell(self, command: Command, data: bytes) -> bytes:
        if command == Command.HELLO:
            return self._hello
        if command == Command.DEVICE_COUNT:
            return struct.pack("<I", len(self.devices))
        (number,) = struct.unpack("<I", data)
        if number >= len(self.devices):
            raise Garbled(f"there is no device {number}")
        device, lease = self.devices[number], self._lease
        taken = lease.taken(number) if lease else 0
        return struct.pack("<QQ", max(0, device.memory_free - taken), device.memory_total)

    def _take(self) -> _Lease | None:
        """The worker for one client; None where another one stays.

        Raises:
            OSError: the library's server still computes for one that left.
        """
        with self._left:
            if not self._left.wait_for(lambda: self._lease is None, _GRACE):
                return None
            granted = [device.memory_free for device in self.devices]
            self._lease = _Lease(self._dial(), granted, self._cache)
            return self._lease

    def _give_back(self, lease: _Lease) -> None:
        lease.close()
        with self._left:
            self._lease = None
            self._left.notify()

    # ---- the library's server --------------------------------------------------------------------

    def _dial(self) -> Peer:
        peer = Peer(socket.create_connection(("127.0.0.1", self._inner), timeout=_GRACE))
        try:
            peer.ask(Command.HELLO, HELLO_DATA)
        except OSError:
            peer.close()
            raise
        peer.settimeout(None)
        return peer

    def _ask_hello(self) -> bytes:
        """The library's answer to HELLO, once its server is there.

        Raises:
            EngineError: it does not come.
        """
        ends = time.monotonic() + _START
        while True:
            try:
                peer = Peer(socket.create_connection(("127.0.0.1", self._inner), timeout=_START))
                hello = peer.ask(Command.HELLO, HELLO_DATA)
                peer.close()
                return hello
            except OSError as error:
                if time.monotonic() > ends:
                    raise EngineError(f"the engine's RPC server does not start: {error}") from error
                time.sleep(0.02)


class _Lease:
    """One client's use of the library's server, which frees all that is its when it ends."""

    def __init__(self, inner: Peer, granted: Sequence[int], cache: WeightCache | None) -> None:
        self._inner = inner
        self._granted = granted
        self._cache = cache
        self._missed: tuple[bytes, bytes] | None = None  # the weight that is asked for now, and its hash
        self._buffers: dict[bytes, tuple[int, int]] = {}  # by the server's pointer: device and bytes
        self._taken: Counter[int] = Counter()

    def taken(self, device: int) -> int:
        """Bytes in buffers on a device."""
        return self._taken[device]

    def carry(self, client: Peer, command: Command, length: int) -> None:
        """One request to the library's server, and its answer back."""
        if command in ANSWERED:
            client.answer(self._answer(command, client.data(length)))
            return
        chunks = client.chunks(length)
        first = next(chunks)
        if command == Command.FREE_BUFFER:
            device, size = self._buffers.pop(first, (0, 0))
            self._taken[device] -= size
        self._inner.send(command, length, first)
        for data in self._kept(first, length, chunks) if command == Command.SET_TENSOR else chunks:
            self._inner.write(data)

    def _answer(self, command: Command, data: bytes) -> bytes:
        if command == Command.ALLOC_BUFFER:
            return self._allocate(data)
        if command == Command.SET_TENSOR_HASH and self._cache is not None:
            return self._recall(data, self._cache)
        return self._inner.ask(command, data)

    # What sets a tensor begins with the tensor; then SET_TENSOR has a byte (1: keep it), the offset and the
    # bytes, SET_TENSOR_HASH the offset and the bytes' hash.

    def _recall(self, data: bytes, cache: WeightCache) -> bytes:
        """Set a tensor to what is kept; whether there is any."""
        tensor, offset, hashed = data[:-16], data[-16:-8], data[-8:]
        kept = cache.find(hashed)
        if kept is None:
            self._missed = (tensor + b"\1" + offset, hashed)
            return b"\0"
        size, chunks = kept
        head = tensor + b"\0" + offset
        self._inner.send(Command.SET_TENSOR, len(head) + size, head)
        for chunk in chunks:
            self._inner.write(chunk)
        return b"\1"

    def _kept(self, first: bytes, length: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The rest of a SET_TENSOR, kept on its way where it is the weight that was missed."""
        missed, self._missed = self._missed, None
        if self._cache is None or missed is None or not first.startswith(missed[0]):
            return chunks
        head, hashed = missed
        whole = chain([first[len(head) :]], chunks)
        rest = self._cache.keep(hashed, length - len(head), whole)
        next(rest)  # sent already
        return rest

    def _allocate(self, data: bytes) -> bytes:
        """A buffer within what is granted; none beyond."""
        device, size = struct.unpack("<IQ", data)
        if device >= len(self._granted) or self._taken[device] + size > self._granted[device]:
            return _NO_BUFFER
        answer = self._inner.ask(Command.ALLOC_BUFFER, data)
        pointer, size = answer[:8], int.from_bytes(answer[8:], "little")
        if any(pointer):
            self._buffers[pointer] = (device, size)
            self._taken[device] += size
        return answer

    def close(self) -> None:
        self._inner.close()


def _chosen(names: Sequence[str] | None) -> tuple[Device, ...]:
    """
    Raises:
        UsageError: there is no such device.
    """
    found = devices.list_devices()
    if names is None:
        return devices.list_gpus() or tuple(device for device in found if device.kind == "cpu")
    by_name = {device.name: device for device in found}
    wrong = next((name for name in names if name not in by_name), None)
    if wrong is not None or len(set(names)) < len(names) or not names:
        said = f"there is no device {wrong!r}" if wrong is not None else "a device is named twice, or none is"
        raise UsageError(said, f"take of {', '.join(by_name)}")
    return tuple(by_name[name] for name in names)


def _granted(device: Device, memory: int | None) -> Device:
    """The device with what clients may take of it as its memory."""
    free = (available_memory() if device.kind == "cpu" else None) or device.memory_free
    granted = free if memory is None else min(memory, free)
    return replace(device, memory_free=granted, memory_total=granted)


def _start_library_server(names: Sequence[str]) -> int:
    """Start llama.cpp's RPC server in a thread that ends with the process; its port on the loopback address.

    It says what it does on the process's standard output.
    """
    function = ctypes.CFUNCTYPE(
        None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p
    )(rpc_function(b"ggml_backend_rpc_start_server"))
    handles = [devices.ggml().ggml_backend_dev_by_name(name.encode()) for name in names]
    array = (ctypes.c_void_p * len(handles))(*handles)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    arguments = (f"127.0.0.1:{port}".encode(), None, default_threads(), len(handles), array)
    threading.Thread(target=function, args=arguments, daemon=True).start()
    return port
