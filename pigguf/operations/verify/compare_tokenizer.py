"""Tokenizer: a file's vocabulary and rules against the checkpoint's.

If the vocabulary is stored differently, texts show whether that matters: llama.cpp must tokenize them as the
checkpoint's own tokenizer does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pigguf.common.token_prefix import common_prefix_length
from pigguf.errors import PigError, VerificationFailed
from pigguf.gguf_io import GGUFFile
from pigguf.inference.engine import Model
from pigguf.operations.readback import check_tokenization
from pigguf.operations.verify.discrepancy import Discrepancy, values_match
from pigguf.operations.verify.verification_result import VerificationPart
from pigguf.tokenizer import Vocab, select_roundtrip_texts, vocab_from_metadata
from pigguf.tokenizer.known_differences import remove_differing_text

_CHAT_TOKEN_ROLES = ("bos", "eos", "eot", "eom")  # special tokens that a chat depends on


def compare_tokenizer(
    file: GGUFFile, planned: Vocab, encode: Callable[[str], list[int]], text: str
) -> VerificationPart:
    """Compare a file's tokenizer with the checkpoint's.

    Args:
        file: The file's header.
        planned: The vocabulary that convert would write.
        encode: The checkpoint's own tokenizer.
        text: A text to tokenize with both, in addition to the round-trip texts.
    """
    try:
        stored = vocab_from_metadata(file.metadata)
    except PigError as error:
        return VerificationPart(1, (Discrepancy("tokenizer.ggml", error.message),))
    facts = list(_rule_facts(stored, planned))
    differences = [Discrepancy.between(*fact) for fact in facts if fact[1] != fact[2]]
    differences += _differing_tokens(stored.tokens, planned.tokens)
    differences += _differing_encodings(file.path, planned, encode, text)
    compared = len(facts) + len(planned.tokens) + len(select_roundtrip_texts(planned)) + 1
    return VerificationPart(compared, tuple(differences), tuple(_vocab_notes(stored, planned)))


def _rule_facts(stored: Vocab, planned: Vocab) -> Iterator[tuple[str, Any, Any]]:
    """Yield what decides how texts are tokenized: names, with the file's values and the checkpoint's."""
    yield "tokenizer.ggml.model", stored.model, planned.model
    yield "tokenizer.ggml.add_bos_token", stored.add_bos, planned.add_bos
    yield "tokenizer.ggml.add_eos_token", stored.add_eos, planned.add_eos
    if planned.model == "llama":
        yield "tokenizer.ggml.add_space_prefix", stored.add_space_prefix, planned.add_space_prefix
    if planned.chat_template is not None:
        yield "tokenizer.chat_template", stored.chat_template, planned.chat_template
    for role in _CHAT_TOKEN_ROLES:
        if role in stored.special_ids and role in planned.special_ids:
            yield f"{role} token", stored.special_ids[role], planned.special_ids[role]


def _differing_tokens(stored: Sequence[str], planned: Sequence[str]) -> Iterator[Discrepancy]:
    if len(stored) != len(planned):
        yield Discrepancy.between("tokens", len(stored), len(planned))
    differing = [i for i, pair in enumerate(zip(stored, planned, strict=False)) if pair[0] != pair[1]]
    if differing:
        first = differing[0]
        discrepancy = Discrepancy.between(f"token {first}", stored[first], planned[first])
        more = f", and {len(differing) - 1:,} more tokens differ" if len(differing) > 1 else ""
        yield Discrepancy(discrepancy.name, discrepancy.description + more)


def _differing_encodings(
    path: Path, vocab: Vocab, encode: Callable[[str], list[int]], text: str
) -> Iterator[Discrepancy]:
    """Yield texts that llama.cpp, with the file, tokenizes differently from the checkpoint's tokenizer."""
    try:
        check_tokenization(path, encode, vocab)
    except VerificationFailed as error:
        yield Discrepancy("tokens of a sample", error.message)
    (comparable,) = remove_differing_text((text,), vocab.known_differences)
    with Model.open(path, vocab_only=True) as model:
        stored = model.tokenize(comparable, add_special=False, parse_special=True)
    planned = encode(comparable)
    if stored != planned:
        at = common_prefix_length(stored, planned)
        yield Discrepancy.between(f"token {at} of the text", stored[at : at + 4], planned[at : at + 4])


def _vocab_notes(stored: Vocab, planned: Vocab) -> Iterator[Discrepancy]:
    """Yield what is stored differently, which matters only if the texts' tokens differ too."""
    if stored.pre != planned.pre:
        yield Discrepancy.between("tokenizer.ggml.pre", stored.pre, planned.pre)
    for name in ("types", "scores", "merges"):
        pairs = zip(getattr(stored, name), getattr(planned, name), strict=False)
        differing = sum(not values_match(*pair) for pair in pairs)
        if differing:
            yield Discrepancy(f"tokenizer's {name}", f"{differing:,} differ")
    for role in dict.fromkeys((*stored.special_ids, *planned.special_ids)):
        one, other = stored.special_ids.get(role), planned.special_ids.get(role)
        if one != other and (role not in _CHAT_TOKEN_ROLES or None in (one, other)):
            yield Discrepancy.between(f"{role} token", one, other)
    if planned.chat_template is None and stored.chat_template is not None:
        yield Discrepancy.between("tokenizer.chat_template", stored.chat_template, None)
