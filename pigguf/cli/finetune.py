"""`pigguf finetune`: fine-tune a checkpoint to a longer context window, as an adapter or in full."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.formatting import format_duration
from pigguf.cli.options import CHECKPOINT_SOURCE, FILE_PATH, json_option, verbose_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.errors import TextError
from pigguf.finetuning.finetune import FinetuneResult, finetune
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.finetuning.training_log import StepMetrics

TEXT_SUFFIXES = (".txt", ".jsonl")
SECONDS_BETWEEN_REPORTS = 15.0


@click.command()
@click.argument("source", metavar="SOURCE", type=CHECKPOINT_SOURCE)
@click.argument("more_text", metavar="", type=FILE_PATH, nargs=-1)
@click.option(
    "--factor",
    type=click.FloatRange(min=1, min_open=True),
    required=True,
    metavar="N",
    help="Linear rope scaling factor: the context window becomes N times the original one.",
)
@click.option(
    "--text",
    type=FILE_PATH,
    multiple=True,
    required=True,
    metavar="PATH...",
    help="Text to train on: *.txt, *.jsonl, or directories of them.",
)
@click.option("-o", "--output", type=FILE_PATH, required=True, metavar="OUT", help="Output directory.")
@click.option(
    "--method",
    type=click.Choice(["lora", "full"]),
    default="lora",
    show_default=True,
    help="Train a LoRA adapter, or all weights.",
)
@click.option("--rank", type=click.IntRange(min=1), default=32, show_default=True, help="LoRA rank.")
@click.option("--alpha", type=click.IntRange(min=1), metavar="N", help="LoRA alpha.  [default: 2 x rank]")
@click.option(
    "--train",
    type=click.Choice(["norms", "embeddings"]),
    multiple=True,
    help="With LoRA, train these modules in full, too; may be given twice.",
)
@click.option(
    "--adapter", type=CHECKPOINT_SOURCE, metavar="DIR", help="Start from the adapter of an earlier run."
)
@click.option(
    "--sequence-length",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens per training sequence.  [default: the extended window]",
)
@click.option(
    "--position-skipping",
    is_flag=True,
    help="Spread the positions of shorter sequences over the extended window (PoSE).",
)
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Optimizer steps.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Sequences per step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Peak learning rate.  [default: 2e-5 for full, 2e-4 for lora]",
)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "constant"]),
    default="cosine",
    show_default=True,
    help="Learning rate schedule after 20 warm-up steps.",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Held-out sequences, to measure the loss on.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help="Steps between measurements; the state is saved after each.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Recompute activations to save memory.")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "f32"]),
    default="bf16",
    show_default=True,
    help="Dtype of the computation.",
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, ...  [default: a GPU if there is one]")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Random seed.")
@json_option
@verbose_option
def command(
    source: str,
    more_text: tuple[Path, ...],
    text: tuple[Path, ...],
    output: Path,
    adapter: str | None,
    alpha: int | None,
    rank: int,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Fine-tune the checkpoint SOURCE to a longer context window by Position Interpolation.

    SOURCE is a directory, or OWNER/NAME[@REVISION] of the Hugging Face Hub, as for `pigguf convert`.

    A *.txt file is a document; a line of a *.jsonl file is {"text"}, {"prompt", "completion"} or
    {"messages"}. For the latter two, the loss covers the completion and the assistant's messages only.
    Some sequences are held out and measured, but not trained on.

    OUT becomes a PEFT adapter for `pigguf convert SOURCE --adapter OUT`, or with --method full
    a checkpoint for `pigguf convert OUT`. During training, OUT.training/ has the last saved state and
    log.jsonl, a line per step. If the process is killed, the same command resumes.

    \b
    Examples:
      pigguf finetune ./smollm2 --factor 4 --text books/ -o longer --sequence-length 2048 \\
          --position-skipping --batch 2 --learning-rate 1e-3 --train norms --steps 400
      pigguf finetune ./llama-7b --factor 8 --text books/*.txt -o llama-7b-16k --method full \\
          --gradient-checkpointing
    """
    settings = FinetuneSettings(rank=rank, alpha=alpha or 2 * rank, **options)
    files = list(_text_files((*text, *more_text)))
    try:
        result = finetune(
            source,
            files,
            output,
            settings,
            adapter=adapter,
            progress=progress_bar(),
            on_step=_StepReporter(settings.steps),
        )
    except KeyboardInterrupt:
        render.note(f"the last saved state is in {output}.training: the same command resumes")
        raise
    if as_json:
        render.json(_as_data(result))
        return
    render.key_values(_rows(result, source))


def _text_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files as they are given, and the text files in directories, sorted by name."""
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in TEXT_SUFFIXES)
            if not files:
                raise TextError(f"{path} holds no {' or '.join(TEXT_SUFFIXES)} file")
            yield from files
        else:
            yield path


class _StepReporter:
    """Prints the loss on stderr: every few seconds, and at each measurement of the held-out loss."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._reported_at = -math.inf

    def __call__(self, metrics: StepMetrics) -> None:
        now = time.monotonic()
        if metrics.held_out is None and now - self._reported_at < SECONDS_BETWEEN_REPORTS:
            return
        self._reported_at = now
        parts = [f"step {metrics.step} of {self._steps}"]
        if metrics.loss is not None:
            parts.append(f"loss {_format_loss(metrics.loss)}")
        if metrics.held_out:
            losses = ", ".join(f"{kind} {_format_loss(loss)}" for kind, loss in metrics.held_out.items())
            parts.append(f"held out: {losses}")
        render.note("; ".join(parts))


def _format_loss(loss: float) -> str:
    return f"{loss:.3f} (perplexity {math.exp(min(loss, 700)):.4g})"


def _rows(result: FinetuneResult, source: str) -> list[tuple[str, object]]:
    first, last = result.steps[0], result.steps[-1]
    rows: list[tuple[str, object]] = [
        ("directory", result.path),
        ("context", f"{result.rope.context_length:,} tokens, {result.rope.explain()}"),
        (
            "trained",
            f"{result.trained_parameters:,} parameters, {last['tokens']:,} tokens, {last['step']} steps",
        ),
    ]
    rows += [
        ("held out", f"{kind}: {_format_loss(first['held_out'][kind])} before, {_format_loss(loss)} after")
        for kind, loss in last["held_out"].items()
    ]
    rows.append(("took", format_duration(result.seconds)))
    adapter = (result.path / "adapter_config.json").exists()
    next_step = (
        f"pigguf convert {source} --adapter {result.path}" if adapter else f"pigguf convert {result.path}"
    )
    rows.append(("next", next_step))
    return rows


def _as_data(result: FinetuneResult) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "rope": result.rope.as_data(),
        "trained_parameters": result.trained_parameters,
        "steps": list(result.steps),
        "seconds": round(result.seconds, 3),
    }
