"""Benchmark: prefill and decode speed, and time to first token, by depth; measured, never estimated.

    report = bench("model.gguf", depths=(0, 2048, 8192), other=RunConfig(flash_attention=False))

At each depth a document of that many random tokens is prefilled, in the way that chat opens a model
(inference/open_context.py):

    cold    the document and a question into an empty KV cache, up to the answer's first token
    decode  the answer's next tokens
    warm    another question about the same document, up to its first token; the document is in the KV cache
    more    a further passage of 512 tokens at that depth

A second configuration is measured in turn with the first, depth by depth, each in a context of its own. The
prompt cache on disk is not used. The text is random, so drafts (prompt lookup) and the choice of experts are
not those of a real document.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

from pigguf.errors import ContextOverflow, UsageError
from pigguf.evals.report import EvalReport, LinePlot, PlotPoint, PlotSeries, ReportTable, software_versions
from pigguf.gguf_io import GGUFFile, read_header
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.open_context import open_session
from pigguf.inference.resolve_run import resolve_run
from pigguf.inference.run_config import RunConfig
from pigguf.progress import SILENT, Progress
from pigguf.rope import rope_from_metadata

DEPTHS = (0, 2048, 8192)
ANSWER = 32  # tokens

_QUESTION, _PASSAGE = 16, 512  # tokens
_AFTER_DOCUMENT = _QUESTION + max(ANSWER, _PASSAGE)
_VOCABULARY = 1024  # different tokens
_DEPTH_STEP = 256
_GREEDY = SamplingParams(temperature=0)

# DepthTiming's field, the plot's title, the unit of its y axis
_PLOTS = (
    ("prefill_at_depth", f"Prefill of {_PASSAGE} tokens", "tokens per second"),
    ("decode", "Decode", "tokens per second"),
    ("ttft_cold", "Time to first token, new document", "seconds"),
    ("ttft_warm", "Time to first token, another question", "seconds"),
)

# DepthTiming's field -> its key in JSON, where that is another
_JSON_KEYS = {"ttft_cold": "cold", "ttft_warm": "warm", "prefill_at_depth": "more"}


@dataclass(frozen=True)
class DepthTiming:
    """The times of one configuration at one depth; medians if it was measured several times.

    Attributes:
        depth: tokens of the document.
        ttft_cold, ttft_warm: seconds to the first token, of a new document and of another question about it.
        prefill: tokens per second of the whole cold prompt; None without a document.
        prefill_at_depth: tokens per second of a further passage at this depth, with a change of the KV
            cache's layout if that needs one.
        decode: tokens per second of the answer after its first token; None if the model ended it at once.
    """

    depth: int
    ttft_cold: float
    ttft_warm: float
    prefill: float | None
    prefill_at_depth: float
    decode: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the timing as JSON values."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}


def bench(
    path: str | Path,
    config: RunConfig | None = None,
    other: RunConfig | None = None,
    *,
    depths: Sequence[int] | None = None,
    rounds: int = 1,
    names: tuple[str, str] = ("first", "second"),
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure a model's speed at several depths, with one configuration or two in turn.

    Args:
        path: a GGUF file.
        config, other: how the model is run. A `ctx` of None is as long as the measurement needs. Neither uses
            the prompt cache.
        depths: tokens of the documents; None is DEPTHS, as far as the context has room.
        rounds: how many times each is measured; the medians are reported.
        names: what the configurations are called in the report.
        progress: stages of loading and prefill, one after the other.

    Raises:
        UsageError: no depths, a negative depth, or no rounds.
        ContextOverflow: a depth that does not fit into the context.
        And as `open_session` does.
    """
    configs = [config or RunConfig(), *([other] if other else [])]
    longest = min(_longest_context(path, one) for one in configs)
    depths = _default_depths(longest) if depths is None else sorted(set(depths))
    if not depths or depths[0] < 0 or rounds < 1:
        raise UsageError(f"depths {depths} and {rounds} rounds", "give depths from 0, and at least 1 round")
    _check_overflow(depths[-1], longest)
    configs = [
        replace(one, ctx=one.ctx or depths[-1] + _AFTER_DOCUMENT, prompt_cache=False) for one in configs
    ]
    for one in configs:
        resolve_run(path, one)  # raises for a wrong configuration before any of them is measured
    samples: list[dict[int, list[DepthTiming]]] = [{depth: [] for depth in depths} for _ in configs]
    resolved: list[dict[str, Any]] = [{} for _ in configs]
    for depth in depths:
        for _ in range(rounds):
            for number, one in enumerate(configs):
                with open_session(path, one, progress) as session:
                    resolved[number] = _resolved_settings(session)
                    samples[number][depth].append(_measure_depth(session, depth, progress))
    timings = [[_median_timing(measured) for measured in by_depth.values()] for by_depth in samples]
    return _report(read_header(path), names[: len(configs)], resolved, timings, rounds)


def _longest_context(path: str | Path, config: RunConfig) -> int:
    if config.ctx is not None:
        return config.ctx
    file = read_header(path)
    override = config.rope.context_length if config.rope else None
    return override or rope_from_metadata(file.metadata, file.architecture).context_length


def _default_depths(context_length: int) -> list[int]:
    last = max(0, context_length - _AFTER_DOCUMENT) // _DEPTH_STEP * _DEPTH_STEP
    return sorted({min(depth, last) for depth in DEPTHS})


def _check_overflow(deepest: int, context_length: int) -> None:
    needed = deepest + _AFTER_DOCUMENT
    if needed > context_length:
        raise ContextOverflow(
            f"a document of {deepest:,} tokens, and what is measured after it, need a context of {needed:,} "
            f"tokens, and this one has {context_length:,}",
            f"use depths up to {context_length - _AFTER_DOCUMENT:,}"
            if context_length > _AFTER_DOCUMENT
            else "use a longer context",
        )


def _resolved_settings(session: Session) -> dict[str, Any]:
    """Return what a session runs with, as JSON values."""
    context = session.context
    options = asdict(context.options)
    workers = context.model.workers
    return {
        **{"handoff" if name == "flash_attention_switch" else name: value for name, value in options.items()},
        "gpu_layers": context.model.gpu_layers,
        "workers": [device.name for device in workers.devices] if workers else [],
        "prefill": "torch" if session.prefiller else "llama.cpp",
    }


def _measure_depth(session: Session, depth: int, progress: Progress) -> DepthTiming:
    """Measure everything at one depth in one context."""
    document, question, another, passage = _random_texts(session.context.model, depth)
    start = time.perf_counter()
    session.set_prompt([*document, *question], progress)
    prefill_seconds = time.perf_counter() - start
    ttft_cold, decode = _time_answer(session, start)

    start = time.perf_counter()
    session.set_prompt([*document, *another], progress)
    ttft_warm, _ = _time_answer(session, start, max_tokens=1)

    session.truncate(max(depth, 1))
    tokens = session.tokens
    start = time.perf_counter()
    session.set_prompt([*tokens, *passage], progress)
    prefill_at_depth = len(passage) / (time.perf_counter() - start)
    prefill = (depth + len(question)) / prefill_seconds if depth else None
    return DepthTiming(depth, ttft_cold, ttft_warm, prefill, prefill_at_depth, decode)


def _time_answer(session: Session, start: float, max_tokens: int = ANSWER) -> tuple[float, float | None]:
    """Return the seconds from `start` to the first token, and the tokens per second of those after it.

    A token that ends the answer was computed like any other, and counts.
    """
    tokens = session.generate(
        _GREEDY, max_tokens, prompt_lookup=False
    )  # a text that repeats would be drafted
    times = [time.perf_counter() for _ in _tokens_and_end(tokens)]
    generated = len(times) - (session.stop_reason != "end")
    if generated < 2:
        return times[0] - start, None
    return times[0] - start, (generated - 1) / (times[generated - 1] - times[0])


def _tokens_and_end(tokens: Iterable[int]) -> Iterator[None]:
    """Yield once for each token, and once for the end."""
    for _ in tokens:
        yield
    yield


def _random_texts(model: Model, depth: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return a document, two questions and a passage of random tokens, the same ones every time."""
    random_ = random.Random(0)
    candidates = random_.sample(range(model.vocab_size), min(_VOCABULARY, model.vocab_size))
    words = [token for token in candidates if model.token_to_piece(token) and not model.is_eog(token)]
    document, question, another, passage = (
        random_.choices(words, k=count) for count in (depth, _QUESTION, _QUESTION, _PASSAGE)
    )
    another[0] = next(word for word in words if word != question[0])
    return document, question, another, passage


def _median_timing(timings: Sequence[DepthTiming]) -> DepthTiming:
    medians: dict[str, Any] = {}
    for field in fields(DepthTiming):
        values = [value for timing in timings if (value := getattr(timing, field.name)) is not None]
        medians[field.name] = median(values) if values else None
    return DepthTiming(**medians)


# ---- the report ----------------------------------------------------------------------------------


def _report(
    file: GGUFFile,
    names: Sequence[str],
    resolved: Sequence[dict[str, Any]],
    timings: Sequence[Sequence[DepthTiming]],
    rounds: int,
) -> EvalReport:
    speedups = (
        [_speedup(first, second) for first, second in zip(*timings, strict=True)] if len(timings) == 2 else []
    )
    tables = [_table(name, rows) for name, rows in zip(names, timings, strict=True)]
    if speedups:
        tables.append(_table(f"{names[1]} against {names[0]}: how many times faster", speedups, ""))
    return EvalReport(
        "speed",
        {"path": str(file.path), "bytes": file.size, "architecture": file.architecture},
        {"rounds": rounds, "answer tokens": ANSWER, **dict(zip(names, resolved, strict=True))},
        software_versions(),
        {
            "settings": [
                {"name": name, "timings": [timing.to_json() for timing in rows]}
                for name, rows in zip(names, timings, strict=True)
            ],
            "ratios": [speedup.to_json() for speedup in speedups],
        },
        tuple(tables),
        tuple(_plot(field, title, unit, names, timings) for field, title, unit in _PLOTS),
    )


def _speedup(first: DepthTiming, second: DepthTiming) -> DepthTiming:
    """Return how many times faster the second is, field by field."""
    return DepthTiming(
        first.depth,
        first.ttft_cold / second.ttft_cold,
        first.ttft_warm / second.ttft_warm,
        second.prefill / first.prefill if second.prefill and first.prefill else None,
        second.prefill_at_depth / first.prefill_at_depth,
        second.decode / first.decode if second.decode and first.decode else None,
    )


def _table(title: str, timings: Sequence[DepthTiming], per_second: str = ", tokens/s") -> ReportTable:
    seconds = ", s" if per_second else ""
    headers = (
        "depth", f"prefill{per_second}", f"{_PASSAGE} more{per_second}", f"decode{per_second}",
        f"first token, cold{seconds}", f"first token, warm{seconds}",
    )  # fmt: skip
    rows = ((t.depth, t.prefill, t.prefill_at_depth, t.decode, t.ttft_cold, t.ttft_warm) for t in timings)
    return ReportTable(title, headers, tuple(rows))


def _plot(
    field: str, title: str, unit: str, names: Sequence[str], timings: Sequence[Sequence[DepthTiming]]
) -> LinePlot:
    series = []
    for name, rows in zip(names, timings, strict=True):
        points = [PlotPoint(t.depth, value) for t in rows if (value := getattr(t, field)) is not None]
        series.append(PlotSeries(name, tuple(points)))
    return LinePlot(title, "tokens in the KV cache", unit, tuple(series))
