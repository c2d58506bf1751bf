"""`pigguf serve`: an OpenAI-compatible HTTP server (pigguf/serve)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pigguf.cli import render
from pigguf.cli.options import (
    FILE_PATH,
    context_options,
    kv_cache_options,
    prompt_cache_option,
    verbose_option,
)
from pigguf.cli.progress_bars import progress_bar
from pigguf.cli.signals import cleanup_on_termination
from pigguf.errors import MissingPackage
from pigguf.inference.engine import log_to
from pigguf.inference.run_config import RunConfig

if TYPE_CHECKING:
    from pigguf.serve.service import ModelService

# The engine's threads and PyTorch's alternate on the same cores, so waiting threads must sleep; but not
# immediately, which would be at every barrier. KMP_BLOCKTIME is in milliseconds, and read by LLVM's OpenMP.
_OPENMP_ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "5"}


@click.command()
@click.argument("model", metavar="MODEL", type=FILE_PATH)
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    metavar="N",
    help="Port to listen on; 0 is any free port.",
)
@click.option(
    "--slots",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="N",
    help="Answers generated at the same time, each in a context window of --ctx tokens.",
)
@click.option(
    "--api-key",
    envvar="PIGGUF_API_KEY",
    metavar="KEY",
    help="API key that clients must send; default: PIGGUF_API_KEY, which other users cannot see.",
)
@context_options
@kv_cache_options
@prompt_cache_option
@verbose_option
def command(
    model: Path,
    host: str,
    port: int,
    slots: int,
    api_key: str | None,
    ctx: int | None,
    verbose: bool,
    **settings: Any,
) -> None:
    """Serve the GGUF file MODEL to many clients over an OpenAI-compatible API.

    Routes: /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models, /tokenize, /detokenize,
    /health, /metrics, /openapi.json, and a chat page at /. The server listens on loopback by default; another
    --host requires an API key. Ctrl-C or SIGTERM finishes running answers, for at most 30 seconds; a second
    Ctrl-C exits at once.

    \b
    Examples:
      pigguf serve model.gguf
      pigguf serve model.gguf --ctx 32768 --slots 2 --port 8000
      curl http://127.0.0.1:8080/v1/chat/completions -H "Content-Type: application/json" \\
          -d '{"messages": [{"role": "user", "content": "Name a pig."}]}'
    """
    try:
        from pigguf.serve import malloc_arenas
        from pigguf.serve.http_server import listen, listener_url, serve
        from pigguf.serve.model_host import ModelHost
    except ImportError as error:
        raise MissingPackage(
            f"pigguf serve needs the package {error.name or error}",
            'install it: pip install -e ".[serve]" in the clone',
        ) from error
    if verbose:
        log_to(render.note)
    for name, value in _OPENMP_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    malloc_arenas.limit_arenas()

    def report_ready(service: ModelService) -> None:
        render.note(
            f"{service.name} is served at {listener_url(listener)}/v1, with {slots} slots of "
            f"{service.context_length:,} tokens. Chat page: {listener_url(listener)}/ Stop with Ctrl-C."
        )

    run = RunConfig(ctx, **settings)
    with (
        cleanup_on_termination(),
        listen(host, port, api_key or None) as listener,
        ModelHost(model, run, slots=slots, progress=progress_bar(keep=False)) as hosted,
    ):
        serve(hosted, listener, key=api_key or None, on_ready=report_ready)
