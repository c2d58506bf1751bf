"""How fast a model reads and writes by depth, and how long the first token takes: measured, never foretold.

    report = bench("model.gguf", depths=(0, 2048, 8192), other=RunConfig(flash_attention=False))

At each depth a document of so many random tokens is really read, by the road that chat takes (inference/open_context.py):

    cold    the document and a question into an empty cache, up to the answer's first token
    decode  the answer's next tokens
    warm    another question about the same document, up to its first token; the cache is in memory
    more    a further passage of 512 tokens at that depth

A second setting is measured in turn with the first, depth by depth, each in a context of its own. What keeps
documents on disk takes no part. Left out: what the text says, on which only drafts and experts depend.
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
from pigguf.evals.report import Lines, Point, Report, Series, Table, versions
from pigguf.gguf_io import GGUFFile, read_header
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.open_context import RunConfig, open_session, settle
from pigguf.progress import SILENT, Progress
from pigguf.rope import rope_from_metadata

DEPTHS = (0, 2048, 8192)
ANSWER = 32  # tokens

_QUESTION, _PASSAGE = 16, 512  # tokens
_AFTER = _QUESTION + max(ANSWER, _PASSAGE)  # a document
_WORDS = 1024  # different ones
_DEPTH_STEP = 256
_GREEDY = SamplingParams(temperature=0)

# Timing's field, the plot's title, what its axis counts
_PLOTS = (
    ("more", f"Prefill of {_PASSAGE} tokens", "tokens a second"),
    ("decode", "Decode", "tokens a second"),
    ("cold", "First token of a document never read", "seconds"),
    ("warm", "First token of another question", "seconds"),
)


@dataclass(frozen=True)
class Timing:
    """One setting at one depth; medians where it was measured several times.

    Attributes:
        depth: tokens of the document.
        cold, warm: seconds to the first token.
        prefill: tokens a second of the whole cold prompt; None without a document.
        more: tokens a second of a further passage at this depth, with moves of the cache where it needs any.
        decode: tokens a second of the answer after its first token; None where the model ended it at once.
    """

    depth: int
    cold: float
    warm: float
    prefill: float | None
    more: float
    decode: float | None


def bench(
    path: str | Path,
    settings: RunConfig | None = None,
    other: RunConfig | None = None,
    *,
    depths: Sequence[int] | None = None,
    rounds: int = 1,
    names: tuple[str, str] = ("first", "second"),
    progress: Progress = SILENT,
) -> Report:
    """Measure a model at depths, under one setting or two in turn.

    Args:
        names: what the settings are called in the report.
        settings, other: how it is run; a window that is None is as long as the measurement needs. Neither
            keeps or recalls sessions.
        depths: tokens of the documents; None is DEPTHS, or as deep as the window has room for.
        rounds: how many times each is measured; medians count.
        progress: stages of loading and prefill, one after the other.

    Raises:
        As open_session; UsageError for depths or rounds that are none.
        ContextOverflow: a depth that the window has no room for.
    """
    wanted = [settings or RunConfig(), *([other] if other else [])]
    windows = [_window(path, one) for one in wanted]
    depths = _usual_depths(min(windows)) if depths is None else sorted(set(depths))
    if not depths or depths[0] < 0 or rounds < 1:
        raise UsageError(f"depths {depths} and {rounds} rounds", "give depths from 0, and 1 round at least")
    _refuse_overflow(depths[-1], min(windows))
    ready = [replace(one, ctx=one.ctx or depths[-1] + _AFTER, prompt_cache=False) for one in wanted]
    for one in ready:
        settle(path, one)  # what cannot be is refused before any of it is measured
    found: list[dict[int, list[Timing]]] = [{depth: [] for depth in depths} for _ in ready]
    resolved: list[dict[str, Any]] = [{} for _ in ready]
    for depth in depths:
        for _ in range(rounds):
            for number, one in enumerate(ready):
                with open_session(path, one, progress) as session:
                    resolved[number] = _resolved(session)
                    found[number][depth].append(_timing(session, depth, progress))
    timings = [[_median(samples) for samples in by_depth.values()] for by_depth in found]
    return _report(read_header(path), names[: len(ready)], resolved, timings, rounds)


def _window(path: str | Path, settings: RunConfig) -> int:
    """The longest window that there may be."""
    if settings.ctx is not None:
        return settings.ctx
    file = read_header(path)
    said = settings.rope.context_length if settings.rope else None
    return said or rope_from_metadata(file.metadata, file.architecture).context_length


def _usual_depths(window: int) -> list[int]:
    last = max(0, window - _AFTER) // _DEPTH_STEP * _DEPTH_STEP
    return sorted({min(depth, last) for depth in DEPTHS})


def _refuse_overflow(deepest: int, window: int) -> None:
    if deepest + _AFTER > window:
        raise ContextOverflow(
            f"a document of {deepest:,} tokens, and what is measured after it, take a window of "
            f"{deepest + _AFTER:,}, and this one is {window:,}",
            f"take depths up to {window - _AFTER:,}" if window > _AFTER else "take a longer window",
        )


def _resolved(session: Session) -> dict[str, Any]:
    """What a session runs with."""
    context = session.context
    options = asdict(context.options)
    workers = context.model.workers
    return {
        **options,
        "gpu_layers": context.model.gpu_layers,
        "workers": [device.name for device in workers.devices] if workers else [],
        "prefill": "torch" if context.prefiller else "llama.cpp",
    }


def _timing(session: Session, depth: int, progress: Progress) -> Timing:
    """All that is measured in one context at one depth."""
    document, question, another, passage = _texts(session.context.model, depth)
    begun = time.perf_counter()
    session.set_prompt([*document, *question], progress)
    read = time.perf_counter() - begun
    cold, decode = _answer(session, begun)

    begun = time.perf_counter()
    session.set_prompt([*document, *another], progress)
    warm, _ = _answer(session, begun, limit=1)

    session.truncate(max(depth, 1))
    held = session.tokens
    begun = time.perf_counter()
    session.set_prompt([*held, *passage], progress)
    more = len(passage) / (time.perf_counter() - begun)
    return Timing(depth, cold, warm, (depth + len(question)) / read if depth else None, more, decode)


def _answer(session: Session, begun: float, limit: int = ANSWER) -> tuple[float, float | None]:
    """Seconds from `begun` to the first token, and tokens a second of those after it.

    A token that ends the answer was computed like any other, and counts.
    """
    tokens = session.generate(_GREEDY, limit, lookup=False)  # a text that loops would draft itself
    times = [time.perf_counter() for _ in _and_the_end(tokens)]
    drawn = len(times) - (session.stop_reason != "end")
    if drawn < 2:
        return times[0] - begun, None
    return times[0] - begun, (drawn - 1) / (times[drawn - 1] - times[0])


def _and_the_end(tokens: Iterable[int]) -> Iterator[None]:
    """One item a token, and one for the end."""
    for _ in tokens:
        yield
    yield


def _texts(model: Model, depth: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """A document, two questions and a passage of random tokens, the same ones every time."""
    draw = random.Random(0)
    drawn = draw.sample(range(model.vocab_size), min(_WORDS, model.vocab_size))
    words = [token for token in drawn if model.piece(token) and not model.is_end(token)]
    document, question, another, passage = (
        draw.choices(words, k=count) for count in (depth, _QUESTION, _QUESTION, _PASSAGE)
    )
    another[0] = next(word for word in words if word != question[0])
    return document, question, another, passage


def _median(timings: Sequence[Timing]) -> Timing:
    medians: dict[str, Any] = {}
    for field in fields(Timing):
        values = [value for timing in timings if (value := getattr(timing, field.name)) is not None]
        medians[field.name] = median(values) if values else None
    return Timing(**medians)


# ---- the report ----------------------------------------------------------------------------------


def _report(
    file: GGUFFile,
    names: Sequence[str],
    resolved: Sequence[dict[str, Any]],
    timings: Sequence[Sequence[Timing]],
    rounds: int,
) -> Report:
    ratios = (
        [_ratio(first, second) for first, second in zip(*timings, strict=True)] if len(timings) == 2 else []
    )
    tables = [_table(name, rows) for name, rows in zip(names, timings, strict=True)]
    if ratios:
        tables.append(_table(f"{names[1]} against {names[0]}: how many times faster", ratios, ""))
    return Report(
        "speed",
        {"path": str(file.path), "bytes": file.size, "architecture": file.architecture},
        {"rounds": rounds, "answer tokens": ANSWER, **dict(zip(names, resolved, strict=True))},
        versions(),
        {
            "settings": [
                {"name": name, "timings": [asdict(timing) for timing in rows]}
                for name, rows in zip(names, timings, strict=True)
            ],
            "ratios": [asdict(ratio) for ratio in ratios],
        },
        tuple(tables),
        tuple(_plot(field, title, unit, names, timings) for field, title, unit in _PLOTS),
    )


def _ratio(first: Timing, second: Timing) -> Timing:
    """How many times faster the second is, figure by figure."""
    return Timing(
        first.depth,
        first.cold / second.cold,
        first.warm / second.warm,
        second.prefill / first.prefill if second.prefill and first.prefill else None,
        second.more / first.more,
        second.decode / first.decode if second.decode and first.decode else None,
    )


def _table(title: str, timings: Sequence[Timing], per: str = ", tokens/s") -> Table:
    wait = ", s" if per else ""
    headers = (
        "depth", f"prefill{per}", f"{_PASSAGE} more{per}", f"decode{per}", f"first token, cold{wait}",
        f"first token, warm{wait}",
    )  # fmt: skip
    rows = ((t.depth, t.prefill, t.more, t.decode, t.cold, t.warm) for t in timings)
    return Table(title, headers, tuple(rows))


def _plot(
    field: str, title: str, unit: str, names: Sequence[str], timings: Sequence[Sequence[Timing]]
) -> Lines:
    series = (
        Series(name, tuple(Point(t.depth, value) for t in rows if (value := getattr(t, field)) is not None))
        for name, rows in zip(names, timings, strict=True)
    )
    return Lines(title, "tokens in the cache", unit, tuple(series))
