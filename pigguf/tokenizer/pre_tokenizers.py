"""How byte-level BPE splits text before merging: rules of a tokenizer.json <-> llama.cpp's names.

tokenizer.json spells the rules out; llama.cpp keeps them in code under a name (`tokenizer.ggml.pre`).
The table reads both ways. A row stands here only because its rules and llama.cpp's code split alike:
tests/tokenizer/test_pre_tokenizers.py trains a vocabulary for each row and compares tokens.
Names and regexes: llama.cpp src/llama-vocab.cpp; rules: the models' own tokenizer.json.

Left out, because llama.cpp only comes near: tekken, gpt-4o (letter case outside a-z), deepseek-llm
(runs of mixed Unicode spaces).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pigguf.errors import TokenizerError

Rule = Mapping[str, Any]
"""One step of a pre_tokenizer, as tokenizer.json has it."""


def _isolated(regex: str) -> Rule:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _kept(regex: str) -> Rule:
    """Keep the matches and drop the rest: the same as isolated for a regex that leaves nothing out."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}


def _byte_level(use_regex: bool) -> Rule:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS: Final[Rule] = {"type": "Digits", "individual_digits": True}
_BYTES: Final = _byte_level(use_regex=False)
_GPT2: Final = _byte_level(use_regex=True)  # ByteLevel's own regex is GPT-2's

_WORDS_AND_DIGITS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3: Final = _WORDS_AND_DIGITS % r"\p{N}{1,3}"
_QWEN2: Final = _WORDS_AND_DIGITS % r"\p{N}"


@dataclass(frozen=True)
class PreTokenizer:
    """One row.

    Attributes:
        name: the name to write into a GGUF file.
        spellings: the rules; the first spelling is the one to write, others mean the same.
        ignore_merges: whether a word that is a token as a whole is taken without merging.
        aliases: llama.cpp's other names for the same code.
        adds_bos: llama.cpp's default for add_bos_token under these names.
    """

    name: str
    spellings: tuple[tuple[Rule, ...], ...]
    ignore_merges: bool = False
    aliases: tuple[str, ...] = ()
    adds_bos: bool = False

    @property
    def rules(self) -> tuple[Rule, ...]:
        return self.spellings[0]


PRE_TOKENIZERS: Final = (
    PreTokenizer(
        "gpt-2",
        ((_GPT2,),),
        aliases=(
            "phi-2",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ),
    ),
    PreTokenizer(
        "smollm",
        ((_DIGITS, _GPT2),),
        aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer(
        "llama-bpe",
        ((_isolated(_LLAMA3), _BYTES), (_kept(_LLAMA3), _BYTES)),
        ignore_merges=True,
        aliases=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        adds_bos=True,
    ),
    PreTokenizer(
        "dbrx",
        ((_isolated(_LLAMA3), _BYTES), (_kept(_LLAMA3), _BYTES)),
        aliases=("smaug-bpe",),
    ),
    PreTokenizer(
        "qwen2",
        ((_isolated(_QWEN2), _BYTES), (_kept(_QWEN2), _BYTES)),
        aliases=(
            "deepseek-r1-qwen",
            "megrez",
            "stablelm2",
            "kormo",
            "f2llmv2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ),
    ),
    # llama.cpp takes every Unicode space for one and the same here, tokenizer.json counts U+2000 to
    # U+3000 among the Chinese characters: a vocabulary with merges across the two would differ.
    # DeepSeek's own has none, and convert proves each vocabulary with such texts among its samples.
    PreTokenizer(
        "deepseek-coder",
        (
            (
                _isolated("[\r\n]"),
                _isolated(r"\s?\p{L}+"),
                _isolated(r"\s?\p{P}+"),
                _isolated("[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"),
                _DIGITS,
                _BYTES,
            ),
        ),
    ),
)

_BY_NAME: Final = {name: row for row in PRE_TOKENIZERS for name in (row.name, *row.aliases)}


def recognise(steps: Sequence[Rule], ignore_merges: bool, file: str) -> PreTokenizer:
    """The row whose rules a tokenizer.json spells out.

    Args:
        steps: the file's pre_tokenizer, step by step.
        ignore_merges: the file's model.ignore_merges.
        file: named in the error.

    Raises:
        TokenizerError: no row has these rules.
    """
    for row in PRE_TOKENIZERS:
        if row.ignore_merges == ignore_merges and _essence(steps) in map(_essence, row.spellings):
            return row
    spelled = json.dumps(list(steps), ensure_ascii=False)
    raise TokenizerError(
        f"{file}: the rules pre_tokenizer = {spelled} with ignore_merges = {json.dumps(ignore_merges)} "
        "are none that llama.cpp is known to split by",
        f"known are the rules of {', '.join(row.name for row in PRE_TOKENIZERS)}",
    )


def pre_tokenizer_named(name: str) -> PreTokenizer:
    """The row behind a GGUF file's tokenizer.ggml.pre.

    Raises:
        TokenizerError: no row has that name.
    """
    if name not in _BY_NAME:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {name!r}, whose rules have no exact form in tokenizer.json",
            f"known are {', '.join(_BY_NAME)}",
        )
    return _BY_NAME[name]


def adds_bos_by_default(name: str) -> bool:
    """Whether llama.cpp puts BOS before texts under this name where the file does not say."""
    return name in _BY_NAME and _BY_NAME[name].adds_bos


def _essence(rules: Sequence[Rule]) -> list[Rule]:
    """Rules without what changes no token, and with the default of an absent key."""
    return [
        {"use_regex": True, **{key: value for key, value in rule.items() if key != "trim_offsets"}}
        if rule.get("type") == "ByteLevel"
        else rule
        for rule in rules
    ]
