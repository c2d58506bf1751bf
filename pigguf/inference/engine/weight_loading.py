"""Loading a model's weights: llama_model_load_from_file with progress, Ctrl-C, overrides and devices.

Not here: the checks of the file before it (file_checks.py), and what is made of the loaded model (model.py).
Upstream: llama.cpp include/llama.h (llama_model_params), src/llama-model-loader.cpp (kv_overrides).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Any

from pigguf.common.format_bytes import format_memory
from pigguf.errors import DoesNotFit, EngineError, GGUFError, Interrupted
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import TypedValue
from pigguf.inference.engine import library
from pigguf.inference.engine.protocols import RemoteDevices
from pigguf.inference.engine.sigint import defer_sigint
from pigguf.llama_cpp_internals.limits import KV_OVERRIDE_TAGS, LOAD_MODE_AUTO, LOAD_MODE_NONE
from pigguf.progress import SILENT, Progress, stage

_POLL_SECONDS = 0.1  # how often Ctrl-C is looked for while weights are sent to workers


def load_weights(
    file: GGUFFile,
    overrides: dict[str, TypedValue],
    gpu_layers: int,
    *,
    vocab_only: bool = False,
    use_mmap: bool = False,
    no_alloc: bool = False,
    workers: RemoteDevices | None = None,
    progress: Progress = SILENT,
) -> Any:
    """Return the llama_model pointer of a file that file_checks has checked.

    Args:
        file: the file.
        overrides: metadata keys to use instead of the file's.
        gpu_layers: the number of layers on GPUs, with the output as one of them.
        vocab_only: load the vocabulary only.
        use_mmap: map the file into memory, where the engine can, instead of reading it.
        no_alloc: allocate no memory, neither for weights nor for contexts: only sizes can be read from them.
        workers: devices of other machines that take the layers instead of this machine's GPUs.
        progress: one stage, "loading", in percent.

    Raises:
        GGUFError, DoesNotFit: llama.cpp cannot load it; the message has its reason.
        WorkerLost: a worker was lost meanwhile.
        Interrupted: Ctrl-C was pressed and its handler did not raise.
        BaseException: what the progress listener raises, and KeyboardInterrupt.
    """
    llama = library.load()
    parameters = llama.llama_model_default_params()
    if workers is not None:
        device_array, shares = _c_devices(llama, workers)
        parameters.devices, parameters.tensor_split = ctypes.addressof(device_array), shares
    parameters.n_gpu_layers = gpu_layers
    parameters.vocab_only = vocab_only
    parameters.no_alloc = no_alloc
    parameters.load_mode = LOAD_MODE_AUTO if use_mmap else LOAD_MODE_NONE
    parameters.kv_overrides = _c_overrides(llama, overrides)
    handle = None
    with library.capture_errors() as errors, stage(progress, "loading", 100, "percent"):
        try:
            with defer_sigint() as sigint:
                watcher = _LoadWatcher(progress, sigint)
                parameters.progress_callback = llama.llama_progress_callback(watcher.receive)
                load = partial(llama.llama_model_load_from_file, str(file.path).encode(), parameters)
                handle = load() if workers is None else watcher.run(load, workers)
            if watcher.failure is not None:
                raise watcher.failure
            if workers is not None:
                workers.check()
        except BaseException:
            if handle:
                llama.llama_model_free(handle)
            raise
    if sigint.received and not handle:
        raise Interrupted(f"loading {file.path} was interrupted")
    if not handle:
        raise _load_error(file, errors)
    return handle


class _LoadWatcher:
    """Passes on the progress of llama.cpp's loading, and stops it for Ctrl-C or a listener's error."""

    def __init__(self, progress: Progress, sigint: defer_sigint) -> None:
        self.failure: BaseException | None = None
        self._progress = progress
        self._sigint = sigint
        self._percent = 0.0

    def receive(self, share: float, _: object) -> bool:
        """Report progress from 0 to 1, called by C; False stops the loading, and no exception may leave."""
        try:
            percent = min(100.0, share * 100)
            if percent > self._percent:
                self._progress.advance(percent - self._percent)
                self._percent = percent
        except BaseException as error:
            self.failure = error
        return self.failure is None and not self._sigint.received

    def run(self, load: Callable[[], Any], workers: RemoteDevices) -> Any:
        """Return what `load` returns, and stop it for Ctrl-C by disconnecting the workers.

        Loading can be stopped between two tensors, but one may take minutes on its way to a worker. So it
        runs in a thread, and a disconnect makes the call in progress return.
        """
        loading = _loader_threads().submit(load)
        try:
            while not wait([loading], _POLL_SECONDS).done:
                if self._sigint.received:
                    workers.close()
        except BaseException as error:  # from another signal's handler
            self.failure = error
            workers.close()
        try:
            return loading.result()
        finally:
            wait([loading])  # in any case: it uses what the caller frees


@cache
def _loader_threads() -> ThreadPoolExecutor:
    """Return the pool whose thread loads one model after the other.

    malloc keeps what a thread has freed, some 50 MB of weights on their way, for that thread; a new thread
    would take as much again.
    """
    return ThreadPoolExecutor(thread_name_prefix="pigguf-load")


def _c_overrides(llama: Any, overrides: dict[str, TypedValue]) -> Any:
    """Return an array of llama_model_kv_override, which ends with an empty key."""
    array = (llama.llama_model_kv_override * (len(overrides) + 1))()
    for slot, (key, typed) in zip(array, overrides.items(), strict=False):
        slot.tag, field = KV_OVERRIDE_TAGS[typed.type]
        slot.key = key.encode()
        setattr(slot.value, field, typed.value.encode() if typed.type == "str" else typed.value)
    return array


def _c_devices(llama: Any, workers: RemoteDevices) -> tuple[Any, Any]:
    """Return the NULL-terminated array of devices, and that of their shares; the caller keeps both alive.

    Shares that are all 0 let the library divide the layers by free memory.
    """
    device_array = (ctypes.c_void_p * (len(workers.handles) + 1))(*workers.handles)
    shares = (ctypes.c_float * llama.llama_max_devices())(*(workers.split or ()))
    return device_array, shares


def _load_error(file: GGUFFile, errors: list[str]) -> EngineError | GGUFError:
    reason = library.failure_reason(errors)
    if library.is_out_of_memory(errors):
        return DoesNotFit(
            f"{file.path}: no memory for its weights of {format_memory(file.size)}: {reason}",
            "take a smaller quantization, or fewer layers on the GPU",
        )
    return GGUFError(
        f"{file.path}: llama.cpp cannot load it: {reason}", "the file is damaged or from another converter"
    )
