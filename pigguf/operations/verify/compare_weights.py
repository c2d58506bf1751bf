"""Weights: a file's values against the checkpoint's, a slab of rows at a time.

What rounding to a type costs a slab is measured by encoding the checkpoint's rows in that type. A slab whose
error is more than SLACK times that is not explained by rounding: a head that was not permuted, a layer of
another model, a fine-tune. An importance matrix moves the error between columns (in SmolLM2 it raises the
total by at most 1.06), and older versions of llama.cpp searched less for the best scales; SLACK leaves room
for both. TOLERANCE is for sums in another order (the frequency factors).

Not here: types that cannot be encoded, which are only noted, and fine-tunes that change weights by less than
about two thirds of what rounding does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from pigguf.common.lazy_tensor import Array
from pigguf.common.parallel import map_ahead
from pigguf.gguf_io import GGUFFile, GGUFTensor, PlannedTensor, TensorData, TensorType
from pigguf.operations.convert import ConversionPlan
from pigguf.operations.verify.discrepancy import Discrepancy
from pigguf.operations.verify.verification_result import VerificationPart
from pigguf.progress import Progress, stage
from pigguf.quantization.ggml_kernels import FLOAT_DTYPES, NEED_IMATRIX, QUANTIZED_TYPES, decode, encode

SLACK = 1.3
TOLERANCE = 1e-4  # relative error of a slab
_SAMPLED_ROWS = 8  # every 8th row usually shows what a type costs; some types take long to encode


class _SlabError(NamedTuple):
    """The relative error of a slab of a tensor's rows.

    Attributes:
        name: The tensor.
        start, stop: The rows.
        error: The length (L2 norm) of the difference divided by that of the checkpoint's rows.
        rounding_error: The same for the checkpoint's rows rounded to the type; 0.0 if not measured.
        nbytes: The slab's size in the file.
    """

    name: str
    start: int
    stop: int
    error: float
    rounding_error: float
    nbytes: float

    @property
    def is_explained(self) -> bool:
        """Whether the error is no more than rounding causes."""
        return self.error <= SLACK * self.rounding_error + TOLERANCE


def compare_weights(file: GGUFFile, plan: ConversionPlan, progress: Progress) -> VerificationPart:
    """Compare all tensors that the file and the conversion's plan have in the same shape.

    Progress is one stage, "comparing weights", in bytes of the file.
    """
    pairs = [
        (file.tensors[planned.name], planned)
        for planned in plan.tensors
        if planned.name in file.tensors and file.tensors[planned.name].shape == planned.shape
    ]
    comparable = [pair for pair in pairs if pair[0].type in (*FLOAT_DTYPES, *QUANTIZED_TYPES)]
    first_unexplained: dict[str, _SlabError] = {}
    total = sum(tensor.nbytes for tensor, _ in comparable)
    with TensorData(file) as data, stage(progress, "comparing weights", total, "bytes"):
        for slab in map_ahead(_jobs(data, comparable)):
            progress.advance(slab.nbytes)
            if not slab.is_explained:
                first_unexplained.setdefault(slab.name, slab)
    types = {tensor.name: tensor.type.name for tensor, _ in pairs}
    differences = tuple(
        Discrepancy(
            name,
            f"rows {slab.start:,} to {slab.stop - 1:,} have a relative error of {slab.error:.2g}, and "
            f"rounding to {types[name]} causes {slab.rounding_error:.2g}",
        )
        for name, slab in first_unexplained.items()
    )
    notes = tuple(
        Discrepancy(tensor.name, f"{tensor.type.name} is not compared")
        for tensor, _ in pairs
        if tensor.type not in (*FLOAT_DTYPES, *QUANTIZED_TYPES)
    )
    return VerificationPart(len(comparable), differences, notes)


def _jobs(
    data: TensorData, pairs: list[tuple[GGUFTensor, PlannedTensor]]
) -> Iterator[Callable[[], _SlabError]]:
    for tensor, planned in pairs:
        for start, stop in planned.slabs:
            yield partial(_compare_slab, data, tensor, planned, start, stop)


def _compare_slab(
    data: TensorData, tensor: GGUFTensor, planned: PlannedTensor, start: int, stop: int
) -> _SlabError:
    reference = planned.encode(start, stop).reshape(-1).view(np.float32)
    error = _relative_error(_stored_values(data, tensor, start, stop), reference)
    nbytes = tensor.nbytes * reference.size / tensor.elements
    slab = _SlabError(tensor.name, start, stop, error, 0.0, nbytes)
    for step in (_SAMPLED_ROWS, 1):  # a sample of the rows first, then all
        if slab.is_explained:
            break
        width = reference.size if len(tensor.shape) == 1 else tensor.row_elements
        rows = reference.reshape(-1, width)[::step]
        slab = slab._replace(rounding_error=_relative_error(_rounded(rows, tensor.type), rows))
    return slab


def _stored_values(data: TensorData, tensor: GGUFTensor, start: int, stop: int) -> Array:
    """Return rows of the file's tensor, decoded and flat; of a vector its elements count as rows."""
    if len(tensor.shape) == 1:
        return decode(data.rows(tensor, 0, 1), tensor.type, tensor.row_elements)[0, start:stop]
    return decode(data.rows(tensor, start, stop), tensor.type, tensor.row_elements).reshape(-1)


def _rounded(rows: Array, kind: TensorType) -> Array:
    """Return rows encoded in a type and decoded again."""
    width = rows.shape[-1]
    importance = np.ones(width, np.float32) if kind in NEED_IMATRIX else None
    return decode(encode(rows, kind, importance), kind, width)


def _relative_error(values: Array, reference: Array) -> float:
    with np.errstate(invalid="ignore", over="ignore"):
        difference, length = float(np.linalg.norm(values - reference)), float(np.linalg.norm(reference))
    return difference / length if length else difference
