"""The proxies that llama.cpp's RPC client connects to: ports of this process, forwarded to workers.

llama.cpp ends the process if a worker disconnects, and waits forever if one stalls. So it only talks to a
proxy on the loopback interface, which always answers. Upstream: ggml/src/ggml-rpc/ggml-rpc.cpp.
"""

from __future__ import annotations

import ctypes
import socket
import threading
from contextlib import suppress
from typing import Any

from pigguf.errors import BackendUnavailable
from pigguf.inference.engine.ggml_library import ggml
from pigguf.inference.rpc.worker_connection import WorkerConnection
from pigguf.llama_cpp_internals.rpc_protocol import RpcConnection
from pigguf.llama_cpp_internals.symbols import RPC_ADD_SERVER, RPC_REGISTRY


class LoopbackProxy:
    """A port of this machine at which llama.cpp finds one worker, for as long as the process lives.

    llama.cpp never forgets a device and its properties: a worker that comes back unchanged gets the same
    proxy.

    Attributes:
        connection: the connection to the worker, which requests are forwarded to.
        address: where the proxy listens.
    """

    def __init__(self) -> None:
        self.connection: WorkerConnection | None = None
        self._server = socket.create_server(("127.0.0.1", 0))
        host, port = self._server.getsockname()
        self.address = f"{host}:{port}"
        threading.Thread(target=self._accept_connections, name=f"rpc proxy {port}", daemon=True).start()

    def devices(self) -> list[int]:
        """Return llama.cpp's pointers to the devices of this worker.

        They are not registered among the engine's own devices, because those are asked for their memory even
        when there is no worker.
        """
        library = ggml()
        registry = rpc_add_server()(self.address.encode())
        count = library.ggml_backend_reg_dev_count(registry) if registry else 0
        return [library.ggml_backend_reg_dev_get(registry, number) for number in range(count)]

    def _accept_connections(self) -> None:
        while True:
            connection, _ = self._server.accept()
            threading.Thread(
                target=self._forward_requests, args=(RpcConnection(connection),), daemon=True
            ).start()

    def _forward_requests(self, library_end: RpcConnection) -> None:
        with suppress(OSError):  # llama.cpp disconnected
            while (request := library_end.read_request()) is not None:
                assert self.connection is not None
                self.connection.forward(library_end, *request)
        library_end.close()


_proxies: dict[tuple[str, tuple[bytes, ...]], LoopbackProxy] = {}
_proxies_lock = threading.Lock()


def proxy_for(connection: WorkerConnection) -> LoopbackProxy:
    """Return the proxy for a worker, which forwards to this connection from now on."""
    with _proxies_lock:
        key = (connection.address, connection.identity)
        if key not in _proxies:
            _proxies[key] = LoopbackProxy()
        proxy = _proxies[key]
        proxy.connection = connection
    return proxy


def rpc_add_server() -> Any:
    """Return ggml_backend_rpc_add_server: from a worker's address to its registry of devices, or NULL.

    Raises:
        BackendUnavailable: the engine is missing, or was built without RPC.
    """
    return ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(rpc_function(RPC_ADD_SERVER))


def rpc_function(name: bytes) -> int:
    """Return the address of a function of the RPC backend, which the shared library does not export.

    Raises:
        BackendUnavailable: the engine is missing, or was built without RPC.
    """
    library = ggml()
    registry = library.ggml_backend_reg_by_name(RPC_REGISTRY)
    address = library.ggml_backend_reg_get_proc_address(registry, name) if registry else None
    if not address:
        raise BackendUnavailable(
            "this engine was built without RPC, which workers need",
            "build one with RPC: run scripts/build-engine",
        )
    return int(address)
