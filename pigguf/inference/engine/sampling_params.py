"""SamplingParams: how tokens are sampled, and what their text must match."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pigguf.errors import UsageError
from pigguf.llama_cpp_internals.limits import RANDOM_SEED

_MIN_TEMPERATURE = 1e-30  # a logit divided by less may overflow


@dataclass(frozen=True)
class GrammarTrigger:
    """The text after which a grammar is in force, when it is generated for the first time.

    No token is sampled that contains the end of the text and more.

    Attributes:
        text: ASCII.
        at_start: the text counts only at the beginning of the generation, after white space at most.
    """

    text: str
    at_start: bool = False


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled. The defaults are llama.cpp's.

    Attributes:
        temperature: 0 always takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the most likely; 0 drops none.
        repeat_penalty: divides the positive logits of recent tokens and multiplies the negative; 1 is off.
        repeat_last_n: how many tokens back the penalties look; 0 turns them off.
        frequency_penalty: subtracted from a logit for each recent occurrence of the token; 0 is off.
        presence_penalty: subtracted once from the logit of a recent token; 0 is off.
        seed: None takes a random one for each generation.
        grammar: what the text must match, in llama.cpp's GBNF (grammars/README.md) with a rule `root`; None
            is any text. pigguf.grammar makes one of a JSON schema.
        grammar_trigger: the text after which the grammar is in force; None is from the beginning.
        visible_control_token: a control token whose text counts for the grammar and its trigger, or None.

    Raises:
        UsageError: a value is out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    grammar: str | None = None
    grammar_trigger: GrammarTrigger | None = None
    visible_control_token: int | None = None

    def __post_init__(self) -> None:
        self._check("temperature", 0 <= self.temperature < math.inf, "0 or more")
        self._check("top_k", 0 <= self.top_k < 2**31, "0 (all) or more")
        self._check("top_p", 0 < self.top_p <= 1, "above 0, and 1 at most")
        self._check("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._check("repeat_penalty", 0 < self.repeat_penalty < math.inf, "above 0; 1 is off")
        self._check("repeat_last_n", 0 <= self.repeat_last_n < 2**31, "0 (off) or more")
        self._check("frequency_penalty", math.isfinite(self.frequency_penalty), "a number")
        self._check("presence_penalty", math.isfinite(self.presence_penalty), "a number")
        self._check("seed", self.seed is None or 0 <= self.seed < RANDOM_SEED, f"below {RANDOM_SEED}")
        is_grammar = self.grammar is None or _is_c_string(self.grammar)
        self._check("grammar", is_grammar, "a text without null bytes")

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < _MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """Whether recent tokens are penalized."""
        penalties = (self.repeat_penalty != 1, self.frequency_penalty != 0, self.presence_penalty != 0)
        return self.repeat_last_n > 0 and any(penalties)

    def _check(self, name: str, is_valid: bool, rule: str) -> None:
        if not is_valid:
            raise UsageError(f"{name} is {getattr(self, name)}", f"{name} must be {rule}")


def _is_c_string(text: str) -> bool:
    """Return whether all of a text reaches C and is not blank: a part of a grammar would constrain less."""
    return bool(text.strip()) and "\0" not in text and not re.search("[\ud800-\udfff]", text)
