"""What the engine can run on: the devices, backends and CPU features it was built with and finds here.

From ggml's device registry (ggml-backend.h). Asking it may start a GPU driver. Not here: whether a device
works (engine_build/self_test.py), and how much of it a model needs (memory_estimate.py).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from pigguf.inference.engine import library
from pigguf.inference.engine.ggml_library import ggml
from pigguf.llama_cpp_internals.limits import DEVICE_KINDS, DeviceKind
from pigguf.llama_cpp_internals.log_lines import parse_cpu_features

_GPU_KINDS: tuple[DeviceKind, ...] = ("gpu", "integrated gpu")


@dataclass(frozen=True)
class Device:
    """A device that ggml can compute on.

    Attributes:
        name: ggml's name, "CPU" or "CUDA0".
        description: the product's name, "AMD EPYC" or "NVIDIA H200".
        kind: ggml's kind of device.
        backend: the backend that drives it, "CPU", "CUDA" or "Metal".
        memory_free, memory_total: bytes, as the backend reports them; 0 where it does not.
    """

    name: str
    description: str
    kind: DeviceKind
    backend: str
    memory_free: int
    memory_total: int


def list_devices() -> tuple[Device, ...]:
    """Return every device, in the order llama.cpp prefers them.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return tuple(describe_device(handle) for handle in _handles())


def list_gpus() -> tuple[Device, ...]:
    """Return the devices that layers can be offloaded to, in the order llama.cpp prefers them.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return tuple(device for device in list_devices() if device.kind in _GPU_KINDS)


def gpu_buffer_devices() -> dict[str, str]:
    """Return the name of the GPU by the name of its own buffer type: {"CUDA0": "CUDA0"}.

    Buffers of other types are in the computer's memory: the CPU's, and those that a GPU's driver pins there.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return {
        buffer_type_name(handle): describe_device(handle).name
        for handle in _handles()
        if DEVICE_KINDS[ggml().ggml_backend_dev_type(handle)] in _GPU_KINDS
    }


def cpu_features() -> tuple[str, ...]:
    """Return what the CPU backend was compiled with and finds here, in ggml's words: "AVX512", "AMX_INT8".

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return parse_cpu_features(library.load().llama_print_system_info().decode())


def has_rpc() -> bool:
    """Return whether the engine was built with RPC, to give layers to other machines.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    return bool(library.load().llama_supports_rpc())


def describe_device(handle: int, name: str | None = None) -> Device:
    """Return a device's description.

    Args:
        handle: ggml's pointer to the device.
        name: the name to give it; None is ggml's own.
    """
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml().ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    return Device(
        name=name or ggml().ggml_backend_dev_name(handle).decode(),
        description=ggml().ggml_backend_dev_description(handle).decode().strip(),
        kind=DEVICE_KINDS[ggml().ggml_backend_dev_type(handle)],
        backend=ggml().ggml_backend_reg_name(ggml().ggml_backend_dev_backend_reg(handle)).decode(),
        memory_free=free.value,
        memory_total=total.value,
    )


def buffer_type_name(handle: int) -> str:
    """Return the name of a device's buffer type, as the library's log has it.

    Args:
        handle: ggml's pointer to the device.
    """
    name: bytes = ggml().ggml_backend_buft_name(ggml().ggml_backend_dev_buffer_type(handle))
    return name.decode()


def _handles() -> list[int]:
    return [ggml().ggml_backend_dev_get(i) for i in range(ggml().ggml_backend_dev_count())]
