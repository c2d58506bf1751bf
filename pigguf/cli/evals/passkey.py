"""`pigguf eval passkey`: from how far back a model retrieves a number, the effective context window."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import compare_option, engine_options, output_options, seed_option
from pigguf.cli.evals.report_output import ReportOutput, run_evaluation
from pigguf.cli.options import FILE_PATH
from pigguf.evals.passkey import passkey
from pigguf.evals.passkey_prompts import WORDING_NAMES
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Longest prompt in tokens, with its answer; default: the model's window.",
)
@click.option(
    "--distances",
    type=click.IntRange(min=1),
    metavar="N",
    default=32,
    show_default=True,
    help="Distances of the number from the end, spread evenly over the window.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    metavar="N",
    default=10,
    show_default=True,
    help="Numbers to hide for each distance and depth.",
)
@click.option(
    "--depths",
    type=click.IntRange(min=1),
    metavar="N",
    default=4,
    show_default=True,
    help="Positions at which the number is hidden, from the beginning on; 1 is the fastest.",
)
@click.option(
    "--wording",
    type=click.Choice(WORDING_NAMES),
    default="paper",
    show_default=True,
    help="Wording of the prompt; -chat asks through the chat template.",
)
@compare_option
@seed_option
@engine_options
@output_options
def command(
    model: Path,
    max_length: int | None,
    distances: int,
    trials: int,
    depths: int,
    wording: str,
    compare: tuple[str, ...],
    seed: int,
    engine: EngineConfig,
    output: ReportOutput,
) -> None:
    """Hide a number in a long text and ask for it: the paper's test of the effective context window.

    k_max is the largest distance such that it and all smaller ones are answered right in at least 20 %
    of the trials. A trial is one pass over the window that asks at each distance: 32 distances cost
    a sixteenth of the tokens of separate prompts.

    \b
    Examples:
      pigguf eval passkey model.gguf --html passkey.html
      pigguf eval passkey model.gguf --max-length 8192 --wording locker --depths 1
      pigguf eval passkey model.gguf --max-length 32768 --compare none,linear:4
    """
    run_evaluation(
        output,
        lambda progress: passkey(
            model,
            max_length=max_length,
            distances=distances,
            trials=trials,
            depths=depths,
            wording=wording,
            seed=seed,
            compare=compare,
            engine=engine,
            progress=progress,
        ),
    )
