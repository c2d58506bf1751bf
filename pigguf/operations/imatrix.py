"""imatrix: a GGUF and texts -> which columns of its matrices matter, for convert and quantize --imatrix.

The texts are cut into windows end to end, and each is computed afresh, as llama-imatrix does it: there a
window is 512 tokens. A model whose window was extended is better measured in long ones: what a column
meets at depth counts too.

Left out: the output matrix, joining matrices, and going on after an interruption.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigguf.common.atomic_write import atomic_write
from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text
from pigguf.errors import TextError, UsageError
from pigguf.inference.engine import Context, ContextOptions, GpuLayers, Model
from pigguf.inference.engine.activation_stats import MIN_BATCH_TOKENS, ActivationCollector
from pigguf.progress import SILENT, Progress, stage
from pigguf.quantization import imatrix_bytes

WINDOW = 512  # llama-imatrix's
_BATCH = 512


@dataclass(frozen=True)
class ImatrixResult:
    """What was made.

    Attributes:
        path: the file.
        tensors: how many tensors it speaks of.
        unseen: tensors with experts that no token was sent to, as "name: 3 of 8".
        windows, window: how many windows were computed, and their tokens.
        seconds: how long it took.
    """

    path: Path
    tensors: int
    unseen: tuple[str, ...]
    windows: int
    window: int
    seconds: float


def imatrix(
    model: str | os.PathLike[str],
    text: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] = "imatrix.gguf",
    *,
    window: int = WINDOW,
    max_windows: int | None = None,
    gpu_layers: GpuLayers = "auto",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ImatrixResult:
    """Measure which columns of a model's matrices matter on texts.

    Args:
        model: a GGUF of any type; F16 or Q8_0 measure best what a smaller one is to keep.
        text: files of UTF-8 text, none shorter than a window. No window spans two; what is left over at a
            text's end is not computed.
        output: the file to write; it appears whole, or not at all.
        window: tokens computed together, up to the model's own window.
        max_windows: compute the first so many windows only.
        gpu_layers, threads: as Model.open and ContextOptions take them.
        progress: told of the tokens computed.

    Raises:
        GGUFError, UnsupportedModel, EngineError, DoesNotFit: the model cannot be opened or computed.
        ContextOverflow: a window beyond the model's.
        UsageError: no text, or a window of a few tokens.
        ReadError, TextError: a text that cannot be read, is none, or does not fill a window.
        OutputError: the file cannot be written.
    """
    begun = time.monotonic()
    if isinstance(text, (str, os.PathLike)) or not text:
        raise UsageError(f"the texts are {text!r}", "give a sequence of one or more files")
    if window < MIN_BATCH_TOKENS:
        raise UsageError(f"a window of {window} tokens is too small", f"take {MIN_BATCH_TOKENS} at least")
    observer = ActivationCollector()
    parts = -(-window // _BATCH)  # alike, for a rest of a few tokens would not count
    options = ContextOptions(length=window, threads=threads, batch=-(-window // parts))
    with (
        atomic_write(Path(output)) as target,  # refused before the work, if it cannot be written
        Model.open(Path(model), gpu_layers=gpu_layers, progress=progress) as opened,
        Context(opened, options, observer) as context,
    ):
        windows = [tokens for file in text for tokens in _windows(opened, Path(file), window)][:max_windows]
        with context.sequence() as session, stage(progress, "measuring", len(windows) * window, "tokens"):
            for tokens in windows:
                session.truncate(0)
                # all logits are asked for, else the last layer would compute the last token alone
                for count in session.evaluate_batches(tokens, range(window), _count):
                    progress.advance(count)
        sums = observer.sums
        target.write(imatrix_bytes(sums, [str(file) for file in text], len(windows), window))
    unseen = tuple(
        f"{name}: {(found.counts == 0).sum()} of {len(found.counts)}"
        for name, found in sums.items()
        if (found.counts == 0).any()
    )
    return ImatrixResult(Path(output), len(sums), unseen, len(windows), window, time.monotonic() - begun)


def _count(indices: list[int], rows: list[Any]) -> int:
    return len(indices)


def _windows(model: Model, file: Path, window: int) -> Iterator[list[int]]:
    """A text's windows, each beginning with BOS where the model wants one (in place of a token)."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise read_error(file, error) from error
    bos = [token for token in model.tokenize("") if token == model.bos]
    tokens = bos + model.tokenize(decode_text(data, str(file)), add_special=False)
    if len(tokens) < window:
        raise TextError(
            f"{file} has {len(tokens):,} tokens; a window of {window:,} needs as many",
            "give a longer text, or a smaller --window",
        )
    for start in range(0, len(tokens) - window + 1, window):
        yield bos + tokens[start + len(bos) : start + window]
