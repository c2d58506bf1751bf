"""A local model as a library user wants it: text in, text out.

    with pigguf.open_model("model.gguf", ctx=8192) as model:
        for text in model.chat([{"role": "user", "content": "Hello"}]):
            print(text, end="")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from pigguf.engine import CacheType, GpuLayers, RopeOverride, Sampling
from pigguf.progress import SILENT, Progress


class LocalModel:
    """An open model with one conversation's cache; a context manager.

    Text iterators never cut a character, and stop before any of the `stop` strings.
    """

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        progress: Progress = SILENT,
    ) -> Iterator[str]:
        """The answer to a conversation, by the model's own chat template, as text as it comes."""
        raise NotImplementedError

    def generate(
        self,
        prompt: str,
        sampling: Sampling | None = None,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        progress: Progress = SILENT,
    ) -> Iterator[str]:
        """The prompt's continuation, as text as it comes."""
        raise NotImplementedError

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        raise NotImplementedError

    def detokenize(self, tokens: Sequence[int]) -> str:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_model(
    path: str | Path,
    ctx: int | None = None,
    *,
    gpu_layers: GpuLayers = "auto",
    threads: int | None = None,
    rope: RopeOverride | None = None,
    cache_k: CacheType = "f16",
    cache_v: CacheType = "f16",
    flash_attention: bool | None = None,
    progress: Progress = SILENT,
) -> LocalModel:
    """Open a GGUF for chat and generation; `ctx` is the window in tokens (None: all the file claims)."""
    raise NotImplementedError
