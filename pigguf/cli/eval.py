"""`pigguf eval`: a lazy table of evaluations, each a command of its own.

An evaluation's command is a module of cli/evals/ that exposes a click command named `command`, and a row
in EVALUATIONS. Options that several share, and what is done with a report: cli/evals/options.py.
"""

from __future__ import annotations

import click

from pigguf.cli import LazyGroup

# name -> (module, what the list of evaluations says of it)
EVALUATIONS: dict[str, tuple[str, str]] = {
    "perplexity": ("pigguf.cli.evals.perplexity", "How well the model foretells a text, by window."),
    "passkey": ("pigguf.cli.evals.passkey", "From how far back it finds a number: the effective window."),
    "kl": ("pigguf.cli.evals.kl", "How far its predictions are from a reference's, and at depth."),
    "sweep": ("pigguf.cli.evals.sweep", "Which rope scaling factor suits it, where that was lost."),
    "choice": ("pigguf.cli.evals.choice", "Zero-shot questions with answers to choose from."),
    "rouge": ("pigguf.cli.evals.rouge", "Its summaries, compared with people's."),
}

EPILOG = """\b
Examples:
  pigguf eval perplexity model.gguf --text novel.txt
  pigguf eval perplexity --help

Figures go to stdout as tables, or as JSON with --json; --html FILE writes a page with plots.
What is finished of a run is kept: after Ctrl-C the same command goes on from there.
"""


@click.group(cls=LazyGroup, table=EVALUATIONS, invoke_without_command=True, epilog=EPILOG)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Measure a GGUF file through the engine, as the Position Interpolation paper measured checkpoints."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
