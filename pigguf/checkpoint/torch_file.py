"""One file of torch.save: a state dict of tensors, read as promises. The only importer of torch here.

torch's own loader reads it with weights_only, which runs no code of the file, and mapped, so that
nothing is loaded before it is read. Left out: whole checkpoints in this form.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes

from pigguf.errors import CheckpointError, MissingPackage
from pigguf.files import download_hint, unreadable
from pigguf.tensors import Array, TensorRef

if TYPE_CHECKING:
    import torch

_DTYPES = {"torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}


class TorchFile:
    """A file of torch.save that holds tensors by name.

    Attributes:
        path: the file.
        tensors: name -> TensorRef, in the file's order.
    """

    def __init__(self, path: Path, state: dict[str, torch.Tensor]) -> None:
        self.path = path
        self.tensors = {name: _promise(path, name, tensor) for name, tensor in state.items()}

    @classmethod
    def open(cls, path: Path) -> TorchFile:
        """Open a file and check that it is a state dict.

        Raises:
            MissingPackage: torch is not installed.
            CheckpointError: the file is damaged or holds other things.
            ReadError: the system refuses to read it.
        """
        state = _load(path)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise CheckpointError(f"{path} holds a {type(state).__name__}, not tensors by name")
        return cls(path, state)

    def close(self) -> None:
        """Let go of the file; arrays that were read stay."""
        self.tensors = {}


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingPackage(
            f"{path}: torch is needed to read a .bin file, and is not installed",
            'pip install "pigguf[torch]", or save the adapter as safetensors',
        ) from error
    try:
        with path.open("rb") as file:
            beginning = file.read(64)
    except OSError as error:
        raise unreadable(path, error) from error
    mapped = zipfile.is_zipfile(path)  # what torch wrote before 1.6 is no zip file, and cannot be mapped
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file raises whatever its bytes lead the unpickler into
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path} is no state dict of torch: {reason}", download_hint(beginning)
        ) from error


def _promise(path: Path, name: str, tensor: Any) -> TensorRef:
    dtype = _DTYPES.get(str(getattr(tensor, "dtype", type(tensor).__name__)))
    if dtype is None:
        found = getattr(tensor, "dtype", type(tensor).__name__)
        raise CheckpointError(f"{path}: {name} is {found}, not a tensor of {', '.join(_DTYPES)}")

    def read(start: int, stop: int) -> Array:
        rows = tensor.detach()[start:stop]
        if dtype != "BF16":
            values: Array = rows.numpy()
            return values
        import torch

        bits: Array = rows.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)

    return TensorRef(name, tuple(tensor.shape), dtype, read)
