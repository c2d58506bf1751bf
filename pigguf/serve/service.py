"""From a request to its answers: tokens, whether they fit, and the events of the scheduler for an event loop.

Left out: HTTP (app.py), how it looks on the wire (openai.py), who computes when (scheduler.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from pigguf.chat.prompt_format import ChatFormat
from pigguf.chat.tool_calls import (
    ToolCallParser,
    tool_call_grammar,
    tool_call_or_json_grammar,
    grammar_trigger,
    trigger_token,
)
from pigguf.errors import Interrupted
from pigguf.grammar import gbnf, json_grammar
from pigguf.inference.engine import Model, SamplingParams
from pigguf.inference.engine.embeddings import PoolingType, embed, pooling_type
from pigguf.inference.engine.sampling import create_sampler
from pigguf.serve.errors import RequestRefused, model_unavailable
from pigguf.serve.model_host import ModelHost
from pigguf.serve.openai_api import SEED_MODULUS, CompletionRequest, EmbeddingRequest
from pigguf.serve.scheduler import Finished, RequestEvent, RequestFailed, TextChunk, PrefillProgress, GenerationRequest, Scheduler, QueuePosition


@dataclass(frozen=True)
class ServerLimits:
    """What one client may take of the server.

    Attributes:
        connections: open at once.
        headers_seconds: until those of a request are there.
        body: bytes of a request.
        body_seconds: until all of it is there.
        grammar: characters of the one that a schema comes to, and repetitions in it; long ones take the
            engine minutes and gigabytes.
        document_seconds: until the text of a document is read.
        stalled_seconds: that a client may leave a chunk unread.
        seconds: until an answer is done, the time in the queue with it.
        drain_seconds: what runs may take when the server is to end.
    """

    max_connections: int = 512
    headers_seconds: float = 10.0
    max_body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    max_grammar_characters: int = 128 << 10
    document_seconds: float = 60.0
    send_seconds: float = 60.0
    request_seconds: float = 600.0
    drain_seconds: float = 30.0


class ModelService:
    """A model that answers."""

    def __init__(self, host: ModelHost, limits: ServerLimits) -> None:
        self.host = host
        self.model: Model = host.model
        self.context_length = host.context_length
        self.limits = limits
        self.name = host.model.path.stem
        self.created = int(host.model.path.stat().st_mtime)

    @cached_property
    def _format(self) -> ChatFormat:
        return ChatFormat(self.model)

    def generation_requests(self, asked: CompletionRequest, client: str) -> list[GenerationRequest]:
        """What the scheduler is to do, a request for each choice of each prompt. It takes its time: not for
        the event loop's thread.

        Args:
            client: who asks; each user it asks for counts as a client.

        Raises:
            Refusal: another model is asked for, or a prompt does not fit.
            TokenizerError: no chat template, or one that refuses the conversation.
            UsageError: a prompt is empty, a token unknown, or a schema is none that a grammar can hold to.
        """
        self._refuse_other(asked.model)
        sampling = self._sampling(asked)
        if sampling.grammar is not None:
            if (size := gbnf.size(sampling.grammar)) > self.limits.max_grammar_characters:
                raise RequestRefused(
                    400,
                    f"the JSON schema comes to {size:,} characters of grammar, each repetition counted, and "
                    f"{self.limits.max_grammar_characters:,} are taken",
                    "ask for less at once",
                    code="schema_too_large",
                )
            with create_sampler(sampling, self.model, ()):
                pass  # the engine has parsed it
        is_chat = asked.messages is not None
        return [
            GenerationRequest(
                prompt,
                replace(sampling, seed=_seed(sampling.seed, choice)),
                asked.max_tokens,
                asked.stop,
                asked.logprobs,
                strip_leading_space=is_chat and self.model.add_space_prefix,
                report_progress=asked.return_progress,
                client=f"{client} {asked.user}",
            )
            for prompt in self._prompts(asked)
            for choice in range(asked.choice_count)
        ]

    def tool_call_parser(self, asked: CompletionRequest) -> Callable[[], ToolCallParser] | None:
        """Makes what takes calls out of an answer; None where there are none."""
        if not asked.tools:
            return None
        return partial(
            ToolCallParser,
            self._format.tool_call_format,
            is_open=bool(asked.forced_tools),
            is_first=asked.json_schema is not None,
        )

    def _sampling(self, asked: CompletionRequest) -> SamplingParams:
        """What holds an answer to a schema, and calls to theirs: from the first token on where there must be
        one, for the prompt ends in its opening then; else from where the model writes the opening."""
        if not asked.tools:
            grammar = None if asked.json_schema is None else json_grammar(asked.json_schema)
            return replace(asked.sampling, grammar=grammar)
        form, several = self._format.tool_call_format, asked.parallel_tool_calls
        if asked.forced_tools:
            return replace(asked.sampling, grammar=tool_call_grammar(form, asked.forced_tools, parallel=several))
        shown = trigger_token(form, self.model)
        if asked.json_schema is None:
            grammar = tool_call_grammar(form, asked.tools, parallel=several)
            return replace(asked.sampling, grammar=grammar, grammar_trigger=grammar_trigger(form), visible_control_token=shown)
        if form.only_at_start:
            raise RequestRefused(
                400,
                "response_format and tools: calls of functions, as this model writes them, are not told from "
                "an answer in JSON",
                "leave one of them out, or give tool_choice none or required",
                param="response_format",
                code="unsupported_parameter",
            )
        grammar = tool_call_or_json_grammar(form, asked.tools, asked.json_schema, parallel=several)
        return replace(asked.sampling, grammar=grammar, visible_control_token=shown)

    def count_tokens(self, asked: CompletionRequest) -> int:
        """How many tokens a conversation is, whether it fits or not. It takes its time, as `requests` does.

        Raises:
            TokenizerError: no chat template, or one that refuses the conversation.
        """
        return len(self._conversation(asked))

    def count_text_tokens(self, text: str) -> int:
        """How many tokens a text is as a part of a message."""
        return self._format.count_tokens(text)

    def _prompts(self, asked: CompletionRequest) -> list[list[int]]:
        is_chat = asked.messages is not None
        prompts = [self._conversation(asked)] if is_chat else self._tokens(asked.prompts)
        for prompt in prompts:
            self._refuse(prompt, "prompt" if asked.messages is None else "messages")
        return prompts

    def _conversation(self, asked: CompletionRequest) -> list[int]:
        messages = asked.messages or ()
        if len(messages) > self.context_length:  # a token each, at the least
            raise RequestRefused(
                400,
                f"{len(messages):,} messages do not fit into a window of {self.context_length:,}",
                "leave the oldest out",
                param="messages",
                code="context_length_exceeded",
            )
        begun = self._format.tool_call_format.opening if asked.forced_tools else ""
        return self._format.tokenize(messages, tools=asked.tools, answer_prefix=begun)

    def _tokens(self, prompts: Sequence[str | tuple[int, ...]]) -> list[list[int]]:
        return [
            self.model.tokenize(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts
        ]

    def _refuse_other(self, model: str | None) -> None:
        """
        Raises:
            Refusal: another model is asked for than this one.
        """
        if model is not None and model != self.name:
            raise RequestRefused(
                404,
                f"the model {model[:80]!r} is not here",
                f"this server has {self.name!r}",
                param="model",
                code="model_not_found",
            )

    # ---- embeddings ------------------------------------------------------------------------------

    @cached_property
    def pooling(self) -> PoolingType | None:
        """How the model makes embeddings; None where it makes none."""
        return pooling_type(self.model)

    def embedding_inputs(self, asked: EmbeddingRequest) -> list[list[int]]:
        """The tokens of each text.

        Raises:
            Refusal: the model gives no embeddings, or none of this length; a text is empty, or too long.
            UsageError: a token is none of the vocabulary.
        """
        self._refuse_other(asked.model)
        if self.pooling is None:
            raise RequestRefused(
                400,
                f"the model {self.name!r} gives no embeddings: its file has no "
                f"{self.model.file.architecture}.pooling_type (mean, cls or last)",
                "serve a model that is made for embeddings",
                param="model",
                code="no_embeddings",
            )
        texts = self._tokens(asked.texts)
        for tokens in texts:
            self._refuse(tokens, "input")
        return texts

    def embed(
        self, asked: EmbeddingRequest, texts: Sequence[Sequence[int]], stop: Callable[[], bool]
    ) -> NDArray[np.float32]:
        """The vectors of texts, computed beside the scheduler; one request at a time.

        Args:
            stop: asked often; True gives it up.

        Raises:
            Refusal: vectors of another length are asked for; it takes too long, or is given up; the server
                is about to end; the model is spread over workers, whose connections no two contexts share.
            PigError: the engine failed.
        """
        deadline = time.monotonic() + self.limits.request_seconds
        with self.host.borrow_context() as context:
            model = context.model
            if model.workers is not None:
                raise RequestRefused(
                    501,
                    "embeddings are not computed on workers",
                    "start a server without --workers for them",
                    code="no_embeddings",
                )
            if asked.dimensions not in (None, context.embedding_length):
                raise RequestRefused(
                    400,
                    f"dimensions is {asked.dimensions}, and a vector has {context.embedding_length}",
                    "leave it out",
                    param="dimensions",
                    code="invalid_value",
                )

            def is_over() -> bool:
                return stop() or self.host.failure is not None or time.monotonic() > deadline

            try:
                return embed(model, texts, context.options, is_over)
            except Interrupted:
                if self.host.failure is not None:
                    raise model_unavailable(self.host.failure) from None
                raise RequestRefused(
                    504,
                    "the embeddings were not done within the time that they may take",
                    "ask for fewer texts at once",
                    code="timeout",
                ) from None

    def _refuse(self, prompt: Sequence[int], param: str) -> None:
        """
        Raises:
            Refusal: the prompt is empty, or does not fit.
            UsageError: a token is none of the vocabulary.
        """
        if not prompt:
            raise RequestRefused(400, "the prompt is empty", param=param)
        if len(prompt) > self.context_length:
            raise RequestRefused(
                400,
                f"the prompt is {len(prompt):,} tokens, and the window {self.context_length:,}",
                "shorten it",
                param=param,
                code="context_length_exceeded",
                counts={"prompt_tokens": len(prompt), "context_length": self.context_length},
            )
        self.model.check_token_ids(prompt)

    def submit(self, requests: Sequence[GenerationRequest]) -> EventStream:
        """Queue requests; in the event loop that waits for them.

        Raises:
            Refusal: the queue is full, the model cannot answer now, or the server is about to end.
        """
        return EventStream(self.host.scheduler, requests, self.limits.request_seconds)


class EventStream:
    """What comes of requests, each with its index, until all are done: for one `async for`."""

    def __init__(self, scheduler: Scheduler, requests: Sequence[GenerationRequest], seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[tuple[int, RequestEvent]] = asyncio.Queue()
        self._running = len(requests)
        self._ticket = scheduler.submit(requests, self._deliver, seconds)

    def _deliver(self, index: int, event: RequestEvent) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, (index, event))

    async def __aiter__(self) -> AsyncGenerator[tuple[int, QueuePosition | PrefillProgress | TextChunk | Finished], None]:
        """
        Raises:
            PigError: an answer failed; the others are given up.
        """
        try:
            while self._running:
                index, event = await self._arrived.get()
                if isinstance(event, RequestFailed):
                    raise event.error
                self._running -= isinstance(event, Finished)
                yield index, event
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Give up what is not done."""
        self._ticket.cancel()


def _seed(seed: int | None, choice: int) -> int | None:
    """Choices differ, and come again with the same seed."""
    return None if seed is None else (seed + choice) % SEED_MODULUS
