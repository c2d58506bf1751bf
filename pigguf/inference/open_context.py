"""Open a model the way it runs best on this machine: memory planned, tuned, with cached prompts.

    with open_session("model.gguf", RunConfig(ctx=32768)) as session:
        session.set_prompt(session.context.model.tokenize(text))
    with open_context("model.gguf", sequences=4) as context: ...      for several users (serve/)

How the model is run is decided by inference/resolve_run.py before anything is loaded. Evaluations and checks
do not come here: they measure llama.cpp alone and open models themselves.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pigguf.inference.engine import Context, Model, Session
from pigguf.inference.prompt_cache import open_prompt_cache
from pigguf.inference.resolve_run import resolve_run
from pigguf.inference.rpc.client import connect_or_none
from pigguf.inference.run_config import RunConfig
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.progress import SILENT, Progress

_log = logging.getLogger("pigguf")


@contextmanager
def open_session(
    path: str | Path, config: RunConfig | None = None, progress: Progress = SILENT
) -> Iterator[Session]:
    """Open a model and yield an empty session; close everything at the end of the block.

    The context is `session.context`, the model `session.context.model`.

    Raises:
        GGUFError, UnsupportedModel: the file cannot be run.
        ContextOverflow: a context longer than the model's own.
        DoesNotFit: not enough memory; the hint has the nearest settings that do fit.
        UsageError: settings that conflict, or that this model or machine does not support.
        BackendUnavailable: the engine is missing or broken.
        WorkerLost: a worker cannot be used; raised by the session's methods too if one fails later.
    """
    with open_context(path, config, progress) as context, context.sequence() as session:
        yield session


@contextmanager
def open_context(
    path: str | Path, config: RunConfig | None = None, progress: Progress = SILENT, *, sequences: int = 1
) -> Iterator[Context]:
    """Open a model and yield a context for `sequences` sequences; close everything at the end of the block.

    Each sequence has the whole context window.

    Raises:
        As `open_session` does.
    """
    config = config or RunConfig()
    # opened before the model, so that a change of the model's file after this is noticed
    prompt_cache = open_prompt_cache() if config.prompt_cache else None
    with ExitStack() as stack:
        workers = stack.enter_context(connect_or_none(config.workers, config.split))
        resolved = resolve_run(path, config, sequences, workers=workers)
        if workers and config.gpu_layers == "auto" and resolved.gpu_layers < resolved.plan.offloadable_layers:
            _log.warning(
                "%d of %d layers fit on the workers: the others stay on this machine",
                resolved.gpu_layers,
                resolved.plan.offloadable_layers,
            )
        for decision in resolved.decisions:
            _log.debug("%s: %s (%s)", decision.setting, decision.value, decision.reason)
        model = stack.enter_context(
            Model.open(
                path, gpu_layers=resolved.gpu_layers, rope=config.rope, workers=workers, progress=progress
            )
        )
        prefiller = None
        if resolved.torch_min_prompt is not None:
            prefiller = TorchPrefiller(model, resolved.options, resolved.torch_min_prompt)
        yield stack.enter_context(
            Context(model, resolved.options, prefiller=prefiller, prompt_cache=prompt_cache)
        )
