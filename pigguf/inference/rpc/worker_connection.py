"""The connections to one worker: one for llama.cpp's requests, one for a heartbeat.

A worker that fails is lost for good: from then on the requests get placeholder responses, so that llama.cpp
returns from whatever it is computing, and `Workers.check` raises WorkerLost. What was computed meanwhile is
invalid. Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable

from pigguf.errors import WorkerLost
from pigguf.llama_cpp_internals.rpc_protocol import (
    COMMANDS_WITH_RESPONSE,
    GRAPH_COMMANDS,
    HELLO_DATA,
    VERSION,
    RpcCommand,
    RpcConnection,
    RpcProtocolError,
    parse_host_port,
    response_bytes,
)

TIMEOUT = 4.0  # seconds within which a worker must respond to requests that compute nothing
HEARTBEAT_INTERVAL = 1.0  # seconds

_PLACEHOLDER_ADDRESS = 1 << 20  # satisfies every alignment
_FIRST_DEVICE = struct.pack("<I", 0)
_DISCONNECTED = "disconnected"


class WorkerConnection:
    """The connections to one worker, and whether it is still there.

    Attributes:
        address: the worker's address.
        identity: the responses that never change: how many devices, and their buffers' alignment and size.
        failure: what happened to it, after "the worker ADDRESS ..."; None while it works.

    Raises:
        As `connect` does.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.failure: str | None = None
        self._lock = threading.Lock()
        self._may_be_computing = False
        self._closed = threading.Event()
        self._known_responses: dict[tuple[RpcCommand, bytes], bytes] = {}
        self._sockets: list[RpcConnection] = []
        self._hello = b""
        try:
            self._heartbeat, self._channel = self._connect(), self._connect()
            self._request_properties()
        except OSError as error:
            self._close_sockets()
            raise WorkerLost(*self._explain(error)) from error
        except BaseException:
            self._close_sockets()
            raise
        self.identity = tuple(
            response
            for (command, _), response in self._known_responses.items()
            if command != RpcCommand.GET_DEVICE_MEMORY
        )
        self._channel.settimeout(None)  # a graph may take long; the heartbeat shows whether the worker lives
        self._watcher = threading.Thread(
            target=self._watch_heartbeat, name=f"heartbeat of {address}", daemon=True
        )
        self._watcher.start()

    def device_name(self, number: int) -> str:
        """Return the name of the worker's device of this number."""
        return self.address if self._device_count == 1 else f"{self.address}/{number}"

    # ---- connecting ------------------------------------------------------------------------------

    def _connect(self) -> RpcConnection:
        connection = RpcConnection(socket.create_connection(parse_host_port(self.address), timeout=TIMEOUT))
        self._sockets.append(connection)
        self._hello = connection.request(RpcCommand.HELLO, HELLO_DATA)
        if (version := tuple(self._hello[:3])) != VERSION:
            theirs, ours = (".".join(map(str, numbers)) for numbers in (version, VERSION))
            raise WorkerLost(
                f"the worker {self.address} speaks version {theirs} of llama.cpp's RPC, this engine {ours}",
                "install the same version of pigguf on both machines",
            )
        return connection

    def _request_properties(self) -> None:
        """Request what may be needed after the worker is lost; the channel's first request acquires it."""
        count = self._heartbeat.request(RpcCommand.DEVICE_COUNT)
        self._known_responses[RpcCommand.DEVICE_COUNT, b""] = count
        (self._device_count,) = struct.unpack("<I", count)
        for number in range(self._device_count):
            device = struct.pack("<I", number)
            self._known_responses[RpcCommand.GET_DEVICE_MEMORY, device] = self._heartbeat.request(
                RpcCommand.GET_DEVICE_MEMORY, device
            )
            for command in (RpcCommand.GET_ALIGNMENT, RpcCommand.GET_MAX_SIZE):
                self._known_responses[command, device] = self._channel.request(command, device)

    def _explain(self, error: OSError) -> tuple[str, str]:
        """Return a message and a hint for a connection that failed."""
        worker = f"the worker {self.address}"
        if isinstance(error, RpcProtocolError):
            return f"{self.address} is not a worker: {error}", "give the address that `pigguf worker` shows"
        if isinstance(error, TimeoutError):
            return (
                f"{worker} does not answer within {TIMEOUT:.0f} seconds",
                "check that it runs and that no firewall blocks it; a `pigguf worker` answers at once",
            )
        if len(self._sockets) == 2:  # the first connection succeeded
            return f"{worker} serves another client", "wait until that one is done, or start another worker"
        if self._sockets:
            return (
                f"{self.address} closed the connection: it is not a worker, or a tunnel without a worker",
                "give the address that `pigguf worker` shows; for a tunnel, check the worker at its end",
            )
        reason = error.strerror or str(error)
        return f"{worker} cannot be reached: {reason}", "start it there with `pigguf worker`"

    # ---- forwarding ------------------------------------------------------------------------------

    def forward(self, library_end: RpcConnection, command: RpcCommand, length: int) -> None:
        """Forward one request of llama.cpp to the worker, and its response back.

        A lost worker's response is a placeholder.
        """
        if command == RpcCommand.HELLO:  # already requested
            library_end.read_data(length)
            library_end.respond(self._hello)
        elif command in COMMANDS_WITH_RESPONSE:
            library_end.respond(self._request(command, library_end.read_data(length)))
        else:
            with self._lock:
                if command in GRAPH_COMMANDS:
                    self._wait_for_graph()
                chunks = library_end.read_chunks(length)
                self._send_or_mark_lost(lambda data: self._channel.send(command, length, data), next(chunks))
                for data in chunks:
                    self._send_or_mark_lost(self._channel.write, data)

    def _wait_for_graph(self) -> None:
        """Wait until the previous graph is computed.

        llama.cpp sends as many batches of a prompt ahead as buffers hold: progress would be reported too
        early, and Ctrl-C would wait until all of them are computed.
        """
        if self._may_be_computing and self.failure is None:
            try:
                # costs nothing, and is answered after the graph
                self._channel.request(RpcCommand.GET_ALIGNMENT, _FIRST_DEVICE)
            except OSError:
                self._mark_lost(_DISCONNECTED)
        self._may_be_computing = True

    def _send_or_mark_lost(self, send: Callable[[bytes], None], data: bytes) -> None:
        if self.failure is None:
            try:
                send(data)
            except OSError:
                self._mark_lost(_DISCONNECTED)

    def _request(self, command: RpcCommand, data: bytes) -> bytes:
        with self._lock:
            if self.failure is None:
                try:
                    response = self._channel.request(command, data)
                except OSError:
                    self._mark_lost(_DISCONNECTED)
                else:
                    self._may_be_computing = self._may_be_computing and command != RpcCommand.GET_TENSOR
                    return response
        return self._known_responses.get((command, data)) or placeholder_response(command, data)

    def _watch_heartbeat(self) -> None:
        while not self._closed.wait(HEARTBEAT_INTERVAL):
            try:
                self._heartbeat.request(RpcCommand.GET_DEVICE_MEMORY, _FIRST_DEVICE)
            except TimeoutError:
                self._mark_lost(f"did not respond for {TIMEOUT:.0f} seconds")
            except OSError:
                self._mark_lost(_DISCONNECTED)
            if self.failure is not None:
                return

    def _mark_lost(self, reason: str) -> None:
        """Mark the worker as lost, for the first reason, and wake a thread that waits for it."""
        self.failure = self.failure or reason
        self._channel.shutdown()

    def close(self) -> None:
        """Disconnect from the worker, which counts as lost from now on. Closing twice is fine."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._mark_lost("was disconnected by this client")
        self._heartbeat.shutdown()
        self._watcher.join()
        with self._lock:
            self._close_sockets()

    def _close_sockets(self) -> None:
        for connection in self._sockets:
            connection.close()


def placeholder_response(command: RpcCommand, data: bytes) -> bytes:
    """Return a response with which llama.cpp continues: buffers are allocated, tensors arrive."""
    if command == RpcCommand.ALLOC_BUFFER:
        return struct.pack("<Q", 1) + data[-8:]
    if command == RpcCommand.BUFFER_GET_BASE:
        return struct.pack("<Q", _PLACEHOLDER_ADDRESS)
    if command in (RpcCommand.SET_TENSOR_HASH, RpcCommand.COPY_TENSOR):
        return b"\1"
    return bytes(response_bytes(command, data))
