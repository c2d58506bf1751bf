"""Pre-tokenizers of byte-level BPE: rules of a tokenizer.json <-> llama.cpp's names for them.

A pre-tokenizer splits text before merging. tokenizer.json spells out its rules; llama.cpp has them in code
under a name (`tokenizer.ggml.pre`). PRE_TOKENIZERS is used in both directions. It lists only rules that
llama.cpp's code splits by in the same way, except for the known_differences:
tests/tokenizer/test_pre_tokenizers.py trains a vocabulary for each and compares the tokens.

Not listed: names for which no published tokenizer.json is known (viking, superbpe, youtu ...), and those
that llama.cpp only approximates in ways that no TokenizerDifference describes (tiny_aya, afmoe, kimi-k2).
Source: llama.cpp src/llama-vocab.cpp for names and regexes; the models' own tokenizer.json for the rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.known_differences import TokenizerDifference

Rule = Mapping[str, Any]
"""One step of a pre_tokenizer, as tokenizer.json has it."""


def _isolated(regex: str) -> Rule:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _matches_only(regex: str) -> Rule:
    """Return a split that keeps only the matches; the same as isolated if the regex matches everything."""
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed", "invert": True}


def _byte_level(use_regex: bool) -> Rule:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_DIGITS: Final[Rule] = {"type": "Digits", "individual_digits": True}
_BYTES: Final = _byte_level(use_regex=False)
_GPT2: Final = _byte_level(use_regex=True)  # ByteLevel's built-in regex is GPT-2's

_SUFFIXES: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_DIGITS: Final = (
    _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3: Final = _WORDS_AND_DIGITS % r"\p{N}{1,3}"
_QWEN2: Final = _WORDS_AND_DIGITS % r"\p{N}"

# The same as tiktoken writes it for cl100k_base (tiktoken_ext/openai_public.py).
_CL100K: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|%s| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)

# tiktoken's o200k_base: a word begins where an upper-case letter follows a lower-case one.
_CASED_WORDS: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K: Final = _CASED_WORDS % (_SUFFIXES + "?", _SUFFIXES + "?", r"\p{N}{1,3}")
_TEKKEN: Final = _CASED_WORDS % ("", "", r"\p{N}")

_DEEPSEEK_CHINESE: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_LLM_WORDS: Final = (
    r"\s?[A-Za-z"
    "\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481"
    "\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d"
    "\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4"
    "\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
    "]+"
)
_DEEPSEEK_V3_WORDS: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)


def _regex_variants(*regexes: str) -> tuple[tuple[Rule, ...], ...]:
    """Return variants of a split by a regex that matches everything, followed by bytes."""
    return tuple((split(regex), _BYTES) for regex in regexes for split in (_isolated, _matches_only))


@dataclass(frozen=True)
class PreTokenizer:
    """A pre-tokenizer that llama.cpp has.

    Attributes:
        name: the name to write into a GGUF file.
        rule_variants: equivalent rules as tokenizer.json files have them; the first is the one to write.
        ignore_merges: whether a word that is a token is not split and merged.
        aliases: llama.cpp's other names for the same code.
        adds_bos: llama.cpp's default of add_bos_token under these names.
        known_differences: how llama.cpp differs from the rules.
    """

    name: str
    rule_variants: tuple[tuple[Rule, ...], ...]
    ignore_merges: bool = False
    aliases: tuple[str, ...] = ()
    adds_bos: bool = False
    known_differences: tuple[TokenizerDifference, ...] = ()

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules to write into a tokenizer.json."""
        return self.rule_variants[0]


PRE_TOKENIZERS: Final = (
    PreTokenizer(
        "gpt-2",
        (
            (_GPT2,),
            *_regex_variants(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"),
        ),
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
        ((_DIGITS, _GPT2), (_isolated(r"\p{N}"), _GPT2)),
        aliases=("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    ),
    PreTokenizer(
        "llama-bpe",
        _regex_variants(_LLAMA3, _CL100K % r"\p{N}{1,3}"),
        ignore_merges=True,
        aliases=(
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        adds_bos=True,
    ),
    PreTokenizer(
        "dbrx",
        _regex_variants(_LLAMA3, _CL100K % r"\p{N}{1,3}"),
        aliases=("smaug-bpe", "chatglm-bpe"),
    ),
    PreTokenizer(
        "qwen2",
        _regex_variants(_QWEN2, _CL100K % r"\p{N}"),
        aliases=(
            "deepseek-r1-qwen",
            "megrez",
            "stablelm2",
            "kormo",
            "f2llmv2",
            "hunyuan",
            "solar-open",
            "grok-2",
            "bailingmoe",
            "bailingmoe2",
            "llada-moe",
        ),
    ),
    PreTokenizer(
        "qwen35",
        _regex_variants(
            _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
    ),
    # tokenizers looks for digits in byte-level text, where the bytes of ² and ¾ count as digits (B2, BE ...):
    # it splits an "м" (D0 BC). llama.cpp does not, and a vocabulary trained with these rules has no merge
    # across such a split.
    PreTokenizer(
        "falcon",
        (
            (
                {"type": "Punctuation", "behavior": "Contiguous"},
                _GPT2,
                {"type": "Digits", "individual_digits": False},
                _isolated("[0-9][0-9][0-9]"),
            ),
        ),
    ),
    PreTokenizer(
        "bloom",
        ((_isolated(" ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"), _BYTES),),
        aliases=("poro-chat", "gpt3-finnish"),
    ),
    # llama.cpp treats all Unicode spaces alike here, while tokenizer.json counts U+2000 to U+3000 as Chinese
    # characters: a vocabulary with merges across the two would differ. DeepSeek's own has none, and
    # convert checks every vocabulary with such texts.
    PreTokenizer(
        "deepseek-coder",
        (
            (
                _isolated("[\r\n]"),
                _isolated(r"\s?\p{L}+"),
                _isolated(r"\s?\p{P}+"),
                _isolated(_DEEPSEEK_CHINESE),
                _DIGITS,
                _BYTES,
            ),
        ),
    ),
    PreTokenizer(
        "deepseek-llm",
        (
            (
                _isolated("[\r\n]"),
                _isolated(_DEEPSEEK_LLM_WORDS),
                _isolated("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"),
                _isolated(r"\s+$"),
                _isolated(_DEEPSEEK_CHINESE),
                _DIGITS,
                _BYTES,
            ),
        ),
        known_differences=(TokenizerDifference.MIXED_SPACES,),
    ),
    PreTokenizer(
        "deepseek-v3",
        (
            (
                _isolated(r"\p{N}{1,3}"),
                _isolated("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
                _isolated(_DEEPSEEK_V3_WORDS),
                _BYTES,
            ),
        ),
        aliases=("hunyuan-dense", "joyai-llm", "hy_v4"),
    ),
    PreTokenizer(
        "tekken",
        _regex_variants(_TEKKEN),
        ignore_merges=True,
        adds_bos=True,
        known_differences=(TokenizerDifference.LETTER_CASE, TokenizerDifference.COMBINING_MARKS),
    ),
    PreTokenizer(
        "gpt-4o",
        _regex_variants(_O200K),
        aliases=("llama4", "kanana2", "talkie", "minimax-m2"),
        known_differences=(TokenizerDifference.LETTER_CASE, TokenizerDifference.COMBINING_MARKS),
    ),
    # The same rules under the only name with ignore_merges; it does not split off combining marks.
    PreTokenizer(
        "granite-embed-multi-97m",
        _regex_variants(_O200K),
        ignore_merges=True,
        known_differences=(TokenizerDifference.LETTER_CASE,),
    ),
    PreTokenizer(
        "jais-2",
        _regex_variants(
            _SUFFIXES
            + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}"
        ),
    ),
    PreTokenizer(
        "seed-coder",
        _regex_variants(
            _SUFFIXES + "|[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\r\n]+|\\s*[\r\n]+"
            r"|\s+(?!\S)|\s+"
        ),
    ),
    PreTokenizer(
        "exaone-moe",
        _regex_variants(
            _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        ),
    ),
    PreTokenizer(
        "minicpm5",
        ((_isolated(r"\p{N}{1,3}"), _isolated(_WORDS_AND_DIGITS % r"\p{N}+"), _BYTES),),
        ignore_merges=True,
    ),
)

_BY_NAME: Final = {
    name: pre_tokenizer
    for pre_tokenizer in PRE_TOKENIZERS
    for name in (pre_tokenizer.name, *pre_tokenizer.aliases)
}


def match_pre_tokenizer(steps: Sequence[Rule], ignore_merges: bool, file: str) -> PreTokenizer:
    """Return the pre-tokenizer with the rules of a tokenizer.json.

    Args:
        steps: the file's pre_tokenizer, step by step.
        ignore_merges: the file's model.ignore_merges.
        file: path of the file, for messages.

    Raises:
        TokenizerError: llama.cpp does not have these rules.
    """
    rules = _normalize_rules(steps)
    for pre_tokenizer in PRE_TOKENIZERS:
        variants = map(_normalize_rules, pre_tokenizer.rule_variants)
        if pre_tokenizer.ignore_merges == ignore_merges and rules in variants:
            return pre_tokenizer
    stated = json.dumps(list(steps), ensure_ascii=False)
    raise TokenizerError(
        f"{file}: llama.cpp has no pre-tokenizer with the rules pre_tokenizer = {stated} and "
        f"ignore_merges = {json.dumps(ignore_merges)}",
        f"known are the rules of {', '.join(pre_tokenizer.name for pre_tokenizer in PRE_TOKENIZERS)}",
    )


def pre_tokenizer_by_name(name: str) -> PreTokenizer:
    """Return the pre-tokenizer of a GGUF file's tokenizer.ggml.pre.

    Raises:
        TokenizerError: the name is unknown.
    """
    if name not in _BY_NAME:
        raise TokenizerError(
            f"tokenizer.ggml.pre is {name!r}, whose rules cannot be written exactly in tokenizer.json",
            f"known names: {', '.join(_BY_NAME)}",
        )
    return _BY_NAME[name]


def adds_bos_by_default(name: str) -> bool:
    """Return whether llama.cpp adds BOS under this name if the file does not have add_bos_token."""
    return name in _BY_NAME and _BY_NAME[name].adds_bos


def _normalize_rules(rules: Sequence[Rule]) -> list[Rule]:
    """Return rules without keys that do not change tokens, and with defaults for missing keys."""
    return [
        {"use_regex": True, **{key: value for key, value in rule.items() if key != "trim_offsets"}}
        if rule.get("type") == "ByteLevel"
        else rule
        for rule in rules
    ]
