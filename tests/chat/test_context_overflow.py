"""A full context window: what each policy drops, what it keeps, and that the KV cache is right afterwards.

The model has one layer: its K and V depend only on a token and its position, so a shifted cache must equal
that of a fresh prefill.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.chat.context_overflow import OVERFLOW_POLICIES, SUMMARY_REQUEST, OverflowBudget, shift, summarize
from pigguf.chat.conversation import Chat
from pigguf.chat.few_shot import FewShotExample
from pigguf.errors import ContextOverflow, UsageError
from pigguf.inference.engine import (
    Context,
    ContextOptions,
    Model,
    RuntimeRope,
    SamplingParams,
    Session,
)

WINDOW = 256
GREEDY = SamplingParams(temperature=0)
# letters that are tokens of their own, so that an answer's text has the tokens that were sampled
LETTERS = SamplingParams(temperature=0, grammar="root ::= [QXZ]{3,9}")
NO_END = SamplingParams(temperature=0, repeat_penalty=1.5)
SYSTEM = "You are a quick brown fox."
PROBE = list(range(40, 60))
MAX_CACHED = WINDOW - len(PROBE) - 1  # tokens that leave room for the probe


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-layer")
    checkpoint = make_checkpoint(folder / "checkpoint", num_hidden_layers=1, max_position_embeddings=1024)
    edit_config(checkpoint, rope_parameters=..., rope_scaling={"rope_type": "linear", "factor": 4.0})
    return pigguf.convert(checkpoint, folder / "one.gguf", type="F32").path


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    options = ContextOptions(length=WINDOW, cache_k="f32", cache_v="f32", flash_attention=False)
    with Model.open(path) as model, Context(model, options) as context, context.sequence() as session:
        yield session


def chat_on(session: Session, **arguments: Any) -> Chat:
    return Chat(
        session.context.model,
        session,
        **{"system": SYSTEM, "sampling": LETTERS, "max_tokens": 12, **arguments},
    )


def ask(chat: Chat, count: int) -> None:
    for number in range(count):
        list(chat.ask(f"Question {number}: is it lazy?"))


def logits_after(session: Session, tokens: list[int]) -> NDArray[np.float32]:
    """Return the logits of tokens after what the cache holds, and remove them again."""
    n_past = session.n_past
    rows = [row for _, row in session.evaluate(tokens, range(len(tokens)))]
    session.truncate(n_past)
    return np.array(rows)


def assert_cache_is_fresh(session: Session) -> None:
    """Check that the cache holds what a prefill of its tokens would give."""
    session.truncate(MAX_CACHED)
    tokens, moved = session.tokens, logits_after(session, PROBE)
    session.truncate(0)
    session.prefill(tokens)
    assert np.abs(moved - logits_after(session, PROBE)).max() < 1e-3


# ---- shift -------------------------------------------------------------------------------------------


def test_shift_leaves_out_the_oldest_turns_and_keeps_system_prompt_and_order(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    chat = chat_on(session, overflow="shift")
    asked = 0
    with caplog.at_level(logging.WARNING, "pigguf"):
        while not caplog.records:
            list(chat.ask(f"Question {asked}: is it lazy?"))
            asked += 1
    assert 3 < asked < 20
    contents = [message["content"] for message in chat.messages]
    assert contents[0] == SYSTEM
    assert contents[1::2] == [f"Question {number}: is it lazy?" for number in range(1, asked)]
    assert chat.last_turn is not None
    assert chat.last_turn.notices == (caplog.messages[0],)
    assert "the oldest turn was dropped" in caplog.messages[0]
    # the turns that stay were shifted, not computed again
    assert chat.last_turn.prompt_tokens - chat.last_turn.cached_tokens < 40


def test_after_a_shift_the_cache_equals_a_fresh_prefill(session: Session) -> None:
    chat = chat_on(session, overflow="shift")
    ask(chat, 12)
    assert chat.last_turn is not None
    assert chat.last_turn.notices
    assert_cache_is_fresh(session)


def test_without_the_files_factor_the_moved_cache_would_be_another(path: Path, session: Session) -> None:
    """The test above relies on this: the model's logits depend on the rope factor."""
    chat = chat_on(session, overflow="shift")
    ask(chat, 12)
    session.truncate(MAX_CACHED)
    tokens, moved = session.tokens, logits_after(session, PROBE)
    rope = RuntimeRope(factor=1.0, context_length=WINDOW)
    with Model.open(path, rope=rope) as model, Context(model) as context, context.sequence() as other:
        other.prefill(tokens)
        assert np.abs(moved - logits_after(other, PROBE)).max() > 0.05


def test_the_answers_after_a_shift_are_those_of_a_fresh_chat(session: Session) -> None:
    chat = chat_on(session, overflow="shift")
    ask(chat, 12)
    *before, question, answer = chat.messages
    fresh = chat_on(session)
    fresh.messages = before
    assert "".join(fresh.ask(question["content"])) == answer["content"]
    assert fresh.last_turn is not None
    assert fresh.last_turn.cached_tokens < fresh.last_turn.prompt_tokens


def test_an_answer_goes_on_when_the_window_fills(session: Session) -> None:
    chat = chat_on(session, overflow="shift")
    ask(chat, 4)
    before = chat.tokens_used
    chat._max_tokens, chat._sampling = 2 * WINDOW, NO_END
    pieces = list(chat.ask("Question 4: is it lazy?"))
    turn = chat.last_turn
    assert turn is not None
    assert turn.stop_reason == "window", "only the question is left"
    assert turn.generated_tokens > WINDOW - before
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"] == "".join(pieces)
    assert len(turn.notices) > 1
    prompt = chat._format.tokenize(chat.messages[:-1])
    assert session.tokens[: len(prompt)] == prompt
    assert_cache_is_fresh(session)


def test_an_answer_under_a_grammar_ends_where_the_window_does(session: Session) -> None:
    chat = chat_on(session, overflow="shift")
    ask(chat, 3)
    chat._max_tokens, chat._sampling = None, SamplingParams(temperature=0, grammar="root ::= [QXZ]{500}")
    list(chat.ask("Question 3: is it lazy?"))
    assert chat.last_turn is not None
    assert (chat.last_turn.stop_reason, chat.last_turn.notices) == ("window", ())


@pytest.mark.parametrize("policy", ["error", "shift", "summarize"])
def test_a_message_that_does_not_fit_alone_is_refused_by_every_policy(session: Session, policy: Any) -> None:
    chat = chat_on(session, overflow=policy)
    list(chat.ask("Is it lazy?"))
    before, cached = list(chat.messages), session.tokens
    with pytest.raises(ContextOverflow, match=r"the message is \d+ tokens, \d+ more than fit"):
        next(chat.ask("lazy " * WINDOW))
    with pytest.raises(ContextOverflow, match=r"text is \d+ tokens, \d+ more than fit"):
        chat.add_text("text", "lazy " * WINDOW)
    assert (chat.messages, session.tokens) == (before, cached)
    assert "".join(chat.ask("Is it lazy?"))


def test_a_document_may_use_the_tokens_of_turns_that_can_be_dropped(session: Session) -> None:
    text = "lazy " * 40
    for policy in ("error", "shift"):
        chat = chat_on(session, overflow=policy)
        ask(chat, 4)
        if policy == "error":
            with pytest.raises(ContextOverflow):
                chat.add_text("text", text)
        else:
            chat.add_text("text", text)
            list(chat.ask("And now?"))
            assert text in chat.messages[-2]["content"]


def test_a_cache_that_cannot_be_shifted_is_computed_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = RuntimeRope(factor=4.0, context_length=WINDOW, scaling_type="yarn")
    with (
        Model.open(path, rope=rope) as model,
        Context(model, ContextOptions(length=WINDOW)) as context,
        context.sequence() as session,
    ):
        chat = chat_on(session, overflow="shift")
        ask(chat, 12)
        assert chat.last_turn is not None
        assert chat.last_turn.notices
        assert chat.last_turn.cached_tokens < 40
        assert any("cannot move" in line and "computed again" in line for line in caplog.messages)


def test_there_is_no_other_policy(session: Session) -> None:
    with pytest.raises(UsageError, match="no overflow policy 'forget'"):
        chat_on(session, overflow="forget")


# ---- policies by themselves --------------------------------------------------------------------------


def conversation(turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "s"}]
    for number in range(turns):
        messages += [
            {"role": "user", "content": f"q{number}" * 40},
            {"role": "assistant", "content": f"a{number}" * 40},
        ]
    return [*messages, {"role": "user", "content": "now?"}]


def budget(tokens: int, summary: str = "") -> OverflowBudget:
    """Return a budget in which a character is a token, and every summary is the same."""
    return OverflowBudget(
        context_length=tokens,
        max_prompt_tokens=tokens,
        count_tokens=lambda messages: sum(len(message["content"]) for message in messages),
        generate=lambda messages, limit: summary,
    )


def test_shift_drops_as_few_turns_as_needed() -> None:
    messages = conversation(4)  # 645 characters, 160 a turn
    for max_tokens, left in ((645, 4), (644, 3), (485, 3), (484, 2), (5, 0)):
        shortened = shift(messages, budget(max_tokens))
        if left == 4:
            assert shortened is None
            continue
        assert shortened is not None
        assert shortened.messages == [messages[0], *messages[1 + 2 * (4 - left) :]]
        assert shortened.shifted_tokens == 160 * (4 - left)
    assert shift(messages, budget(4)) is None


def test_summarize_replaces_the_oldest_turns_by_one() -> None:
    messages = conversation(6)
    shortened = summarize(messages, budget(964, "They met."))
    assert shortened is not None
    contents = [message["content"] for message in shortened.messages]
    assert contents == ["s", SUMMARY_REQUEST, "They met.", *(message["content"] for message in messages[-5:])]
    assert "summarized" in shortened.notice
    assert summarize(messages, budget(964, "")) is None, "no summary"
    assert summarize(messages, budget(964, "x" * 700)) is None, "a longer one"
    assert summarize(conversation(0), budget(4, "They met.")) is None, "nothing to summarize"


def test_the_prompt_of_a_summary_fits_the_window() -> None:
    asked: list[int] = []

    def write(messages: Any, limit: int) -> str:
        asked.append(sum(len(message["content"]) for message in messages) + limit)
        return "They met."

    for turns in range(4, 12):
        limits = budget(964)
        summarize(
            conversation(turns),
            OverflowBudget(limits.context_length, limits.max_prompt_tokens, limits.count_tokens, write),
        )
    assert max(asked) <= 964
    assert min(asked) > 600


def test_every_policy_is_in_the_registry_under_its_name() -> None:
    assert {name: policy.__name__ for name, policy in OVERFLOW_POLICIES.items()} == {
        name: name for name in ("error", "shift", "summarize")
    }


# ---- summarize ---------------------------------------------------------------------------------------


def test_summarize_with_the_real_model(smollm2_gguf: Path) -> None:
    with (
        Model.open(smollm2_gguf) as model,
        Context(model, ContextOptions(length=400)) as context,
        context.sequence() as session,
    ):
        chat = Chat(
            model, session, system="Answer briefly.", sampling=GREEDY, max_tokens=40, overflow="summarize"
        )
        list(chat.ask("My pig is called Rosalind. " * 14 + "What do pigs eat?"))
        list(chat.ask("My wolf is called Oscar. " * 14 + "What do wolves eat?"))
        list(chat.ask("My cat is called Tom. " * 14 + "What do cats eat?"))
        turn = chat.last_turn
        assert turn is not None
        [notice] = turn.notices
        before, after = (int(number) for number in re.findall(r"(\d+) tokens to (\d+)", notice)[0])
        assert after == turn.prompt_tokens < before
        roles = [message["role"] for message in chat.messages]
        assert (
            roles == ["system", "user", "assistant", "user", "assistant", "user", "assistant"][: len(roles)]
        )
        assert chat.messages[1]["content"] == SUMMARY_REQUEST
        assert len(chat.messages[2]["content"]) > 20
        assert chat.messages[-2]["content"].endswith("What do cats eat?")


# ---- examples ----------------------------------------------------------------------------------------


def test_examples_go_before_the_first_question_as_many_as_fit(session: Session) -> None:
    examples = [FewShotExample(f"Is {number} lazy?", "QXZ") for number in range(40)]
    chat = chat_on(session, examples=examples)
    list(chat.ask("Is the dog lazy?"))
    contents = [message["content"] for message in chat.messages]
    fitted = (len(contents) - 3) // 2
    assert 1 < fitted < 40
    assert contents[1:-2:2] == [f"Is {number} lazy?" for number in range(fitted)]
    assert contents[-2] == "Is the dog lazy?"
    turn = chat.last_turn
    assert turn is not None
    assert turn.notices == (f"{fitted} of 40 examples go before the question.",)
    one_more = [*chat.messages[:-2], *examples[fitted].messages, chat.messages[-2]]
    assert len(chat._format.tokenize(one_more)) > WINDOW - 12 >= turn.prompt_tokens
    chat.clear()
    list(chat.ask("Is the fox lazy?"))
    assert len(chat.messages) == len(contents)


def test_examples_give_way_to_the_question(session: Session) -> None:
    chat = chat_on(session, examples=[FewShotExample("lazy " * 60, "QXZ")] * 2)
    list(chat.ask("lazy " * 40))
    assert chat.last_turn is not None
    assert chat.last_turn.notices == ("0 of 2 examples go before the question.",)


def test_a_question_asked_after_the_examples_has_them_once(session: Session) -> None:
    chat = chat_on(session, examples=[FewShotExample("Is it?", "QXZ")])
    ask(chat, 2)
    assert [message["content"] for message in chat.messages].count("Is it?") == 1
    assert chat.last_turn is not None
    assert chat.last_turn.notices == ()
