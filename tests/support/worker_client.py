"""A client of workers in a process of its own, to be run on another host.

usage: worker_client.py MODEL COUNT WORKER...

Prefills a prompt and prints COUNT greedy tokens, one a line. If a worker is lost, the message goes to stderr
and the exit status is 8.
"""

from __future__ import annotations

import sys

from support.tiny_gguf import text_tokens

from pigguf.errors import WorkerLost
from pigguf.inference.engine import SamplingParams
from pigguf.inference.open_context import open_session
from pigguf.inference.run_config import RunConfig

PROMPT = text_tokens(200)


def generate(model: str, count: int, workers: tuple[str, ...]) -> None:
    settings = RunConfig(
        1024, gpu_layers="all" if workers else 0, prefill="llama.cpp", flash_attention=True,
        prompt_cache=False, workers=workers,
    )  # fmt: skip
    with open_session(model, settings) as session:
        session.set_prompt(PROMPT)
        for token in session.generate(SamplingParams(temperature=0), max_tokens=count, prompt_lookup=False):
            sys.stdout.write(f"{token}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    try:
        generate(sys.argv[1], int(sys.argv[2]), tuple(sys.argv[3:]))
    except WorkerLost as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(8) from None
