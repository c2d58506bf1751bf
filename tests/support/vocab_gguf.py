"""Load a Vocab in llama.cpp through a vocab-only GGUF, train vocabularies, and generate texts."""

from __future__ import annotations

import ctypes
import json
import os
import random
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from tokenizers import Tokenizer, pre_tokenizers, trainers

from pigguf.gguf_io import write_gguf
from pigguf.gguf_io.metadata import f32, string, u32
from pigguf.tokenizer import ROUNDTRIP_TEXTS, Vocab

END = "<|endoftext|>"

# Hyperparameters that llama.cpp requires before it reads a vocabulary.
_SHAPE = {
    "general.architecture": string("llama"),
    "llama.block_count": u32(1),
    "llama.context_length": u32(64),
    "llama.embedding_length": u32(8),
    "llama.feed_forward_length": u32(8),
    "llama.attention.head_count": u32(1),
    "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
}

# Unicode blocks that random texts use; unassigned characters are left out.
_BLOCKS = (
    (0x20, 0x7F), (0xA0, 0x250), (0x250, 0x370), (0x370, 0x530), (0x530, 0x600), (0x600, 0x700),
    (0x900, 0xE00), (0xE00, 0xE80), (0x1100, 0x1200), (0x1E00, 0x2070), (0x2070, 0x2C00),
    (0x2E80, 0x3400), (0x4E00, 0x4F00), (0xAC00, 0xAD00), (0xF900, 0x10000), (0x10000, 0x11000),
    (0x1D400, 0x1D800), (0x1F000, 0x1FB00),
)  # fmt: skip
_SEPARATORS = " \t\n\r  \u00a0\u3000\u200b\u200d\ufe0f'"

_NO_LOG = llama_cpp.llama_log_callback(lambda level, text, data: None)


class LlamaVocab:
    """A vocabulary that llama.cpp loaded from a file."""

    def __init__(self, path: Path) -> None:
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        # The library has one log callback: tests of pigguf's own need it back.
        callback, data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
        llama_cpp.llama_log_get(ctypes.byref(callback), ctypes.byref(data))
        llama_cpp.llama_log_set(_NO_LOG, ctypes.c_void_p(0))
        try:
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
        finally:
            llama_cpp.llama_log_set(callback, data)
        assert self._model, f"llama.cpp cannot load {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def __del__(self) -> None:
        llama_cpp.llama_model_free(self._model)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        raw = text.encode("utf-8")
        buffer = (llama_cpp.llama_token * (len(raw) + 8))()
        count = llama_cpp.llama_tokenize(self._vocab, raw, len(raw), buffer, len(buffer), add_special, True)
        assert count >= 0
        return list(buffer[:count])

    def fim_token(self, part: str) -> int:
        """Return the fill-in-the-middle token: pre, suf, mid, pad, rep or sep; -1 for none."""
        return int(getattr(llama_cpp, f"llama_vocab_fim_{part}")(self._vocab))

    def is_eog(self, token: int) -> bool:
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))


def load_in_llama_cpp(vocab: Vocab, directory: Path) -> LlamaVocab:
    """Write the vocabulary to a GGUF file and load it in llama.cpp."""
    path = directory / "vocab.gguf"
    name = {"general.name": string(vocab.rstrip_compatible_name("A model"))}
    write_gguf(path, {**_SHAPE, **name, **vocab.metadata()}, [])
    return LlamaVocab(path)


def random_texts(seed: int, count: int) -> list[str]:
    """Return seeded texts of about forty characters from all scripts, with white space and joiners."""
    rng = random.Random(seed)
    return [_random_text(rng, 40) for _ in range(count)]


def _random_text(rng: random.Random, length: int) -> str:
    characters: list[str] = []
    while len(characters) < length:
        block = rng.choice(_BLOCKS) if rng.random() < 0.6 else _BLOCKS[0]
        for _ in range(rng.randint(1, 6)):
            character = rng.choice(_SEPARATORS) if rng.random() < 0.15 else chr(rng.randrange(*block))
            if unicodedata.category(character) not in ("Cn", "Cs", "Co"):
                characters.append(character)
    return "".join(characters)


def training_texts() -> list[str]:
    """Return texts that give merges in every script."""
    source_code = Path(__file__).read_text(encoding="utf-8")
    return [*ROUNDTRIP_TEXTS * 2, *random_texts(seed=1, count=800), source_code * 3]


def assert_same_tokens(
    expected: Callable[[str], list[int]], got: Callable[[str], list[int]], texts: Iterable[str]
) -> None:
    different = [(text, expected(text), got(text)) for text in texts if expected(text) != got(text)]
    if different:
        text, first, second = different[0]
        pytest.fail(f"{len(different)} texts differ; the first is {text!r}: {first} and {second}")


def write_byte_level(
    directory: Path,
    rules: Iterable[Any],
    *,
    ignore_merges: bool = False,
    size: int = 1500,
    special: tuple[str, ...] = (END,),
    texts: list[str] | None = None,
    **top: Any,
) -> dict[str, Any]:
    """Train a byte-level BPE that splits by `rules` and write its files as transformers would.

    `top` replaces top-level keys of tokenizer.json, whose content is returned.
    """
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(rules)},
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": ignore_merges,
            "vocab": {},
            "merges": [],
        },
        **top,
    }
    tokenizer = Tokenizer.from_str(json.dumps(content))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts() if texts is None else texts, trainer)
    written: dict[str, Any] = json.loads(tokenizer.to_str())
    write_json(directory / "tokenizer.json", written)
    write_json(directory / "tokenizer_config.json", {"eos_token": END})
    return written


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Set top-level keys of a JSON file, which is created if it is missing; ... removes a key."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    content.update(changes)
    write_json(path, {key: value for key, value in content.items() if value is not ...})
