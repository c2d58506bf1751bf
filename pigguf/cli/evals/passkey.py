"""`pigguf eval passkey`: from how far back a model finds a number."""

from __future__ import annotations

from pathlib import Path

import click

from pigguf.cli.evals.options import (
    ReportOutput,
    compare_option,
    engine_options,
    output_options,
    run_evaluation,
    seed_option,
)
from pigguf.cli.options import PATH
from pigguf.evals.passkey import passkey
from pigguf.evals.passkey_prompts import WORDING_NAMES
from pigguf.inference.run_config import EngineConfig


@click.command()
@click.argument("model", metavar="MODEL", type=PATH)
@click.option(
    "--max-length",
    type=click.IntRange(min=1),
    metavar="N",
    help="Longest input in tokens, with its answer; default: the model's window.",
)
@click.option(
    "--distances",
    type=click.IntRange(min=1),
    metavar="N",
    default=32,
    show_default=True,
    help="Distances of the number from the end, spread evenly over the length.",
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
    help="Places where the number is hidden, from the beginning on; 1 is the cheapest.",
)
@click.option(
    "--wording",
    type=click.Choice(WORDING_NAMES),
    default="paper",
    show_default=True,
    help="How the number is hidden and asked for; -chat asks through the chat template.",
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
    """Hide a number in a long text and ask for it at its end, from every distance: the paper's test of
    the effective window.

    k_max is the largest distance such that it and all smaller ones are answered right in at least 20 %
    of the trials. A trial is one pass over the window that stops at each distance to ask: 32 distances
    cost a sixteenth of the tokens that an input for each would.

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
