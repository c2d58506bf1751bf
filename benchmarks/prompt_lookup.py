#!/usr/bin/env python3
"""Claim: prompt lookup decoding is 1.5 times as fast as plain decoding where the text repeats the prompt.

Where a text never repeats, it costs at most 3 %.

usage: benchmarks/prompt_lookup.py MODEL.gguf

Both run through Session.generate at temperature 0, in turn in this process, on two prompts: a passage of a
novel that occurs twice and starts a third time (a model as small as SmolLM2 then copies it), and a chat
without a document, with a repetition penalty. Medians of nine rounds of 256 tokens. The number of equal
tokens is reported too, because a batch rounds differently from single steps.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

from peers import machine

from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams, Session

NOVEL = Path(__file__).parent.parent / "tests/data/persuasion-chapters-3-5.txt"
PASSAGES, BEGINNING, COUNT, ROUNDS = (400, 1600), 40, 256, 9
QUESTION = "<|im_start|>user\nInvent a story about a lighthouse.<|im_end|>\n<|im_start|>assistant\n"
GREEDY, NEW = (
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, repeat_penalty=1.3, repeat_last_n=512),
)


def main(path: str) -> None:
    print(machine())
    print(
        "| task | plain, tokens/s | lookup, tokens/s | ratio (claim: 1.5; 0.97 for the story) "
        "| drafted | accepted | alike |\n|---|---|---|---|---|---|---|"
    )
    length = 2 * max(PASSAGES) + BEGINNING + COUNT + 64
    with Model.open(path) as model, Context(model, ContextOptions(length=length)) as context:
        novel = model.tokenize(NOVEL.read_text(encoding="utf-8"))
        between = model.tokenize("\n\n---\n\n")
        tasks = [
            (f"copy of {size} tokens", [*novel[:size], *between] * 2 + novel[:BEGINNING], GREEDY)
            for size in PASSAGES
        ]
        tasks.append(("story", model.tokenize(QUESTION, parse_special=True), NEW))
        for name, prompt, sampling in tasks:
            with context.sequence() as session:
                print(f"| {name} | {row(session, prompt, sampling)} |", flush=True)


def row(session: Session, prompt: list[int], sampling: SamplingParams) -> str:
    speeds: dict[bool, list[float]] = {False: [], True: []}
    texts: dict[bool, list[int]] = {}
    for _ in range(ROUNDS):
        for lookup in speeds:
            session.truncate(0)
            session.prefill(prompt)
            begun = time.perf_counter()
            texts[lookup] = list(session.generate(sampling, COUNT, prompt_lookup=lookup))
            speeds[lookup].append(len(texts[lookup]) / (time.perf_counter() - begun))
    plain, quick = (statistics.median(speeds[lookup]) for lookup in (False, True))
    pairs = enumerate(zip(texts[False], texts[True], strict=False))
    alike = next((i for i, (one, other) in pairs if one != other), len(texts[False]))
    return (
        f"{plain:.1f} | {quick:.1f} | {quick / plain:.2f} | {session.n_drafted // ROUNDS} "
        f"| {session.n_accepted // ROUNDS} | {alike} of {len(texts[False])}"
    )


if __name__ == "__main__":
    main(sys.argv[1])
