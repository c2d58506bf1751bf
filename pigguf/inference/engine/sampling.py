"""How the next token is drawn: a frozen recipe, and the C sampler chain made of it.

Upstream: llama.cpp src/llama-sampler.cpp; the order of the samplers is that of common/sampling.cpp.
As there, a token is drawn first and only where the grammar does not allow it drawn again, of those it
allows. The library ends the process over a token that its grammar does not allow: it must see none.
"""

from __future__ import annotations

import codecs
import ctypes
import math
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import library

if TYPE_CHECKING:
    from pigguf.inference.engine.context import Context
    from pigguf.inference.engine.model import Model

_RANDOM_SEED = 0xFFFFFFFF  # LLAMA_DEFAULT_SEED: the library draws one itself
_ROOT = b"root"  # the rule a grammar begins with
_COLDEST = 1e-30  # a logit divided by less may be no number
_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama.h, llama_token_data


@dataclass(frozen=True)
class Opening:
    """Where a grammar begins to hold: after the first time that this was written. No token goes past its end.

    Attributes:
        text: ASCII.
        is_first: it only counts at the beginning, after white space at most.
    """

    text: str
    is_first: bool = False


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are drawn. The defaults are llama.cpp's.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together reach this probability; 1 keeps all.
        min_p: drop tokens less likely than this fraction of the likeliest; 0 drops none.
        repeat_penalty: divides the positive logits of tokens seen lately, multiplies the negative; 1 is off.
        repeat_last: how many tokens back the penalties look; 0 turns them off.
        frequency_penalty: subtracted from a logit for each time the token was seen lately; 0 is off.
        presence_penalty: subtracted once; 0 is off.
        seed: None draws a new one for every generation.
        grammar: what the text must be, in llama.cpp's GBNF (grammars/README.md) with a rule `root`; None is
            any text. For JSON, grammar.json_grammar makes one of a schema.
        grammar_after: what comes before the text that the grammar describes; None is nothing.
        shown: the control token whose name is text, for a grammar and what comes before it; None is none.

    Raises:
        UsageError: a value outside its range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    grammar: str | None = None
    grammar_after: Opening | None = None
    shown: int | None = None

    def __post_init__(self) -> None:
        self._demand("temperature", 0 <= self.temperature < math.inf, "0 or more")
        self._demand("top_k", 0 <= self.top_k < 2**31, "0 (all) or more")
        self._demand("top_p", 0 < self.top_p <= 1, "above 0, and 1 at most")
        self._demand("min_p", 0 <= self.min_p <= 1, "between 0 and 1")
        self._demand("repeat_penalty", 0 < self.repeat_penalty < math.inf, "above 0; 1 is off")
        self._demand("repeat_last", 0 <= self.repeat_last < 2**31, "0 (off) or more")
        self._demand("frequency_penalty", math.isfinite(self.frequency_penalty), "a number")
        self._demand("presence_penalty", math.isfinite(self.presence_penalty), "a number")
        self._demand("seed", self.seed is None or 0 <= self.seed < _RANDOM_SEED, f"below {_RANDOM_SEED}")
        self._demand("grammar", self.grammar is None or _is_whole(self.grammar), "a text without null bytes")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _COLDEST

    @property
    def has_penalties(self) -> bool:
        changes = (self.repeat_penalty != 1, self.frequency_penalty != 0, self.presence_penalty != 0)
        return self.repeat_last > 0 and any(changes)

    def _demand(self, name: str, right: bool, rule: str) -> None:
        if not right:
            raise UsageError(f"{name} is {getattr(self, name)}", f"{name} must be {rule}")


def _is_whole(text: str) -> bool:
    """Whether all of a text arrives in C, and is something: a part, or nothing, would hold to less."""
    return bool(text.strip()) and "\0" not in text and not re.search("[\ud800-\udfff]", text)


class Sampler:
    """Draws the next token, and remembers what it drew; made by `sampler`."""

    def __init__(self, sampling: SamplingParams, chain: Any, grammar: _Grammar | None) -> None:
        self._llama = library.load()
        self._sampling = sampling
        self._chain = chain
        self._grammar = grammar
        self._takes_largest = sampling.is_greedy and grammar is None and not sampling.has_penalties

    def draw(self, context: Context, index: int = -1) -> int:
        """A token from the last batch's logits after its token `index`, -1 for the last kept.

        Raises:
            EngineError: the vocabulary has no token that the grammar allows.
        """
        if self._takes_largest:
            return int(context.logits(index).argmax())  # ten times as fast as the chain
        if self._grammar is None:
            return int(self._llama.llama_sampler_sample(self._chain, context.handle, index))
        token, _ = self._choose(context.logits(index))
        self._accept(token)
        return token

    def draw_of_batch(self, context: Context, index: int, lead: float) -> int | None:
        """As draw; at temperature 0 None, and nothing is remembered, where another token's logit comes
        closer than `lead`."""
        if not self._sampling.is_greedy:
            return self.draw(context, index)
        logits = context.logits(index)
        if self._takes_largest:
            token = place = int(logits.argmax())
        else:
            token, tried = self._choose(logits)
            logits = tried["logit"]
            place = int(np.flatnonzero(tried["id"] == token)[0])
        if logits[place] - _largest_but(logits, place) < lead:
            return None
        self._accept(token)
        return token

    def _choose(self, logits: NDArray[np.float32]) -> tuple[int, NDArray[Any]]:
        """The token to draw, and what it was chosen from, as the chain sees it."""
        candidates = _candidates(logits)
        token, tried = self._pick(candidates)
        while self._grammar is not None and not self._grammar.allows(token):
            candidates = self._grammar.allowed(candidates[candidates["id"] != token])
            token, tried = self._pick(candidates)
        return token, tried

    def _accept(self, token: int) -> None:
        if self._grammar is not None:
            self._grammar.accept(token)
        self._llama.llama_sampler_accept(self._chain, token)

    def _pick(self, candidates: NDArray[Any]) -> tuple[int, NDArray[Any]]:
        tried = candidates.copy()  # named: C only has its address
        array = _apply(self._llama, self._chain, tried)
        return int(array.data[array.selected].id), tried


@contextmanager
def sampler(sampling: SamplingParams, model: Model, recent: Sequence[int]) -> Iterator[Sampler]:
    """A sampler that has seen the tokens `recent`; what it holds in C is freed at the end of the block.

    Raises:
        UsageError: the grammar is none.
    """
    llama = library.load()
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    grammar: _Grammar | None = None
    try:
        if sampling.grammar is not None:
            grammar = _Grammar(model, sampling.grammar, sampling.grammar_after, sampling.shown)
        for link in _chain(llama, sampling, model.vocab_size):
            llama.llama_sampler_chain_add(chain, link)
        for token in recent[-sampling.repeat_last :] if sampling.repeat_last else ():
            llama.llama_sampler_accept(chain, token)
        yield Sampler(sampling, chain, grammar)
    finally:
        llama.llama_sampler_free(chain)
        if grammar is not None:
            grammar.free()


class _Grammar:
    """The state of a text that a grammar describes, from an opening on where there is one.

    Raises:
        UsageError: it cannot be parsed.
    """

    def __init__(
        self, model: Model, grammar: str, opening: Opening | None = None, shown: int | None = None
    ) -> None:
        self._llama = library.load()
        self._model = model
        self._shown = shown
        vocab = self._llama.llama_model_get_vocab(model.handle)
        with library.complaints() as said:
            self._sampler = self._llama.llama_sampler_init_grammar(vocab, grammar.encode(), _ROOT)
        if not self._sampler:
            reason = said[0] if said else "it gives no reason"
            raise UsageError(f"llama.cpp refuses the grammar: {reason}", "see its grammars/README.md")
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._wait = _Wait(model, opening, shown) if opening else None

    def allows(self, token: int) -> bool:
        """Whether this token may come next: much quicker to say than which ones may."""
        if self._wait is not None:
            return self._wait.allows(token)
        one = _candidates(np.zeros(1, np.float32))
        one["id"] = token
        return len(self._of(one)) == 1 and self._is_text(token)

    def _is_text(self, token: int) -> bool:
        """Control tokens write nothing, but the library knows them by name; nor does it see all bytes that
        are no UTF-8."""
        piece, state = self._model.piece(token, special=token == self._shown), self._utf8.getstate()
        try:
            self._utf8.decode(piece)
        except UnicodeDecodeError:
            return False
        finally:
            self._utf8.setstate(state)
        return bool(piece) or self._model.is_end(token)

    def allowed(self, candidates: NDArray[Any]) -> NDArray[Any]:
        """Those of the candidates that may come next, before a look at what they write.

        Raises:
            EngineError: there are none.
        """
        if self._wait is not None:
            return candidates
        allowed = self._of(candidates)
        if not len(allowed):
            raise EngineError(
                f"{self._model.path} has no token for what the grammar demands here",
                "its vocabulary lacks a character: take a grammar or a schema without it",
            )
        return allowed

    def _of(self, candidates: NDArray[Any]) -> NDArray[Any]:
        _apply(self._llama, self._sampler, candidates)
        return candidates[candidates["logit"] > -math.inf]

    def accept(self, token: int) -> None:
        if self._wait is not None:
            if self._wait.ends_with(token):
                self._wait = None
            return
        self._llama.llama_sampler_accept(self._sampler, token)
        self._utf8.decode(self._model.piece(token))

    def free(self) -> None:
        self._llama.llama_sampler_free(self._sampler)


class _Wait:
    """Watches what is drawn for an opening."""

    def __init__(self, model: Model, opening: Opening, shown: int | None) -> None:
        self._model = model
        self._opening = opening
        self._shown = shown
        self._sought = opening.text.encode()
        self._seen = b""  # what it may begin in
        self._is_late = False  # for one that only counts at the beginning

    def allows(self, token: int) -> bool:
        """Whether this token does not go past the opening's end: a grammar begins with a whole token."""
        return self._rest(token) in (None, b"")

    def ends_with(self, token: int) -> bool:
        """Whether it is there once this token is drawn, which is."""
        if self._rest(token) is not None:
            return True
        seen = self._seen + self._written(token)
        if self._opening.is_first and not self._sought.startswith(seen.lstrip()):
            self._is_late = True
        self._seen = seen.lstrip() if self._opening.is_first else seen[1 - len(self._sought) :]
        return False

    def _rest(self, token: int) -> bytes | None:
        """What would stand after the opening; None where it would not be there."""
        if self._is_late:
            return None
        before, found, rest = (self._seen + self._written(token)).partition(self._sought)
        return rest if found and not (self._opening.is_first and before.strip()) else None

    def _written(self, token: int) -> bytes:
        return self._model.piece(token, special=token == self._shown)


def _largest_but(logits: NDArray[np.float32], place: int) -> float:
    """The largest of the logits but the one at `place`."""
    sides = logits[:place], logits[place + 1 :]
    return max(float(side.max(initial=-math.inf)) for side in sides)


def _candidates(logits: NDArray[np.float32]) -> NDArray[Any]:
    """All tokens with their logits, as the library's samplers take them."""
    candidates = np.zeros(len(logits), _CANDIDATE)
    candidates["id"] = np.arange(len(logits))
    candidates["logit"] = logits
    return candidates


def _apply(llama: Any, sampler: Any, candidates: NDArray[Any]) -> Any:
    """What a sampler makes of candidates: they change in place; the token it selects is in the answer."""
    data = ctypes.cast(candidates.ctypes.data, llama.llama_token_data_p)
    array = llama.llama_token_data_array(data, len(candidates), -1, False)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    return array


def _chain(llama: Any, sampling: SamplingParams, vocab_size: int) -> Iterator[Any]:
    yield llama.llama_sampler_init_penalties(
        vocab_size,
        sampling.repeat_last,
        sampling.repeat_penalty,
        sampling.frequency_penalty,
        sampling.presence_penalty,
    )
    if sampling.is_greedy:
        yield llama.llama_sampler_init_greedy()
        return
    yield llama.llama_sampler_init_top_k(sampling.top_k)
    yield llama.llama_sampler_init_top_p(sampling.top_p, 1)
    yield llama.llama_sampler_init_min_p(sampling.min_p, 1)
    yield llama.llama_sampler_init_temp(sampling.temperature)
    yield llama.llama_sampler_init_dist(
        secrets.randbelow(_RANDOM_SEED) if sampling.seed is None else sampling.seed
    )
