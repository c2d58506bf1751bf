"""`pigguf eval choice`: zero-shot questions with answers to choose from."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import (
    ReportOutput,
    compare_option,
    engine_options,
    output_options,
    run_evaluation,
)
from pigguf.cli.options import PATH
from pigguf.evals.multiple_choice import choice
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=PATH)
@click.argument("data", metavar="DATA...", type=PATH, nargs=-1, required=True)
@compare_option
@engine_options
@output_options
def command(
    model: Path, data: tuple[Path, ...], compare: tuple[str, ...], engine: EngineConfig, output: ReportOutput
) -> None:
    """Ask questions with answers to choose from; the model's answer is the one it finds likeliest.

    DATA are files of JSON lines, a question each, in the form of BoolQ (question, passage, answer), PIQA
    (goal, sol1, sol2, label), RACE (article, question, options, answer), WinoGrande (sentence, option1,
    option2, answer), or plainly (context, choices, label: the right one's place, from 0). The words of
    the prompts are lm-evaluation-harness's. Accuracy is told by the answers' likelihood as it is, and
    divided by their length in bytes.

    \b
    Examples:
      pigguf eval choice model.gguf boolq.jsonl piqa.jsonl
      pigguf eval choice model.gguf race.jsonl --compare none --json
    """
    run_evaluation(output, lambda progress: choice(model, data, compare=compare, engine=engine, progress=progress))
