"""A local model as a library user wants it: text in, text out.

    with pigguf.open_model("model.gguf", ctx=8192) as model:
        for text in model.chat([{"role": "user", "content": "Hello"}]):
            print(text, end="")

Contract: each call says all of its conversation or prompt; the cache keeps what it shares with the
last one. Text comes as it is drawn and never cuts a character. One text at a time: when another is
begun, from any thread, the iterator of the last one raises EngineError. achat and agenerate are the same
for asyncio (inference/async_stream.py).
Left out: who remembers the conversation (chat/conversation.py), more than one sequence (engine/).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from pigguf.chat.prompt_format import ChatFormat, Message
from pigguf.errors import UsageError
from pigguf.grammar import json_grammar
from pigguf.inference.async_stream import streamed
from pigguf.inference.detokenizer import Text
from pigguf.inference.engine import (
    CacheType,
    GpuLayers,
    Model,
    RuntimeRope,
    SamplingParams,
    Session,
    StopReason,
)
from pigguf.inference.open_context import Prefill, RunConfig, open_session
from pigguf.progress import SILENT, Progress


def open_model(
    path: str | Path,
    ctx: int | None = None,
    *,
    gpu_layers: GpuLayers = "auto",
    threads: int | None = None,
    rope: RuntimeRope | None = None,
    cache_k: CacheType = "f16",
    cache_v: CacheType = "f16",
    flash_attention: bool | None = None,
    prefill: Prefill = "auto",
    sessions: bool = False,
    workers: Sequence[str] = (),
    split: Sequence[float] | None = None,
    progress: Progress = SILENT,
) -> LocalModel:
    """Open a GGUF file to chat with and to continue text.

    Args:
        path: a .gguf file.
        ctx: the window in tokens; None is the file's, or what half of the free memory holds.
        sessions: keep long prompts on disk, and start from them in the next process. An app that wants it
            says so: a prompt takes gigabytes with a large model.
        gpu_layers, threads, rope, cache_k, cache_v, flash_attention, prefill, workers, split: as RunConfig
            has them.

    Raises:
        As runtime.open_session does.
    """
    settings = RunConfig(
        ctx,
        gpu_layers,
        threads,
        rope,
        cache_k,
        cache_v,
        flash_attention,
        prefill,
        sessions,
        tuple(workers),
        None if split is None else tuple(split),
    )
    with ExitStack() as opened:
        session = opened.enter_context(open_session(path, settings, progress))
        return LocalModel(session.context.model, session, opened.pop_all())


class LocalModel:
    """An open model with the cache of one conversation; made by open_model. A context manager.

    Attributes:
        model: the engine's model: its header, vocabulary, positions.
        context_length: the window in tokens.
        stop_reason: why the last text ended: "end" (the model's end), "stop" (one of the stop strings),
            "length" (max_tokens), "window" (it is full), "interrupted" (the iterator was closed).
    """

    def __init__(self, model: Model, session: Session, opened: ExitStack) -> None:
        self.model = model
        self.context_length = session.context.length
        self.stop_reason: StopReason | Literal["stop"] | None = None
        self.prompt_tokens = self.cached_tokens = self.answer_tokens = 0
        self._session = session
        self._opened = opened
        self._text: Text | None = None

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        json_schema: Any = None,
        progress: Progress = SILENT,
    ) -> Generator[str, None, None]:
        """The answer to a conversation, by the model's own chat template.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text}, the last one the user's.
            sampling: how tokens are drawn.
            max_tokens: most tokens to draw; None is up to the window's end.
            stop: the text ends before the first of these.
            json_schema: the text is JSON that this schema accepts (a dict; True is any JSON), unless it ends
                otherwise than by "end".
            progress: hears of the prompt's tokens.

        Raises:
            TokenizerError: no chat template, or one that refuses the conversation.
            ContextOverflow: the prompt does not fit, when the first text is asked for.
            UsageError: the schema says what a grammar cannot hold to.
        """
        prompt = self._format.tokens(messages)
        text = Text(self.model, stop, without_first_space=self.model.space_prefix)
        return self._texts(prompt, _held_to(json_schema, sampling), max_tokens, text, progress)

    def generate(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        json_schema: Any = None,
        progress: Progress = SILENT,
    ) -> Generator[str, None, None]:
        """The continuation of a text, or of tokens; arguments as for chat.

        A special token's name in the text is plain text; give tokens where it should be the token.

        Raises:
            ContextOverflow: the prompt does not fit, when the first text is asked for.
            UsageError: an empty prompt, or the schema says what a grammar cannot hold to.
        """
        tokens = self.model.tokenize(prompt) if isinstance(prompt, str) else prompt
        text = Text(self.model, stop)
        return self._texts(tokens, _held_to(json_schema, sampling), max_tokens, text, progress)

    def achat(
        self,
        messages: Sequence[Message],
        sampling: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        json_schema: Any = None,
        progress: Progress = SILENT,
    ) -> AsyncGenerator[str, None]:
        """As chat, for `async for`. All errors come with the first text; progress hears from a thread."""
        return streamed(
            lambda: self.chat(
                messages,
                sampling,
                max_tokens=max_tokens,
                stop=stop,
                json_schema=json_schema,
                progress=progress,
            ),
            self._session.interrupt,
        )

    def agenerate(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingParams | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        json_schema: Any = None,
        progress: Progress = SILENT,
    ) -> AsyncGenerator[str, None]:
        """As generate, for `async for`. All errors come with the first text; progress hears from a thread."""
        return streamed(
            lambda: self.generate(
                prompt, sampling, max_tokens=max_tokens, stop=stop, json_schema=json_schema, progress=progress
            ),
            self._session.interrupt,
        )

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Text to token ids; see Model.tokenize."""
        return self.model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Token ids to text; see Model.detokenize."""
        return self.model.detokenize(tokens)

    def close(self) -> None:
        """Free everything. Twice is fine."""
        self._opened.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _format(self) -> ChatFormat:
        return ChatFormat(self.model)

    def _texts(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None,
        max_tokens: int | None,
        text: Text,
        progress: Progress,
    ) -> Generator[str, None, None]:
        self.stop_reason = None
        self._text = text
        with self._session.context.turn:
            cached = self._session.set_prompt(prompt, progress)
            tokens = self._session.generate(sampling, max_tokens)
        self.prompt_tokens, self.cached_tokens, self.answer_tokens = len(prompt), cached, 0
        try:
            for token in tokens:
                self.answer_tokens += 1
                if shown := text.add(token):
                    yield shown
                if text.stopped:
                    break
            if rest := text.end():
                yield rest
        finally:
            tokens.close()
            if self._text is text:
                self.stop_reason = "stop" if text.stopped else self._session.stop_reason


def _held_to(json_schema: Any, sampling: SamplingParams | None) -> SamplingParams | None:
    if json_schema is None:
        return sampling
    if sampling is not None and sampling.grammar is not None:
        raise UsageError("a JSON schema and a grammar are given", "a text can be held to one of them")
    return replace(sampling or SamplingParams(), grammar=json_grammar(json_schema))
