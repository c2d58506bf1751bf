"""Read what every tokenizer.json has in common, with errors that name the file, the key and the value.

Not here: the two kinds of BPE that llama.cpp has (byte_level_bpe.py, sentencepiece_bpe.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.tokenizer_files import Json, TokenizerFiles

BYTE_TOKENS: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))

# Key of the steps in a Sequence of each component.
_SEQUENCE_KEYS: Final = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
}

# Other models of the tokenizers library -> hint.
_OTHER_MODEL_HINTS: Final = {
    "Unigram": "llama.cpp runs unigram vocabularies (T5, XLM-R) for encoders and T5 only",
    "WordPiece": "llama.cpp runs WordPiece vocabularies (BERT) for encoders only",
    "WordLevel": "llama.cpp has no word-level vocabularies: train the model with a BPE vocabulary",
}


def _model_type_hint(kind: Any) -> str:
    return _OTHER_MODEL_HINTS.get(str(kind), "llama.cpp runs Llama-like models with BPE vocabularies only")


class TokenizerJson:
    """A tokenizer.json whose model is a BPE.

    Attributes:
        path: the file.
        content: the whole file.
        model: its key "model".
        ids: the model's vocabulary, text -> id.

    Raises:
        TokenizerError: the model is not a BPE, or its vocabulary is damaged.
    """

    def __init__(self, path: Path, content: Json) -> None:
        self.path = path
        self.content = content
        self.model: Json = content.get("model") or {}
        # GPT-2's own file is older than the key "type".
        kind = self.model.get("type") or ("BPE" if "merges" in self.model else None)
        if kind != "BPE":
            raise TokenizerError(
                f"{path}: model.type = {json.dumps(kind)} is not BPE", _model_type_hint(kind)
            )
        self.ids: Mapping[str, int] = self._read_ids()

    @classmethod
    def from_files(cls, files: TokenizerFiles) -> TokenizerJson | None:
        """Return the directory's tokenizer.json, also if converted from an older format, or None."""
        if files.tokenizer_json is None:
            return None
        return cls(files.path(files.tokenizer_json_source), files.tokenizer_json)

    @property
    def is_byte_level(self) -> bool:
        """Whether text is converted to GPT-2's byte alphabet before merging."""
        return any(step.get("type") == "ByteLevel" for step in self.steps("pre_tokenizer"))

    @property
    def merges(self) -> list[tuple[str, str]]:
        """The merges in order; in the file each is "a b" or ["a", "b"]."""
        merges = []
        for merge in self.model.get("merges") or ():
            pair = merge.split(" ") if isinstance(merge, str) else merge
            if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair):
                raise TokenizerError(
                    f"{self.path}: model.merges has {json.dumps(merge)}, which is not a pair"
                )
            merges.append((pair[0], pair[1]))
        return merges

    def steps(self, key: str) -> list[Json]:
        """Return the steps of the normalizer, pre_tokenizer or post_processor, from its (nested) Sequence."""
        component = self.content.get(key)
        return [] if component is None else list(self._steps(key, component))

    def require_option(self, key: str, *allowed: Any) -> None:
        """Raise if a model option has another value than those that llama.cpp can do."""
        value = self.model.get(key)
        if value not in allowed:
            raise TokenizerError(
                f"{self.path}: model.{key} = {json.dumps(value)} changes tokens in a way that llama.cpp lacks"
            )

    def error(self, key: str, reason: str, hint: str | None = None) -> TokenizerError:
        """Return an error about a top-level key and its value."""
        value = json.dumps(self.content.get(key), ensure_ascii=False)
        return TokenizerError(f"{self.path}: {key} = {value[:300]} {reason}", hint)

    @property
    def template_tokens(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The special tokens that the post_processor puts before and after a text.

        Raises:
            TokenizerError: the post_processor is of an unknown type.
        """
        tokens: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        for step in self.steps("post_processor"):
            if step.get("type") == "TemplateProcessing":
                tokens = self._parse_template(step)
            elif step.get("type") != "ByteLevel":  # ByteLevel only changes offsets
                raise self.error("post_processor", "is not known")
        return tokens

    def _steps(self, key: str, component: Any) -> Iterator[Json]:
        if not isinstance(component, dict):
            raise self.error(key, "has a step that is not an object")
        if component.get("type") != "Sequence":
            yield component
            return
        inner = component.get(_SEQUENCE_KEYS[key])
        for part in inner if isinstance(inner, list) else ():
            yield from self._steps(key, part)

    def _read_ids(self) -> dict[str, int]:
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

    def _parse_template(self, step: Json) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the special tokens before and after the text in the template for single texts."""
        try:
            single = step["single"]
            names = ["" if "Sequence" in part else str(part["SpecialToken"]["id"]) for part in single]
            index = names.index("")
            return tuple(names[:index]), tuple(names[index + 1 :])
        except (KeyError, TypeError, ValueError) as error:
            raise self.error("post_processor", "is not a template that contains the text") from error
