"""Other machines' devices: connect to `pigguf worker`s, which run llama.cpp's own RPC backend.

    with connect(["10.0.0.2:50052", "10.0.0.3:50052"]) as workers:
        Model.open(path, workers=workers)

llama.cpp does not talk to a worker itself: each request goes through a proxy in this process
(loopback_proxy.py), and a heartbeat watches each worker (worker_connection.py). After a call of llama.cpp the
caller calls `Workers.check`, which raises WorkerLost if a worker failed meanwhile.

Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp. Not here: the worker's side (worker.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType

from pigguf.errors import UsageError, WorkerLost
from pigguf.inference.engine import devices, library
from pigguf.inference.rpc.loopback_proxy import proxy_for, rpc_add_server
from pigguf.inference.rpc.worker_connection import WorkerConnection


class Workers:
    """Connected workers, whose devices take a model's layers; made by `connect`. A context manager.

    Attributes:
        devices: the devices of all workers, in the order they were given, each named by its worker's address.
        handles: llama.cpp's pointers to them.
        split: each device's share of the layers; None is in proportion to free memory.
    """

    def __init__(self, connections: Sequence[WorkerConnection], split: Sequence[float] | None) -> None:
        self._connections = tuple(connections)
        names = {
            handle: connection.device_name(number)
            for connection in connections
            for number, handle in enumerate(proxy_for(connection).devices())
        }
        self.handles = tuple(names)
        self.devices = tuple(devices.describe_device(handle, name) for handle, name in names.items())
        self.split = None if split is None else tuple(split)
        self._check_split()
        self.check()

    def _check_split(self) -> None:
        most = int(library.load().llama_max_devices())
        if len(self.handles) > most:
            raise UsageError(f"{len(self.handles)} devices on workers; the engine supports {most}")
        if self.split is None:
            return
        names = ", ".join(device.name for device in self.devices)
        if len(self.split) != len(self.devices):
            raise UsageError(
                f"`split` has {len(self.split)} shares for {len(self.devices)} devices: {names}",
                "give one share for each device",
            )
        if not all(0 <= share < math.inf for share in self.split) or not sum(self.split):
            raise UsageError(f"`split` is {self.split}", "give shares of 0 or more, not all of them 0")

    def buffer_devices(self) -> dict[str, str]:
        """Return the name of the device by the name of its buffer type, for the workers' devices."""
        return {
            devices.buffer_type_name(handle): device.name
            for handle, device in zip(self.handles, self.devices, strict=True)
        }

    def check(self) -> None:
        """Raise if a worker was lost; a model on it cannot be used any more.

        Raises:
            WorkerLost: a worker failed after it was connected.
        """
        for connection in self._connections:
            if connection.failure is not None:
                raise WorkerLost(
                    f"the worker {connection.address} {connection.failure}",
                    "check that it runs and can be reached, then open the model again",
                )

    def close(self) -> None:
        """Disconnect, so that others can use the workers; close models on them before. Twice is fine."""
        for connection in self._connections:
            connection.close()

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
        UsageError: a wrong or repeated address; a split that does not match the devices.
        WorkerLost: a worker that cannot be reached, does not answer in time, serves another client, or has
            another version.
    """
    rpc_add_server()  # raises if the engine has no RPC, before any connection is made
    repeated = next((address for address in addresses if list(addresses).count(address) > 1), None)
    if repeated is not None:
        raise UsageError(f"the worker {repeated} is given twice", "give each worker once in `workers`")
    if not addresses:
        raise UsageError("no worker is given", "give addresses like 10.0.0.2:50052 in `workers`")
    connections: list[WorkerConnection] = []
    try:
        for address in addresses:
            connections.append(WorkerConnection(address))
        return Workers(connections, split)
    except BaseException:
        for connection in connections:
            connection.close()
        raise


@contextmanager
def connect_or_none(
    addresses: Sequence[str], split: Sequence[float] | None = None
) -> Iterator[Workers | None]:
    """Yield connected workers as `connect` returns them; None if no worker is given.

    Raises:
        As `connect` does; UsageError too for a split without workers.
    """
    if not addresses:
        if split is not None:
            raise UsageError("`split` is given without workers", "give the workers in `workers`")
        yield None
        return
    with connect(addresses, split) as workers:
        yield workers
