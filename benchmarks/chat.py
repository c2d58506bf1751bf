#!/usr/bin/env python3
"""Claim: decoding through pigguf's engine runs at 0.97 or more of the speed of a bare llama_decode loop.

usage: benchmarks/chat.py MODEL.gguf

Both run in this process, in turn, on one model, with contexts of the same settings: after a prompt of 64 and
of 2048 tokens, 256 tokens are generated with greedy sampling by the library's own sampler. Medians of nine
rounds; the generated tokens must be equal.
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import llama_cpp
from peers import machine

from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams

DEPTHS, COUNT, ROUNDS = (64, 2048), 256, 9
GREEDY = SamplingParams(temperature=0)


def main(path: str) -> None:
    print(machine())
    print(
        "| prompt, tokens | bare loop, tokens/s | pigguf, tokens/s | ratio (claim: 0.97) |\n|---|---|---|---|"
    )
    options = ContextOptions(length=max(DEPTHS) + COUNT + 8)
    with Model.open(path) as model, Context(model, options) as ours, Context(model, options) as theirs:
        for depth in DEPTHS:
            prompt = [(7 * i) % 1000 + 100 for i in range(depth)]
            with ours.sequence() as session:
                bare = BareLoop(model, theirs)
                seconds: dict[str, list[float]] = {"bare": [], "pigguf": []}
                for _ in range(ROUNDS):
                    bare.prefill(prompt)
                    expected = timed(seconds["bare"], bare.decode)
                    session.truncate(0)
                    session.prefill(prompt)
                    got = timed(
                        seconds["pigguf"], lambda: list(session.generate(GREEDY, COUNT, prompt_lookup=False))
                    )
                    if got != expected[: len(got)]:
                        raise SystemExit(f"different tokens: {got[:8]} and {expected[:8]}")
            a, b = (COUNT / statistics.median(seconds[who]) for who in ("bare", "pigguf"))
            print(f"| {depth} | {a:.1f} | {b:.1f} | {b / a:.3f} |")


def timed(seconds: list[float], run: Callable[[], list[int]]) -> list[int]:
    begun = time.perf_counter()
    tokens = run()
    if len(tokens) != COUNT:
        raise SystemExit(f"only {len(tokens)} tokens before the model ended: take another prompt")
    seconds.append(time.perf_counter() - begun)
    return tokens


class BareLoop:
    """Run the shortest loop over the library's own functions: sample a token, decode it, repeat."""

    def __init__(self, model: Model, context: Context) -> None:
        self.context = context.handle
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def prefill(self, tokens: Sequence[int]) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        for start in range(0, len(tokens), 512):
            self._decode(tokens[start : start + 512])

    def decode(self) -> list[int]:
        tokens = []
        for _ in range(COUNT):
            token = llama_cpp.llama_sampler_sample(self.sampler, self.context, -1)
            tokens.append(token)
            self._decode([token])
        return tokens

    def _decode(self, tokens: Sequence[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        if llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens))) != 0:
            raise SystemExit("llama_decode failed")


if __name__ == "__main__":
    main(sys.argv[1])
