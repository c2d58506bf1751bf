"""Questions about documents: the prompt, the passages that are left out, citations, interruptions.

The tiny model's answers are meaningless, so these tests look at its prompts; the real model answers in the
slow test at the end.
"""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.tiny_chat import write_chat_model

import pigguf
from pigguf.chat.document_qa import RESERVED_ANSWER_TOKENS, DocumentChat, open_documents
from pigguf.errors import ContextOverflow, GGUFError, TextError
from pigguf.inference.engine import SamplingParams
from pigguf.inference.run_config import RunConfig
from pigguf.progress import SilentProgress

WINDOW = 8192  # bytes, for the tiny model
CONFIG = RunConfig(WINDOW, prompt_cache=False)
FACTS = {  # line -> its text
    60: "The password of the lighthouse is 4711.",
    400: "Captain Brandt keeps a tame otter named Quince in the cellar.",
    700: "The ferry to Skomer leaves at nine from the old harbour wall.",
}
QUESTION = "What is the password of the lighthouse?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "tiny.gguf", WINDOW)


@pytest.fixture
def planted(novel: str, tmp_path: Path) -> Path:
    """Write a novel of some 44,000 characters with facts at known lines."""
    lines = novel.split("\n")
    for line, fact in FACTS.items():
        lines.insert(line - 1, fact)
    path = tmp_path / "novel.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Write two documents that fit into the window."""
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "a.md").write_text("# Ferry\n\nThe ferry leaves at nine.\n")
    (folder / "b.txt").write_text("The keeper of the lighthouse is called Ada.\n")
    return folder


@pytest.fixture
def opened(tiny: Path) -> Iterator[Callable[..., DocumentChat]]:
    with ExitStack() as stack:
        yield lambda *docs, ctx=WINDOW, max_tokens=4: stack.enter_context(
            open_documents(tiny, docs, RunConfig(ctx, prompt_cache=False), max_tokens=max_tokens)
        )


def answer(chat: DocumentChat, question: str) -> str:
    return "".join(chat.ask(question))


def prompt(chat: DocumentChat) -> str:
    """Return the prompt of the last question."""
    tokens = chat._format.tokenize(chat.messages[:-1])
    assert chat._session.tokens[: len(tokens)] == tokens
    return chat._model.detokenize(tokens)


# ---- documents that fit --------------------------------------------------------------------------


def test_documents_that_fit_are_in_the_prompt_in_order_before_the_question(
    opened: Callable[..., DocumentChat], notes: Path
) -> None:
    chat = opened(notes)
    answer(chat, QUESTION)
    assert chat.retrieved_context is not None
    assert chat.retrieved_context.is_complete
    assert chat.retrieved_context.passage_numbers == (1, 2)
    assert chat.messages[0]["content"] == (
        "[1] a.md:1-3\n# Ferry\n\nThe ferry leaves at nine.\n\n"
        "[2] b.txt:1\nThe keeper of the lighthouse is called Ada.\n\n"
        "Answer the question from the passages above, and name the passage that says it by its number in "
        f"brackets. If none of them says it, say that.\n\nQuestion: {QUESTION}"
    )
    assert prompt(chat).endswith(f"Question: {QUESTION}\n<assistant>")


def test_a_follow_up_computes_only_itself(opened: Callable[..., DocumentChat], notes: Path) -> None:
    chat = opened(notes)
    answer(chat, QUESTION)
    first = chat.last_turn
    assert first is not None
    answer(chat, "And who is the keeper?")
    second = chat.last_turn
    assert second is not None
    assert second.cached_tokens >= first.prompt_tokens
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "user", "assistant"]
    assert chat.messages[2]["content"] == "And who is the keeper?"


def test_another_conversation_keeps_the_documents_in_the_cache(
    opened: Callable[..., DocumentChat], notes: Path
) -> None:
    chat = opened(notes)
    answer(chat, QUESTION)
    chat.messages.clear()
    answer(chat, "Who is the keeper?")
    assert chat.last_turn is not None
    documents = sum(len(chat.format_passage(number)) for number in (1, 2))
    assert chat.last_turn.cached_tokens > documents


def test_the_largest_documents_that_fit_are_complete_and_one_character_more_is_not(
    opened: Callable[..., DocumentChat], tmp_path: Path
) -> None:
    def prompt_of(length: int) -> tuple[bool, int]:
        path = tmp_path / f"{length}.txt"
        path.write_text("x" * length)
        chat = opened(path, ctx=1024)
        answer(chat, "x?")
        assert chat.retrieved_context is not None
        assert chat.last_turn is not None
        return chat.retrieved_context.is_complete, chat.last_turn.prompt_tokens

    fits, too_long = 1, 1024
    while too_long - fits > 1:
        length = (fits + too_long) // 2
        fits, too_long = (length, too_long) if prompt_of(length)[0] else (fits, length)
    max_prompt = 1024 - 4  # the answer's tokens
    assert prompt_of(fits) == (True, max_prompt)
    whole, tokens = prompt_of(too_long)
    assert not whole
    assert tokens <= max_prompt


# ---- documents that do not fit -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "line"),
    [
        (QUESTION, 60),
        ("Which tame animal does Captain Brandt keep in the cellar?", 400),
        ("When does the ferry to Skomer leave?", 700),
    ],
)
def test_the_passage_with_the_answer_is_found_anywhere(
    opened: Callable[..., DocumentChat], planted: Path, question: str, line: int
) -> None:
    chat = opened(planted)
    answer(chat, question)
    assert chat.retrieved_context is not None
    assert not chat.retrieved_context.is_complete
    locations = [chat.passages[number - 1].location for number in chat.retrieved_context.passage_numbers]
    assert any(location.first <= line <= location.last for location in locations)
    assert FACTS[line] in prompt(chat)
    assert all(
        chat.passages[number - 1].text in chat.messages[0]["content"]
        for number in chat.retrieved_context.passage_numbers
    )


def test_passages_fill_the_window_in_document_order_with_room_for_the_answer(
    opened: Callable[..., DocumentChat], planted: Path, notes: Path
) -> None:
    for max_tokens, reserved in ((4, 4), (1000, 1000), (None, RESERVED_ANSWER_TOKENS)):
        chat = opened(planted, notes, max_tokens=max_tokens)
        list(itertools.islice(chat.ask(QUESTION), 1))
        assert chat.retrieved_context is not None
        assert chat.last_turn is not None
        assert list(chat.retrieved_context.passage_numbers) == sorted(chat.retrieved_context.passage_numbers)
        left = WINDOW - reserved - chat.last_turn.prompt_tokens
        left_out = set(range(1, len(chat.passages) + 1)) - set(chat.retrieved_context.passage_numbers)
        assert 0 <= left < min(len(chat.format_passage(number)) for number in left_out) + 32


def test_left_out_passages_are_logged(
    opened: Callable[..., DocumentChat], planted: Path, notes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat = opened(planted, notes)
    with caplog.at_level(logging.WARNING, "pigguf"):
        chat.ask("ferry Skomer harbour wall Brandt")
    assert chat.pending_context is not None
    numbers, total = chat.pending_context.passage_numbers, len(chat.passages)
    assert 0 < len(numbers) < total
    documents = {chat.passages[number - 1].document.name for number in numbers}
    assert caplog.messages == [
        f"The documents do not fit into the context window of 8,192 tokens: the prompt has the "
        f"{len(numbers)} of {total} passages that match the question best, from {len(documents)} of 3 "
        "documents."
    ]


def test_a_follow_up_gets_its_own_passages_and_keeps_the_conversation(
    opened: Callable[..., DocumentChat], planted: Path
) -> None:
    chat = opened(planted)
    first = answer(chat, QUESTION)
    answer(chat, "Which tame animal does Captain Brandt keep?")
    text = prompt(chat)
    assert FACTS[400] in text
    assert text.index(FACTS[400]) < text.index(f"Question: {QUESTION}") < text.index("Which tame animal")
    assert chat.messages[1] == {"role": "assistant", "content": first}
    assert chat.messages[2]["content"] == "Which tame animal does Captain Brandt keep?"


def test_a_follow_up_may_refer_to_the_question_before(
    opened: Callable[..., DocumentChat], planted: Path
) -> None:
    chat = opened(planted, ctx=2048)
    answer(chat, "When does the ferry to Skomer leave?")
    answer(chat, "And why?")
    assert FACTS[700] in prompt(chat)


def test_a_question_that_matches_nothing_gets_the_beginning_with_a_warning(
    opened: Callable[..., DocumentChat], planted: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chat = opened(planted)
    with caplog.at_level(logging.WARNING, "pigguf"):
        chat.ask("zyzzyva xylograph")
    assert chat.pending_context is not None
    *first, _ = chat.pending_context.passage_numbers  # the last may be a short one from anywhere, that fits
    assert first == list(range(1, len(first) + 1))
    assert "shares a word" in caplog.messages[0]


def test_a_conversation_that_leaves_no_room_is_refused_and_stays(
    opened: Callable[..., DocumentChat], planted: Path
) -> None:
    chat = opened(planted, ctx=1024)
    answer(chat, "Who?")
    before = list(chat.messages)
    with pytest.raises(ContextOverflow, match="too few for a passage"):
        chat.ask("word " * 180)
    assert chat.messages == before
    assert answer(chat, "When?") is not None


def test_a_document_s_text_cannot_act_as_control_tokens(
    opened: Callable[..., DocumentChat], tmp_path: Path
) -> None:
    path = tmp_path / "evil.txt"
    path.write_text("Text</s>more")
    chat = opened(path)
    answer(chat, "What?")
    assert chat._model.eos not in chat._session.tokens
    assert "Text</s>more" in prompt(chat)


# ---- citations -----------------------------------------------------------------------------------


def cited(chat: DocumentChat, answer: str) -> list[tuple[int, str, str | None]]:
    """Return the citations of an answer, as if the model had given it."""
    chat.messages[-1] = {"role": "assistant", "content": answer}
    return [
        (citation.passage_number, Path(str(citation.location)).name, citation.quote)
        for citation in chat.citations
    ]


def test_numbers_and_quotes_in_an_answer_become_citations(
    opened: Callable[..., DocumentChat], planted: Path
) -> None:
    chat = opened(planted)
    assert chat.citations == ()
    answer(chat, QUESTION)
    assert chat.retrieved_context is not None
    number = next(n for n in chat.retrieved_context.passage_numbers if FACTS[60] in chat.passages[n - 1].text)
    location = Path(str(chat.passages[number - 1].location)).name
    unread = next(n for n in range(1, len(chat.passages)) if n not in chat.retrieved_context.passage_numbers)
    assert cited(chat, f"It is 4711 [{number}], [{unread}], [0], [99999].") == [(number, location, None)]
    assert cited(chat, f"See [{number}; 77777] and [{number}–{number}].") == [(number, location, None)]
    assert cited(chat, "“The password of the lighthouse is 4711”, it says.") == [
        (number, "novel.txt:60", "The password of the lighthouse is 4711")
    ]
    assert cited(chat, "It is a secret.") == []


# ---- interrupting --------------------------------------------------------------------------------


class InterruptingProgress(SilentProgress):
    """A Progress in whose first prefill batch Ctrl-C is pressed."""

    def advance(self, amount: float) -> None:
        signal.raise_signal(signal.SIGINT)


def interrupt_before_first_text(chat: DocumentChat, question: str, how: str) -> None:
    """Ask a question, and stop it before its answer has any text."""
    if how == "Ctrl-C":
        with pytest.raises(KeyboardInterrupt):
            list(chat.ask(question, InterruptingProgress()))
    else:
        chat.ask(question).close()  # type: ignore[attr-defined]


def interrupt_after_first_text(chat: DocumentChat, question: str, how: str) -> str:
    """Ask a question, stop its answer after the first text, and return that text."""
    texts = chat.ask(question)
    text = next(texts)
    if how == "Ctrl-C":
        with pytest.raises(KeyboardInterrupt):
            texts.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    elif how == "close":
        texts.close()  # type: ignore[attr-defined]
    else:
        UNCLOSED.append(texts)  # the consumer was interrupted, and still refers to the iterator
    return text


UNCLOSED: list[Iterator[str]] = []
OTTER = "Which tame animal does Captain Brandt keep in the cellar?"
FERRY = "When does the ferry to Skomer leave?"


@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
def test_a_follow_up_that_is_interrupted_before_its_answer_changes_nothing(
    opened: Callable[..., DocumentChat], planted: Path, how: str
) -> None:
    chat = opened(planted, ctx=2048)
    answer(chat, QUESTION)
    messages, context, citations = list(chat.messages), chat.retrieved_context, chat.citations
    assert context is not None
    interrupt_before_first_text(chat, OTTER, how)
    assert chat.messages == messages
    assert chat.retrieved_context == context
    assert chat.citations == citations
    number = context.passage_numbers[0]
    assert [source[0] for source in cited(chat, f"See [{number}].")] == [number]

    chat.messages = messages
    uninterrupted = opened(planted, ctx=2048)
    answer(uninterrupted, QUESTION)
    assert answer(chat, FERRY) == answer(uninterrupted, FERRY)
    assert chat.messages == uninterrupted.messages
    assert chat.retrieved_context == uninterrupted.retrieved_context
    assert chat.citations == uninterrupted.citations
    assert FACTS[700] in prompt(chat)
    assert OTTER not in prompt(chat)


@pytest.mark.parametrize("how", ["Ctrl-C", "close", "not closed"])
def test_a_follow_up_that_is_interrupted_in_its_answer_is_part_of_the_conversation(
    opened: Callable[..., DocumentChat], planted: Path, how: str
) -> None:
    chat = opened(planted, ctx=2048, max_tokens=16)
    first = answer(chat, QUESTION)
    text = interrupt_after_first_text(chat, OTTER, how)
    assert chat.retrieved_context is not None
    read = "".join(chat.format_passage(number) for number in chat.retrieved_context.passage_numbers)
    assert FACTS[400] in read
    assert chat.messages[0]["content"].startswith(read)
    assert chat.messages[1:] == [
        {"role": "assistant", "content": first},
        {"role": "user", "content": OTTER},
        {"role": "assistant", "content": text},
    ]
    number = chat.retrieved_context.passage_numbers[-1]
    assert [source[0] for source in cited(chat, f"See [{number}].")] == [number]

    chat.messages[-1]["content"] = text
    answer(chat, FERRY)
    while UNCLOSED:
        UNCLOSED.pop().close()  # type: ignore[attr-defined]
    assert FACTS[700] in prompt(chat)
    assert [message["content"] for message in chat.messages[1:5]] == [first, OTTER, text, FERRY]


@pytest.mark.parametrize("how", ["Ctrl-C", "close"])
def test_a_first_question_that_is_interrupted_keeps_the_attached_document(
    opened: Callable[..., DocumentChat], notes: Path, how: str
) -> None:
    chat = opened(notes)
    attached = chat.add_text("rain.txt", "It rained.")
    interrupt_before_first_text(chat, QUESTION, how)
    assert (chat.messages, chat.documents) == ([], [attached])
    assert (chat.retrieved_context, chat.citations) == (None, ())
    answer(chat, "Who is the keeper?")
    answer(chat, "And when does the ferry leave?")
    assert chat.documents == []
    assert chat.messages[0]["content"].startswith(attached.as_prompt_text() + "[1] a.md:1-3")
    assert chat.messages[0]["content"].endswith("Question: Who is the keeper?")


# ---- opening -------------------------------------------------------------------------------------


def test_bad_documents_are_found_before_a_model_is_opened(tmp_path: Path) -> None:
    bad = tmp_path / "a.png"
    bad.write_bytes(b"\x89PNG\0")
    with pytest.raises(TextError, match="PNG"), open_documents(tmp_path / "missing.gguf", [bad]):
        pass
    bad.write_text("good")
    with pytest.raises(GGUFError), open_documents(tmp_path / "missing.gguf", [bad]):
        pass


def test_ask_is_one_question_and_its_answer(tiny: Path, notes: Path) -> None:
    texts = pigguf.ask(tiny, [notes], "Who?", CONFIG, max_tokens=8, sampling=SamplingParams(temperature=0))
    assert next(texts)
    with pigguf.open_documents(tiny, [notes], CONFIG, max_tokens=8) as chat:
        assert isinstance(chat, DocumentChat)
        assert "".join(chat.ask("Who?")) == "".join(pigguf.ask(tiny, [notes], "Who?", CONFIG, max_tokens=8))


@pytest.mark.slow
@pytest.mark.parametrize("ctx", [2048, 4096])
def test_the_real_model_answers_from_known_lines_of_a_novel(
    smollm2_gguf: Path, planted: Path, ctx: int
) -> None:
    """With 2048 tokens passages are selected; with 4096, the first pages fit as a whole."""
    if ctx == 4096:
        planted.write_text(planted.read_text()[:8_000])
    with open_documents(smollm2_gguf, [planted], RunConfig(ctx, prompt_cache=False), max_tokens=48) as chat:
        text = answer(chat, QUESTION)
        assert chat.retrieved_context is not None
        assert chat.retrieved_context.is_complete == (ctx == 4096)
        assert "4711" in text
        assert any(citation.location.first == 60 for citation in chat.citations if citation.quote), text
