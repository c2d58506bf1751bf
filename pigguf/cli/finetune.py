"""`pigguf finetune`: a checkpoint and text -> an adapter or a checkpoint with a longer window."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.formatting import duration
from pigguf.cli.options import PATH, SOURCE, json_option, verbose_option
from pigguf.errors import TextError
from pigguf.finetuning.finetune import FinetuneResult, finetune
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.finetuning.training_log import StepMetrics

TEXT_ENDINGS = (".txt", ".jsonl")
NOTE_SECONDS = 15.0  # between two lines that tell of steps


@click.command()
@click.argument("source", metavar="SOURCE", type=SOURCE)
@click.argument("more_text", metavar="", type=PATH, nargs=-1)
@click.option(
    "--factor",
    type=click.FloatRange(min=1, min_open=True),
    required=True,
    metavar="N",
    help="Divide positions by N: the window becomes N times the original one.",
)
@click.option(
    "--text",
    type=PATH,
    multiple=True,
    required=True,
    metavar="PATH...",
    help="Text to train on: *.txt, *.jsonl, or folders of them.",
)
@click.option("-o", "--output", type=PATH, required=True, metavar="OUT", help="The directory to make.")
@click.option(
    "--method",
    type=click.Choice(["lora", "full"]),
    default="lora",
    show_default=True,
    help="Train an adapter, or every weight.",
)
@click.option("--rank", type=click.IntRange(min=1), default=32, show_default=True, help="LoRA's rank.")
@click.option("--alpha", type=click.IntRange(min=1), metavar="N", help="LoRA's alpha.  [default: 2 x rank]")
@click.option(
    "--train",
    type=click.Choice(["norms", "embeddings"]),
    multiple=True,
    help="With LoRA, train these too, whole; may be given twice.",
)
@click.option(
    "--adapter", type=SOURCE, metavar="DIR", help="Begin from the adapter of an earlier fine-tuning."
)
@click.option(
    "--sequence-length",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens of a training sequence.  [default: the extended window]",
)
@click.option(
    "--position-skipping",
    is_flag=True,
    help="Spread the positions of shorter sequences over the extended window (PoSE).",
)
@click.option("--steps", type=click.IntRange(min=1), default=1000, show_default=True, help="Optimizer steps.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Sequences a step.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Its peak.  [default: 2e-5 for full, 2e-4 for lora]",
)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "constant"]),
    default="cosine",
    show_default=True,
    help="What the learning rate does after 20 steps of warm-up.",
)
@click.option(
    "--held-out",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Sequences to measure on and never train on.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="N",
    help="Steps between measurements, after each of which the state is saved.",
)
@click.option("--gradient-checkpointing", is_flag=True, help="Take more time and less memory.")
@click.option(
    "--dtype",
    type=click.Choice(["bf16", "f32"]),
    default="bf16",
    show_default=True,
    help="What to compute in.",
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 ...  [default: a GPU where there is one]")
@click.option("--seed", type=int, default=0, show_default=True, metavar="N", help="Draw the same again.")
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
    """Extend the window of the checkpoint SOURCE by Position Interpolation, and fine-tune it on text.

    SOURCE is a directory, or a hub's OWNER/NAME[@REVISION], as `pigguf convert` takes them.

    The loss is that of the next token. A *.txt file is a document; a line of a *.jsonl file is
    {"text"}, {"prompt", "completion"} or {"messages"}, and of the latter two only the completion
    and the assistant's words count. Sequences are held out, never trained on, and measured.

    OUT becomes a PEFT adapter for `pigguf convert SOURCE --adapter OUT`, or with --method full a
    checkpoint for `pigguf convert OUT`. Until then OUT.training/ holds the last saved state and
    log.jsonl, a line a step: the same command goes on where a killed one was.

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
            progress=render.progress(),
            on_step=_Teller(settings.steps),
        )
    except KeyboardInterrupt:
        render.note(f"the last saved state is in {output}.training: the same command goes on from there")
        raise
    if as_json:
        render.json(_as_data(result))
        return
    render.facts(_rows(result, source))


def _text_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files themselves, and those in folders, by name."""
    for path in paths:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in TEXT_ENDINGS)
            if not files:
                raise TextError(f"{path} holds no {' or '.join(TEXT_ENDINGS)} file")
            yield from files
        else:
            yield path


class _Teller:
    """Tells of the loss on stderr: a line every few seconds, and at every measurement."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._told_at = -math.inf

    def __call__(self, step: StepMetrics) -> None:
        now = time.monotonic()
        if step.held_out is None and now - self._told_at < NOTE_SECONDS:
            return
        self._told_at = now
        parts = [f"step {step.step} of {self._steps}"]
        if step.loss is not None:
            parts.append(f"loss {_loss(step.loss)}")
        if step.held_out:
            measured = ", ".join(f"{kind} {_loss(loss)}" for kind, loss in step.held_out.items())
            parts.append(f"held out: {measured}")
        render.note("; ".join(parts))


def _loss(loss: float) -> str:
    return f"{loss:.3f} (perplexity {math.exp(min(loss, 700)):.4g})"


def _rows(result: FinetuneResult, source: str) -> list[tuple[str, object]]:
    first, last = result.steps[0], result.steps[-1]
    rows: list[tuple[str, object]] = [
        ("directory", result.path),
        ("window", f"{result.rope.context_length:,} tokens, {result.rope.explain()}"),
        (
            "trained",
            f"{result.trained_parameters:,} numbers, {last['tokens']:,} tokens, {last['step']} steps",
        ),
    ]
    rows += [
        ("held out", f"{kind}: {_loss(first['held_out'][kind])} before, {_loss(loss)} after")
        for kind, loss in last["held_out"].items()
    ]
    rows.append(("took", duration(result.seconds)))
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
