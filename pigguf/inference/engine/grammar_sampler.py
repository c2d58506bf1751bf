"""GrammarSampler: which tokens a GBNF grammar allows next, from its trigger text on.

The library ends the process over a token that its grammar does not allow, so it must never see one. Upstream:
llama.cpp src/llama-grammar.cpp, grammars/README.md.
"""

from __future__ import annotations

import codecs
import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import library
from pigguf.inference.engine.model import Model
from pigguf.inference.engine.sampling_params import GrammarTrigger

_ROOT_RULE = b"root"
_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # llama.h, llama_token_data


class GrammarSampler:
    """The state of a grammar during a generation; before its trigger text, if it has one, it allows any text.

    Raises:
        UsageError: the grammar cannot be parsed.
    """

    def __init__(
        self,
        model: Model,
        grammar: str,
        trigger: GrammarTrigger | None = None,
        visible_control_token: int | None = None,
    ) -> None:
        self._llama = library.load()
        self._model = model
        self._visible_control_token = visible_control_token
        vocab = self._llama.llama_model_get_vocab(model.handle)
        with library.capture_errors() as errors:
            self._sampler = self._llama.llama_sampler_init_grammar(vocab, grammar.encode(), _ROOT_RULE)
        if not self._sampler:
            reason = library.failure_reason(errors)
            raise UsageError(f"llama.cpp rejects the grammar: {reason}", "see its grammars/README.md")
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._trigger = _TriggerMatcher(model, trigger, visible_control_token) if trigger else None

    def allows(self, token: int) -> bool:
        """Return whether this token may come next, which is much faster than a list of those that may."""
        if self._trigger is not None:
            return self._trigger.allows(token)
        candidate = token_candidates(np.zeros(1, np.float32))
        candidate["id"] = token
        return len(self._filter(candidate)) == 1 and self._is_valid_text(token)

    def _is_valid_text(self, token: int) -> bool:
        """Return whether a token's bytes continue the text as UTF-8, and are not empty.

        The library takes control tokens, which have no text, by their names; and it misses some invalid
        UTF-8.
        """
        piece = self._model.token_to_piece(token, special=token == self._visible_control_token)
        state = self._utf8.getstate()
        try:
            self._utf8.decode(piece)
        except UnicodeDecodeError:
            return False
        finally:
            self._utf8.setstate(state)
        return bool(piece) or self._model.is_eog(token)

    def allowed(self, candidates: NDArray[Any]) -> NDArray[Any]:
        """Return the candidates that the grammar allows next; their text is not checked as UTF-8.

        Raises:
            EngineError: there are none.
        """
        if self._trigger is not None:
            return candidates
        allowed = self._filter(candidates)
        if not len(allowed):
            raise EngineError(
                f"{self._model.path} has no token for what the grammar demands here",
                "its vocabulary lacks a character: take a grammar or a schema without it",
            )
        return allowed

    def _filter(self, candidates: NDArray[Any]) -> NDArray[Any]:
        apply_sampler(self._llama, self._sampler, candidates)
        return candidates[candidates["logit"] > -math.inf]

    def accept(self, token: int) -> None:
        """Advance by a token that is allowed."""
        if self._trigger is not None:
            if self._trigger.completes(token):
                self._trigger = None
            return
        self._llama.llama_sampler_accept(self._sampler, token)
        self._utf8.decode(self._model.token_to_piece(token))

    def free(self) -> None:
        """Free the C object."""
        self._llama.llama_sampler_free(self._sampler)


class _TriggerMatcher:
    """Looks for a trigger text in what is generated."""

    def __init__(self, model: Model, trigger: GrammarTrigger, visible_control_token: int | None) -> None:
        self._model = model
        self._at_start = trigger.at_start
        self._visible_control_token = visible_control_token
        self._text = trigger.text.encode()
        self._tail = b""  # the end of the text so far, in which the trigger may begin
        self._is_missed = False  # of a trigger that counts only at the start

    def allows(self, token: int) -> bool:
        """Return whether a token does not extend past the trigger: a grammar begins with a whole token."""
        return self._text_after_trigger(token) in (None, b"")

    def completes(self, token: int) -> bool:
        """Record an allowed token, and return whether it completes the trigger."""
        if self._text_after_trigger(token) is not None:
            return True
        tail = self._tail + self._piece(token)
        if self._at_start and not self._text.startswith(tail.lstrip()):
            self._is_missed = True
        self._tail = tail.lstrip() if self._at_start else tail[1 - len(self._text) :]
        return False

    def _text_after_trigger(self, token: int) -> bytes | None:
        """Return what a token would write after the trigger; None if the trigger would not be complete."""
        if self._is_missed:
            return None
        before, trigger, after = (self._tail + self._piece(token)).partition(self._text)
        return after if trigger and not (self._at_start and before.strip()) else None

    def _piece(self, token: int) -> bytes:
        return self._model.token_to_piece(token, special=token == self._visible_control_token)


def token_candidates(logits: NDArray[np.float32]) -> NDArray[Any]:
    """Return all tokens with their logits, (vocab_size,), as an array of llama_token_data."""
    candidates = np.zeros(len(logits), _CANDIDATE)
    candidates["id"] = np.arange(len(logits))
    candidates["logit"] = logits
    return candidates


def apply_sampler(llama: Any, sampler: Any, candidates: NDArray[Any]) -> Any:
    """Apply a C sampler to candidates, which change in place, and return the llama_token_data_array.

    Its `selected` is the index of the token that the sampler selected.
    """
    data = ctypes.cast(candidates.ctypes.data, llama.llama_token_data_p)
    array = llama.llama_token_data_array(data, len(candidates), -1, False)
    llama.llama_sampler_apply(sampler, ctypes.byref(array))
    return array
