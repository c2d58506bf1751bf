"""LocalModel: a model for users of the library, text in and text out.

    with pigguf.open_model("model.gguf", ctx=8192) as model:
        for text in model.chat([{"role": "user", "content": "Hello"}]):
            print(text, end="")

Each call takes the whole conversation or prompt; the KV cache keeps what it has in common with the last one.
Text is yielded as it is generated, in whole characters. One text is generated at a time: when another is
begun, from any thread, the iterator of the last one raises EngineError. `achat` and `agenerate` are the same
for asyncio (inference/async_stream.py). Not here: keeping a conversation's history (chat/conversation.py),
and more than one sequence (inference/engine).
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
from pigguf.grammar import json_schema_to_grammar
from pigguf.inference.async_stream import stream_in_thread
from pigguf.inference.detokenizer import StreamingDetokenizer
from pigguf.inference.engine import (
    CacheType,
    GpuLayers,
    Model,
    RuntimeRope,
    SamplingParams,
    Session,
    StopReason,
)
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import PrefillBackend, RunConfig
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
    prefill: PrefillBackend = "auto",
    prompt_cache: bool = False,
    workers: Sequence[str] = (),
    split: Sequence[float] | None = None,
    progress: Progress = SILENT,
) -> LocalModel:
    """Open a GGUF file to chat with and to continue text.

    Args:
        path: a .gguf file.
        ctx: context window in tokens; None is the model's own, or as many tokens as fit in half of the free
            memory.
        prompt_cache: save the KV states of long prompts on disk, and restore them in the next process. Off by
            default, because a prompt needs gigabytes with a large model.
        gpu_layers, threads, rope, cache_k, cache_v, flash_attention, prefill, workers, split: as for
            RunConfig.
        progress: is told about loading and prefill.

    Raises:
        As `pigguf.inference.open_context.open_session` does.
    """
    config = RunConfig(
        ctx=ctx,
        gpu_layers=gpu_layers,
        threads=threads,
        rope=rope,
        cache_k=cache_k,
        cache_v=cache_v,
        flash_attention=flash_attention,
        prefill=prefill,
        prompt_cache=prompt_cache,
        workers=tuple(workers),
        split=None if split is None else tuple(split),
    )
    with ExitStack() as stack:
        session = stack.enter_context(open_session(path, config, progress))
        return LocalModel(session.context.model, session, stack.pop_all())


class LocalModel:
    """An open model with the KV cache of one conversation; made by `open_model`. A context manager.

    Attributes:
        model: the engine's model: its header, vocabulary and RoPE parameters.
        context_length: the context window in tokens.
        stop_reason: why the last text ended: "end" (an end-of-generation token), "stop" (one of the stop
            strings), "length" (max_tokens), "window" (the context is full), "interrupted" (the iterator was
            closed).
        prompt_tokens, cached_tokens, answer_tokens: of the last text: the tokens of its prompt, how many of
            them were in the KV cache already, and the tokens generated.
    """

    def __init__(self, model: Model, session: Session, stack: ExitStack) -> None:
        self.model = model
        self.context_length = session.context.length
        self.stop_reason: StopReason | Literal["stop"] | None = None
        self.prompt_tokens = self.cached_tokens = self.answer_tokens = 0
        self._session = session
        self._stack = stack
        self._detokenizer: StreamingDetokenizer | None = None

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
        """Yield the answer to a conversation, formatted by the model's own chat template.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text}, the last one the user's.
            sampling: how tokens are sampled.
            max_tokens: the most tokens to generate; None is up to the end of the context window.
            stop: the text ends before the first of these strings.
            json_schema: constrain the text to JSON that this schema accepts (a dict; True is any JSON); it is
                complete if `stop_reason` is "end".
            progress: is told about the prompt's tokens.

        Raises:
            TokenizerError: no chat template, or one that rejects the conversation.
            ContextOverflow: the prompt does not fit; raised when the first text is asked for.
            UsageError: the schema has something that a grammar cannot express.
        """
        prompt = self._chat_format.tokenize(messages)
        detokenizer = StreamingDetokenizer(self.model, stop, strip_first_space=self.model.add_space_prefix)
        return self._stream(
            prompt, _with_json_grammar(json_schema, sampling), max_tokens, detokenizer, progress
        )

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
        """Yield the continuation of a text or of tokens; arguments as for `chat`.

        The name of a special token in the text is plain text; pass tokens if it should be the token.

        Raises:
            ContextOverflow: the prompt does not fit; raised when the first text is asked for.
            UsageError: an empty prompt, or the schema has something that a grammar cannot express.
        """
        tokens = self.model.tokenize(prompt) if isinstance(prompt, str) else prompt
        detokenizer = StreamingDetokenizer(self.model, stop)
        return self._stream(
            tokens, _with_json_grammar(json_schema, sampling), max_tokens, detokenizer, progress
        )

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
        """Yield as `chat` does, for `async for`.

        All errors are raised with the first text; progress is called from a thread.
        """
        return stream_in_thread(
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
        """Yield as `generate` does, for `async for`.

        All errors are raised with the first text; progress is called from a thread.
        """
        return stream_in_thread(
            lambda: self.generate(
                prompt, sampling, max_tokens=max_tokens, stop=stop, json_schema=json_schema, progress=progress
            ),
            self._session.interrupt,
        )

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text; see `Model.tokenize`."""
        return self.model.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Return the text of token ids; see `Model.detokenize`."""
        return self.model.detokenize(tokens)

    def close(self) -> None:
        """Close the session, the context and the model. Closing twice is fine."""
        self._stack.close()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _chat_format(self) -> ChatFormat:
        return ChatFormat(self.model)

    def _stream(
        self,
        prompt: Sequence[int],
        sampling: SamplingParams | None,
        max_tokens: int | None,
        detokenizer: StreamingDetokenizer,
        progress: Progress,
    ) -> Generator[str, None, None]:
        self.stop_reason = None
        self._detokenizer = detokenizer
        with self._session.context.lock:
            cached = self._session.set_prompt(prompt, progress)
            tokens = self._session.generate(sampling, max_tokens)
        self.prompt_tokens, self.cached_tokens, self.answer_tokens = len(prompt), cached, 0
        try:
            for token in tokens:
                self.answer_tokens += 1
                if text := detokenizer.add_token(token):
                    yield text
                if detokenizer.stopped:
                    break
            if rest := detokenizer.finalize():
                yield rest
        finally:
            tokens.close()
            if self._detokenizer is detokenizer:
                self.stop_reason = "stop" if detokenizer.stopped else self._session.stop_reason


def _with_json_grammar(json_schema: Any, sampling: SamplingParams | None) -> SamplingParams | None:
    if json_schema is None:
        return sampling
    if sampling is not None and sampling.grammar is not None:
        raise UsageError(
            "`json_schema` and `sampling.grammar` are both given", "a text can be constrained by one of them"
        )
    return replace(sampling or SamplingParams(), grammar=json_schema_to_grammar(json_schema))
