"""Passkey: exact prompts, answers as after separate prefills, k_max by hand, and interrupted runs resume."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compare import continued_logits
from support.tiny_checkpoints import edit_config, make_checkpoint
from transformers import AutoModelForCausalLM, DynamicCache

import pigguf
from pigguf.errors import ContextOverflow, TokenizerError, UsageError
from pigguf.evals.passkey import extract_digits, passkey, random_keys
from pigguf.evals.passkey_plan import plan_passkey_test
from pigguf.evals.passkey_prompts import PasskeyPrompts
from pigguf.evals.report import EvalReport, HeatMap, LinePlot
from pigguf.inference.engine import Context, Model
from pigguf.inference.run_config import EngineConfig

EXACT = EngineConfig(threads=1, cache_k="f32", cache_v="f32", flash_attention=False)
WINDOW = 1200  # the tiny tokenizer has few words: the shortest prompt takes some 300 tokens
SMALL: dict[str, Any] = {"max_length": WINDOW, "distances": 3, "trials": 2, "depths": 2, "engine": EXACT}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "checkpoint"
    return make_checkpoint(path, max_position_embeddings=WINDOW)


@pytest.fixture(scope="module")
def gguf(checkpoint: Path) -> Path:
    path = checkpoint.parent / "long.gguf"
    pigguf.convert(checkpoint, path, type="F32")
    return path


@pytest.fixture(scope="module")
def vocabulary(gguf: Path) -> Iterator[Model]:
    with Model.open(gguf, vocab_only=True) as model:
        yield model


def answers(report: EvalReport, name: str = "as shipped") -> list[dict[str, Any]]:
    return report.results["readings"][name]["answers"]


# ---- prompts -----------------------------------------------------------------------------------------


def test_unknown_wordings_and_models_that_cannot_chat_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base")
    edit_config(base, max_position_embeddings=WINDOW)
    tokenizer = base / "tokenizer_config.json"
    values = json.loads(tokenizer.read_text())
    values.pop("chat_template", None)
    tokenizer.write_text(json.dumps(values))
    (base / "chat_template.jinja").unlink(missing_ok=True)
    pigguf.convert(base, tmp_path / "base.gguf", type="F32")
    with pytest.raises(TokenizerError, match="no chat template"):
        passkey(tmp_path / "base.gguf", wording="paper-chat")
    with pytest.raises(UsageError, match="unknown wording 'poem'"):
        passkey(tmp_path / "base.gguf", wording="poem")


# ---- the plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distances": 32}, "too small for 32 distances"),
        ({"max_length": 190}, "too small for 3 distances: header, passkey and question alone take 196"),
        ({"distances": 2, "depths": 3}, "3 depths on a grid of 2 distances"),
        ({"trials": 0}, "0 trials"),
        ({"depths": 0}, "0 depths"),
        ({"distances": 0, "depths": 1}, "grid of 0"),
    ],
)
def test_counts_that_do_not_fit_are_errors(gguf: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        passkey(gguf, **{**SMALL, **options})


def test_a_window_beyond_the_models_is_refused(gguf: Path) -> None:
    with pytest.raises(ContextOverflow, match=f"2,400 tokens is beyond the {WINDOW:,}"):
        passkey(gguf, **{**SMALL, "max_length": 2 * WINDOW})


# ---- answers -----------------------------------------------------------------------------------------


@lru_cache
def in_transformers(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def greedy(checkpoint: Path, prompt: Sequence[int], count: int) -> list[int]:
    """Return the most likely tokens after a prompt."""
    model = in_transformers(checkpoint)
    cache, given, generated = DynamicCache(config=model.config), prompt, []
    for _ in range(count):
        generated.append(int(continued_logits(model, given, cache)[-1].argmax()))
        given = generated[-1:]
    return generated


def test_each_answer_is_that_of_transformers_after_the_same_prompt(
    gguf: Path, checkpoint: Path, vocabulary: Model
) -> None:
    report = passkey(gguf, **SMALL)
    prompts = PasskeyPrompts(vocabulary, "paper")
    keys = random_keys(0, 4)
    plan = plan_passkey_test(prompts, max(keys, key=lambda key: len(prompts.encode(key, 0, 0))), WINDOW, 3, 2)
    found = iter(answers(report))
    for number, start in enumerate(plan.depths):
        for key in keys[2 * number : 2 * number + 2]:
            for distance in plan.distances_from(start):
                answer = next(found)
                prompt = prompts.encode(key, start.n_sentences, distance.n_sentences)
                assert (answer["key"], answer["length"]) == (key, len(prompt))
                assert answer["tokens"] == len(prompt) - start.n_tokens
                expected = greedy(checkpoint, prompt, prompts.max_answer_tokens)
                ends = [i for i, token in enumerate(expected) if vocabulary.is_eog(token)]
                expected = expected[: ends[0]] if ends else expected
                text = b"".join(vocabulary.token_to_piece(token) for token in expected).decode(
                    "utf-8", "replace"
                )
                assert text.startswith(answer["answer"])
                assert answer["answer"] == text or len(extract_digits(answer["answer"])) == 5
                assert answer["right"] is (extract_digits(text) == key)
    assert next(found, None) is None


def test_the_reported_tokens_are_those_computed(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    decode = Context.decode

    def counted(self: Context, sequence: int, tokens: Sequence[int], *rest: Any, **more: Any) -> bool:
        nonlocal computed
        computed += len(tokens)
        return decode(self, sequence, tokens, *rest, **more)

    monkeypatch.setattr(Context, "decode", counted)
    report = passkey(gguf, **SMALL)
    figures = report.results["readings"]["as shipped"]
    assert figures["tokens_computed"] == computed
    separate = sum(answer["length"] for answer in answers(report))
    assert separate <= figures["tokens_of_separate_prefills"] <= separate + 7 * len(answers(report))
    assert computed < 0.6 * figures["tokens_of_separate_prefills"]


def test_one_seed_gives_one_report_and_another_other_keys(gguf: Path) -> None:
    first, again, other = (passkey(gguf, **SMALL, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert {answer["key"] for answer in answers(first)}.isdisjoint(answer["key"] for answer in answers(other))


class InterruptedAt:
    """A Progress that raises KeyboardInterrupt after a number of tokens."""

    def __init__(self, tokens: float) -> None:
        self.left = tokens

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.counting = stage.startswith("passkey")

    def advance(self, amount: float) -> None:
        if self.counting:
            self.left -= amount
            if self.left < 0:
                raise KeyboardInterrupt

    def end(self) -> None:
        self.counting = False


def test_an_interrupted_run_resumes_with_the_interrupted_pass(
    gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = passkey(gguf, **SMALL)
    assert not list(cache.glob("*.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        passkey(gguf, **SMALL, progress=InterruptedAt(1.5 * WINDOW))
    (journal,) = cache.glob("passkey-*.jsonl")
    assert len(journal.read_text().splitlines()) == 1  # the first trial's pass
    again = passkey(gguf, **SMALL)
    assert not list(cache.glob("*.jsonl"))
    for one, other in zip(answers(whole), answers(again), strict=True):
        # what the cut off pass shared with the one before it is computed once more
        assert {**one, "computed": 0} == {**other, "computed": 0}


# ---- scores and reports --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (" 12345. The", "12345"),
        ("The pass key is 12345", "12345"),
        (" 1 2 3 4 5 6", "12345"),
        (" 123456", "12345"),
        (" 123", "123"),
        (" no idea", ""),
        (" ١٢٣٤٥", ""),
    ],
)
def test_digits(answer: str, found: str) -> None:
    assert extract_digits(answer) == found


class Counter:
    """A Progress that sums the tokens of the stage of the passes."""

    def __init__(self) -> None:
        self.total = self.done = 0.0

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.counting = stage == "passkey, as shipped"
        if self.counting:
            assert unit == "tokens"
            self.total = total

    def advance(self, amount: float) -> None:
        if self.counting:
            self.done += amount

    def end(self) -> None:
        self.counting = False


def test_a_real_model_finds_the_key_and_not_under_a_wrong_rope_factor(smollm2_gguf: Path) -> None:
    """SmolLM2 has a window of 8192; without fine-tuning, positions divided by 64 mean nothing to it."""
    counter = Counter()
    report = passkey(
        smollm2_gguf,
        max_length=320,
        distances=3,
        trials=1,
        depths=2,
        seed=1,
        compare=["linear:64"],
        engine=EngineConfig(threads=1),
        progress=counter,
    )
    shipped, divided = (report.results["readings"][name] for name in ("as shipped", "linear:64"))
    assert (shipped["k_max"], shipped["rate"]) == (320, 1.0)
    assert (divided["k_max"], divided["rate"]) == (0, 0.0)
    assert shipped["k_max_tokens"] == shipped["distances"][-1]["tokens"] > 260
    assert [row[:2] for row in report.tables[0].rows] == [("as shipped", 320), ("linear:64", 0)]
    lines, heat, _ = report.plots
    assert isinstance(lines, LinePlot)
    assert [point.y for point in lines.series[1].points] == [0.0, 0.0, 0.0]
    assert isinstance(heat, HeatMap)
    assert (heat.x, heat.y) == ((106, 213, 320), (0, 106))
    assert heat.values == ((1.0, 1.0, 1.0), (None, 1.0, 1.0))
    json.dumps(report.as_data())
    # progress reaches its total, which does not count answers
    assert counter.done == counter.total
    assert counter.total < shipped["tokens_computed"] <= counter.total + 7 * shipped["trials"]


def test_beyond_the_files_window_only_variants_are_evaluated(gguf: Path) -> None:
    options = {**SMALL, "max_length": 2 * WINDOW, "distances": 2, "depths": 1, "trials": 1}
    report = passkey(gguf, **options, compare=["none"])
    assert list(report.results["readings"]) == ["none"]
    (shipped, none) = report.tables[0].rows
    assert shipped == ("as shipped", *[None] * 7)
    assert none[0] == "none"
    assert none[4] == 2


def test_the_command(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Stdout is JSON with all that it takes to reproduce the results."""
    options = ["--max-length", "300", "--distances", "1", "--trials", "1", "--depths", "1"]
    asked = ["--wording", "locker-chat", "--seed", "3", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pigguf", "eval", "passkey", str(smollm2_gguf), *options, *asked],
        capture_output=True,
        text=True,
        check=True,
    )
    data = json.loads(done.stdout)
    (answer,) = data["results"]["readings"]["as shipped"]["answers"]
    assert answer["key"] == random_keys(3, 1)[0]
    assert data["settings"]["words"]["question"] == "With which number does the locker open?"
    assert (data["settings"]["seed"], data["settings"]["max_length"]) == (3, 300)
    assert re.fullmatch("[0-9a-f]{64}", data["subject"]["sha256"])
