"""open_model: text in, text out; whole characters, stop strings, one KV cache that calls share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.tiny_gguf import FIRST_BYTE, write_tiny

import pigguf
from pigguf.errors import ContextOverflow, EngineError, TokenizerError, UsageError
from pigguf.inference.detokenizer import StreamingDetokenizer
from pigguf.inference.engine import SamplingParams
from pigguf.inference.local_model import LocalModel, open_model
from pigguf.progress import SilentProgress

GREEDY = SamplingParams(temperature=0)
QUESTION = [
    {"role": "system", "content": "You know geography."},
    {"role": "user", "content": "What is the capital of France?"},
]


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Iterator[LocalModel]:
    with pigguf.open_model(smollm2_gguf, ctx=512) as model:
        yield model


class Tokens(SilentProgress):
    def __init__(self) -> None:
        self.advanced = 0.0

    def advance(self, amount: float) -> None:
        self.advanced += amount


def test_a_chat_answers_by_the_models_template(model: LocalModel) -> None:
    answer = "".join(model.chat(QUESTION, GREEDY))
    assert "Paris" in answer
    assert "<|" not in answer
    assert model.stop_reason == "end"
    again = "".join(model.generate(model.tokenize(_RENDERED, parse_special=True), GREEDY))
    assert again == answer


_RENDERED = (
    "<|im_start|>system\nYou know geography.<|im_end|>\n"
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
)


def test_a_common_prefix_of_two_calls_is_not_computed_again(model: LocalModel) -> None:
    answer = "".join(model.chat(QUESTION, GREEDY))
    more = [*QUESTION, {"role": "assistant", "content": answer}, {"role": "user", "content": "And of Spain?"}]
    tokens = Tokens()
    assert "Madrid" in "".join(model.chat(more, GREEDY, progress=tokens))
    assert tokens.advanced < 30  # the question and what the template puts around it
    tokens = Tokens()
    assert "".join(model.chat(QUESTION, GREEDY, progress=tokens)) == answer
    assert tokens.advanced == 0


def test_generate_continues_text_or_tokens(model: LocalModel) -> None:
    prompt = "One, two, three,"
    text = "".join(model.generate(prompt, GREEDY, max_tokens=6))
    assert text.startswith(" four")
    assert model.stop_reason == "length"
    assert "".join(model.generate(model.tokenize(prompt), GREEDY, max_tokens=6)) == text


def texts_of(detokenizer: StreamingDetokenizer, tokens: Iterable[int]) -> list[str]:
    """Return the texts of a detokenizer, up to its end or a stop string."""
    texts = []
    for token in tokens:
        texts.append(detokenizer.add_token(token))
        if detokenizer.stopped:
            break
    return [text for text in (*texts, detokenizer.finalize()) if text]


def test_texts_never_cut_a_character(model: LocalModel) -> None:
    word = "caf\u00e9 \U0001f600\U0001f680 \u4f60\u597d"
    tokens = model.tokenize(word)
    pieces = texts_of(StreamingDetokenizer(model.model), tokens)
    assert "".join(pieces) == word
    assert "\ufffd" not in "".join(pieces)
    assert len(tokens) > len(pieces)
    # A character that is never completed becomes U+FFFD at the end.
    assert texts_of(StreamingDetokenizer(model.model), tokens[:-1])[-1].endswith("\ufffd")


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "one two three four"),
        (("three",), "one two "),
        (("four", "two"), "one "),
        (("o th",), "one tw"),
        (("four five",), "one two three four"),
        (("one",), ""),
        (("r",), "one two th"),
    ],
)
def test_stop_strings_work_across_tokens(model: LocalModel, stop: tuple[str, ...], expected: str) -> None:
    for size in (1, 2, 5):
        tokens = [
            token
            for start in range(0, 18, size)
            for token in model.tokenize("one two three four"[start : start + size])
        ]
        text = StreamingDetokenizer(model.model, stop)
        assert "".join(texts_of(text, tokens)) == expected
        assert text.stopped == (expected != "one two three four")


def test_a_stop_string_ends_the_text(model: LocalModel) -> None:
    whole = "".join(model.generate("One, two, three,", GREEDY, max_tokens=12))
    stop_at = whole.index("six")
    assert "".join(model.generate("One, two, three,", GREEDY, max_tokens=12, stop=["six"])) == whole[:stop_at]
    assert model.stop_reason == "stop"
    for wrong in ("six", [""], ["six", ""]):
        with pytest.raises(UsageError, match="stop strings"):
            model.generate("One", stop=wrong)


def test_closing_the_iterator_is_an_interruption(model: LocalModel) -> None:
    texts = model.generate("One, two, three,", GREEDY)
    next(texts)
    del texts
    assert model.stop_reason == "interrupted"


def test_a_text_that_another_one_ended_raises(model: LocalModel) -> None:
    first = model.generate("Once upon a time", GREEDY, max_tokens=8)
    first_text = next(first)
    expected = "".join(model.generate("The pig", GREEDY, max_tokens=8))
    with pytest.raises(EngineError, match="put to another use"):
        next(first)
    assert model.stop_reason == "length", "the last text's"
    assert "".join(model.generate("The pig", GREEDY, max_tokens=8)) == expected
    assert next(model.generate("Once upon a time", GREEDY)) == first_text


def test_threads_on_one_model_get_their_text_or_an_error(model: LocalModel) -> None:
    def ask(_: int) -> str:
        try:
            return "".join(model.generate("Once upon a time", GREEDY, max_tokens=8))
        except EngineError as error:
            return error.message

    expected = ask(0)
    with ThreadPoolExecutor(4) as threads:
        for text in threads.map(ask, range(16)):
            assert text == expected or "put to another use" in text
    assert ask(0) == expected


def test_a_prompt_that_does_not_fit_is_an_error(model: LocalModel) -> None:
    with pytest.raises(ContextOverflow, match="the window is 512 tokens"):
        next(model.generate("word " * 600))
    with pytest.raises(UsageError, match="nothing to continue"):
        next(model.generate(""))


def test_a_sentencepiece_answer_does_not_begin_with_a_space(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with open_model(path, ctx=64) as model:
        prompt = model.tokenize("an", add_special=True)
        assert model.detokenize(prompt) == "an"
        assert [model.model.token_to_piece(t) for t in prompt] == [b"", b" ", b"an"]
        with pytest.raises(TokenizerError, match="no chat template"):
            model.chat(QUESTION)
        assert model.tokenize("\n")[-1] == FIRST_BYTE + 10


def test_a_closed_model_is_closed(tmp_path: Path) -> None:
    model = open_model(write_tiny(tmp_path / "m.gguf"), ctx=64)
    assert model.context_length == 64
    model.close()
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.tokenize("a")
    with pytest.raises(EngineError, match="closed"):
        next(model.generate([1, 5]))


def test_a_failed_opening_leaves_nothing_open(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with pytest.raises(ContextOverflow):
        open_model(path, ctx=100_000)


def test_a_text_is_constrained_by_a_json_schema(model: LocalModel) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    answer = json.loads("".join(model.chat(QUESTION, GREEDY, json_schema=schema)))
    assert answer == {"city": "Paris"}
    assert model.stop_reason == "end"
    number = "".join(model.generate("One, two,", GREEDY, json_schema={"type": "integer", "maximum": 9}))
    assert int(number) <= 9
    assert json.loads("".join(model.generate("Yes or no? ", json_schema={"type": "boolean"}))) in (
        True,
        False,
    )
    with pytest.raises(UsageError, match=r"`json_schema` and `sampling\.grammar` are both given"):
        model.chat(QUESTION, SamplingParams(grammar='root ::= "a"'), json_schema=schema)
    with pytest.raises(UsageError, match="#/not"):
        model.generate("a", json_schema={"not": {}})
