"""Readback: what `convert` and `quantize` check in a file that they wrote, before it gets its name.

The header: every tensor's name, shape and type, every key, and the positions as llama.cpp will read them. The
tokenizer: texts in many languages must become the same tokens in the source's own tokenizer and in llama.cpp
with the file's vocabulary.

Not here: the tensors' bytes, whose encoding the tests compare with llama_model_quantize; and comparing any
file with a checkpoint (operations/verify).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pigguf.common.token_prefix import common_prefix_length
from pigguf.errors import VerificationFailed
from pigguf.gguf_io import GGUFFile, PlannedTensor, read_header
from pigguf.gguf_io.metadata import Metadata, TypedValue
from pigguf.inference.engine.model import Model
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.rope import Positions, RopeScaling
from pigguf.tokenizer import Vocab, select_roundtrip_texts

_HINT = "this is a bug in pigguf: please report it with the checkpoint's name"


def check_written_gguf(
    path: Path, metadata: Metadata, tensors: Sequence[PlannedTensor], rope: Positions
) -> None:
    """Compare a written file's header with what was planned.

    Args:
        path: The file.
        metadata: The planned keys.
        tensors: The planned tensors, in order.
        rope: The planned positions.

    Raises:
        VerificationFailed: A key or tensor differs; the message names the first one.
    """
    file = read_header(path)
    _compare_keys(file, metadata)
    _compare_tensors(file, tensors)
    _compare_rope(file, rope)


def check_tokenization(path: Path, encode: Callable[[str], list[int]], vocab: Vocab) -> None:
    """Compare the tokens of texts by the source's tokenizer and by llama.cpp with the file's vocabulary.

    Args:
        path: The file.
        encode: The source's own tokenizer.
        vocab: The vocabulary that was planned.

    Raises:
        VerificationFailed: A text's tokens differ; the message names the first one and where. Or a token that
            should end an answer would not.
    """
    with Model.open(path, vocab_only=True) as model:
        for token in vocab.eog_ids:
            if not model.is_eog(token):
                raise VerificationFailed(f"llama.cpp does not end an answer at token {token}", _HINT)
        for text in select_roundtrip_texts(vocab):
            expected, got = encode(text), model.tokenize(text, add_special=False, parse_special=True)
            if expected != got:
                at = common_prefix_length(expected, got)
                raise VerificationFailed(
                    f"the file's tokenizer differs from the source's on {text!r}: token {at} is "
                    f"{got[at : at + 4]} and should be {expected[at : at + 4]}",
                    "a rule of the tokenizer was not recognized: please report it with the model's name",
                )


def _compare_keys(file: GGUFFile, metadata: Metadata) -> None:
    for key in metadata.keys() | file.metadata.keys():
        wanted, got = metadata.get(key), file.metadata.get(key)
        if wanted is None or got is None or not _is_same(wanted, got):
            raise VerificationFailed(
                f"metadata key {key} reads back as {_brief(got)}, not {_brief(wanted)}", _HINT
            )


def _is_same(wanted: TypedValue, got: TypedValue) -> bool:
    """Return whether two values are equal; floats are stored in single precision."""
    if wanted.type == "f32" and not wanted.is_array:
        return got.type == "f32" and abs(wanted.value - got.value) <= 1e-6 * abs(wanted.value)
    return (
        wanted.type == got.type
        and wanted.is_array == got.is_array
        and (wanted.type == "f32" or wanted.value == got.value)
    )


def _brief(typed: TypedValue | None) -> str:
    return "nothing" if typed is None else repr(typed.value)[:80]


def _compare_tensors(file: GGUFFile, tensors: Sequence[PlannedTensor]) -> None:
    written = [(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]
    planned = [(tensor.name, tensor.shape, tensor.type) for tensor in tensors]
    for got, wanted in zip(written, planned, strict=False):
        if got != wanted:
            raise VerificationFailed(f"a tensor reads back as {got}, not {wanted}", _HINT)
    if len(written) != len(planned):
        raise VerificationFailed(f"the file holds {len(written)} tensors, not {len(planned)}", _HINT)


def _compare_rope(file: GGUFFile, rope: Positions) -> None:
    stored = rope_from_gguf(file)
    attributes = (
        "rope_type",
        "context_length",
        "factor",
        "rope_theta",
        "original_context",
        "parameters",
        "local_rope_theta",
    )
    # learned positions and ALiBi have only the first two
    for name in attributes if isinstance(rope, RopeScaling) else attributes[:2]:
        wanted, got = getattr(rope, name), getattr(stored, name)
        is_close = isinstance(wanted, float) and isinstance(got, float) and abs(wanted - got) <= 1e-6 * wanted
        if wanted != got and not is_close:
            raise VerificationFailed(f"rope {name} reads back as {got}, not {wanted}", _HINT)
