"""Sampling: what it refuses, and what the C chain makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_gguf import FIRST_BYTE, VOCABULARY, text_tokens, write_tiny

from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams, Session
from pigguf.inference.engine.sampler import create_sampler
from pigguf.inference.engine.sampling_params import GrammarTrigger

NAN = float("nan")
PROMPT = text_tokens(30)
ALL = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}  # nothing cut off


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    path: Path = write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with (
        Model.open(path) as model,
        Context(model, ContextOptions(length=512)) as context,
        context.sequence() as session,
    ):
        yield session


def generate(session: Session, sampling: SamplingParams, count: int = 40) -> list[int]:
    session.set_prompt(PROMPT)
    return list(session.generate(sampling, count))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": value} for value in (-0.1, float("inf"), NAN)),
        *(
            {"top_k": -1},
            {"top_p": 0.0},
            {"top_p": 1.1},
            {"min_p": -0.1},
            {"min_p": 1.1},
            {"repeat_last_n": -1},
        ),
        *({"repeat_penalty": value} for value in (0.0, -1.0, float("inf"), NAN)),
        *({"grammar": value} for value in ("", " ", 'root ::= "a"\0 "b"', "\ud800")),
        *({"frequency_penalty": NAN}, {"presence_penalty": float("inf")}, {"seed": -1}, {"seed": 2**32 - 1}),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    [name] = wrong
    with pytest.raises(UsageError, match=name) as refusal:
        SamplingParams(**wrong)
    assert refusal.value.hint


def test_a_seed_makes_a_text_that_comes_again(session: Session) -> None:
    one = generate(session, SamplingParams(temperature=1.5, seed=1))
    assert generate(session, SamplingParams(temperature=1.5, seed=1)) == one
    assert generate(session, SamplingParams(temperature=1.5, seed=2)) != one


def test_without_a_seed_texts_differ(session: Session) -> None:
    texts = {tuple(generate(session, SamplingParams(temperature=2.0, **ALL))) for _ in range(3)}
    assert len(texts) == 3


def test_no_temperature_and_one_candidate_both_take_the_most_likely(session: Session) -> None:
    greedy = generate(session, SamplingParams(temperature=0))
    assert generate(session, SamplingParams(temperature=1e-45)) == greedy
    assert generate(session, SamplingParams(temperature=5.0, top_k=1)) == greedy
    assert generate(session, SamplingParams(temperature=1.0, top_p=1e-6)) == greedy


def test_frequencies_follow_the_probabilities(session: Session) -> None:
    """A thousand first tokens at temperature 0.7 penalized the softmax of the logits."""
    logits = after_prompt(session).astype(np.float64)
    expected = np.exp((logits - logits.max()) / 0.7)
    expected /= expected.sum()
    generated = Counter(
        sample_one(session, SamplingParams(temperature=0.7, seed=seed, **ALL)) for seed in range(1000)
    )
    found = np.array([generated[token] for token in range(VOCABULARY)]) / 1000
    assert np.abs(found - expected).sum() < 0.35  # total variation of a thousand true samples lies near 0.25
    top = int(expected.argmax())
    assert abs(found[top] - expected[top]) < 4 * np.sqrt(expected[top] / 1000)


def after_prompt(session: Session) -> NDArray[np.float32]:
    session.truncate(0)
    [(_, logits)] = session.evaluate(PROMPT, [len(PROMPT) - 1])
    return logits


def sample_one(session: Session, sampling: SamplingParams) -> int | None:
    return next(iter(session.generate(sampling, 1)), None)


def test_top_k_and_min_p_drop_the_tokens_they_describe(session: Session) -> None:
    logits = after_prompt(session)
    best = set(np.argsort(logits)[-3:].tolist())
    assert {
        sample_one(session, SamplingParams(temperature=3.0, seed=s, **{**ALL, "top_k": 3})) for s in range(60)
    } == best
    above = set(np.flatnonzero(logits > logits.max() + np.log(0.5)).tolist())
    found = {
        sample_one(session, SamplingParams(temperature=3.0, seed=s, **{**ALL, "min_p": 0.5}))
        for s in range(60)
    }
    assert found <= above


def test_penalties_see_the_prompt_and_the_text(session: Session) -> None:
    plain = generate(session, SamplingParams(temperature=0), 60)
    assert len(set(plain)) < len(plain), "the test needs a model that repeats itself"
    penalized = generate(
        session, SamplingParams(temperature=0, presence_penalty=1000.0, repeat_last_n=500), 60
    )
    assert len(set(penalized)) == len(penalized)
    assert not set(penalized) & set(PROMPT)
    off = SamplingParams(temperature=0, presence_penalty=1000.0, repeat_last_n=0)
    assert generate(session, off, 60) == plain


# ---- grammars ----------------------------------------------------------------------------------------

WORDS = 'root ::= ("yes" | "no" | "perhaps") "."'


def text_of(session: Session, sampling: SamplingParams) -> str:
    session.set_prompt(PROMPT)
    return b"".join(map(session.context.model.token_to_piece, session.generate(sampling))).decode()


def test_a_grammar_constrains_what_is_generated(session: Session) -> None:
    generated = {
        text_of(session, SamplingParams(temperature=3.0, seed=s, grammar=WORDS, **ALL)) for s in range(30)
    }
    assert generated == {"yes.", "no.", "perhaps."}
    assert session.stop_reason == "end"
    assert text_of(session, SamplingParams(temperature=0, grammar=WORDS)) in generated
    assert text_of(session, SamplingParams(top_k=1, grammar=WORDS)) in generated, (
        "others are left where the first is not"
    )


def test_under_a_grammar_the_most_likely_token_is_that_of_what_it_allows(session: Session) -> None:
    logits = after_prompt(session)
    digits = [FIRST_BYTE + ord(digit) for digit in "0123456789"]
    best = max(digits, key=lambda token: logits[token])
    assert sample_one(session, SamplingParams(temperature=0, grammar="root ::= [0-9]")) == best


def test_a_grammar_of_everything_changes_nothing(session: Session) -> None:
    anything = r"root ::= [\x01-\U0010FFFF]*"
    plain = generate(session, SamplingParams(temperature=0), 40)
    text = b"".join(map(session.context.model.token_to_piece, plain))
    constrained = generate(session, SamplingParams(temperature=0, grammar=anything), 40)
    if text.decode(errors="replace").isprintable():
        assert constrained == plain
    assert b"".join(map(session.context.model.token_to_piece, constrained)).decode(errors="ignore")


def test_control_tokens_are_not_text_of_a_grammar(session: Session) -> None:
    """The library would take <s> for three characters."""
    assert text_of(session, SamplingParams(temperature=0, grammar='root ::= "<s>"')) == "<s>"
    assert len(generate(session, SamplingParams(temperature=0, grammar='root ::= "<s>"'))) == 3


def test_what_a_grammar_demands_and_no_token_writes_is_an_error(session: Session) -> None:
    session.set_prompt(PROMPT)
    generated = session.generate(SamplingParams(temperature=0, grammar=r'root ::= "a\x00"'))
    assert session.context.model.token_to_piece(next(generated)) == b"a"
    with pytest.raises(EngineError, match="no token for what the grammar demands"):
        next(generated)
    assert text_of(session, SamplingParams(temperature=0, grammar=WORDS)).endswith(".")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("root ::= (", "parse"),
        ("start ::= [a]", "root"),
        ("root ::= other", "Undefined|undefined|parse"),
        ('root ::= root "a"', "left recursion"),
    ],
)
def test_an_invalid_grammar_is_refused(session: Session, grammar: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        generate(session, SamplingParams(grammar=grammar))


def test_a_grammar_is_new_with_each_text(session: Session) -> None:
    sampling = SamplingParams(temperature=0, grammar=WORDS)
    assert text_of(session, sampling) == text_of(session, sampling)
    first = session.generate(sampling)
    next(first)
    first.close()
    assert text_of(session, sampling).endswith(".")


def test_a_grammar_is_in_force_after_its_trigger(session: Session) -> None:
    texts = []
    for seed in range(30):
        hot = SamplingParams(
            temperature=100.0, seed=seed, grammar=WORDS, grammar_trigger=GrammarTrigger("a"), **ALL
        )
        pieces = [session.context.model.token_to_piece(token) for token in generate(session, hot, 400)]
        assert b"an" not in pieces, "it extends past the trigger, and a grammar begins with a whole token"
        texts.append(b"".join(pieces).partition(b"a"))
    triggered = [(before, rest) for before, trigger, rest in texts if trigger]
    assert {rest for _, rest in triggered} == {b"yes.", b"no.", b"perhaps."}
    assert max(len(before) for before, _ in triggered) > 50


def test_a_trigger_that_counts_only_at_the_beginning(session: Session) -> None:
    first = GrammarTrigger("x", at_start=True)
    after = f'root ::= "{"ab" * 20}"'
    for begin, is_in_force in ((" x", True), ("x", True), ("y x", False)):
        with create_sampler(
            SamplingParams(temperature=0, grammar=after, grammar_trigger=first), session.context.model, ()
        ) as s:
            for character in begin:
                token = FIRST_BYTE + ord(character)
                assert s._grammar is not None
                assert s._grammar.allows(token)
                s._accept(token)
            assert s._grammar.allows(FIRST_BYTE + ord("b")) != is_in_force
            assert s._grammar.allows(FIRST_BYTE + ord("a"))
