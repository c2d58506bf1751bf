"""The scheduler: one thread that owns a context, and computes one batch a step for all who wait.

    with Scheduler(context) as scheduler:
        ticket = scheduler.submit([Request(prompt)], deliver)    deliver(choice, event) from the thread:
        ticket.cancel()                                          Piece, Piece, ..., then Done or Failed

A step holds the next token of every answer that is being written, and a chunk of the prompts that are being
read: as much as leaves the answers flowing, and shared evenly, so that a short prompt beside a long one is
read at once; a share is some tiles of tokens at least, and prompts take turns where there is room for one.
Where the context has a reader (inference/engine/prefill_backend.py), that has a long prompt for itself, and steps for all others
are taken in between, wherever it tells how far it is: in one thread, for both would share the same cores.
Clients take turns: a free slot goes to the one that has the fewest, its requests in their order, and prompts
are shared between clients before they are between the requests of one. What runs is not stopped for those
who wait.
A free slot is chosen by what its cache holds of the prompt; what another slot holds of it is copied, and what
another just reads of it is waited for. What was read goes to the context's store when there is nothing
else to do, for that takes a second for each gigabyte.
Left out: HTTP, text to tokens (service.py), which sequences share a batch in llama.cpp (engine/).
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import Interrupted, PigError
from pigguf.inference.detokenizer import StreamingDetokenizer
from pigguf.inference.engine import Context, SamplingParams, Session
from pigguf.inference.engine.prefill_backend import Prefiller
from pigguf.inference.engine.sampling import Sampler, create_sampler
from pigguf.inference.engine.session import BatchEntry, decode_batch
from pigguf.progress import Silent
from pigguf.serve.errors import RequestRefused, shutting_down, internal_error

MAX_STEP_SECONDS = 0.2  # seconds of a step beside which answers are being written, about
_TILE = 64  # tokens of a sequence from which on a CPU attends to them together (ggml-cpu, GGML_FA_TILE_Q)
_MIN_TILES = 4  # of prompts in a step: fewer, cut up for threads and heads, leave tiles half empty
_COPIED_FOR_ONE = 64  # cells of a sequence that are copied in the time one token is computed, at the least
_RATE = 0.2  # at which measurements replace what was believed
_CLIENTS = 4  # whose queues may be full at once
_LONGEST_RETRY = 120  # seconds
_LONGEST_DRAW = 1.0  # seconds of the CPU's
_BETWEEN_TELLING = 0.25  # seconds between two that tell how far an answer is, at least


@dataclass(frozen=True)
class GenerationRequest:
    """One answer that is asked for.

    Attributes:
        prompt: tokens, at least one, and no more than the window.
        max_tokens: most tokens to draw; None is up to the window's end.
        stop: the text ends before the first of these.
        logprobs: how many of the likeliest tokens are told with each; None tells nothing.
        without_first_space: as text.Text has it.
        progress: tell how many are to come before it, and how much of its prompt is read.
        client: who asks; any words that tell clients apart.
    """

    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    strip_leading_space: bool = False
    report_progress: bool = False
    client: str = ""


class SampledToken(NamedTuple):
    """A token, its logarithmic probability, and the likeliest tokens with theirs; before any sampler."""

    token: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class QueuePosition:
    """How many answers are to begin before this one, if nobody comes meanwhile whose turn it is."""

    requests_ahead: int


@dataclass(frozen=True)
class PrefillProgress:
    """How far the reading of a prompt is; the first says what was in a cache, the last that all is read.

    Attributes:
        total: tokens of the prompt; reused: those that were in a cache already; read: those that are now.
        seconds: since the reading began.
    """

    prompt_tokens: int
    cached_tokens: int
    processed_tokens: int
    seconds: float


@dataclass(frozen=True)
class TextChunk:
    """Some text of an answer, and the tokens drawn for it where they were asked for."""

    text: str
    tokens: tuple[SampledToken, ...] = ()


@dataclass(frozen=True)
class Finished:
    """An answer's end.

    Attributes:
        reason: "end" (the model's), "stop" (a stop string), "length" (max_tokens), "window" (it is full).
        reused: tokens of the prompt that were in a cache already.
        drawn: tokens of the answer, its end token among them.
    """

    reason: Literal["end", "stop", "length", "window"]
    cached_tokens: int
    generated_tokens: int


@dataclass(frozen=True)
class RequestFailed:
    """An answer that comes to nothing more."""

    error: PigError


RequestEvent = QueuePosition | PrefillProgress | TextChunk | Finished | RequestFailed


@dataclass
class SchedulerStats:
    """What was done since the beginning, in tokens and steps."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0


class _Answer:
    """A request on its way, with its prompt as an array that is compared quickly."""

    def __init__(self, request: GenerationRequest, deliver: Callable[[RequestEvent], None], deadline: float) -> None:
        self.request = request
        self.client = request.client
        self.prompt = np.array(request.prompt, np.int32)
        self.deliver = deliver
        self.deadline = deadline
        self.is_cancelled = False
        self.begun = time.monotonic()
        self._told: int | None = None

    def tell_waiting(self, before: int) -> None:
        """Say how many are to begin before it, where that is wanted and new."""
        if self.request.report_progress and before != self._told:
            self._told = before
            self.deliver(QueuePosition(before))


class RequestHandle:
    """The answers to one submission."""

    def __init__(self, answers: Sequence[_Answer]) -> None:
        self._requests = answers

    def cancel(self) -> None:
        """Nobody waits for them any more: within a step their slots are free."""
        for answer in self._requests:
            answer.is_cancelled = True


class Scheduler:
    """Made of an open context, all of whose sequences are its own. A context manager.

    Args:
        queue: most answers of one client that wait for a slot; those of four clients, if each has as many.
        figures: to count on in; new ones by default.
        check: called before each step; what it raises ends all that runs.

    Attributes:
        figures: what was done.
        slots: how many answers are written at once.
    """

    def __init__(
        self,
        context: Context,
        max_waiting: int = 64,
        *,
        stats: SchedulerStats | None = None,
        check_model: Callable[[], None] = lambda: None,
    ) -> None:
        self.stats = stats or SchedulerStats()
        self.slot_count = context.options.sequences
        self._context = context
        self._most_waiting = max_waiting
        self._slots = [_Slot(context.sequence()) for _ in range(self.slot_count)]
        self._changed = threading.Condition()
        self._waiting: list[_Answer] = []
        self._served: dict[str, int] = {}  # of each client that is here, when it got its last slot
        self._check = check_model
        self._why_ending: PigError | None = None
        self._is_closed = False
        self._end_by = math.inf
        self._lent: _Run | None = None  # whose prompt the context's reader has
        self._prompts_from = 0.0  # when prompts may be in a step again, while it has one
        self._reading_pace = 0.0  # seconds a token of prompts; 0 before the first
        self._answer_seconds = 1.0
        self._ends = 0
        self._thread = threading.Thread(target=self._run, name="pigguf-scheduler", daemon=True)
        self._thread.start()

    # ---- from any thread -------------------------------------------------------------------------

    def submit(
        self, requests: Sequence[GenerationRequest], deliver: Callable[[int, RequestEvent], None], timeout: float = math.inf
    ) -> RequestHandle:
        """Queue requests, all of them or none.

        Args:
            deliver: called from the scheduler's thread with the request's index and what came; it must not
                raise, nor take long.
            seconds: what is not done by then fails.

        Raises:
            Refusal: the queue is full (429), or the server is about to end (503).
        """
        deadline = time.monotonic() + timeout
        answers = [
            _Answer(request, lambda event, index=index: deliver(index, event), deadline)  # type: ignore[misc]
            for index, request in enumerate(requests)
        ]
        with self._changed:
            if self._why_ending is not None:
                raise self._why_ending
            self._refuse_too_many(answers)
            self._waiting += answers
            self._changed.notify()
        return RequestHandle(answers)

    @property
    def waiting(self) -> int:
        """How many answers wait for a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many answers have a slot."""
        return sum(slot.run is not None for slot in self._slots)

    def drain(self, timeout: float = math.inf, reason: PigError | None = None) -> None:
        """Take nothing more, and refuse what waits; what runs goes on, for so long at most.

        Args:
            why: what they are told; None is that the server is about to end.
        """
        with self._changed:
            self._why_ending = reason = reason or self._why_ending or shutting_down()
            self._end_by = time.monotonic() + timeout
            refused, self._waiting = self._waiting, []
        for answer in refused:
            answer.deliver(RequestFailed(reason))

    def close(self, reason: PigError | None = None) -> None:
        """Stop after this step; what runs fails, with the reason if there is one. Twice is fine."""
        self.drain(reason=reason)
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_too_many(self, more: Sequence[_Answer]) -> None:
        """
        Raises:
            Refusal: the queue is full for this client, or for everybody.
        """
        own = [answer for answer in self._waiting if more and answer.client == more[0].client]
        for waiting, most in ((own, self._most_waiting), (self._waiting, _CLIENTS * self._most_waiting)):
            if len(waiting) + len(more) > most:
                seconds = math.ceil(self._answer_seconds * (len(waiting) + 1) / self.slot_count)
                raise RequestRefused(
                    429,
                    f"{len(waiting):,} answers wait already, of {most:,} that may",
                    "ask again in a while",
                    code="queue_full",
                    retry_after=min(max(seconds, 1), _LONGEST_RETRY),
                )

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        is_closed = False
        while not is_closed:
            with self._failing_all():
                is_closed = not self._wait_for_work()
                if not is_closed:
                    self._step()
        for slot, run in self._runs():
            self._end(slot, run, RequestFailed(self._why_ending or shutting_down()))
        for slot in self._slots:
            if slot.is_to_keep and isinstance(self._why_ending, RequestRefused):  # else the cache is of no use
                self._keep(slot)
            slot.session.close()

    def _wait_for_work(self) -> bool:
        """Whether there is a step to take; False is the end. Meanwhile what was read is kept."""
        while True:
            with self._changed:
                if self._is_closed or self._waiting or self.running:
                    return not self._is_closed
                slot = next((slot for slot in self._slots if slot.is_to_keep), None)
                if slot is None:
                    self._changed.wait()
            if slot is not None:
                self._keep(slot)

    def _keep(self, slot: _Slot) -> None:
        """Keep what a free slot's cache holds for the next process."""
        slot.is_to_keep = False
        if self._context.prompt_cache is not None:
            self._context.prompt_cache.save(slot.session)

    @contextmanager
    def _failing_all(self) -> Iterator[None]:
        """What nobody foresaw ends all that runs, but for what the reader has, and nothing else."""
        try:
            yield
        except Exception as error:
            failed = _failure(error)
            for slot, run in self._runs():
                if run is not self._lent:
                    self._end(slot, run, failed)

    def _step(self) -> None:
        self._drop_gone()
        self._admit()
        for before, answer in enumerate(self._in_turn()):
            answer.tell_waiting(before)
        reader = self._context.prefiller
        if reader is not None and self._lent is None and (long := self._for_reader(reader)):
            self._lend(reader, *long)
        else:
            self._compute(self._plan())

    def _compute(self, planned: Sequence[tuple[_Slot, _Run, BatchEntry]]) -> None:
        if not planned:
            return
        begun = time.perf_counter()
        try:
            self._check()
            places = decode_batch(self._context, [part for _, _, part in planned])
        except PigError as error:
            for slot, run, _ in planned:
                self._end(slot, run, RequestFailed(error))
            return
        self._learn(planned, time.perf_counter() - begun)
        for (slot, run, part), place in zip(planned, places, strict=True):
            run.has_read(len(part.tokens))
            if part.wants_logits:
                self._draw(slot, run, place)

    def _runs(self) -> Iterator[tuple[_Slot, _Run]]:
        return ((slot, slot.run) for slot in self._slots if slot.run is not None)

    # ---- who leaves ------------------------------------------------------------------------------

    def _drop_gone(self) -> None:
        """Let go of answers that nobody waits for, and of those whose time is over."""
        now = time.monotonic()
        with self._changed:
            gone = [answer for answer in self._waiting if _is_over(answer, now)]
            self._waiting = [answer for answer in self._waiting if not _is_over(answer, now)]
        for answer in gone:
            answer.deliver(_late(answer))
        for slot, run in self._runs():
            if run is self._lent:
                continue  # it is taken from the reader first
            if _is_over(run.answer, now):
                self._end(slot, run, _late(run.answer))
            elif now > self._end_by:
                self._end(slot, run, RequestFailed(self._why_ending or shutting_down()))

    def _end(self, slot: _Slot, run: _Run, event: Finished | RequestFailed) -> None:
        """Free a slot; its cache stays, for the next who begins alike."""
        slot.run = None
        self._ends += 1
        slot.used = self._ends
        run.close()
        run.answer.deliver(event)
        if isinstance(event, Finished):
            taken = time.monotonic() - run.answer.begun
            self._answer_seconds += (taken - self._answer_seconds) * _RATE
            slot.is_to_keep = True

    # ---- who comes -------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give free slots to who waits, in turn, but for those whose beginning is just being read."""
        while free := [slot for slot in self._slots if slot.run is None]:
            answer = next((answer for answer in self._in_turn() if not self._is_being_read(answer)), None)
            if answer is None:
                return
            with self._changed:
                if answer not in self._waiting:  # refused meanwhile
                    continue
                self._waiting.remove(answer)
            self._note_served(answer.client)
            slot = max(free, key=lambda slot: (slot.worth(answer.prompt), -slot.used))
            try:
                copied = self._begin(slot, answer)
            except Exception as error:
                answer.deliver(_failure(error))
                continue
            if copied:  # the step moves the data: before it, no other state may be touched
                self._prompts_from = 0.0
                return

    def _in_turn(self) -> list[_Answer]:
        """Who waits, in the order in which slots are given if no other comes."""
        turns = Counter(run.answer.client for _, run in self._runs())

        def turn(answer: _Answer) -> tuple[int, int]:
            turns[answer.client] += 1
            return turns[answer.client], self._served.get(answer.client, 0)

        with self._changed:
            return sorted(self._waiting, key=turn)

    def _note_served(self, client: str) -> None:
        """It got a slot, the last of all; who is not here any more is forgotten."""
        last = max(self._served.values(), default=0)
        here = {run.answer.client for _, run in self._runs()}
        with self._changed:
            here |= {answer.client for answer in self._waiting}
        self._served = {name: when for name, when in self._served.items() if name in here}
        self._served[client] = last + 1

    def _begin(self, slot: _Slot, answer: _Answer) -> bool:
        """Let a slot's cache hold what any cache has of the prompt; whether it was copied.

        Raises:
            UsageError: the grammar is none.
        """
        session, prompt = slot.session, list(answer.request.prompt)
        slot.is_to_keep = False
        with ExitStack() as opened:
            drawing = opened.enter_context(create_sampler(answer.request.sampling, self._context.model, prompt))
            kept = session.reuse_prefix(prompt)
            others = (other.session for other in self._slots if other is not slot)
            best = max(others, key=lambda other: other.common_prefix_length(prompt), default=session)
            common = best.common_prefix_length(prompt)
            copied = self._is_worth_copying(common - kept)
            if copied:
                session.copy_prefix_from(best, common)
            session.truncate(min(session.n_past, len(prompt) - 1))  # the last is computed, for its logits
            slot.run = _Run(answer, session, drawing, opened.pop_all())
        self.stats.cached_tokens += session.n_past
        slot.run.tell_reading()
        return copied

    def _is_being_read(self, answer: _Answer) -> bool:
        """Whether it pays to wait until another has read the beginning of this prompt."""
        for _, run in self._runs():
            common = _common(run.answer.prompt, answer.prompt)
            if run.is_reading and common > run.session.n_past:
                held = max(slot.session.common_prefix_length(answer.prompt.tolist()) for slot in self._slots)
                if self._is_worth_copying(common - held):
                    return True
        return False

    def _is_worth_copying(self, tokens: int) -> bool:
        """llama.cpp copies all cells of a sequence, whatever they hold."""
        return tokens * _COPIED_FOR_ONE > self._context.length

    # ---- what is computed ------------------------------------------------------------------------

    def _plan(self) -> list[tuple[_Slot, _Run, BatchEntry]]:
        """The parts of the next step, by sequence: llama.cpp computes neighbours together."""
        runs = [(slot, run) for slot, run in self._runs() if run is not self._lent]
        counts = {id(run): 1 for _, run in runs if not run.is_reading}
        beside = 1 if counts else 0  # tokens of each prompt that are computed with those of the answers
        room = self._context.batch_size - len(counts)
        if counts:
            room = min(room, self._chunk())
        is_time = self._lent is None or time.perf_counter() >= self._prompts_from
        reading = [run for _, run in runs if run.is_reading and is_time]
        self._share(room, reading)
        for place, run in enumerate(sorted(reading, key=lambda run: -run.owed)):
            due = run.due(beside)
            counts[id(run)] = min(due, room) if due <= room or room > _TILE or place == 0 else 0
            run.owed -= counts[id(run)]
            room -= counts[id(run)]
        return [(slot, run, run.part(counts[id(run)])) for slot, run in runs if counts.get(id(run))]

    def _share(self, room: int, reading: Sequence[_Run]) -> None:
        """Note what each prompt may take of a step, its own and what others had of it in steps before."""
        clients: defaultdict[str, list[_Run]] = defaultdict(list)
        for run in reading:
            clients[run.answer.client].append(run)
        wanted = [sum(len(run.unread) for run in of_client) for of_client in clients.values()]
        for of_client, share in zip(clients.values(), _shares(room, wanted), strict=True):
            own = _shares(share, [len(run.unread) for run in of_client])
            for run, tokens in zip(of_client, own, strict=True):
                run.owed += tokens

    def _for_reader(self, reader: Prefiller) -> tuple[_Slot, _Run] | None:
        """Whose prompt the context's reader is to have next; None where none is worth it."""
        for slot, run in self._runs():
            if run.is_reading and reader.should_prefill(run.session.n_past, len(run.unread) - 1):
                return slot, run
        return None

    def _lend(self, reader: Prefiller, slot: _Slot, run: _Run) -> None:
        """Let the context's reader have a prompt, but for the last token: its logits are a step's.

        Whoever else is here gets steps meanwhile; prompts take no more of the time than the reader has.
        """
        session = run.session
        held, begun, self._lent = session.n_past, time.perf_counter(), run

        def go_on() -> None:
            self._check()
            now = time.monotonic()
            if _is_over(run.answer, now) or now > self._end_by or self._is_closed:
                raise Interrupted("nobody waits for the prompt any more")
            if self._waiting or self.running > 1:
                with self._failing_all():
                    self._step()

        try:
            reader.prefill(session, run.unread[:-1], _Telling(run, go_on))
        except Interrupted:
            pass  # the next step sees to who went
        except PigError as error:
            self._end(slot, run, RequestFailed(error))
            return
        finally:
            self._lent = None
        run.has_read(session.n_past - held)
        self.stats.prompt_tokens += session.n_past - held
        self.stats.step_seconds += time.perf_counter() - begun

    def _chunk(self) -> int:
        """Tokens of prompts that leave the answers flowing."""
        tiles = int(MAX_STEP_SECONDS / self._reading_pace) // _TILE if self._reading_pace else 0
        return max(_MIN_TILES, tiles) * _TILE + 1

    def _learn(self, planned: Sequence[tuple[_Slot, _Run, BatchEntry]], seconds: float) -> None:
        read = sum(len(part.tokens) for _, run, part in planned if run.is_reading)
        self.stats.prompt_tokens += read
        self.stats.steps += 1
        if self._lent is None:
            self.stats.step_seconds += seconds
        elif read:
            self._prompts_from = time.perf_counter() + seconds
        if read >= _TILE:
            pace = seconds / read
            self._reading_pace += (pace - self._reading_pace) * (_RATE if self._reading_pace else 1)

    def _draw(self, slot: _Slot, run: _Run, place: int) -> None:
        try:
            run.session.check_logits_finite(place)
            token = run.draw(self._context, place)
        except PigError as error:
            self._end(slot, run, RequestFailed(error))
            return
        self.stats.generated_tokens += 1
        reason = run.take(token, self._context.logits(place))
        if reason is not None:
            self._end(slot, run, Finished(reason, run.reused, run.drawn))


class _Slot:
    """A sequence of the context, and the answer that is written in it."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.run: _Run | None = None
        self.is_to_keep = False
        self.used = 0  # how many answers had ended when its last one did

    def worth(self, prompt: NDArray[np.int32]) -> int:
        """Tokens of the prompt that its cache holds, 0 where most of the cache would be lost for them."""
        common = self.session.common_prefix_length(prompt.tolist())
        return common if 2 * common >= self.session.n_past else 0


class _Run:
    """An answer in a slot, whose session holds the beginning of its prompt."""

    def __init__(self, answer: _Answer, session: Session, drawing: Sampler, opened: ExitStack) -> None:
        request, model = answer.request, session.context.model
        self.answer = answer
        self.session = session
        self.sampler = drawing
        self.reused = session.n_past
        self.unread = list(request.prompt[session.n_past :])  # of the prompt; then the token drawn last
        self.drawn = 0
        self.owed = 0  # tokens of steps that are this prompt's, and that it has not taken
        self._begun = self._told = time.monotonic()
        self._text = StreamingDetokenizer(
            model,
            request.stop,
            strip_first_space=request.strip_leading_space,
            visible_token=request.sampling.visible_control_token,
        )
        self._opened = opened

    @property
    def is_reading(self) -> bool:
        """Whether nothing was drawn yet."""
        return self.drawn == 0

    def draw(self, context: Context, place: int) -> int:
        """The next token.

        Raises:
            Refusal: it took so long that others wait: its grammar reads a text in ever more ways, and the
                engine tries them all.
            EngineError: there is none.
        """
        begun = time.thread_time()
        token = self.sampler.sample(context, place)
        if self.answer.request.sampling.grammar is not None and time.thread_time() - begun > _LONGEST_DRAW:
            raise RequestRefused(
                400,
                "the engine takes too long to hold the answer to its JSON schema",
                "let fewer of its parts (anyOf, references) begin alike",
                code="schema_too_large",
            )
        return token

    def part(self, most: int) -> BatchEntry:
        return BatchEntry(self.session, self.unread[:most], wants_logits=most >= len(self.unread))

    def due(self, beside: int) -> int:
        """Tokens of the prompt that are its due in a step: whole tiles, not too few, or all the rest."""
        if self.owed >= len(self.unread):
            return len(self.unread)
        return min(len(self.unread), max(_MIN_TILES, self.owed // _TILE) * _TILE + beside)

    def has_read(self, count: int) -> None:
        """Note tokens that a step has computed."""
        del self.unread[:count]
        if self.is_reading and not self.unread:
            self.tell_reading()
        elif self.is_reading:
            self.tell_reading_anew()

    def tell_reading_anew(self, more: int = 0) -> None:
        """As tell_reading, where that is some time ago."""
        if time.monotonic() >= self._told + _BETWEEN_TELLING:
            self.tell_reading(more)

    def tell_reading(self, more: int = 0) -> None:
        """Say how much of the prompt is read, where that is wanted, with so many that are on their way."""
        if self.answer.request.report_progress:
            self._told = time.monotonic()
            total = len(self.answer.prompt)
            read = total - len(self.unread) + more
            self.answer.deliver(PrefillProgress(total, self.reused, read, self._told - self._begun))

    def take(
        self, token: int, logits: NDArray[np.float32]
    ) -> Literal["end", "stop", "length", "window"] | None:
        """Note a drawn token, deliver its text, and say why it was the last, if it was."""
        self.drawn += 1
        request, model = self.answer.request, self.session.context.model
        if model.is_eog(token):
            self._deliver(self._text.finalize())
            return "end"
        self.unread = [token]
        drawn = () if request.logprobs is None else (_probable(token, logits, request.logprobs),)
        self._deliver(self._text.add_token(token), drawn)
        if self._text.stopped:
            return "stop"
        reason: Literal["length", "window"] | None = None
        if self.drawn == request.max_tokens:
            reason = "length"
        elif self.session.tokens_left == 0:
            reason = "window"
        if reason is not None:
            self._deliver(self._text.finalize())
        return reason

    def _deliver(self, text: str, drawn: tuple[SampledToken, ...] = ()) -> None:
        if text or drawn:
            self.answer.deliver(TextChunk(text, drawn))

    def close(self) -> None:
        self._opened.close()


class _Telling(Silent):
    """Hands a reader's progress on to who waits for the answer, and stops it by what `go_on` raises."""

    def __init__(self, run: _Run, go_on: Callable[[], None]) -> None:
        self._run = run
        self._go_on = go_on
        self._done = 0.0

    def advance(self, amount: float) -> None:
        self._go_on()
        self._done += amount
        self._run.tell_reading_anew(int(self._done))


def _probable(token: int, logits: NDArray[np.float32], most: int) -> SampledToken:
    largest = float(logits.max())
    total = largest + math.log(float(np.exp(logits - largest, dtype=np.float64).sum()))
    first: NDArray[np.intp] = np.empty(0, np.intp)
    if most:  # only those that may be among them are sorted: a vocabulary takes a step's time
        few = np.flatnonzero(logits >= np.partition(logits, -most)[-most])
        first = few[np.argsort(-logits[few], kind="stable")][:most]
    return SampledToken(
        token,
        float(logits[token]) - total,
        tuple((int(other), float(logits[other]) - total) for other in first),
    )


def _failure(error: Exception) -> RequestFailed:
    """An answer's end by an error."""
    return RequestFailed(error if isinstance(error, PigError) else internal_error(error))


def _is_over(answer: _Answer, now: float) -> bool:
    return answer.is_cancelled or now > answer.deadline


def _late(answer: _Answer) -> RequestFailed:
    if answer.is_cancelled:
        return RequestFailed(RequestRefused(499, "the client went away", code="cancelled"))
    return RequestFailed(
        RequestRefused(
            504,
            "the answer was not done within the time that one may take",
            "ask for fewer tokens, or ask again when the server has less to do",
            code="timeout",
        )
    )


def _shares(room: int, wanted: Sequence[int]) -> list[int]:
    """As much for each as for the others, but for those who want less."""
    shares = [0] * len(wanted)
    for place, index in enumerate(sorted(range(len(wanted)), key=lambda index: wanted[index])):
        shares[index] = min(wanted[index], math.ceil(room / (len(wanted) - place)))
        room -= shares[index]
    return shares


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two prompts begin with alike."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter
