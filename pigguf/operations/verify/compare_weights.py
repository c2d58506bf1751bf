"""Weights: the numbers of a file against the checkpoint's, a slab of rows at a time.

What rounding to a type costs a slab, encoding the checkpoint's rows in that type tells. What is further off
than SLACK times that is no rounding: a head that was permuted otherwise, a layer of another model, a
fine-tune. An importance matrix makes rounding cost other columns (all together 1.06 times as much at most in
SmolLM2), and older versions of llama.cpp searched less for the best scales; SLACK leaves room for both.
TOLERANCE is for sums that were rounded otherwise (the divisors of frequencies).

Left out: types that are not encoded here, which are told; fine-tunes that move weights by less than about
two thirds of what rounding does.
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
from pigguf.operations.verify.verification_result import Discrepancy, VerificationPart
from pigguf.progress import Progress, stage
from pigguf.quantization.ggml_kernels import BLOCK_FORMATS, FLOATS, NEED_IMPORTANCE, decode, encode

SLACK = 1.3
TOLERANCE = 1e-4  # relative, of a slab
_SAMPLE = 8  # one of so many rows tells what a type costs, mostly; some types take long to encode


class _Slab(NamedTuple):
    """Rows of a tensor: how far they are off, and what their type costs them, by the rows' own length."""

    name: str
    start: int
    stop: int
    off: float
    cost: float
    nbytes: float  # of the file

    @property
    def holds(self) -> bool:
        return self.off <= SLACK * self.cost + TOLERANCE


def compare_weights(file: GGUFFile, plan: ConversionPlan, progress: Progress) -> VerificationPart:
    """All tensors that both have in one shape. Progress is one stage, "comparing weights", in bytes."""
    pairs = [
        (file.tensors[wanted.name], wanted)
        for wanted in plan.tensors
        if wanted.name in file.tensors and file.tensors[wanted.name].shape == wanted.shape
    ]
    known = [pair for pair in pairs if pair[0].type in (*FLOATS, *BLOCK_FORMATS)]
    worst: dict[str, _Slab] = {}
    total = sum(tensor.nbytes for tensor, _ in known)
    with TensorData(file) as data, stage(progress, "comparing weights", total, "bytes"):
        for slab in map_ahead(_jobs(data, known)):
            progress.advance(slab.nbytes)
            if not slab.holds and slab.name not in worst:
                worst[slab.name] = slab
    types = {tensor.name: tensor.type.name for tensor, _ in pairs}
    differences = (
        Discrepancy(
            name,
            f"rows {slab.start:,} to {slab.stop - 1:,} are {slab.off:.2g} of their length off, and "
            f"{types[name]} costs them {slab.cost:.2g}",
        )
        for name, slab in worst.items()
    )
    left_out = [tensor for tensor, _ in pairs if tensor.type not in (*FLOATS, *BLOCK_FORMATS)]
    notes = (Discrepancy(tensor.name, f"{tensor.type.name} is not compared") for tensor in left_out)
    return VerificationPart(len(known), tuple(differences), tuple(notes))


def _jobs(data: TensorData, pairs: list[tuple[GGUFTensor, PlannedTensor]]) -> Iterator[Callable[[], _Slab]]:
    for tensor, planned in pairs:
        for start, stop in planned.slabs:
            yield partial(_compared, data, tensor, planned, start, stop)


def _compared(data: TensorData, tensor: GGUFTensor, planned: PlannedTensor, start: int, stop: int) -> _Slab:
    wanted = planned.encode(start, stop).reshape(-1).view(np.float32)
    off = _off(_values(data, tensor, start, stop), wanted)
    slab = _Slab(tensor.name, start, stop, off, 0.0, tensor.nbytes * wanted.size / tensor.elements)
    for step in (_SAMPLE, 1):
        if slab.holds:
            break
        rows = wanted.reshape(-1, _width(tensor, wanted))[::step]
        slab = slab._replace(cost=_off(_rounded(rows, tensor.type), rows))
    return slab


def _values(data: TensorData, tensor: GGUFTensor, start: int, stop: int) -> Array:
    """Rows as the file has them, flat; of a tensor with one dimension elements count as rows."""
    if len(tensor.shape) == 1:
        return decode(data.rows(tensor, 0, 1), tensor.type, tensor.row_elements)[0, start:stop]
    return decode(data.rows(tensor, start, stop), tensor.type, tensor.row_elements).reshape(-1)


def _width(tensor: GGUFTensor, wanted: Array) -> int:
    return wanted.size if len(tensor.shape) == 1 else tensor.row_elements


def _rounded(rows: Array, kind: TensorType) -> Array:
    """The checkpoint's own rows as they are in a type."""
    width = rows.shape[-1]
    importance = np.ones(width, np.float32) if kind in NEED_IMPORTANCE else None
    return decode(encode(rows, kind, importance), kind, width)


def _off(got: Array, wanted: Array) -> float:
    """The length of the difference by that of the checkpoint's rows."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference, length = float(np.linalg.norm(got - wanted)), float(np.linalg.norm(wanted))
    return difference / length if length else difference
