#!/usr/bin/env python3
"""Claims: 0.22 of the time to first token of llama.cpp's defaults at 32k, and 3 times their decode rate.

The decode rate is at depth 8192; both hold in one chat.

usage: benchmarks/long_context.py MODEL.gguf CHECKPOINT TEXT [--lengths 8192,32768] [--contenders NAMES]

MODEL.gguf and CHECKPOINT are the same model; TEXT is prose of that many tokens. Each contender prefills the
first tokens of it (the window minus 64) and generates 48 with greedy sampling, in a process of its own, one
after the other:
- defaults: llama.cpp's defaults, with as many threads as cores (its default of 4 would be slower here);
- flash-off: the same without flash attention. The faster of these two is the best single setting with a
  half-precision cache;
- transformers: the checkpoint in bfloat16, with transformers' own forward and generate;
- pigguf: pigguf.inference.open_context.open_session, as `pigguf chat` opens a model, without the prompt cache
  and without prompt lookup decoding (prompt_lookup.py measures that).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peers import machine

from pigguf.inference.engine import Model, SamplingParams

GENERATED, RESERVED = 48, 64  # tokens of an answer, and tokens reserved for it in the window
CONTENDERS = ("defaults", "flash-off", "transformers", "pigguf")


def main(model: Path, checkpoint: Path, text: Path, lengths: list[int], contenders: list[str]) -> None:
    print(machine(), flush=True)
    print("| tokens | contender | first token, s | decode, tokens/s | peak memory, MB | first tokens |")
    print("|---|---|---|---|---|---|")
    tokens = tokens_of(model, text, max(lengths))
    for length in lengths:
        for contender in contenders:
            found = run(contender, model, checkpoint, tokens[: length - RESERVED])
            print(
                f"| {length} | {contender} | {found['first']:.2f} | {found['rate']:.2f} "
                f"| {found['peak'] / 1e6:.0f} | {found['tokens'][:8]} |",
                flush=True,
            )


def tokens_of(model: Path, text: Path, count: int) -> list[int]:
    with Model.open(model, vocab_only=True) as vocabulary:
        tokens = vocabulary.tokenize(text.read_text(encoding="utf-8"))
    if len(tokens) < count:
        raise SystemExit(f"{text} is {len(tokens)} tokens, and {count} are asked for")
    return tokens[:count]


def run(contender: str, model: Path, checkpoint: Path, tokens: list[int]) -> dict[str, object]:
    """Measure one contender in a process of its own."""
    child = subprocess.run(
        [sys.executable, __file__, "--child", contender, str(model), str(checkpoint)],
        input=json.dumps(tokens),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def child(contender: str, model: Path, checkpoint: Path) -> None:
    """Generate after the tokens on stdin, and print the timings as JSON."""
    import resource

    prompt = json.loads(sys.stdin.read())
    source = checkpoint if contender == "transformers" else model
    generated = GENERATE[contender](source, prompt)
    next(generated)  # opens the model, and warms up
    begun = time.perf_counter()
    tokens = [next(generated)]
    first = time.perf_counter()
    tokens += generated
    rate = (len(tokens) - 1) / (time.perf_counter() - first)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"first": first - begun, "rate": rate, "peak": peak, "tokens": tokens}))


# Each yields None when it is ready, then the tokens it draws.


def llama_cpp_draws(model: Path, prompt: list[int], flash: bool | None) -> Iterator[int | None]:
    """Measure the library alone: llama_context_default_params, and a bare loop."""
    import ctypes

    from pigguf.inference.engine import library
    from pigguf.inference.engine.context_options import default_threads

    llama_cpp = library.load()  # its log is silent
    handle = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = len(prompt) + RESERVED
    parameters.n_threads = parameters.n_threads_batch = default_threads()
    if flash is not None:
        parameters.flash_attn_type = int(flash)
    context = llama_cpp.llama_init_from_model(handle, parameters)
    sampler = llama_cpp.llama_sampler_init_greedy()

    def decode(tokens: list[int]) -> None:
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0

    decode(prompt[:64])
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    yield None
    for start in range(0, len(prompt), parameters.n_batch):
        decode(prompt[start : start + parameters.n_batch])
    for _ in range(GENERATED):
        token = llama_cpp.llama_sampler_sample(sampler, context, -1)
        yield token
        decode([token])


def transformers_draws(checkpoint: Path, prompt: list[int]) -> Iterator[int | None]:
    import torch
    from transformers import AutoModelForCausalLM

    from pigguf.inference.engine.context_options import default_threads

    torch.set_num_threads(default_threads())
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        model(torch.tensor([prompt[:64]]), logits_to_keep=1)
        yield None
        result = model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        for _ in range(GENERATED):
            token = int(result.logits[0, -1].argmax())
            yield token
            result = model(torch.tensor([[token]]), past_key_values=result.past_key_values, use_cache=True)


def pigguf_draws(model: Path, prompt: list[int]) -> Iterator[int | None]:
    from pigguf.inference.open_context import open_session
    from pigguf.inference.run_config import RunConfig

    settings = RunConfig(ctx=len(prompt) + RESERVED, prompt_cache=False)
    with open_session(model, settings) as session:
        session.set_prompt(prompt[:64])
        session.truncate(0)
        yield None
        session.set_prompt(prompt)
        yield from session.generate(SamplingParams(temperature=0), GENERATED, prompt_lookup=False)


GENERATE = {
    "defaults": lambda model, prompt: llama_cpp_draws(model, prompt, None),
    "flash-off": lambda model, prompt: llama_cpp_draws(model, prompt, False),
    "transformers": transformers_draws,
    "pigguf": pigguf_draws,
}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--lengths", default="8192,32768")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    given = parser.parse_args()
    main(
        given.model,
        given.checkpoint,
        given.text,
        [int(length) for length in given.lengths.split(",")],
        given.contenders.split(","),
    )
