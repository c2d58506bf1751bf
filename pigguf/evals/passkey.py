"""Passkey retrieval: the effective context window of a model (arXiv 2306.15595, Section 3.3 and Table 4).

    report = passkey("model.gguf", max_length=32768)

A prompt (passkey_prompts.py) hides a random passkey of five digits in irrelevant text. The greedy answer is
right if its first five digits are the passkey. The distance is the paper's k: the tokens from the passkey's
first digit, where it is mentioned first, to the end of the prompt. Distances are spread evenly over the
window (passkey_plan.py). `k_max` is the largest distance such that at it and all smaller ones at least 20 %
of the trials are answered right.

The paper does not say how long a prompt is. Here it grows with the distance: the passkey stays where it is,
and the filler after it makes the distance. So one pass over the window asks at all distances of a trial:
after each question, the KV cache is truncated to what the next prompt shares with it (Session.set_prompt).
Each prompt is token by token the same as with a prefill of its own. The tokens computed are reported next to
those of separate prefills.

Passkeys are hidden at `depths` positions, spread evenly over the window, the first directly after the header.
Passes from later positions are shorter, and with them each prompt length is tested at several depths. k_max
is that of the first depth, which alone has all distances; k_max_at_every_depth requires the same of every
depth.

Not here: prompts that always fill the window and move the passkey, which share nothing but the text before
it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from pigguf.common.token_prefix import common_prefix_length
from pigguf.errors import UsageError
from pigguf.evals.evaluation import Evaluation
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.passkey_plan import PasskeyPlan, PasskeyPosition, plan_passkey_test
from pigguf.evals.passkey_prompts import PasskeyPrompts
from pigguf.evals.passkey_report import PasskeyAnswer, PasskeyScores, passkey_plots, passkey_tables
from pigguf.evals.report import EvalReport
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress

_DIGITS = 5
_GREEDY = SamplingParams(temperature=0)


def passkey(
    model: str | Path,
    *,
    max_length: int | None = None,
    distances: int = 32,
    trials: int = 10,
    depths: int = 4,
    wording: str = "paper",
    seed: int = 0,
    compare: Sequence[str] = (),
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure from how far back a GGUF file retrieves a passkey. Resumes if it was interrupted.

    Args:
        model: the path of a GGUF file.
        max_length: the longest prompt in tokens, its answer included; None is the file's context window.
        distances: the number of distances, spread evenly over max_length.
        trials: the number of passkeys for each distance and depth.
        depths: the number of positions at which passkeys are hidden; 1 is the fastest.
        wording: one of passkey_prompts.WORDING_NAMES.
        seed: of the random passkeys.
        compare: further position variants (position_variants.py).
        engine: how the engine runs the model; None is the default configuration.
        progress: receives a stage "passkey, VARIANT" for each variant, in tokens.

    Raises:
        UsageError: if options are out of range, or the window is too small for the distances or depths.
        TokenizerError: if a chat wording is given for a model without a chat template.
        ContextOverflow: if the window is longer than the model supports.
        OutputError: if the cache directory cannot be written.
        PigError: whatever reading and loading the model raise.
    """
    _check_counts(trials, depths)
    subject = ModelUnderTest.from_file(model, engine, progress)
    window = subject.context_length if max_length is None else max_length
    variants = subject.variants(compare, window)
    names = [variant.variant.name for variant in variants]
    supported = [variant for variant in variants if variant.supports_window(window)]
    if not supported:
        subject.check_window(window)  # raises
    with Model.open(subject.path, vocab_only=True) as vocab:
        prompts = PasskeyPrompts(vocab, wording)
        keys = random_keys(seed, depths * trials)
        plan = plan_passkey_test(prompts, _longest_key(prompts, keys), window, distances, depths)
        counts = {"distances": distances, "trials": trials, "depths": depths}
        words = {"wording": wording, "words": asdict(prompts.wording)}
        settings = {"max_length": window, **counts, **words, "seed": seed, "compare": names[1:]}
        with Evaluation("passkey", subject, settings, progress) as evaluation:
            scores = {
                variant.variant.name: _run_trials(evaluation, variant, window, plan, keys, prompts)
                for variant in supported
            }
    readings = {name: variant_scores.as_data() for name, variant_scores in scores.items()}
    return evaluation.report(
        results={"readings": readings},
        tables=passkey_tables(names, scores),
        plots=passkey_plots(plan, scores),
    )


def _check_counts(trials: int, depths: int) -> None:
    if trials < 1 or depths < 1:
        raise UsageError(f"{trials} trials at {depths} depths", "give at least 1 of each")


@dataclass(frozen=True)
class PasskeyTrial:
    """One pass over the window with one passkey.

    Attributes:
        depth: the position of the passkey.
        key: the passkey.
    """

    depth: PasskeyPosition
    key: str


def random_keys(seed: int, count: int) -> list[str]:
    """Return random passkeys of five digits, the first not 0."""
    rng = random.Random(seed)
    return [str(rng.randrange(10 ** (_DIGITS - 1), 10**_DIGITS)) for _ in range(count)]


def _longest_key(prompts: PasskeyPrompts, keys: Sequence[str]) -> str:
    """Return the passkey that takes the most tokens."""
    return max(keys, key=lambda key: len(prompts.encode(key, 0, 0)))


def _run_trials(
    evaluation: Evaluation,
    model: ModelUnderTest,
    window: int,
    plan: PasskeyPlan,
    keys: Sequence[str],
    prompts: PasskeyPrompts,
) -> PasskeyScores:
    """Return the scores of one position variant; the items of the evaluation are the trials.

    Args:
        evaluation: the running evaluation.
        model: the model under the variant.
        window: the window in tokens.
        plan: the depths and distances.
        keys: the passkeys, an equal number for each depth in its order.
        prompts: builds the prompts.
    """
    name = model.variant.name
    n_trials = len(keys) // len(plan.depths)
    trials = {
        f"{name}/{depth.grid_tokens}/{trial}": PasskeyTrial(depth, keys[number * n_trials + trial])
        for number, depth in enumerate(plan.depths)
        for trial in range(n_trials)
    }

    def ask_at_all_distances(session: Session, trial: PasskeyTrial) -> list[PasskeyAnswer]:
        # nearest first, so that each prompt continues the one before it
        return [
            _ask(session, prompts, trial, distance, evaluation.item_progress)
            for distance in plan.distances_from(trial.depth)
        ]

    answers = evaluation.run_items(
        f"passkey, {name}",
        trials,
        lambda missing: model.open_session(window, progress=evaluation.progress),
        ask_at_all_distances,
        lambda missing: _prefill_tokens(missing, plan, prompts),
    )
    return PasskeyScores(plan, [answer for trial_answers in answers for answer in trial_answers])


def _prefill_tokens(trials: Sequence[PasskeyTrial], plan: PasskeyPlan, prompts: PasskeyPrompts) -> int:
    """Return the tokens to prefill for trials that run one after the other, without the answers."""
    total = 0
    cached: list[int] = []
    for trial in trials:
        prompt = prompts.encode(trial.key, trial.depth.n_sentences, 0)
        total += trial.depth.n_tokens - common_prefix_length(cached, prompt)
        total += plan.prefill_tokens(trial.depth)
        cached = prompt
    return total


def _ask(
    session: Session,
    prompts: PasskeyPrompts,
    trial: PasskeyTrial,
    distance: PasskeyPosition,
    progress: Progress,
) -> PasskeyAnswer:
    """Ask for the passkey of a trial at one distance."""
    prompt = prompts.encode(trial.key, trial.depth.n_sentences, distance.n_sentences)
    n_cached = session.set_prompt(prompt, progress)
    text, n_generated = _generate_answer(session, prompts.max_answer_tokens)
    n_decoded = max(0, n_generated - 1)  # the first token is sampled from the prompt's own logits
    return {
        "start": trial.depth.grid_tokens,
        "distance": distance.grid_tokens,
        "tokens": len(prompt) - trial.depth.n_tokens,
        "length": len(prompt),
        "key": trial.key,
        "answer": text,
        "right": extract_digits(text) == trial.key,
        "computed": len(prompt) - n_cached + n_decoded,
        "separate": len(prompt) + n_decoded,
    }


def _generate_answer(session: Session, max_tokens: int) -> tuple[str, int]:
    """Return the greedy answer up to its fifth digit, and the number of tokens generated."""
    model = session.context.model
    n_generated, answer = 0, b""
    with closing(session.generate(_GREEDY, max_tokens, prompt_lookup=False)) as tokens:
        for token in tokens:
            n_generated += 1
            answer += model.token_to_piece(token)
            if len(extract_digits(_decode_utf8(answer))) == _DIGITS:
                break
    return _decode_utf8(answer), n_generated


def extract_digits(answer: str) -> str:
    """Return the first five digits of an answer, adjacent or not."""
    return "".join(re.findall("[0-9]", answer)[:_DIGITS])


def _decode_utf8(answer: bytes) -> str:
    return answer.decode("utf-8", "replace")
