"""What the engine can run on: the devices, backends and CPU features it was built with and finds here.

From ggml's device registry (ggml-backend.h). Asking it may start a GPU driver. Left out: whether
any of it works (self_test.py), and what a model needs of it.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pigguf.inference.engine import library

DeviceKind = Literal["cpu", "gpu", "integrated gpu", "accelerator", "meta"]

# enum ggml_backend_dev_type, in its order.
_KINDS: tuple[DeviceKind, ...] = ("cpu", "gpu", "integrated gpu", "accelerator", "meta")
_GPUS: tuple[DeviceKind, ...] = ("gpu", "integrated gpu")


@dataclass(frozen=True)
class Device:
    """One device ggml can compute on.

    Attributes:
        name: ggml's, "CPU" or "CUDA0".
        description: what a person calls it, "AMD EPYC" or "NVIDIA H200".
        backend: what drives it, "CPU", "CUDA", "Metal".
        memory_free, memory_total: bytes, as the backend tells; 0 where it does not.
    """

    name: str
    description: str
    kind: DeviceKind
    backend: str
    memory_free: int
    memory_total: int


def list_devices() -> tuple[Device, ...]:
    """Every device, in the order llama.cpp prefers them.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return tuple(device(handle) for handle in _handles())


def list_gpus() -> tuple[Device, ...]:
    """The devices that layers can be given to, in the order llama.cpp prefers them.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return tuple(device for device in list_devices() if device.kind in _GPUS)


def buffer_homes() -> dict[str, str]:
    """The device that each GPU's own sort of buffer lies on, by the buffer's name: {"CUDA0": "CUDA0"}.

    Whatever is not in it lies in the computer's memory: the CPU's buffers, and those that a GPU's driver pins
    there.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return {
        buffer_name(handle): device(handle).name
        for handle in _handles()
        if _KINDS[ggml().ggml_backend_dev_type(handle)] in _GPUS
    }


def cpu_features() -> tuple[str, ...]:
    """What the CPU backend was compiled with and finds here, in ggml's words: "AVX512", "AMX_INT8", "OPENMP".

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    line = library.load().llama_print_system_info().decode()
    cpu = re.search(r"\bCPU : ([^:]*)(?:\||$)", line)
    return tuple(re.findall(r"(\w+) = 1\b", cpu[1])) if cpu else ()


def has_rpc() -> bool:
    """Whether layers can be given to other machines.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return bool(library.load().llama_supports_rpc())


def device(handle: int, name: str | None = None) -> Device:
    """What there is to say of a device of the library's, under ggml's name for it or another one."""
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml().ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name=name or ggml().ggml_backend_dev_name(handle).decode(),
        description=ggml().ggml_backend_dev_description(handle).decode().strip(),
        kind=_KINDS[ggml().ggml_backend_dev_type(handle)],
        backend=ggml().ggml_backend_reg_name(ggml().ggml_backend_dev_backend_reg(handle)).decode(),
        memory_free=free.value,
        memory_total=total.value,
    )


def buffer_name(handle: int) -> str:
    """What buffers on a device are called in the library's log."""
    name: bytes = ggml().ggml_backend_buft_name(ggml().ggml_backend_dev_buffer_type(handle))
    return name.decode()


def _handles() -> list[int]:
    """The library's pointers to its devices."""
    return [ggml().ggml_backend_dev_get(i) for i in range(ggml().ggml_backend_dev_count())]


@cache
def ggml() -> Any:
    """ggml's shared library with the signatures used here; llama_cpp has loaded it already."""
    library.load()
    import llama_cpp._ggml

    found = llama_cpp._ggml.libggml
    size, handle, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("ggml_backend_dev_count", size, []),
        ("ggml_backend_dev_get", handle, [size]),
        ("ggml_backend_dev_name", text, [handle]),
        ("ggml_backend_dev_description", text, [handle]),
        ("ggml_backend_dev_type", ctypes.c_int, [handle]),
        ("ggml_backend_dev_memory", None, [handle, ctypes.c_void_p, ctypes.c_void_p]),
        ("ggml_backend_dev_backend_reg", handle, [handle]),
        ("ggml_backend_dev_buffer_type", handle, [handle]),
        ("ggml_backend_buft_name", text, [handle]),
        ("ggml_backend_dev_by_name", handle, [text]),
        ("ggml_backend_reg_name", text, [handle]),
        ("ggml_backend_reg_by_name", handle, [text]),
        ("ggml_backend_reg_get_proc_address", handle, [handle, text]),
        ("ggml_backend_reg_dev_count", size, [handle]),
        ("ggml_backend_reg_dev_get", handle, [handle, size]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found
