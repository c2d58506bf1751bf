"""Conversations on the real model: what stays in the KV cache, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pigguf.chat.conversation import MIN_ANSWER_TOKENS, Chat
from pigguf.common.text_decoding import decode_text
from pigguf.errors import ContextOverflow, OutputError, UsageError
from pigguf.inference.detokenizer import stream_text
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams
from pigguf.progress import SilentProgress

WINDOW = 512
GREEDY = SamplingParams(temperature=0)
SYSTEM = "You answer in a few words."


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Iterator[Model]:
    with Model.open(smollm2_gguf) as model:
        yield model


@pytest.fixture(scope="module")
def context(model: Model) -> Iterator[Context]:
    with Context(model, ContextOptions(length=WINDOW, batch=64)) as context:
        yield context


@pytest.fixture
def chat(model: Model, context: Context) -> Iterator[Chat]:
    with context.sequence() as session:
        yield Chat(model, session, system=SYSTEM, sampling=GREEDY, max_tokens=12)


def cached(chat: Chat) -> list[int]:
    return chat._session.tokens


def as_messages(*messages: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


# ---- questions and answers ---------------------------------------------------------------------------


def test_a_conversation_grows_and_the_cache_keeps_it(chat: Chat, model: Model) -> None:
    pieces = list(chat.ask("What is the capital of France?"))
    answer = "".join(pieces)
    assert "Paris" in answer
    assert len(pieces) > 1, "it was not streamed"
    assert chat.messages == as_messages(
        ("system", SYSTEM), ("user", "What is the capital of France?"), ("assistant", answer)
    )
    first = chat.last_turn
    assert first is not None
    assert first.cached_tokens == 0
    assert first.prompt_tokens == len(chat._format.tokenize(chat.messages[:-1]))
    assert 0 < first.prefill_seconds <= first.first_token_seconds

    list(chat.ask("And of Italy?"))
    second = chat.last_turn
    assert second is not None
    assert second.cached_tokens >= first.prompt_tokens
    prompt = chat._format.tokenize(chat.messages[:-1])
    assert second.prompt_tokens == len(prompt)
    assert cached(chat)[: len(prompt)] == prompt


def test_max_tokens_ends_an_answer(chat: Chat) -> None:
    list(chat.ask("Write a long story about a pig."))
    assert chat.last_turn is not None
    assert chat.last_turn.stop_reason == "length"
    assert chat.last_turn.generated_tokens == 12


def test_a_full_window_ends_an_answer(model: Model) -> None:
    with (
        Context(model, ContextOptions(length=128, batch=64)) as context,
        context.sequence() as session,
    ):
        chat = Chat(model, session, sampling=SamplingParams(temperature=0))
        list(chat.ask("Write a long story about a pig."))
        assert chat.last_turn is not None
        assert chat.last_turn.stop_reason == "window"
        assert chat.last_turn.prompt_tokens + chat.last_turn.generated_tokens >= 128
        with pytest.raises(ContextOverflow):
            next(chat.ask("And then?"))


def test_text_never_cuts_a_character(model: Model) -> None:
    text = "naïve 漢字かな交じり 🐷👩‍👩‍👧‍👦 Ünïcödé"
    tokens = model.tokenize(text, add_special=False)
    assert any(b"\x80" <= model.token_to_piece(token)[:1] <= b"\xbf" for token in tokens), (
        "no character is cut"
    )
    pieces = list(stream_text(model, tokens))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


# ---- stopping ----------------------------------------------------------------------------------------


def test_a_stopped_answer_stays_as_far_as_it_was_generated(chat: Chat) -> None:
    answer = chat.ask("Count from one to a hundred.")
    text = "".join(itertools.islice(answer, 4))
    answer.close()  # type: ignore[attr-defined]
    assert chat.messages[-1] == {"role": "assistant", "content": text}
    assert chat.last_turn is not None
    assert chat.last_turn.stop_reason == "interrupted"

    assert "".join(chat.ask("What is the capital of France?"))
    prompt = chat._format.tokenize(chat.messages[:-1])
    assert cached(chat)[: len(prompt)] == prompt


class InterruptingProgress(SilentProgress):
    """A Progress in whose first prefill batch Ctrl-C is pressed."""

    def advance(self, amount: float) -> None:
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_during_prefill_keeps_the_conversation(chat: Chat) -> None:
    list(chat.ask("Hello"))
    before = list(chat.messages)
    document = chat.add_text("rain.txt", "It rained. " * 60)
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("What was the weather?", InterruptingProgress()))
    assert chat.messages == before
    assert chat.documents == [document]

    done = len(cached(chat))
    assert "".join(chat.ask("What was the weather?"))
    assert chat.last_turn is not None
    assert chat.last_turn.cached_tokens >= done - 1, "cached tokens were computed again"
    assert chat.documents == []
    assert "rain.txt" in chat.messages[-2]["content"]


# ---- the window --------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_counts(chat: Chat) -> None:
    list(chat.ask("Hello"))
    before, held = list(chat.messages), cached(chat)
    question = "word " * 600
    tokens = len(chat._format.tokenize([*chat.messages, {"role": "user", "content": question}]))
    with pytest.raises(ContextOverflow) as error:
        next(chat.ask(question))
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", error.value.message)]
    room = 12
    used = chat.tokens_used
    assert numbers == [tokens - used, tokens + room - WINDOW, WINDOW, used, room]
    assert chat.messages == before
    assert cached(chat) == held
    assert "".join(chat.ask("Hello again"))


def test_the_largest_question_that_fits_is_taken(chat: Chat) -> None:
    def length(words: int) -> int:
        return len(chat._format.tokenize(as_messages(("system", SYSTEM), ("user", "word " * words))))

    words = next(words for words in itertools.count(1) if length(words + 1) > WINDOW - 12)
    list(chat.ask("word " * words))
    assert chat.last_turn is not None
    assert chat.last_turn.prompt_tokens == length(words)
    chat.clear()
    with pytest.raises(ContextOverflow):
        next(chat.ask("word " * (words + 1)))


def test_context_usage_adds_up_to_tokens_used(chat: Chat) -> None:
    assert chat.tokens_used == chat._format.count_tokens(SYSTEM)
    list(chat.ask("Hello"))
    waiting = chat.add_text("note.txt", "The pig is in the garden.")
    usage = chat.context_usage()
    assert [part.kind for part in usage] == ["system", "user", "assistant", "template", "document"]
    assert all(part.tokens > 0 for part in usage)
    assert sum(part.tokens for part in usage) == chat.tokens_used + waiting.tokens
    assert chat.tokens_used == len(chat._format.tokenize(chat.messages, add_generation_prompt=False))


def test_clear_keeps_the_system_prompt_alone(chat: Chat) -> None:
    list(chat.ask("Hello"))
    chat.add_text("note.txt", "The pig is in the garden.")
    chat.clear()
    assert chat.messages == as_messages(("system", SYSTEM))
    assert chat.documents == []
    assert cached(chat) == []


# ---- documents ---------------------------------------------------------------------------------------


def test_documents_go_in_front_of_the_next_question(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "garden.txt"
    path.write_bytes("\ufeffThe pig is called Rosalind.\r\nIt is in the garden.".encode())
    document = chat.add_document(path)
    assert document.name == "garden.txt"
    assert document.text == "The pig is called Rosalind.\nIt is in the garden."
    assert document.tokens == chat._format.count_tokens(document.text)
    assert "Rosalind" in "".join(chat.ask("What is the pig called?"))
    content = chat.messages[1]["content"]
    assert content.index("garden.txt") < content.index("Rosalind") < content.index("What is the pig called?")
    assert chat.documents == []


def test_a_document_that_cannot_fit_is_refused_at_once(chat: Chat, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("word " * 700)
    with pytest.raises(ContextOverflow, match=r"long\.txt") as error:
        chat.add_document(path)
    assert f"{WINDOW:,}" in error.value.message
    assert chat.documents == []


@pytest.mark.parametrize("name", ["huge.txt", "/dev/zero"])
def test_a_huge_document_is_refused_unread(chat: Chat, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if not path.exists():
        with path.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(ContextOverflow, match=f"context window of {WINDOW} tokens"):
        chat.add_document(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x7fELF\x02\x01\x01\0\0\0\xff", "not UTF-8 text"),
        (b"Latin: caf\xe9", r"not UTF-8 text \(byte 10\)"),
        (b"text\0text", "null bytes"),
    ],
)
def test_binary_files_are_refused(chat: Chat, tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=message) as error:
        chat.add_document(path)
    assert error.value.hint


def test_a_document_must_be_there(chat: Chat, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        chat.add_document(tmp_path / "missing.txt")
    with pytest.raises(UsageError, match="Is a directory"):
        chat.add_document(tmp_path)


def test_decode_text_takes_the_byte_order_mark_off() -> None:
    assert decode_text(b"\xef\xbb\xbfhi\r\nthere", "x") == "hi\nthere"


# ---- saving ------------------------------------------------------------------------------------------


def test_save_writes_the_conversation(chat: Chat, tmp_path: Path) -> None:
    list(chat.ask("Grüße 🐷"))
    path = tmp_path / "chat.json"
    chat.save(path)
    saved = json.loads(path.read_text())
    assert saved["messages"] == chat.messages
    assert saved["model"].endswith(".gguf")
    assert "Grüße 🐷" in path.read_text()
    with pytest.raises(OutputError, match="is not a directory"):
        chat.save(tmp_path / "missing" / "chat.json")


def test_room_for_an_answer_is_kept_without_max_tokens(model: Model, context: Context) -> None:
    with context.sequence() as session:
        chat = Chat(model, session)
        with pytest.raises(ContextOverflow, match=f"{MIN_ANSWER_TOKENS} for an answer"):
            next(chat.ask("word " * (WINDOW - MIN_ANSWER_TOKENS)))
