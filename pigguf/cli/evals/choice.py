"""`pigguf eval choice`: zero-shot multiple choice."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import compare_option, engine_options, output_options
from pigguf.cli.evals.report_output import ReportOutput, run_evaluation
from pigguf.cli.options import FILE_PATH
from pigguf.evals.multiple_choice import choice
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.argument("data", metavar="DATA...", type=FILE_PATH, nargs=-1, required=True)
@compare_option
@engine_options
@output_options
def command(
    model: Path, data: tuple[Path, ...], compare: tuple[str, ...], engine: EngineConfig, output: ReportOutput
) -> None:
    """Ask multiple-choice questions; the model's answer is the choice that it finds most likely.

    DATA are files of JSON lines, a question each, in the format of BoolQ (question, passage, answer), PIQA
    (goal, sol1, sol2, label), RACE (article, question, options, answer), WinoGrande (sentence, option1,
    option2, answer), or a plain one (context, choices, label: the index of the right choice, from 0). The
    prompts are those of lm-evaluation-harness. Accuracy is reported by the likelihood of the choices, and
    by their likelihood divided by their length in bytes.

    \b
    Examples:
      pigguf eval choice model.gguf boolq.jsonl piqa.jsonl
      pigguf eval choice model.gguf race.jsonl --compare none --json
    """
    run_evaluation(
        output, lambda progress: choice(model, data, compare=compare, engine=engine, progress=progress)
    )
