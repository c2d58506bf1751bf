"""Passages of documents, which of them are relevant to a question, and quotes in an answer."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pigguf.documents import Document, Passage, split_document
from pigguf.documents.bm25_retrieval import BM25Index
from pigguf.documents.chunking import passage_size
from pigguf.documents.citations import find_quotes
from pigguf.errors import MissingPackage


def document(text: str) -> Document:
    return Document.from_text(Path("a.txt"), text)


def planted(novel: str, **facts: int) -> Document:
    """Return the novel with facts at known lines, counted from 1."""
    lines = novel.split("\n")
    for fact, line in sorted(facts.items(), key=lambda item: item[1]):
        lines.insert(line - 1, fact)
    return document("\n".join(lines))


# ---- splitting -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 200, 1500, 10**6])
def test_passages_are_all_of_the_text_in_order(novel: str, size: int) -> None:
    novel = novel[:5000] if size < 100 else novel
    passages = list(split_document(document(novel), size))
    assert "".join("".join(passage.text.split()) for passage in passages) == "".join(novel.split())
    assert all(0 < passage.stop - passage.start <= size for passage in passages)
    starts = [passage.start for passage in passages]
    assert starts == sorted(starts)


def test_passages_end_where_paragraphs_do(novel: str) -> None:
    passages = list(split_document(document(novel), 1500))
    ends = [novel[passage.stop : passage.stop + 2] for passage in passages[:-1]]
    assert all(end[0] == "\n" for end in ends), "a line is split, where lines are short"
    assert sum(end == "\n\n" for end in ends) > 0.7 * len(ends), "the rest are paragraphs of a page"


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one two three\n\nfour five six seven", "one two three"),
        ("one two three four\nfive six seven", "one two three four"),
        ("One two three. Four five six seven", "One two three."),
        ("one two three four five six seven", "one two three four"),
        ("x" * 50, "x" * 22),
    ],
)
def test_the_best_separator_near_the_end_is_used(text: str, first: str) -> None:
    assert next(split_document(document(text), 22)).text == first


def test_a_passage_keeps_the_indentation_of_its_first_line() -> None:
    (passage,) = split_document(document("\n\n    def f():\n        pass\n\n"), 100)
    assert passage.text == "    def f():\n        pass"
    assert str(passage.location) == "a.txt:3-4"


def test_passages_are_small_enough_for_small_windows() -> None:
    assert passage_size(256) == 200
    assert passage_size(4096) == 768
    assert passage_size(10**6) == 1500


# ---- finding -------------------------------------------------------------------------------------

FACTS = {
    "The password of the lighthouse is 4711.": 120,
    "Captain Brandt keeps a tame otter named Quince in the cellar.": 400,
    "Auf dem Leuchtturm wohnt der Wärter Anselm.": 700,
    "灯台の番人は猫を三匹飼っている。": 750,
}


@pytest.mark.parametrize(
    ("question", "line"),
    [
        ("What is the PASSWORD of the lighthouse?", 120),
        ("Which animal does Captain Brandt keep?", 400),
        ("Wie heißt der Wärter auf dem Leuchtturm?", 700),
        ("猫は何匹いますか", 750),
    ],
)
def test_the_passage_that_holds_the_answer_has_the_highest_score(
    novel: str, question: str, line: int
) -> None:
    text = planted(novel, **FACTS)
    passages = list(split_document(text, 800))
    scores = BM25Index(passages).scores(question)
    best = passages[int(scores.argmax())]
    assert best.location.first <= line <= best.location.last


def test_a_question_without_a_known_word_has_no_relevant_passage(novel: str) -> None:
    index = BM25Index(list(split_document(document(novel), 800)))
    assert not index.scores("zyzzyva xylograph").any()
    assert not index.scores("?!").any()


def test_passages_without_words_can_be_searched() -> None:
    text = document("--- *** ---")
    assert list(BM25Index(list(split_document(text, 100))).scores("word")) == [0]


def test_bm25s_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(MissingPackage, match="bm25s") as error:
        BM25Index([])
    assert 'pip install -e ".[docs]" in the clone' in str(error.value.hint)


# ---- quotes --------------------------------------------------------------------------------------


def quotes(answer: str, text: str) -> list[tuple[str, str]]:
    return [
        (quote.text, str(quote.location))
        for quote in find_quotes(answer, list(split_document(document(text), 120)))
    ]


def test_quoted_words_are_found_with_their_location() -> None:
    text = "Nothing here.\n\nThe password, of the\nlighthouse is 4711. It rains.\n\nThe ferry leaves at nine."
    assert quotes("It is said that “the password of the lighthouse is 4711” there.", text) == [
        ("The password, of the lighthouse is 4711", "a.txt:3-4")
    ]
    assert quotes("THE FERRY LEAVES AT NINE, and the Lighthouse is 4711: it rains!", text) == [
        ("The ferry leaves at nine", "a.txt:6"),
        ("the lighthouse is 4711. It rains", "a.txt:3-4"),
    ]


def test_few_words_in_common_are_no_quote() -> None:
    assert quotes("The ferry leaves late.", "The ferry leaves at nine.") == []
    assert quotes("", "The ferry leaves at nine.") == []
    assert list(find_quotes("The ferry leaves at nine.", [])) == []


def test_the_longest_run_is_taken() -> None:
    text = "The ferry leaves at ten from the pier.\n\nThe ferry leaves at nine from the old harbour wall."
    assert quotes("The ferry leaves at nine from the old harbour.", text) == [
        ("The ferry leaves at nine from the old harbour", "a.txt:3")
    ]


def test_a_passage_within_a_document_knows_its_lines(novel: str) -> None:
    text = planted(novel, **FACTS)
    at = text.text.index("tame otter")
    assert str(Passage(text, at, at + 10).location) == "a.txt:400"
