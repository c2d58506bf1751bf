"""From API requests to the scheduler: tokenization, context length checks, grammars, and embeddings.

Not here: HTTP (app.py), the form of bodies (openai_*.py), scheduling (scheduler.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from pigguf.chat.prompt_format import ChatFormat
from pigguf.chat.tool_calls import (
    ToolCallParser,
    grammar_trigger,
    tool_call_grammar,
    tool_call_or_json_grammar,
    trigger_token,
)
from pigguf.errors import Interrupted
from pigguf.grammar import gbnf, json_schema_to_grammar
from pigguf.inference.engine import Context, Model, SamplingParams
from pigguf.inference.engine.embeddings import PoolingType, embed, pooling_type
from pigguf.inference.engine.sampler import create_sampler
from pigguf.serve.errors import RequestRefused, model_unavailable
from pigguf.serve.event_stream import EventStream
from pigguf.serve.generation_request import GenerationRequest
from pigguf.serve.limits import ServerLimits
from pigguf.serve.model_host import ModelHost
from pigguf.serve.openai_requests import SEED_MODULUS, CompletionRequest, EmbeddingRequest, Prompt


class ModelService:
    """Answers API requests with one model.

    Attributes:
        host: holds the model and its scheduler.
        model: the vocabulary, without weights.
        context_length: the context window of each request in tokens.
        limits: sizes and times that clients may take.
        name: the model's name in the API: its file's name without ".gguf".
        created: Unix time of the file's last change.
    """

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

    # ---- chat completions and completions --------------------------------------------------------

    def generation_requests(self, request: CompletionRequest, client: str) -> list[GenerationRequest]:
        """Return what to submit to the scheduler: one request for each choice of each prompt.

        It may take seconds: call it outside the event loop's thread.

        Args:
            client: identifies the client; each `user` that it sends counts as a client of its own.

        Raises:
            RequestRefused: another model is requested, a prompt is empty or does not fit the window, or a
                schema is too large.
            TokenizerError: the model has no chat template, or it refuses the conversation.
            UsageError: a token id is not in the vocabulary, or a schema cannot be made a grammar.
        """
        self._check_model_name(request.model)
        sampling = self._sampling(request)
        if sampling.grammar is not None:
            self._check_grammar(sampling)
        is_chat = request.messages is not None
        return [
            GenerationRequest(
                prompt,
                replace(sampling, seed=_choice_seed(sampling.seed, choice)),
                request.max_tokens,
                request.stop,
                request.logprobs,
                strip_leading_space=is_chat and self.model.add_space_prefix,
                report_progress=request.return_progress,
                client=f"{client} {request.user}",
            )
            for prompt in self._tokenized_prompts(request)
            for choice in range(request.choice_count)
        ]

    def submit(self, requests: Sequence[GenerationRequest]) -> EventStream:
        """Submit requests to the scheduler, in the event loop that waits for their events.

        Raises:
            RequestRefused: the queue is full, the model is unavailable, or the server is shutting down.
        """
        return EventStream(self.host.scheduler, requests, self.limits.request_seconds)

    def tool_call_parser(self, request: CompletionRequest) -> Callable[[], ToolCallParser] | None:
        """Return a function that makes a parser for tool calls; None if the request has no tools."""
        if not request.tools:
            return None
        return partial(
            ToolCallParser,
            self._format.tool_call_format,
            is_open=bool(request.forced_tools),
            only_at_start=request.json_schema is not None,
        )

    def _sampling(self, request: CompletionRequest) -> SamplingParams:
        """Return the sampling parameters with the grammar for tool calls and the response's JSON schema.

        A forced tool call follows the grammar from its first token on: the prompt ends in the opening of the
        call. Otherwise the grammar is triggered when the model writes the opening.
        """
        if not request.tools:
            schema = request.json_schema
            grammar = None if schema is None else json_schema_to_grammar(schema)
            return replace(request.sampling, grammar=grammar)
        call_format, parallel = self._format.tool_call_format, request.parallel_tool_calls
        if request.forced_tools:
            grammar = tool_call_grammar(call_format, request.forced_tools, parallel=parallel)
            return replace(request.sampling, grammar=grammar)
        visible_token = trigger_token(call_format, self.model)
        if request.json_schema is None:
            return replace(
                request.sampling,
                grammar=tool_call_grammar(call_format, request.tools, parallel=parallel),
                grammar_trigger=grammar_trigger(call_format),
                visible_control_token=visible_token,
            )
        if call_format.only_at_start:
            raise RequestRefused(
                400,
                "response_format and tools cannot be combined for this model: its tool calls cannot be told "
                "from an answer in JSON",
                "leave one of them out, or set tool_choice to none or required",
                param="response_format",
                code="unsupported_parameter",
            )
        grammar = tool_call_or_json_grammar(
            call_format, request.tools, request.json_schema, parallel=parallel
        )
        return replace(request.sampling, grammar=grammar, visible_control_token=visible_token)

    def _check_grammar(self, sampling: SamplingParams) -> None:
        """Raise if the grammar is too large, or the engine cannot parse it."""
        assert sampling.grammar is not None
        if (size := gbnf.expanded_size(sampling.grammar)) > self.limits.max_grammar_characters:
            raise RequestRefused(
                400,
                f"the JSON schema becomes {size:,} characters of grammar with each repetition counted, and "
                f"the limit is {self.limits.max_grammar_characters:,}",
                "use a smaller schema, or fewer tools",
                code="schema_too_large",
            )
        with create_sampler(sampling, self.model, ()):
            pass

    def count_tokens(self, request: CompletionRequest) -> int:
        """Return how many tokens a conversation has, even if it does not fit the window.

        It may take seconds: call it outside the event loop's thread.

        Raises:
            TokenizerError: the model has no chat template, or it refuses the conversation.
        """
        return len(self._tokenized_conversation(request))

    def count_text_tokens(self, text: str) -> int:
        """Return how many tokens a text has as a part of a message."""
        return self._format.count_tokens(text)

    def _tokenized_prompts(self, request: CompletionRequest) -> list[list[int]]:
        is_chat = request.messages is not None
        prompts = [self._tokenized_conversation(request)] if is_chat else self._tokenized(request.prompts)
        for prompt in prompts:
            self._check_prompt(prompt, "messages" if is_chat else "prompt")
        return prompts

    def _tokenized_conversation(self, request: CompletionRequest) -> list[int]:
        messages = request.messages or ()
        if len(messages) > self.context_length:  # each message has at least one token
            raise RequestRefused(
                400,
                f"{len(messages):,} messages do not fit into a window of {self.context_length:,} tokens",
                "leave out the oldest messages",
                param="messages",
                code="context_length_exceeded",
            )
        prefix = self._format.tool_call_format.opening if request.forced_tools else ""
        return self._format.tokenize(messages, tools=request.tools, answer_prefix=prefix)

    def _tokenized(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        return [
            self.model.tokenize(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts
        ]

    def _check_model_name(self, model: str | None) -> None:
        """Raise RequestRefused if a request names another model than this one."""
        if model is not None and model != self.name:
            raise RequestRefused(
                404,
                f"there is no model {model[:80]!r} on this server",
                f"use {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def _check_prompt(self, prompt: Sequence[int], param: str) -> None:
        """Raise if a prompt cannot be computed.

        Raises:
            RequestRefused: it is empty, or does not fit the window.
            UsageError: a token id is not in the vocabulary.
        """
        if not prompt:
            raise RequestRefused(400, "the prompt is empty", param=param)
        if len(prompt) > self.context_length:
            raise RequestRefused(
                400,
                f"the prompt has {len(prompt):,} tokens, and the context window {self.context_length:,}",
                "shorten the prompt",
                param=param,
                code="context_length_exceeded",
                token_counts={"prompt_tokens": len(prompt), "context_length": self.context_length},
            )
        self.model.check_token_ids(prompt)

    # ---- embeddings ------------------------------------------------------------------------------

    @cached_property
    def pooling(self) -> PoolingType | None:
        """How the model pools its states into embeddings; None if it makes no embeddings."""
        return pooling_type(self.model)

    def embedding_inputs(self, request: EmbeddingRequest) -> list[list[int]]:
        """Return the token ids of each input.

        Raises:
            RequestRefused: the model makes no embeddings; an input is empty, or does not fit the window.
            UsageError: a token id is not in the vocabulary.
        """
        self._check_model_name(request.model)
        if self.pooling is None:
            raise RequestRefused(
                400,
                f"the model {self.name!r} gives no embeddings: its file has no "
                f"{self.model.file.architecture}.pooling_type (mean, cls or last)",
                "serve an embedding model",
                param="model",
                code="no_embeddings",
            )
        inputs = self._tokenized(request.inputs)
        for tokens in inputs:
            self._check_prompt(tokens, "input")
        return inputs

    def embed(
        self, request: EmbeddingRequest, inputs: Sequence[Sequence[int]], is_cancelled: Callable[[], bool]
    ) -> NDArray[np.float32]:
        """Compute embeddings outside the scheduler, one request at a time.

        Args:
            inputs: token ids of each input.
            is_cancelled: polled; the computation stops once it returns True.

        Returns:
            Vectors of length 1, (n_inputs, n_embd).

        Raises:
            RequestRefused: the vectors have another length than requested; the time limit is over, or the
                request was cancelled; the server is shutting down; the model runs on workers, whose
                connections two contexts cannot share.
            PigError: the engine failed.
        """
        deadline = time.monotonic() + self.limits.request_seconds
        with self.host.borrow_context() as context:
            self._check_embedding_request(request, context)

            def is_over() -> bool:
                return is_cancelled() or self.host.failure is not None or time.monotonic() > deadline

            try:
                return embed(context.model, inputs, context.options, is_over)
            except Interrupted:
                if self.host.failure is not None:
                    raise model_unavailable(self.host.failure) from None
                raise RequestRefused(
                    504,
                    "the embeddings were not finished within their time limit",
                    "send fewer texts at once",
                    code="timeout",
                ) from None

    def _check_embedding_request(self, request: EmbeddingRequest, context: Context) -> None:
        """Raise RequestRefused if this context cannot compute the requested embeddings."""
        if context.model.workers is not None:
            raise RequestRefused(
                501,
                "embeddings are not computed on workers",
                "start a server without `workers` for them",
                code="no_embeddings",
            )
        if request.dimensions not in (None, context.embedding_length):
            raise RequestRefused(
                400,
                f"dimensions is {request.dimensions}, and a vector has {context.embedding_length}",
                "leave out dimensions",
                param="dimensions",
                code="invalid_value",
            )


def _choice_seed(seed: int | None, choice: int) -> int | None:
    """Return a choice's own seed: choices differ from each other, and repeat with the request's seed."""
    return None if seed is None else (seed + choice) % SEED_MODULUS
