"""A family's table applied: checkpoint tensors -> GGUF tensors, and back, all of them still promises.

Every tensor the table demands must be there in its shape, and none may be left over. Where rows change
places, or come from several tensors, reading a slab reads the rows it needs and few others.

Left out: types and values (the reader of the promises checks them).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from pigguf.architectures.family import Family, NamedRule, NamedShape
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import SAME, Change, Rows, TensorRule
from pigguf.common.lazy_tensor import SLAB_ELEMENTS, Array, LazyTensor, row_count
from pigguf.errors import InvalidTensor, MissingTensor, UnmappedTensor
from pigguf.rope import LearnedPositions

NEAR = 64  # rows: a gap no longer than this is read with what lies around it

QUANTIZED = "the weights are quantized already: give the checkpoint as it was before"
# What an unknown tensor's name gives away, for the hint.
TELLING_NAMES = {
    r".*\.lora_.*": "an adapter lies among the weights: merge it first (peft: merge_and_unload)",
    r".*\.(qweight|qzeros|scales|weight_scale|weight_scale_inv|absmax|SCB)": QUANTIZED,
    r".*\.experts\.(gate_up_proj|down_proj)": (
        "its experts lie in one tensor: save it as it was published (save_pretrained does, "
        "without save_original_format=False)"
    ),
    r".*experts.*": "this family has no mixture of experts",
    r".*(vision|visual|mm_projector|multi_modal).*": "a model that sees is none of the families pigguf knows",
    r"rope_(freqs|factors_\w+)\.weight": "scaling by dimension (llama3, longrope) of an unknown kind",
    r".*\.bias": "config.json says nothing of this bias (attention_bias, mlp_bias)",
}


def to_gguf(
    family: Family, hparams: HParams, tensors: Mapping[str, LazyTensor], source: str
) -> list[LazyTensor]:
    """A checkpoint's tensors under their GGUF names, in the order of the file, those of positions last.

    The output matrix of a model whose embeddings are tied is dropped where it equals the embedding;
    llama.cpp then uses the embedding (src/models/llama.cpp). Versions of transformers disagree on
    one that differs, so that is refused.

    Args:
        family, hparams: the model.
        tensors: by their names in the checkpoint.
        source: the checkpoint's path, for messages.

    Raises:
        MissingTensor, UnmappedTensor: the table and the checkpoint do not cover each other.
        InvalidTensor: a tensor has another shape than the config gives it, or tied ones differ.
    """
    named = {family.canonical(name): tensor for name, tensor in tensors.items()}
    left = {name: tensor for name, tensor in named.items() if not family.drops(name)}
    embedding, output = family.embedding, family.output
    if hparams.tied_embeddings and output != embedding and output in left and embedding in left:
        refuse_unequal_output(left[embedding], left.pop(output), source)
    used: dict[str, LazyTensor] = {}
    renamed: list[LazyTensor] = []
    for row in family.rules(hparams):
        pieces = [_taken(shape, row.rule, left, used, source) for shape in row.hf]
        renamed += _forward(row, pieces, hparams)
    _refuse_left_over(left, source)
    return renamed + _position_tensors(hparams)


def to_hf(
    family: Family, hparams: HParams, tensors: Mapping[str, LazyTensor], source: str
) -> list[LazyTensor]:
    """A GGUF's tensors, as floats, under the names of transformers. As to_gguf, backwards.

    Raises also:
        InvalidTensor: tensors that should follow from the positions or be constant are not so.
    """
    left = dict(tensors)
    for wanted in _position_tensors(hparams):
        found = _taken(NamedShape(wanted.name, wanted.shape), None, left, {}, source)
        if not np.allclose(found.load(), wanted.load(), rtol=1e-6, atol=0):  # powers differ by last places
            raise InvalidTensor(
                f"{source}: {wanted.name} is not what the positions make it", hparams.rope.explain()
            )
    renamed: dict[str, LazyTensor] = {}
    for row in family.rules(hparams):
        pieces = [_taken(shape, row.rule, left, {}, source) for shape in row.gguf]
        for tensor in _backward(row, pieces, hparams, source):
            if tensor.name in renamed and not tensor.equals(renamed[tensor.name]):
                raise InvalidTensor(f"{source}: {row.gguf[0].name} differs from the embedding it is tied to")
            renamed.setdefault(tensor.name, tensor)
    _refuse_left_over(left, source)
    return list(renamed.values())


def _taken(
    shape: NamedShape,
    rule: TensorRule | None,
    left: dict[str, LazyTensor],
    used: dict[str, LazyTensor],
    source: str,
) -> LazyTensor:
    """The tensor of that name, taken from what is left (or used already), in the shape it must have."""
    tensor = left.pop(shape.name, None) or used.get(shape.name)
    if tensor is None:
        raise MissingTensor(f"{source} lacks the tensor {shape.name}", _why_missing(shape.name, rule, left))
    used[shape.name] = tensor
    if tensor.shape != shape.shape:
        pieces = () if rule is None else (*rule.hf, *rule.gguf)
        sizes = next((piece.shape for piece in pieces if _is_of(shape.name, piece.name)), ())
        raise InvalidTensor(
            f"{source}: {shape.name} has the shape {tensor.shape}, not {shape.shape}",
            f"its sizes should be {', '.join(sizes)}" if sizes else None,
        )
    return tensor


def _is_of(name: str, pattern: str) -> bool:
    parts = re.split(r"\{\w*\}", pattern)
    return re.fullmatch(r"\d+".join(map(re.escape, parts)), name) is not None


def _refuse_left_over(left: Mapping[str, LazyTensor], source: str) -> None:
    for name in left:
        others = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise UnmappedTensor(
            f"{source}: the tensor {name} is none of this family's{others}",
            _told_by(name)
            or "to leave it out would change the model: is it of the family config.json names?",
        )


def _why_missing(name: str, rule: TensorRule | None, others: Iterable[str]) -> str:
    if rule is not None and rule.gguf[0].name == "output.weight":
        return "if the embedding serves as output matrix, config.json should say tie_word_embeddings: true"
    told = (_told_by(other) for other in others if not other.endswith(".bias"))
    return next(filter(None, told), "is the checkpoint whole, and of the family that config.json names?")


def _told_by(name: str) -> str | None:
    return next((hint for pattern, hint in TELLING_NAMES.items() if re.fullmatch(pattern, name)), None)


def _position_tensors(hparams: HParams) -> list[LazyTensor]:
    """The tensors that positions themselves bring (llama3's and longrope's divisors)."""
    made = hparams.rope.tensors(hparams.rotary_dim)
    return [LazyTensor(name, values.shape, "F32", partial(_part, values)) for name, values in made.items()]


def _part(values: Array, start: int, stop: int) -> Array:
    return values[start:stop]


# One rule, in either direction


def _forward(row: NamedRule, pieces: Sequence[LazyTensor], hparams: HParams) -> Iterator[LazyTensor]:
    rule = row.rule
    if not pieces:
        yield from (_constant(shape, rule.fill) for shape in row.gguf)
        return
    if rule.transposed:
        pieces = [_transposed(piece) for piece in pieces]
    if rule.change != SAME:
        pieces = [_changed(piece, rule.change) for piece in pieces]
    if rule.resampled and isinstance(hparams.rope, LearnedPositions):
        first = pieces[0].rows - hparams.rope.original_context  # OPT's table begins with rows for padding
        yield _resampled(pieces[0], row.gguf[0], hparams.rope, first)
        return
    order = None if rule.order is None else rule.order(hparams)
    yield from _gathered(pieces, row.gguf, order)


def _backward(
    row: NamedRule, pieces: Sequence[LazyTensor], hparams: HParams, source: str
) -> Iterator[LazyTensor]:
    rule = row.rule
    if not row.hf:
        for piece in pieces:
            _refuse_other_than(rule.fill, piece, source)
        return
    kept = [NamedShape(name, shape[::-1] if rule.transposed else shape) for name, shape in row.hf]
    order = None if rule.order is None else _inverse(rule.order(hparams), kept)
    if rule.resampled and kept[0].shape != pieces[0].shape:  # the rows before those of positions
        before = kept[0].shape[0] - pieces[0].rows
        order = np.arange(kept[0].shape[0], dtype=np.int64) - before
    for tensor in _gathered(pieces, kept, order):
        if rule.change != SAME:
            inverse = Change(1 / rule.change.scale, -rule.change.add / rule.change.scale)
            tensor = _changed(tensor, inverse)
        yield _transposed(tensor) if rule.transposed else tensor


def _inverse(order: Rows, to: Sequence[NamedShape]) -> Rows:
    """Where each of the checkpoint's rows lies in the GGUF; -1 where it was left out."""
    inverse = np.full(sum(row_count(shape.shape) for shape in to), -1, dtype=np.int64)
    inverse[order] = np.arange(len(order))
    return inverse


def _gathered(
    pieces: Sequence[LazyTensor], to: Sequence[NamedShape], order: Rows | None
) -> Iterator[LazyTensor]:
    """The tensors whose rows, one behind another, are rows order[0], order[1] ... of the pieces."""
    if order is None and len(pieces) == len(to) == 1:
        yield replace(pieces[0], name=to[0].name, shape=to[0].shape)
        return
    count = sum(row_count(shape.shape) for shape in to)
    rows = np.arange(count, dtype=np.int64) if order is None else order
    dtypes = {piece.dtype for piece in pieces}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    if len(pieces) > 1 and dtypes:
        pieces = [_changed(piece, SAME) for piece in pieces]
    first = 0
    for shape in to:
        own = rows[first : first + row_count(shape.shape)]
        first += len(own)
        yield LazyTensor(shape.name, shape.shape, dtype, partial(_read_rows, tuple(pieces), own))


def _read_rows(pieces: tuple[LazyTensor, ...], order: Rows, start: int, stop: int) -> Array:
    """Rows order[start:stop] of the pieces laid one behind another; rows below 0 are zeros."""
    wanted = order[start:stop]
    ascending = np.unique(wanted[wanted >= 0])
    runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > NEAR) + 1)
    result: Array | None = None
    first = 0
    for piece in pieces:
        for run in runs:
            low = max(int(run[0]), first) if len(run) else first
            high = min(int(run[-1]) + 1, first + piece.rows) if len(run) else first
            if low >= high:
                continue
            values = piece.read(low - first, high - first)
            if result is None:
                result = np.zeros((len(wanted), *values.shape[1:]), values.dtype)
            here = (wanted >= low) & (wanted < high)
            result[here] = values[wanted[here] - low]
        first += piece.rows
    if result is None:
        return np.zeros((len(wanted), *pieces[0].shape[1:]), np.float32)
    return result


def _transposed(tensor: LazyTensor) -> LazyTensor:
    """The matrix the other way round; it is read whole, so it makes one slab."""

    def read(start: int, stop: int) -> Array:
        return np.ascontiguousarray(tensor.load().T[start:stop])

    shape = tensor.shape[::-1]
    return replace(tensor, shape=shape, read=read, row_group=shape[0])


def _changed(tensor: LazyTensor, change: Change) -> LazyTensor:
    def read(start: int, stop: int) -> Array:
        rows = tensor.read(start, stop).astype(np.float32)
        if change.unit:  # as torch.nn.functional.normalize
            rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
        if change.scale != 1.0:
            rows *= np.float32(change.scale)
        if change.add != 0.0:
            rows += np.float32(change.add)
        return rows

    return replace(tensor, dtype="F32", read=read)


def _resampled(tensor: LazyTensor, to: NamedShape, rope: LearnedPositions, first: int) -> LazyTensor:
    """Rows between rows: the table of learned positions for another window."""
    below, parts = rope.sources()
    if not parts.any():
        return next(_gathered([tensor], [to], below + first))

    def read(start: int, stop: int) -> Array:
        lower, part = below[start:stop], parts[start:stop, None]
        low = int(lower[0])
        rows = tensor.read(low + first, int(lower[-1]) + 2 + first).astype(np.float64)
        return ((1 - part) * rows[lower - low] + part * rows[lower - low + 1]).astype(np.float32)

    return LazyTensor(to.name, to.shape, "F32", read)


def _constant(shape: NamedShape, fill: float) -> LazyTensor:
    def read(start: int, stop: int) -> Array:
        return np.full((stop - start, *shape.shape[1:]), fill, np.float32)

    return LazyTensor(shape.name, shape.shape, "F32", read)


def _refuse_other_than(fill: float, tensor: LazyTensor, source: str) -> None:
    for start, stop in tensor.slabs(SLAB_ELEMENTS):
        if (tensor.read(start, stop) != fill).any():
            raise InvalidTensor(
                f"{source}: {tensor.name} is not {fill:g} throughout, and this family has no such tensor",
                "the file was made from a model of another family",
            )


def refuse_unequal_output(embedding: LazyTensor, output: LazyTensor, source: str) -> None:
    """Refuse an output matrix that is stored beside the embedding it is tied to, and differs from it.

    Raises:
        InvalidTensor: it does.
    """
    if not embedding.equals(output):
        raise InvalidTensor(
            f"{source}: {output.name} differs from {embedding.name}, "
            "but config.json has tie_word_embeddings = true",
            "set tie_word_embeddings to false in config.json if the two were trained apart",
        )
