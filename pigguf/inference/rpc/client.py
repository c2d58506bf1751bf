"""Other machines' devices: `pigguf worker` at the other end of llama.cpp's own RPC backend.

    with connect(["10.0.0.2:50052", "10.0.0.3:50052"]) as workers:
        Model.open(path, workers=workers)

The library ends the process where a worker goes away, and waits for ever where one stalls. So it never talks
to a worker itself, but to a relay in this process, which does. A second connection to each worker asks it for
a sign of life every second. A worker that fails is taken for lost, for good: from then on the relay makes up
what the library waits for, so that it comes back from whatever it was in, and `Workers.check`, which whoever
called the library asks then, raises WorkerLost. What was computed meanwhile is worthless.

Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp. Left out: the worker's side (rpc_worker.py).
"""

from __future__ import annotations

import ctypes
import math
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from pigguf.errors import BackendUnavailable, UsageError, WorkerLost
from pigguf.inference.engine import devices, library
from pigguf.llama_cpp_internals.rpc_protocol import (
    ANSWERED,
    GRAPHS,
    HELLO_DATA,
    VERSION,
    Command,
    Garbled,
    Peer,
    answer_bytes,
    host_and_port,
)

TIMEOUT = 4.0  # seconds that a worker has to answer what costs it nothing
PULSE = 1.0  # seconds between two signs of life

_FAKE_BASE = 1 << 20  # an address that no alignment objects to
_FIRST_DEVICE = struct.pack("<I", 0)


class Workers:
    """Connected workers, whose devices take a model's layers; made by `connect`. A context manager.

    Attributes:
        devices: of all workers, in the order they were named, each called by its worker's address.
        handles: the library's pointers to them.
        split: each device's share of the layers; None is in proportion to free memory.
    """

    def __init__(self, links: Sequence[_Link], split: Sequence[float] | None) -> None:
        self._links = tuple(links)
        named = {
            handle: link.name_of(place)
            for link in links
            for place, handle in enumerate(_relay(link).devices())
        }
        self.handles = tuple(named)
        self.devices = tuple(devices.device(handle, name) for handle, name in named.items())
        self.split = None if split is None else tuple(split)
        self._refuse_split()
        self.check()

    def _refuse_split(self) -> None:
        most = int(library.load().llama_max_devices())
        if len(self.handles) > most:
            raise UsageError(f"{len(self.handles)} devices on workers; the engine takes {most}")
        if self.split is None:
            return
        names = ", ".join(device.name for device in self.devices)
        if len(self.split) != len(self.devices):
            raise UsageError(
                f"a split into {len(self.split)} parts for {len(self.devices)} devices: {names}",
                "give one share for each of them",
            )
        if not all(0 <= share < math.inf for share in self.split) or not sum(self.split):
            raise UsageError(f"a split of {self.split}", "give shares of 0 or more, not all of them 0")

    def buffer_homes(self) -> dict[str, str]:
        """As devices.buffer_homes, of the workers' devices."""
        return {
            devices.buffer_name(handle): device.name
            for handle, device in zip(self.handles, self.devices, strict=True)
        }

    def check(self) -> None:
        """
        Raises:
            WorkerLost: a worker failed since they were connected; a model on them is of no use any more.
        """
        for link in self._links:
            if link.failure is not None:
                raise WorkerLost(
                    f"the worker {link.address} {link.failure}",
                    "see that it runs and can be reached, then open the model again",
                )

    def close(self) -> None:
        """Leave the workers, for others to use; models on them must be closed before. Twice is fine."""
        for link in self._links:
            link.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(addresses: Sequence[str], split: Sequence[float] | None = None) -> Workers:
    """Connect to workers, each of which serves one client at a time.

    Args:
        addresses: "host:port" of each.
        split: each device's share of the layers; None is in proportion to free memory.

    Raises:
        BackendUnavailable: the engine is missing, or was built without RPC.
        UsageError: an address that is none, or is named twice; a split that does not fit.
        WorkerLost: a worker that is not there, does not answer in time, serves another client, or is of
            another version.
    """
    _add_server()  # without it there is no use in calling anybody
    twice = next((address for address in addresses if list(addresses).count(address) > 1), None)
    if twice is not None or not addresses:
        raise UsageError(f"the worker {twice} is named twice" if twice else "no worker is named")
    links: list[_Link] = []
    try:
        for address in addresses:
            links.append(_Link(address))
        return Workers(links, split)
    except BaseException:
        for link in links:
            link.close()
        raise


@contextmanager
def connected(addresses: Sequence[str], split: Sequence[float] | None = None) -> Iterator[Workers | None]:
    """As `connect`, for a block; None where no worker is named."""
    if not addresses:
        if split is not None:
            raise UsageError("a split without workers to split between", "name them with --workers")
        yield None
        return
    with connect(addresses, split) as workers:
        yield workers


class _Link:
    """The connections to one worker, and whether it is still there.

    Attributes:
        address: of the worker.
        nature: what of its answers never changes: how many devices, and their buffers' alignment and size.
        failure: what became of it, after "the worker ADDRESS ..."; None while all is well.

    Raises:
        As `connect`.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.failure: str | None = None
        self._turn = threading.Lock()
        self._computes = False  # or may
        self._closed = threading.Event()
        self._known: dict[tuple[Command, bytes], bytes] = {}
        self._peers: list[Peer] = []
        self._hello = b""
        try:
            self._pulse, self._work = self._dial(), self._dial()
            self._learn()
        except OSError as error:
            self._end()
            raise WorkerLost(*self._refusal(error)) from error
        except BaseException:
            self._end()
            raise
        self.nature = tuple(
            answer for (command, _), answer in self._known.items() if command != Command.GET_DEVICE_MEMORY
        )
        self._work.settimeout(None)  # it may compute for long; the pulse tells whether it lives
        self._watch = threading.Thread(target=self._watch_pulse, name=f"pulse of {address}", daemon=True)
        self._watch.start()

    def name_of(self, place: int) -> str:
        """What the worker's device of this place is called."""
        return self.address if self._devices == 1 else f"{self.address}/{place}"

    # ---- connecting ------------------------------------------------------------------------------

    def _dial(self) -> Peer:
        connection = socket.create_connection(host_and_port(self.address), timeout=TIMEOUT)
        peer = Peer(connection)
        self._peers.append(peer)
        self._hello = peer.ask(Command.HELLO, HELLO_DATA)
        if (version := tuple(self._hello[:3])) != VERSION:
            theirs, ours = (".".join(map(str, numbers)) for numbers in (version, VERSION))
            raise WorkerLost(
                f"the worker {self.address} speaks version {theirs} of llama.cpp's RPC, this engine {ours}",
                "install the same version of pigguf on both machines",
            )
        return peer

    def _learn(self) -> None:
        """Ask what may be needed when the worker is gone; the first question of the work takes the worker."""
        self._known[Command.DEVICE_COUNT, b""] = count = self._pulse.ask(Command.DEVICE_COUNT)
        (self._devices,) = struct.unpack("<I", count)
        for number in range(self._devices):
            device = struct.pack("<I", number)
            self._known[Command.GET_DEVICE_MEMORY, device] = self._pulse.ask(
                Command.GET_DEVICE_MEMORY, device
            )
            for command in (Command.GET_ALIGNMENT, Command.GET_MAX_SIZE):
                self._known[command, device] = self._work.ask(command, device)

    def _refusal(self, error: OSError) -> tuple[str, str]:
        """A message and a hint."""
        who = f"the worker {self.address}"
        if isinstance(error, Garbled):
            return f"{self.address} is no worker: {error}", "give the address that `pigguf worker` shows"
        if isinstance(error, TimeoutError):
            return (
                f"{who} does not answer within {TIMEOUT:.0f} seconds",
                "see that it runs, and that no firewall is between; a `pigguf worker` answers at once",
            )
        if len(self._peers) == 2:  # it answered before
            return f"{who} serves another client", "wait until that one is done, or start another worker"
        if self._peers:
            return (
                f"{self.address} hung up: it is no worker, or a tunnel with none behind it",
                "give the address that `pigguf worker` shows; at a tunnel, see that it runs at the other end",
            )
        reason = error.strerror or str(error)
        return f"{who} cannot be reached: {reason}", "start it there with `pigguf worker`"

    # ---- at work ---------------------------------------------------------------------------------

    def carry(self, library_end: Peer, command: Command, length: int) -> None:
        """One request of the library to the worker, and its answer back; made up where there is none."""
        if command == Command.HELLO:  # said already
            library_end.data(length)
            library_end.answer(self._hello)
        elif command in ANSWERED:
            library_end.answer(self._answer(command, library_end.data(length)))
        else:
            with self._turn:
                if command in GRAPHS:
                    self._finish_graph()
                chunks = library_end.chunks(length)
                self._give(lambda data: self._work.send(command, length, data), next(chunks))
                for data in chunks:
                    self._give(self._work.write, data)

    def _finish_graph(self) -> None:
        """Wait for the graph before. The library sends a prompt's batches ahead, as many as buffers hold: it
        would tell of progress that is none, and Ctrl-C would wait until all of them are computed."""
        if self._computes and self.failure is None:
            try:
                self._work.ask(Command.GET_ALIGNMENT, _FIRST_DEVICE)  # which costs nothing, in its turn
            except OSError:
                self._lose("went away")
        self._computes = True

    def _give(self, send: Callable[[bytes], None], data: bytes) -> None:
        if self.failure is None:
            try:
                send(data)
            except OSError:
                self._lose("went away")

    def _answer(self, command: Command, data: bytes) -> bytes:
        with self._turn:
            if self.failure is None:
                try:
                    answer = self._work.ask(command, data)
                except OSError:
                    self._lose("went away")
                else:
                    self._computes = self._computes and command != Command.GET_TENSOR
                    return answer
        return self._known.get((command, data)) or _made_up(command, data)

    def _watch_pulse(self) -> None:
        while not self._closed.wait(PULSE):
            try:
                self._pulse.ask(Command.GET_DEVICE_MEMORY, _FIRST_DEVICE)
            except TimeoutError:
                self._lose(f"gave no sign of life for {TIMEOUT:.0f} seconds")
            except OSError:
                self._lose("went away")
            if self.failure is not None:
                return

    def _lose(self, why: str) -> None:
        """Take it for lost; the first reason counts, and whoever waits for it is woken."""
        self.failure = self.failure or why
        self._work.hang_up()

    def close(self) -> None:
        """Leave the worker; from now on it counts as lost. Twice is fine."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._lose("was left")
        self._pulse.hang_up()
        self._watch.join()
        with self._turn:
            self._end()

    def _end(self) -> None:
        for peer in self._peers:
            peer.close()


def _made_up(command: Command, data: bytes) -> bytes:
    """An answer on which the library goes on: memory that is there, tensors that arrive."""
    if command == Command.ALLOC_BUFFER:
        return struct.pack("<Q", 1) + data[-8:]
    if command == Command.BUFFER_GET_BASE:
        return struct.pack("<Q", _FAKE_BASE)
    if command in (Command.SET_TENSOR_HASH, Command.COPY_TENSOR):
        return b"\1"
    return bytes(answer_bytes(command, data))


# ---- the library's side --------------------------------------------------------------------------


class _Relay:
    """Where the library finds one worker: a port of this machine, for as long as the process lives.

    The library never forgets a device, nor what it once said of itself: so a worker that comes back the same
    has the same relay.
    """

    def __init__(self) -> None:
        self.link: _Link | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        host, port = self._server.getsockname()
        self.address = f"{host}:{port}"
        threading.Thread(target=self._listen, name=f"relay {port}", daemon=True).start()

    def devices(self) -> list[int]:
        """The library's pointers to the devices of this worker.

        Not registered among the engine's own, which are asked for their memory when no worker is there.
        """
        ggml = devices.ggml()
        registry = _add_server()(self.address.encode())
        count = ggml.ggml_backend_reg_dev_count(registry) if registry else 0
        return [ggml.ggml_backend_reg_dev_get(registry, number) for number in range(count)]

    def _listen(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(Peer(connection),), daemon=True).start()

    def _serve(self, library_end: Peer) -> None:
        with suppress(OSError):  # the library left
            while (request := library_end.request()) is not None:
                assert self.link is not None
                self.link.carry(library_end, *request)
        library_end.close()


_relays: dict[tuple[str, tuple[bytes, ...]], _Relay] = {}
_relays_lock = threading.Lock()


def _relay(link: _Link) -> _Relay:
    """The relay to the worker of this link, which the library talks through from now on."""
    with _relays_lock:
        key = (link.address, link.nature)
        if key not in _relays:
            _relays[key] = _Relay()
        relay = _relays[key]
        relay.link = link
    return relay


def _add_server() -> Any:
    """ggml_backend_rpc_add_server: a worker's registry of devices by its address; NULL where it has none."""
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(rpc_function(b"ggml_backend_rpc_add_server"))


def rpc_function(name: bytes) -> int:
    """The address of a function of the RPC backend, which the library itself does not export.

    Raises:
        BackendUnavailable: the engine is missing, or was built without RPC.
    """
    ggml = devices.ggml()
    registry = ggml.ggml_backend_reg_by_name(b"RPC")
    address = ggml.ggml_backend_reg_get_proc_address(registry, name) if registry else None
    if not address:
        raise BackendUnavailable(
            "this engine was built without RPC, which workers need", "scripts/build-engine builds one with it"
        )
    return int(address)
