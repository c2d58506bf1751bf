"""Imatrix: measure which columns of a model's matrices matter on texts, for `convert` and `quantize`.

The texts are split into windows, and each window is computed with an empty KV cache, as llama-imatrix does
with windows of 512 tokens. A model with an extended window is better measured in long ones, because then the
activations at depth count too.

Not here: the output matrix, combining matrices, and resuming after an interruption.
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
from pigguf.quantization import serialize_imatrix

WINDOW = 512  # llama-imatrix's default
_MAX_BATCH = 512


@dataclass(frozen=True)
class ImatrixResult:
    """What was measured.

    Attributes:
        path: The file.
        tensors: How many tensors have an entry in it.
        unseen: Tensors with experts that no token was routed to, as "name: 3 of 8".
        windows: How many windows were computed.
        window: Tokens of a window.
        seconds: How long it took.
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
        model: A GGUF of any type; F16 or Q8_0 shows best what a smaller type should preserve.
        text: Files of UTF-8 text, none shorter than a window. No window spans two files; the rest at the end
            of a text is not computed.
        output: The file to write; it appears whole, or not at all.
        window: Tokens of a window, up to the model's context length.
        max_windows: Compute only this many windows.
        gpu_layers, threads: As for Model.open and ContextOptions.
        progress: Reports the tokens computed.

    Raises:
        GGUFError, UnsupportedModel, EngineError, DoesNotFit: The model cannot be opened or computed.
        ContextOverflow: The window is longer than the model's context length.
        UsageError: There are no texts, or the window is too small.
        ReadError, TextError: A text cannot be read, is not UTF-8, or is shorter than a window.
        OutputError: The file cannot be written.
    """
    begun = time.monotonic()
    if isinstance(text, (str, os.PathLike)) or not text:
        raise UsageError(f"`text` is {text!r}", "give a list of one or more files")
    if window < MIN_BATCH_TOKENS:
        raise UsageError(
            f"a window of {window} tokens is too small", f"give `window={MIN_BATCH_TOKENS}` or more"
        )
    collector = ActivationCollector()
    n_batches = -(-window // _MAX_BATCH)  # of equal size: a last batch of a few tokens would be ignored
    options = ContextOptions(length=window, threads=threads, batch=-(-window // n_batches))
    with (
        atomic_write(Path(output)) as target,  # fails before the work if it cannot be written
        Model.open(Path(model), gpu_layers=gpu_layers, progress=progress) as opened,
        Context(opened, options, collector) as context,
    ):
        windows = [tokens for file in text for tokens in _windows(opened, Path(file), window)][:max_windows]
        with context.sequence() as session, stage(progress, "measuring", len(windows) * window, "tokens"):
            for tokens in windows:
                session.truncate(0)
                # request all logits, otherwise the last layer computes only the last token
                for count in session.evaluate_batches(tokens, range(window), _count_outputs):
                    progress.advance(count)
        sums = collector.sums
        target.write(serialize_imatrix(sums, [str(file) for file in text], len(windows), window))
    unseen = tuple(
        f"{name}: {(sums_of_tensor.counts == 0).sum()} of {len(sums_of_tensor.counts)}"
        for name, sums_of_tensor in sums.items()
        if (sums_of_tensor.counts == 0).any()
    )
    return ImatrixResult(Path(output), len(sums), unseen, len(windows), window, time.monotonic() - begun)


def _count_outputs(indices: list[int], logits: list[Any]) -> int:
    return len(indices)


def _windows(model: Model, file: Path, window: int) -> Iterator[list[int]]:
    """Yield the windows of a text, each with BOS as its first token if the model adds one."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise read_error(file, error) from error
    bos = [token for token in model.tokenize("") if token == model.bos]
    tokens = bos + model.tokenize(decode_text(data, str(file)), add_special=False)
    if len(tokens) < window:
        raise TextError(
            f"{file} has {len(tokens):,} tokens; a window of {window:,} needs as many",
            "give a longer text, or a smaller `window`",
        )
    for start in range(0, len(tokens) - window + 1, window):
        yield bos + tokens[start + len(bos) : start + window]
