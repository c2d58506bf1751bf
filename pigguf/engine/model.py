"""A model: weights and vocabulary of one GGUF file, checked before llama.cpp sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from pigguf.gguf_file import GGUFFile
from pigguf.progress import SILENT, Progress

GpuLayers = int | Literal["all", "auto"]


@dataclass(frozen=True)
class RopeOverride:
    """What the user says about positions against the file; None keeps the file's value.

    Attributes:
        factor: linear scaling factor in the Hugging Face direction (8.0, never 0.125); replaces the
            file's, does not multiply it.
        base: rope frequency base (theta).
        context_length: the window, in tokens, that the model is taken to have.
    """

    factor: float | None = None
    base: float | None = None
    context_length: int | None = None


class Model:
    """An open model. A context manager; using it after close raises EngineError.

    Attributes:
        path, file: where it came from, and its header as read.
        architecture: GGUF's name, "llama".
        description: llama.cpp's one-liner, "llama 135M Q4_1".
        context_length: the window in tokens: the file's, or the override's.
        rope_factor, rope_base: linear factor and frequency base in force (1.0 where unscaled).
        vocab_size, embedding_length, layers: counts.
        size_bytes, parameters: of the weights.
        bos, eos: token ids or None; bos_text, eos_text: their text or "".
        chat_template: the file's jinja template, or None.
    """

    path: Path
    file: GGUFFile
    architecture: str
    description: str
    context_length: int
    rope_factor: float
    rope_base: float
    vocab_size: int
    embedding_length: int
    layers: int
    size_bytes: int
    parameters: int
    bos: int | None
    eos: int | None
    bos_text: str
    eos_text: str
    chat_template: str | None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        gpu_layers: GpuLayers = "auto",
        vocab_only: bool = False,
        rope: RopeOverride | None = None,
        use_mmap: bool = True,
        progress: Progress = SILENT,
    ) -> Model:
        """Check the file and load it. Progress is one stage, "load model", in percent; Ctrl-C stops it.

        Raises:
            GGUFError: the file is damaged, or holds what llama.cpp would abort on.
            DoesNotFit: not enough memory for the weights.
            BackendUnavailable: no engine.
            EngineError: llama.cpp refuses the file; the message carries its reason.
        """
        raise NotImplementedError

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Text to token ids. add_special puts BOS/EOS where the file asks for them; parse_special reads
        special tokens' text ("<|im_start|>") as the tokens."""
        raise NotImplementedError

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for (may cut a UTF-8 character); b"" for a special token unless `special`."""
        raise NotImplementedError

    def detokenize(self, tokens: list[int], *, special: bool = False) -> str:
        """Token ids to text; bytes that are no UTF-8 become U+FFFD."""
        raise NotImplementedError

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer (EOS, end of turn, ...)."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the weights, and every context of this model first. Twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
