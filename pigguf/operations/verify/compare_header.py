"""Structure and tokenizer: a file's header against what convert would write.

What a key means is compared, as llama.cpp reads it, and not how it is written: one that another converter
leaves out because it says llama.cpp's default is a note, and so is what has no part in the arithmetic
(general.*). Where a tokenizer is kept otherwise, whether it matters is told by texts: their tokens must be
those of the checkpoint's own tokenizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pigguf.architectures import Family
from pigguf.architectures.hparams import NORM_EPSILON_KEYS
from pigguf.errors import PigError, VerificationFailed
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import Typed
from pigguf.inference.engine import Model
from pigguf.operations.convert import ConversionPlan
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.operations.readback import check_tokenization
from pigguf.operations.verify.verification_result import Discrepancy, VerificationPart
from pigguf.tokenizer import Vocab, roundtrip_samples, vocab_from_metadata
from pigguf.tokenizer.known_differences import kept_clear

# ---- structure -------------------------------------------------------------------------------------------

# A model's shape and positions, by the keys that say them; how each is kept is another matter.
_SHAPE = {
    "layers": "block_count",
    "embedding_length": "embedding_length",
    "feed_forward_length": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rotary_dim": "rope.dimension_count",
    "vocab_size": "vocab_size",
    "experts": "expert_count",
}
_POSITIONS = {
    "rope_type": "rope.scaling.type",
    "context_length": "context_length",
    "factor": "rope.scaling.factor",
    "rope_theta": "rope.freq_base",
    "original_context": "rope.scaling.original_context_length",
    "parameters": "rope.scaling",
    "local_rope_theta": "rope.freq_base_swa",
}
_UNROTATED = ("rope_type", "context_length")  # of a learned table and of ALiBi no more is said
_NOT_IN_THE_MATHS = ("none", "linear")  # kinds that make nothing of the original window
_OF_THE_TYPE = ("general.file_type", "general.quantization_version")


def compare_structure(file: GGUFFile, family: Family, plan: ConversionPlan) -> VerificationPart:
    facts = [*_architecture(file, plan)]
    if file.architecture == plan.hparams.architecture:
        facts += _facts(file, family, plan)
    differences = [_told(*fact) for fact in facts if not _close(*fact[1:])]
    planned = {tensor.name: tensor.shape for tensor in plan.tensors}
    written = {name: tensor.shape for name, tensor in file.tensors.items()}
    names = dict.fromkeys((*planned, *written))
    differences += [
        _told(name, written.get(name), planned.get(name))
        for name in names
        if written.get(name) != planned.get(name)
    ]
    found = {difference.name for difference in differences}
    notes = tuple(note for note in _key_notes(file, plan) if note.name not in found)
    return VerificationPart(len(facts) + len(names), tuple(differences), notes)


def _architecture(file: GGUFFile, plan: ConversionPlan) -> Iterator[tuple[str, Any, Any]]:
    yield "general.architecture", file.architecture, plan.hparams.architecture


def _facts(file: GGUFFile, family: Family, plan: ConversionPlan) -> Iterator[tuple[str, Any, Any]]:
    """What each side says of the shape and of positions, under the keys that say it."""
    prefix = file.architecture
    try:
        theirs = family.hparams_from_metadata(file.metadata, file.tensors)
        positions = rope_from_gguf(file)
    except PigError as error:
        yield "keys", error.message, "keys of this family"
        return
    ours, rope = plan.hparams, plan.rope
    for name, key in _SHAPE.items():
        yield f"{prefix}.{key}", getattr(theirs, name), getattr(ours, name)
    yield f"{prefix}.{NORM_EPSILON_KEYS[ours.norm_type]}", theirs.norm_epsilon, ours.norm_epsilon
    for key in dict.fromkeys((*theirs.extra_keys, *ours.extra_keys)):
        yield f"{prefix}.{key}", _value(theirs.extra_keys.get(key)), _value(ours.extra_keys.get(key))
    for name in _UNROTATED if rope.rope_type in ("learned", "alibi") else _POSITIONS:
        if name != "original_context" or rope.rope_type not in _NOT_IN_THE_MATHS:
            yield f"{prefix}.{_POSITIONS[name]}", getattr(positions, name), getattr(rope, name)


def _key_notes(file: GGUFFile, plan: ConversionPlan) -> Iterator[Discrepancy]:
    """Keys that are not as convert would write them, the tokenizer's and the parts' apart."""
    for key in dict.fromkeys((*file.metadata, *plan.metadata)):
        if key.startswith(("tokenizer.", "split.")) or key in _OF_THE_TYPE:
            continue
        got, wanted = file.metadata.get(key), plan.metadata.get(key)
        if not _close(_value(got), _value(wanted)):
            yield _told(key, _value(got), _value(wanted))


def _value(typed: Typed | None) -> Any:
    return None if typed is None else typed.value


def _close(got: Any, wanted: Any) -> bool:
    """Equal, numbers but for the rounding of single precision."""
    if isinstance(got, Mapping) and isinstance(wanted, Mapping):
        return got.keys() == wanted.keys() and all(_close(got[key], wanted[key]) for key in got)
    if isinstance(got, tuple | list) and isinstance(wanted, tuple | list):
        return len(got) == len(wanted) and all(map(_close, got, wanted))
    if isinstance(got, float) and isinstance(wanted, float):
        return math.isclose(got, wanted, rel_tol=1e-5)
    return bool(got == wanted)


def _told(what: str, got: Any, wanted: Any) -> Discrepancy:
    return Discrepancy(what, f"{_shown(got)} in the file, {_shown(wanted)} by the checkpoint")


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = f"{value:g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


# ---- tokenizer -------------------------------------------------------------------------------------------

_ENDS = ("bos", "eos", "eot", "eom")  # roles that a chat hangs on


def compare_tokenizer(
    file: GGUFFile, wanted: Vocab, encode: Callable[[str], list[int]], read: str
) -> VerificationPart:
    try:
        vocab = vocab_from_metadata(file.metadata)
    except PigError as error:
        return VerificationPart(1, (Discrepancy("tokenizer.ggml", error.message),))
    facts: list[tuple[str, Any, Any]] = [
        ("tokenizer.ggml.model", vocab.model, wanted.model),
        ("tokenizer.ggml.add_bos_token", vocab.add_bos, wanted.add_bos),
        ("tokenizer.ggml.add_eos_token", vocab.add_eos, wanted.add_eos),
    ]
    if wanted.model == "llama":
        facts.append(("tokenizer.ggml.add_space_prefix", vocab.add_space_prefix, wanted.add_space_prefix))
    if wanted.chat_template is not None:
        facts.append(("tokenizer.chat_template", vocab.chat_template, wanted.chat_template))
    facts += [
        (f"{role} token", vocab.special_ids[role], wanted.special_ids[role])
        for role in _ENDS
        if role in vocab.special_ids and role in wanted.special_ids
    ]
    differences = [_told(*fact) for fact in facts if fact[1] != fact[2]]
    differences += _tokens_that_differ(vocab.tokens, wanted.tokens)
    texts = _encodings_that_differ(file.path, wanted, encode, read)
    compared = len(facts) + len(wanted.tokens) + len(roundtrip_samples(wanted)) + 1
    return VerificationPart(compared, (*differences, *texts), tuple(_vocab_notes(vocab, wanted)))


def _tokens_that_differ(got: Sequence[str], wanted: Sequence[str]) -> Iterator[Discrepancy]:
    if len(got) != len(wanted):
        yield _told("tokens", len(got), len(wanted))
    differing = [i for i, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]]
    if differing:
        first = differing[0]
        told = _told(f"token {first}", got[first], wanted[first])
        more = f", and {len(differing) - 1:,} more tokens differ" if len(differing) > 1 else ""
        yield Discrepancy(told.name, told.description + more)


def _encodings_that_differ(
    path: Path, vocab: Vocab, encode: Callable[[str], list[int]], read: str
) -> Iterator[Discrepancy]:
    try:
        check_tokenization(path, encode, vocab)
    except VerificationFailed as error:
        yield Discrepancy("tokens of a sample", error.message)
    (text,) = kept_clear((read,), vocab.limits)
    with Model.open(path, vocab_only=True) as model:
        got, wanted = model.tokenize(text, add_special=False, parse_special=True), encode(text)
    if got != wanted:
        at = next(
            (i for i, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]), len(got)
        )
        yield _told(f"token {at} of the text", got[at : at + 4], wanted[at : at + 4])


def _vocab_notes(vocab: Vocab, wanted: Vocab) -> Iterator[Discrepancy]:
    """What is kept otherwise; whether it matters, the texts above tell."""
    if vocab.pre != wanted.pre:
        yield _told("tokenizer.ggml.pre", vocab.pre, wanted.pre)
    for name in ("types", "scores", "merges"):
        pairs = zip(getattr(vocab, name), getattr(wanted, name), strict=False)
        differing = sum(not _close(*pair) for pair in pairs)
        if differing:
            yield Discrepancy(f"tokenizer's {name}", f"{differing:,} are others")
    for role in dict.fromkeys((*vocab.special_ids, *wanted.special_ids)):
        got, expected = vocab.special_ids.get(role), wanted.special_ids.get(role)
        if got != expected and (role not in _ENDS or None in (got, expected)):
            yield _told(f"{role} token", got, expected)
    if wanted.chat_template is None and vocab.chat_template is not None:
        yield _told("tokenizer.chat_template", vocab.chat_template, None)
