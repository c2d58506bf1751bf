#!/usr/bin/env python3
"""Claim: from the prompt cache, a first token takes at most 2 % of the time of the first prefill.

For a document of 8192 tokens, in a new process.

usage: benchmarks/reopen.py MODEL.gguf TEXT [--tokens 8192] [--rounds 5]

Each round asks about the same document in a new process, with a new question; the first round starts with an
empty cache. The time runs from the question to the first token, with the model open; the time from process
start is reported too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from long_context import tokens_of
from peers import machine

QUESTIONS = ("Who speaks first?", "What is the house called?", "Who is proud?", "Who travels?", "Who writes?")


def main(model: Path, text: Path, count: int, rounds: int) -> None:
    print(machine())
    print("| ask | question to first token, s | of the cold one | from the start of the process, s |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        document = Path(folder) / "tokens"
        document.write_text(" ".join(map(str, tokens_of(model, text, count))))
        os.environ["XDG_CACHE_HOME"] = folder
        cold, _ = ask(model, document, QUESTIONS[0])
        warm = []
        for number in range(rounds):
            first, whole = ask(model, document, QUESTIONS[(number + 1) % len(QUESTIONS)])
            warm.append(first)
            print(f"| again, {number + 1} | {first:.3f} | {first / cold:.4f} | {whole:.2f} |", flush=True)
    median = statistics.median(warm)
    print(f"| cold | {cold:.2f} | 1 | |")
    print(f"| again, median | {median:.3f} | {median / cold:.4f} (claim: 0.02) | |")


def ask(model: Path, document: Path, question: str) -> tuple[float, float]:
    begun = time.perf_counter()
    command = [sys.executable, __file__, "--child", str(model), str(document), question]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(child.stdout), time.perf_counter() - begun


def child(model: Path, document: Path, question: str) -> None:
    from pigguf.inference.engine import SamplingParams
    from pigguf.inference.open_context import open_session
    from pigguf.inference.run_config import RunConfig

    tokens = [int(token) for token in document.read_text().split()]
    with open_session(model, RunConfig(ctx=len(tokens) + 256)) as session:
        asked = tokens + session.context.model.tokenize(
            f"\n\nQuestion: {question}\nAnswer:", add_special=False
        )
        begun = time.perf_counter()
        session.set_prompt(asked)
        next(session.generate(SamplingParams(temperature=0), 1), None)  # an end is a token too
        print(time.perf_counter() - begun)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    main(given.model, given.text, given.tokens, given.rounds)
