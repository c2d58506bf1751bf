"""A session: one sequence's tokens in a context, fed, cut back, and continued.

Contract: `tokens` is what the cache holds after every call, whether it ended, failed or was
interrupted. What does not fit is refused before anything is computed. One iterator at a time: where
the tokens change behind the back of a generate or evaluate, it raises at its next step. What lookup decoding
drew ahead of the asking lies in the cache behind `tokens`, and leaves before anything else comes there.
A batch may be drawn from many sessions: `step`. Left out: text (chat/conversation.py, inference/local_model.py), and who takes part in
a step when (serve/scheduler.py).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from time import perf_counter
from types import TracebackType
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pigguf.common.numerics import kl_divergence
from pigguf.errors import ContextOverflow, EngineError, Interrupted, UsageError
from pigguf.inference.engine.context import Context, Row
from pigguf.inference.engine.prefill_backend import Prefiller
from pigguf.inference.engine.prompt_lookup import Lookup, Pace
from pigguf.inference.engine.sampling import Sampler, SamplingParams, sampler
from pigguf.inference.engine.sigint import defer_sigint
from pigguf.progress import SILENT, Progress, stage

StopReason = Literal["end", "length", "window", "interrupted"]
T = TypeVar("T")

_MOST_DIVERGENCE = 0.1  # nats, KL
_CLEAR_LEAD = 0.5  # in logits: mostly above what a batch's kernels round otherwise than those of one token


class Session:
    """One sequence. Made by Context.sequence(); a context manager that gives the sequence back.

    Attributes:
        stop_reason: why the last generate stopped: "end" (the model ended its answer), "length" (the
            limit), "window" (no room for another token), "interrupted"; None before the first and
            while one runs.
        drafted, accepted: tokens that lookup decoding put into batches so far, and those of them that were
            drawn; the others cost time only.
    """

    def __init__(self, context: Context, sequence: int) -> None:
        self.stop_reason: StopReason | None = None
        self.drafted = self.accepted = 0
        self._pace = Pace()
        self._ahead = 0  # rows in the cache behind those of _tokens: drawn tokens that nobody asked for yet
        self._context: Context | None = context
        self._sequence = sequence
        self._tokens: list[int] = []
        self._interrupted = False
        self._moved_from: int | None = None  # where drop moved tokens that remember what is gone
        self._user: object = None  # the iterator whose tokens these are

    @property
    def tokens(self) -> list[int]:
        """A copy of what the cache holds, the token at position i at index i."""
        return list(self._tokens)

    @property
    def n_past(self) -> int:
        """How many tokens the cache holds."""
        return len(self._tokens)

    @property
    def tokens_left(self) -> int:
        """How many more tokens fit into the window."""
        return self.context.length - len(self._tokens)

    @property
    def interrupted(self) -> bool:
        """Whether interrupt() was called and what runs has not stopped yet."""
        return self._interrupted

    @property
    def context(self) -> Context:
        """
        Raises:
            EngineError: the session was closed.
        """
        if self._context is None:
            raise EngineError("the session was closed", "keep its `with` block open while it is used")
        return self._context

    # ---- prefill ---------------------------------------------------------------------------------

    def prefill(self, tokens: Sequence[int], progress: Progress = SILENT) -> None:
        """Append tokens to the cache, a batch at a time. One stage of progress, "prefill", in tokens.

        Ctrl-C stops it within a moment; the session then holds what was done and can go on.

        Raises:
            ContextOverflow: they do not fit; nothing was fed.
            UsageError: a token the vocabulary does not have; nothing was fed.
            Interrupted: interrupt() was called.
            EngineError: the session is closed, or llama.cpp failed.
        """
        tokens = self._checked(tokens)
        size = self.context.batch_size
        self._claim(None)
        with self.context.turn, stage(progress, "prefill", len(tokens), "tokens"):
            for start in range(0, len(tokens), size):
                batch = tokens[start : start + size]
                is_last = start + size >= len(tokens)
                self.context.choose_flash_attention(len(self._tokens), len(tokens) - start)
                self._append(batch, (len(batch) - 1,) if is_last else ())
                progress.advance(len(batch))

    def set_prompt(self, tokens: Sequence[int], progress: Progress = SILENT) -> int:
        """Make the cache hold exactly `tokens`: keep the common prefix, read the rest by the fastest road.

        What was read before Ctrl-C, interrupt() or a failure is in the cache, and in the store where it is
        worth it.

        Returns:
            How many tokens were there already, in the cache or in the store.

        Raises:
            As feed does; nothing is dropped where they do not fit.
        """
        context = self.context
        self._refuse_overflow(0, len(tokens))
        context.model.refuse_unknown_tokens(tokens)
        with context.turn:
            kept = self.reuse_prefix(tokens)
            try:
                self._read(tokens, progress)
            finally:
                if context.prompt_cache is not None and self._moved_from is None:
                    context.prompt_cache.save(self)
        return kept

    def reuse_prefix(self, tokens: Sequence[int]) -> int:
        """Hold as many tokens of the beginning of `tokens` as cache or store have, and no others; how many.

        Raises:
            EngineError: the session is closed.
        """
        with self.context.turn:
            if self.context.prompt_cache is not None:
                if not self._tokens and self._reader_for(len(tokens)):
                    # A state made by the reader lies as it will be used, so that recalling it is a copy.
                    self.context.choose_flash_attention(len(tokens), 1)
                self.context.prompt_cache.restore(self, tokens)
            kept = self.common_prefix_length(tokens)
            self.truncate(kept)
        return kept

    def _read(self, tokens: Sequence[int], progress: Progress) -> None:
        """Feed what the cache does not hold of `tokens`; the last goes to llama.cpp, for its logits."""
        if reader := self._reader_for(len(tokens)):
            self._interrupted = False
            self.context.choose_flash_attention(len(tokens), 1)
            reader.prefill(self, tokens[len(self._tokens) : -1], progress)
        self.prefill(tokens[len(self._tokens) :], progress)

    def _reader_for(self, count: int) -> Prefiller | None:
        """The context's reader, where it is to make the cache hold `count` tokens, but for the last."""
        reader, held = self.context.prefiller, len(self._tokens)
        return reader if reader is not None and reader.is_worth(held, count - 1 - held) else None

    def common_prefix_length(self, tokens: Sequence[int]) -> int:
        """How many tokens at the beginning of `tokens` the cache holds already."""
        pairs = zip(self._tokens, tokens, strict=False)
        return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(self._tokens), len(tokens)))

    def truncate(self, count: int) -> None:
        """Drop all tokens after the first `count`; 0 empties the sequence.

        Raises:
            UsageError: the cache does not hold so many.
        """
        if not 0 <= count <= len(self._tokens):
            raise UsageError(f"{count} tokens cannot be kept of {len(self._tokens)}")
        self._claim(None)
        self._cut(count)

    def copy_prefix_from(self, other: Session, count: int) -> None:
        """Hold the first `count` tokens of another session of this context, in place of what there was.

        The next step or feed of any session moves the data: until then no state of either is taken or set.

        Raises:
            UsageError: the other does not hold so many.
            EngineError: a session is closed, or this model's memory cannot forget a part.
        """
        if not 0 < count <= len(other._tokens):
            raise UsageError(f"{count} tokens cannot be copied of {len(other._tokens)}")
        with self.context.turn, defer_sigint():
            self._claim(None)
            self._tokens = []
            self.context.copy(other._sequence, self._sequence, count)
            self._tokens = other._tokens[:count]
            moved = other._moved_from
            self._moved_from = moved if moved is not None and moved < count else None

    def _cut(self, count: int) -> None:
        with self.context.turn, defer_sigint():
            self.context.cut(self._sequence, count)
            del self._tokens[count:]
            self._ahead = 0
            if self._moved_from is not None and count <= self._moved_from:
                self._moved_from = None

    def _claim(self, user: object) -> None:
        """The tokens are another user's from now on, and nothing is in the cache but them."""
        self._user = user
        self._drop_ahead()

    def _drop_ahead(self) -> None:
        if self._ahead:
            self._cut(len(self._tokens))

    def shift(self, start: int, stop: int) -> None:
        """Drop the tokens at [start, stop) and move those after them to the positions before.

        The keys that move are turned to their new positions by the file's rope. What they were computed
        from is not undone: after the first layer they remember the dropped tokens.

        Raises:
            UsageError: the cache does not hold them, or nothing comes after them.
            EngineError: this model's memory cannot be moved.
        """
        if not 0 <= start < stop < len(self._tokens):
            raise UsageError(f"tokens {start} to {stop} cannot be dropped of {len(self._tokens)}")
        self._claim(None)
        with self.context.turn, defer_sigint():
            self.context.shift(self._sequence, start, stop)
            del self._tokens[start:stop]
            self._moved_from = start if self._moved_from is None else min(start, self._moved_from)
            # llama.cpp turns the keys when it computes next: before that, a state taken would be wrong.
            last = self._tokens.pop()
            self.context.cut(self._sequence, len(self._tokens))
            self._append_one(last)

    # ---- states ----------------------------------------------------------------------------------

    def export_state(self) -> bytearray:
        """The sequence's KV state, laid out as kv_state.py reads it.

        Raises:
            EngineError: the session is empty or closed, or llama.cpp failed.
        """
        with self.context.turn:
            self._drop_ahead()
            return self.context.state(self._sequence)

    def import_state(self, state: bytearray, tokens: Sequence[int]) -> None:
        """Hold `tokens`, whose KV state this is, in place of what there was.

        V must lie as `context.values_transposed` says.

        Raises:
            EngineError: llama.cpp refuses it, or it is of other tokens; the session is empty then.
        """
        with self.context.turn, defer_sigint():
            self._claim(None)
            self._tokens = []
            self.context.set_state(self._sequence, state)
            self._take(tokens)

    def save_state(self, path: str) -> int:
        """Write tokens and KV state to a file, streamed; bytes written.

        Raises:
            EngineError: it could not be written whole.
        """
        with self.context.turn:
            self._drop_ahead()
            return self.context.save_state(self._sequence, path, self._tokens)

    def load_state(self, path: str, tokens: Sequence[int]) -> None:
        """Hold what a file of save_state holds, which is `tokens`, in place of what there was.

        The file must be known to be whole and of a context like this one, V laid out alike.

        Raises:
            EngineError: llama.cpp refuses it, or it holds other tokens; the session is empty then.
        """
        with self.context.turn, defer_sigint():
            self._claim(None)
            self._tokens, self._moved_from = [], None
            found = self.context.load_state(self._sequence, path, len(tokens))
            self._take(found if found == list(tokens) else [])

    def _take(self, tokens: Sequence[int]) -> None:
        """Note the tokens of a state that the cache has taken, if they are as many."""
        if not tokens or self.context.cached(self._sequence) != len(tokens):
            self.context.cut(self._sequence, 0)
            raise EngineError("a KV state does not hold the tokens that it is said to hold")
        self._tokens = [index(token) for token in tokens]

    def evaluate(
        self, tokens: Sequence[int], wanted: Iterable[int], progress: Progress = SILENT
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Feed tokens and yield (i, logits after tokens[i]) for each wanted index i, ascending.

        The logits are float32 of shape (vocab_size,), the caller's own. However many are wanted, those
        of one batch are held at a time. The tokens are fed as the iterator is consumed.

        Raises:
            As feed does, and UsageError for an index outside of tokens, at once.
        """
        batches = self.evaluate_batches(tokens, wanted, _copied, progress)
        return (pair for batch in batches for pair in batch)

    def evaluate_batches(
        self,
        tokens: Sequence[int],
        wanted: Iterable[int],
        reduce: Callable[[list[int], list[NDArray[np.float32]]], T],
        progress: Progress = SILENT,
    ) -> Iterator[T]:
        """As evaluate, but yield what `reduce` makes of each batch's wanted indices and their logits.

        It is called while the logits lie where llama.cpp computed them: nothing is copied, and they are
        not valid after it.

        Raises:
            As evaluate does.
        """
        tokens = self._checked(tokens)
        indices = sorted(set(wanted))
        if indices and not 0 <= indices[0] <= indices[-1] < len(tokens):
            raise UsageError(f"logits were asked for at {indices[0]}..{indices[-1]} of {len(tokens)} tokens")
        user = object()
        self._claim(user)
        return self._evaluate(user, tokens, indices, reduce, progress)

    def _evaluate(
        self,
        user: object,
        tokens: list[int],
        wanted: list[int],
        reduce: Callable[[list[int], list[NDArray[np.float32]]], T],
        progress: Progress,
    ) -> Iterator[T]:
        with stage(progress, "prefill", len(tokens), "tokens"):
            for start, stop, here in _batches(len(tokens), wanted, self.context):
                outputs = [i - start for i in here]
                with self.context.turn:
                    self._refuse_change(user)
                    self._append(tokens[start:stop], outputs)
                    result = reduce(here, [self.context.logits(i) for i in outputs]) if here else None
                progress.advance(stop - start)
                if result is not None:
                    yield result

    def _checked(self, tokens: Sequence[int]) -> list[int]:
        """The tokens, if they can be fed; a request to stop that came earlier is forgotten."""
        tokens = [index(token) for token in tokens]
        self._refuse_overflow(len(self._tokens), len(tokens))
        self.context.model.refuse_unknown_tokens(tokens)
        self._interrupted = False
        return tokens

    def _refuse_overflow(self, held: int, more: int) -> None:
        window = self.context.length
        if held + more > window:
            already = f" and {held:,} are there already" if held else ""
            raise ContextOverflow(
                f"{more:,} tokens do not fit: the window is {window:,} tokens{already}",
                "shorten the text, or take a larger context if the model has one",
            )

    def _refuse_change(self, user: object) -> None:
        """
        Raises:
            EngineError: the session was closed, or its tokens are not those of this iterator any more.
        """
        _ = self.context
        if self._user is not user:
            raise EngineError(
                "the session was put to another use before this text or evaluation was at its end",
                "let one end before the next begins; two at once take two sessions or two open models",
            )

    def _append(self, tokens: list[int], outputs: Sequence[int]) -> None:
        """Decode one batch and note it; for Ctrl-C or interrupt() give it up.

        Where the handler of Ctrl-C does not raise, the batch is computed after all.
        """
        done = False
        while not done:
            with defer_sigint() as held:
                done = self.context.decode(
                    self._sequence,
                    tokens,
                    len(self._tokens),
                    outputs,
                    stop=lambda held=held: held.seen or self._interrupted,  # type: ignore[misc]
                )
                if done:
                    self._tokens += tokens
            if self._interrupted:
                self._interrupted = False
                raise Interrupted(f"prefill was interrupted after {len(self._tokens):,} tokens")

    # ---- decode ----------------------------------------------------------------------------------

    def generate(
        self, sampling: SamplingParams | None = None, limit: int | None = None, *, lookup: bool = True
    ) -> Generator[int, None, None]:
        """Draw tokens after what the cache holds, until the model ends, the limit, or the window.

        The end token is not yielded. A yielded token enters the cache when the next is asked for, so
        that after the last one `tokens` does not hold it; set_prompt feeds what is missing. The last
        token a full window allows has no place in it.

        Args:
            limit: most tokens to yield; None is up to the window's end.
            lookup: draft what repeats the text so far, and draw from it a batch at a time, where that is
                faster (lookup.py). Each token is drawn as without. A batch rounds otherwise than single
                steps do, so that at temperature 0 texts may part where two tokens are as good as equal.

        Raises:
            UsageError: the cache is empty, or the limit is negative.
            EngineError: the session is closed, llama.cpp failed, or the model computes no numbers.
        """
        if limit is not None and limit < 0:
            raise UsageError(f"the limit is {limit} tokens", "give a number from 0")
        if self.context and not self._tokens:
            raise UsageError("there is nothing to continue", "feed the session first")
        user = object()
        self._claim(user)
        lookup = lookup and self.context.observer is None  # which would see drafts that come to nothing
        return self._generate(
            user, sampling or SamplingParams(), math.inf if limit is None else limit, lookup
        )

    def _generate(
        self, user: object, sampling: SamplingParams, limit: float, with_lookup: bool
    ) -> Generator[int, None, None]:
        context = self.context
        model = context.model
        lookup: Lookup | None = None
        drawn = 0
        token: int | None = None
        waiting: deque[int] = deque()
        self.stop_reason = None
        self._interrupted = False
        try:
            with sampler(sampling, model, self._tokens) as drawing:
                while drawn < limit:
                    with context.turn:
                        self._refuse_change(user)
                        if token is not None and self.tokens_left == 0:
                            self.stop_reason = "window"
                            return
                        if token is None:
                            self._compute_logits()
                            self.refuse_no_numbers()
                            token = drawing.draw(context)
                        elif waiting:
                            self._take_row(token)
                            token = waiting.popleft()
                        else:
                            if lookup is None and with_lookup:
                                lookup = Lookup([*self._tokens, token], self._pace)
                            most = min(limit - drawn, self.tokens_left, context.most_outputs) - 1
                            waiting += self._step(token, drawing, lookup, int(most))
                            token = waiting.popleft()
                    if model.is_end(token):
                        self.stop_reason = "end"
                        return
                    yield token
                    drawn += 1
                    if self._interrupted:
                        return
                self.stop_reason = "length"
        finally:
            if self._user is user:
                self._claim(None)
                self.stop_reason = self.stop_reason or "interrupted"

    def _take_row(self, token: int) -> None:
        """The token that is next behind _tokens in the cache has been asked for."""
        if self._ahead:
            self._tokens.append(token)
            self._ahead -= 1
        else:  # dropped meanwhile, so that a state could be taken
            self._append_one(token)

    def _step(self, token: int, drawing: Sampler, lookup: Lookup | None, most: int) -> list[int]:
        """Put a drawn token into the cache and draw what comes after it; more where a draft is right."""
        self._settle()
        draft = lookup.draft(most) if lookup else []
        begun = perf_counter()
        if draft:
            drawn = self._verify(token, draft, drawing)
        else:
            self._append_one(token)
            self.refuse_no_numbers()
            drawn = [drawing.draw(self.context)]
        if lookup:
            lookup.took(1 + len(draft), perf_counter() - begun)
            lookup.extend(drawn)
        return drawn

    def _verify(self, token: int, draft: list[int], drawing: Sampler) -> list[int]:
        """Put a drawn token and a draft into the cache in one batch, draw after each of them while the draft
        is what is drawn, and take the rows of the others out again.

        The rows of tokens that are drawn and not yet asked for are counted in _ahead.
        """
        context, held, batch = self.context, len(self._tokens), (token, *draft)
        drawn: list[int] = []
        try:
            context.decode(self._sequence, batch, held, range(len(batch)))
            for place, expected in enumerate((*draft, None)):
                self.refuse_no_numbers(place)
                found = drawing.draw_of_batch(context, place, _CLEAR_LEAD)
                if found is None:
                    drawn.append(self._drawn_alone(batch[place], held + place, drawing))
                    break
                drawn.append(found)
                if found != expected or context.model.is_end(found):
                    break
            if len(drawn) < len(batch):
                context.cut(self._sequence, held + len(drawn))
            self._tokens.append(token)
            self._ahead = len(drawn) - 1
        except BaseException:
            self._cut(held)
            raise
        self.drafted += len(draft)
        self.accepted += self._ahead
        return drawn

    def _drawn_alone(self, token: int, position: int, drawing: Sampler) -> int:
        """Compute a token again as a step of one does, and draw what comes after it."""
        self.context.cut(self._sequence, position)
        self.context.decode(self._sequence, (token,), position, (0,))
        self.refuse_no_numbers()
        return drawing.draw(self.context)

    def _append_one(self, token: int) -> None:
        """As _append for one token, without a look at Ctrl-C from inside the computation: a callback from
        C between operators would cost as much as a small model's decode.

        Nor is Ctrl-C held back, which costs a hundredth of it: where it comes between the computation
        and the note of it, the note is taken from the cache.
        """
        held = len(self._tokens)
        try:
            self.context.decode(self._sequence, (token,), held, (0,))
            self._tokens.append(token)
        except BaseException:
            self._tokens[held:] = [token] * (self.context.cached(self._sequence) - held)
            raise

    def _compute_logits(self) -> None:
        """Compute the last token again where its logits are not at hand. Those that are give the first token
        at once: the cache moves after it, if at all."""
        if not self.context.has_logits_of(self._sequence, len(self._tokens)):
            self._settle()
            self._compute_last()

    def _compute_last(self) -> None:
        last = self._tokens[-1]
        self._cut(len(self._tokens) - 1)
        self._append_one(last)

    def _settle(self) -> None:
        """Lay the cache out for decode, where that is faster.

        The last token's logits of before and after are compared, if they are at hand: a layout that was not
        understood costs a second reading, never a wrong answer.
        """
        context, length = self.context, len(self._tokens)
        if not context.would_move(length, 1):
            return
        is_known = context.has_logits_of(self._sequence, length)
        expected = context.logits(-1).copy() if is_known else None
        if not context.choose_flash_attention(length, 1) or expected is None:
            return
        self._compute_last()
        if not _alike(expected, context.logits(-1)):
            context.give_up_handoff("the engine computes something else after the KV cache was moved")
            tokens, user = list(self._tokens), self._user
            self._cut(0)
            self.prefill(tokens)
            self._user = user

    def refuse_no_numbers(self, index: int = -1) -> None:
        """To be asked before anything is drawn after the last batch's token `index`: C samplers sort, and
        sorting what is no number may leave the array.

        Raises:
            EngineError: the logits are not numbers.
        """
        # The largest of values with a NaN among them is NaN; minus infinity alone is in order, and drawn by
        # nobody.
        if not math.isfinite(self.context.logits(index).max()):
            raise self.not_numbers()

    def not_numbers(self) -> EngineError:
        """What to raise where logits are not numbers."""
        return EngineError(
            f"{self.context.model.path} computes logits that are not numbers",
            "the file is damaged: download or convert it again",
        )

    def interrupt(self) -> None:
        """Stop the feed or generate that runs, from another thread or a signal handler.

        feed then raises Interrupted, generate ends. Where nothing runs, nothing happens.
        """
        self._interrupted = True

    # ---- with others -----------------------------------------------------------------------------

    def _rows(self, part: Part) -> list[Row]:
        """The rows of a part of a step, in which nothing lies behind _tokens."""
        tokens = self._checked(part.tokens)
        self._claim(None)
        last, held = len(tokens) - 1, len(self._tokens)
        return [
            Row(token, held + i, self._sequence, part.wants_logits and i == last)
            for i, token in enumerate(tokens)
        ]

    # ---- the end ---------------------------------------------------------------------------------

    def close(self) -> None:
        """Empty the sequence and give it back to the context. Twice is fine."""
        context = self._context
        if context is not None:
            with context.turn:
                context.cut(self._sequence, 0)
                context.release(self._sequence)
                self._context = None
                self._tokens = []
                self._ahead = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Part:
    """Tokens to append to a session in a step; with `wants_logits`, something is drawn after the last."""

    session: Session
    tokens: Sequence[int]
    wants_logits: bool = True


def step(context: Context, parts: Sequence[Part]) -> list[int]:
    """Compute tokens of several sessions of a context in one batch, and append them to each.

    Returns:
        For each part the index to draw after its last token, with Sampler.draw or Context.logits; it is
        valid until the next batch.

    Raises:
        ContextOverflow, UsageError: tokens that do not fit or that are none; nothing was computed.
        EngineError: llama.cpp failed; each session holds what it held before.
    """
    with context.turn:
        rows: list[Row] = []
        last: list[int] = []
        for part in parts:
            rows += part.session._rows(part)
            last.append(len(rows) - 1)
        try:
            context.decode_rows(rows)
            for part in parts:
                part.session._tokens += part.tokens
        except BaseException:
            for part in parts:
                part.session._cut(part.session.n_past)
            raise
    return last


def _alike(expected: NDArray[np.float32], found: NDArray[np.float32]) -> bool:
    """Whether two ways to compute logits agree: roundings stay far below this, a wrong cache far above."""
    return kl_divergence(expected, found, 0)[0] < _MOST_DIVERGENCE


def _copied(indices: list[int], rows: list[NDArray[np.float32]]) -> list[tuple[int, NDArray[np.float32]]]:
    return [(i, row.copy()) for i, row in zip(indices, rows, strict=True)]


def _batches(count: int, wanted: list[int], context: Context) -> Iterator[tuple[int, int, list[int]]]:
    """Ranges [start, stop) that cover `count` tokens, each with the wanted indices in it.

    A full batch with more of them than logits are kept for is cut into as many alike as it takes: a rest
    of a few tokens would cost nearly as much as a whole batch.
    """
    size, most = context.batch_size, context.most_outputs
    for begin in range(0, count, size):
        end = min(count, begin + size)
        inside = wanted[bisect_left(wanted, begin) : bisect_left(wanted, end)]
        parts = max(1, -(-len(inside) // most))
        each = -(-len(inside) // parts)
        start = begin
        for part in range(1, parts + 1):
            here = inside[(part - 1) * each : part * each]
            stop = inside[part * each] if part < parts else end
            yield start, stop, here
            start = stop
