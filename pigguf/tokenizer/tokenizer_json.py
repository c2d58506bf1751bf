"""What every tokenizer.json has in common, read with its file, key and value at hand for errors.

Left out: the two styles of BPE that llama.cpp runs (byte_level.py, sentencepiece_style.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.tokenizer_files import Json, TokenizerFiles

BYTE_TOKENS: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Where a sequence of each kind keeps its steps.
_INNER: Final = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
}

# What llama.cpp does with the other models of the tokenizers library.
_OTHER_MODELS: Final = {
    "Unigram": "llama.cpp runs unigram vocabularies (T5, XLM-R) for encoders and T5 only",
    "WordPiece": "llama.cpp runs WordPiece vocabularies (BERT) for encoders only",
    "WordLevel": "llama.cpp has no vocabulary of whole words: train the model with a BPE vocabulary",
}


def _hint(kind: Any) -> str:
    return _OTHER_MODELS.get(str(kind), "llama.cpp runs Llama-like models with BPE vocabularies only")


class TokenizerJson:
    """A tokenizer.json whose model is a BPE.

    Attributes:
        path: the file.
        content, model: the whole, and its model.
        ids: the model's vocabulary, text -> id.

    Raises:
        TokenizerError: the model is no BPE, or not whole.
    """

    def __init__(self, path: Path, content: Json) -> None:
        self.path = path
        self.content = content
        self.model: Json = content.get("model") or {}
        # GPT-2's own file, one of the first, does not name the type.
        kind = self.model.get("type") or ("BPE" if "merges" in self.model else None)
        if kind != "BPE":
            raise TokenizerError(f"{path}: model.type = {json.dumps(kind)} is not BPE", _hint(kind))
        self.ids: Mapping[str, int] = self._ids()

    @classmethod
    def of(cls, files: TokenizerFiles) -> TokenizerJson | None:
        """The directory's tokenizer.json or an older form of it, or None where there is none."""
        if files.tokenizer is None:
            return None
        return cls(files.path(files.tokenizer_file), files.tokenizer)

    @property
    def is_byte_level(self) -> bool:
        """Whether text is turned into GPT-2's byte alphabet before merging."""
        return any(step.get("type") == "ByteLevel" for step in self.steps("pre_tokenizer"))

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges in order, from either way of writing them: "a b" or ["a", "b"]."""
        merges = []
        for merge in self.model.get("merges") or ():
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
                raise TokenizerError(f"{self.path}: model.merges holds {json.dumps(merge)}, which is no pair")
            merges.append((pair[0], pair[1]))
        return merges

    def steps(self, key: str) -> list[Json]:
        """The steps of the normalizer, pre_tokenizer or post_processor, out of its (nested) sequence."""
        component = self.content.get(key)
        return [] if component is None else list(self._steps(key, component))

    def expect(self, key: str, *allowed: Any) -> None:
        """Refuse a model option that changes tokens in a way llama.cpp does not have."""
        value = self.model.get(key)
        if value not in allowed:
            raise TokenizerError(
                f"{self.path}: model.{key} = {json.dumps(value)} changes tokens in a way that llama.cpp lacks"
            )

    def refuse(self, key: str, reason: str, hint: str | None = None) -> TokenizerError:
        """An error about a top-level key and its value."""
        value = json.dumps(self.content.get(key), ensure_ascii=False)
        return TokenizerError(f"{self.path}: {key} = {value[:300]} {reason}", hint)

    @property
    def around(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tokens that the post_processor puts before a text and after it.

        Raises:
            TokenizerError: it is of a kind that is not known.
        """
        around: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        for step in self.steps("post_processor"):
            if step.get("type") == "TemplateProcessing":
                around = self._template(step)
            elif step.get("type") != "ByteLevel":  # ByteLevel only moves offsets
                raise self.refuse("post_processor", "is not known")
        return around

    def _steps(self, key: str, component: Any) -> Iterator[Json]:
        if not isinstance(component, dict):
            raise self.refuse(key, "holds a step that is no object")
        if component.get("type") != "Sequence":
            yield component
            return
        inner = component.get(_INNER[key])
        for part in inner if isinstance(inner, list) else ():
            yield from self._steps(key, part)

    def _ids(self) -> dict[str, int]:
        vocab: dict[str, int] = self.model.get("vocab") or {}
        if not vocab:
            raise TokenizerError(f"{self.path}: model.vocab is missing or empty", "download the file again")
        for text, token in vocab.items():
            if token is None or token < 0:
                raise TokenizerError(f"{self.path}: model.vocab gives {text!r} the id {json.dumps(token)}")
        if len(set(vocab.values())) < len(vocab):
            seen: dict[int, str] = {}
            for text, token in vocab.items():
                if token in seen:
                    raise TokenizerError(
                        f"{self.path}: model.vocab gives the id {token} to {seen[token]!r} and to {text!r}"
                    )
                seen[token] = text
        return vocab

    def _template(self, step: Json) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The special tokens before and after the text in a template for single texts."""
        try:
            parts = step["single"]
            names = ["" if "Sequence" in part else str(part["SpecialToken"]["id"]) for part in parts]
            at = names.index("")
            return tuple(names[:at]), tuple(names[at + 1 :])
        except (KeyError, TypeError, ValueError) as error:
            raise self.refuse("post_processor", "is no template that holds the text") from error
