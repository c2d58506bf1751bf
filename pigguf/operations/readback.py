"""verify: read a written file back and compare it with what was to be written.

Two proofs. The header: every tensor's name, shape and type, every key, and the rope facts as
llama.cpp will read them. The tokenizer: a multilingual sample comes out of the source's own
tokenizer and of llama.cpp with the file's vocabulary as the same tokens.

Left out: the tensor bytes, whose encoding the tests prove against llama_model_quantize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pigguf.errors import VerificationFailed
from pigguf.gguf_io import GGUFFile, PlannedTensor, read_header
from pigguf.gguf_io.metadata import Metadata, Typed
from pigguf.inference.engine.model import Model
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.rope import LearnedPositions, RopeScaling
from pigguf.tokenizer import Vocab, roundtrip_samples

_HINT = "this is a bug in pigguf: please report it with the checkpoint's name"


def check_written_gguf(
    path: Path, metadata: Metadata, tensors: Sequence[PlannedTensor], rope: RopeScaling
) -> None:
    """Compare a file's header with what was to be written.

    Raises:
        VerificationFailed: naming the first key or tensor that differs.
    """
    file = read_header(path)
    _compare_keys(file, metadata)
    _compare_tensors(file, tensors)
    _compare_rope(file, rope)


def check_tokenization(path: Path, encode: Callable[[str], list[int]], vocab: Vocab) -> None:
    """Tokenize the sample with the source's tokenizer and with llama.cpp on the file's vocabulary.

    Raises:
        VerificationFailed: naming the first text whose tokens differ, and where; or a token that should
            end an answer and would not.
    """
    with Model.open(path, vocab_only=True) as model:
        for token in vocab.end_ids:
            if not model.is_eog(token):
                raise VerificationFailed(f"llama.cpp does not end an answer at token {token}", _HINT)
        for text in roundtrip_samples(vocab):
            expected, got = encode(text), model.tokenize(text, add_special=False, parse_special=True)
            if expected != got:
                at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), None)
                at = min(len(expected), len(got)) if at is None else at
                raise VerificationFailed(
                    f"the file's tokenizer differs from the source's on {text!r}: token {at} is "
                    f"{got[at : at + 4]} and should be {expected[at : at + 4]}",
                    "a rule of the tokenizer was not recognised: please report it with the model's name",
                )


def _compare_keys(file: GGUFFile, metadata: Metadata) -> None:
    for key in metadata.keys() | file.metadata.keys():
        wanted, got = metadata.get(key), file.metadata.get(key)
        if wanted is None or got is None or not _same(wanted, got):
            raise VerificationFailed(
                f"metadata key {key} reads back as {_brief(got)}, not {_brief(wanted)}", _HINT
            )


def _same(wanted: Typed, got: Typed) -> bool:
    if wanted.kind == "f32" and not wanted.is_array:  # stored in single precision
        return got.kind == "f32" and abs(wanted.value - got.value) <= 1e-6 * abs(wanted.value)
    return (
        wanted.kind == got.kind
        and wanted.is_array == got.is_array
        and (wanted.kind == "f32" or wanted.value == got.value)
    )


def _brief(typed: Typed | None) -> str:
    return "nothing" if typed is None else repr(typed.value)[:80]


def _compare_tensors(file: GGUFFile, tensors: Sequence[PlannedTensor]) -> None:
    written = [(tensor.name, tensor.shape, tensor.type) for tensor in file.tensors.values()]
    planned = [(tensor.name, tensor.shape, tensor.type) for tensor in tensors]
    for got, wanted in zip(written, planned, strict=False):
        if got != wanted:
            raise VerificationFailed(f"a tensor reads back as {got}, not {wanted}", _HINT)
    if len(written) != len(planned):
        raise VerificationFailed(f"the file holds {len(written)} tensors, not {len(planned)}", _HINT)


def _compare_rope(file: GGUFFile, rope: RopeScaling) -> None:
    read = rope_from_gguf(file)
    facts = (
        "rope_type",
        "context_length",
        "factor",
        "rope_theta",
        "original_context",
        "parameters",
        "local_rope_theta",
    )
    for fact in facts[:2] if isinstance(rope, LearnedPositions) else facts:  # a table tells no more
        wanted, got = getattr(rope, fact), getattr(read, fact)
        close = isinstance(wanted, float) and isinstance(got, float) and abs(wanted - got) <= 1e-6 * wanted
        if wanted != got and not close:
            raise VerificationFailed(f"rope {fact} reads back as {got}, not {wanted}", _HINT)
