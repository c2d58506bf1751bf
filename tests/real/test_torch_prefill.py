"""The real model: after a prefill in PyTorch it generates what it does after llama.cpp's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from pigguf.common.softmax_and_kl import kl_divergence
from pigguf.inference.engine import Context, ContextOptions, Model, Session
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.inference.torch_prefill.backend import bfloat16_instructions

PROMPTS = 100
LENGTHS = (200, 800)  # of prompts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not bfloat16_instructions(), reason="this CPU has no bfloat16 instructions"),
]


@contextmanager
def sessions(path: Path, **options: object) -> Iterator[tuple[Session, Session, list[int]]]:
    """Yield a session with prefill in PyTorch, one with llama.cpp's own, and the tokens of a novel."""
    context_options = ContextOptions(**{"length": 6000, **options})  # type: ignore[arg-type]
    novel = Path(__file__).parent.parent / "data" / "persuasion-chapters-3-5.txt"
    with Model.open(path, gpu_layers=0) as model:
        prefiller = TorchPrefiller(model, context_options, min_tokens=LENGTHS[0] - 1)
        assert prefiller.is_supported
        with (
            Context(model, context_options, prefiller=prefiller) as with_torch,
            Context(model, context_options) as plain,
            with_torch.sequence() as ours,
            plain.sequence() as theirs,
        ):
            yield ours, theirs, model.tokenize(novel.read_text(encoding="utf-8"))


def test_the_next_token_is_llama_cpps_after_a_hundred_prompts(smollm2_gguf: Path) -> None:
    random = np.random.default_rng(1)
    found = []
    with sessions(smollm2_gguf) as (ours, theirs, tokens):
        for _ in range(PROMPTS):
            count = int(random.integers(*LENGTHS))
            start = int(random.integers(0, len(tokens) - count))
            prompt = tokens[start : start + count]
            for session in (ours, theirs):
                session.truncate(0)
                session.set_prompt(prompt)
            logits = [session.context.logits(-1) for session in (theirs, ours)]
            found.append(kl_divergence(*logits, 0)[:2])
    kl, same = np.mean(found, axis=0)
    assert kl <= 0.01
    assert same >= 0.95


@pytest.mark.parametrize("flash", [False, True])
def test_perplexity_of_what_follows_is_llama_cpps(flash: bool, smollm2_gguf: Path) -> None:
    with sessions(smollm2_gguf, flash_attention=flash) as (ours, theirs, tokens):
        perplexities = []
        for session in (ours, theirs):
            session.set_prompt(tokens[:4500])
            logits = session.evaluate(tokens[4500:5499], range(999))
            likelihoods = [
                kl_divergence(row, row, token)[2]
                for (_, row), token in zip(logits, tokens[4501:5500], strict=True)
            ]
            perplexities.append(np.exp(-np.mean(likelihoods)))
    assert perplexities[0] == pytest.approx(perplexities[1], rel=0.005)
