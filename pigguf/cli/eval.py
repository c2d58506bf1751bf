"""`pigguf eval`: a group of commands, one for each evaluation, imported on demand.

The command of an evaluation is a module of cli/evals/ with a click command named `command`, and a row in
EVALUATIONS. Shared options and the output of reports: cli/evals/options.py.
"""

from __future__ import annotations

import click

from pigguf.cli import LazyGroup

# name -> (module, short help)
EVALUATIONS: dict[str, tuple[str, str]] = {
    "perplexity": ("pigguf.cli.evals.perplexity", "Perplexity by context window."),
    "passkey": ("pigguf.cli.evals.passkey", "Passkey retrieval by distance: the effective window."),
    "kl": ("pigguf.cli.evals.kl", "KL divergence from a reference, also by depth."),
    "sweep": ("pigguf.cli.evals.sweep", "Find the rope scaling factor of a model that lost it."),
    "choice": ("pigguf.cli.evals.choice", "Zero-shot multiple-choice questions."),
    "rouge": ("pigguf.cli.evals.rouge", "ROUGE of summaries against references."),
}

EPILOG = """\b
Examples:
  pigguf eval perplexity model.gguf --text novel.txt
  pigguf eval perplexity --help

Results go to stdout as tables, or as JSON with --json; --html FILE writes a page with plots.
Finished parts of a run are stored: after Ctrl-C the same command resumes.
"""


@click.group(cls=LazyGroup, table=EVALUATIONS, invoke_without_command=True, epilog=EPILOG)
@click.pass_context
def command(ctx: click.Context) -> None:
    """Evaluate a GGUF file with the methods of the Position Interpolation paper."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
