"""What makes the training data: R's databases, prose of HTML and novels, records by rule, prompts.

Persuasion, whose chapters stand in here for the prose, is the one text that training may never see.
"""

from __future__ import annotations

import gzip
import importlib
import json
import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tokenizers import Tokenizer

import pigguf
from pigguf.evals.passkey_prompts import WORDINGS
from pigguf.finetuning.dataset import load_training_sequences
from pigguf.tokenizer import read_vocab

FOLDER = Path(__file__).resolve().parents[2] / "scripts" / "training"
MODULES = ("values", "wordings", "rdata", "corpus", "items", "chats")
TOKENS = 150_000
LONGEST = 1950  # tokens of a record

Record = dict[str, Any]


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    """Import the modules of scripts/training, which import one another as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in MODULES}


@pytest.fixture(scope="module")
def corpus(scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts["corpus"]


@pytest.fixture(scope="module")
def items(scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts["items"]


@pytest.fixture(scope="module")
def wordings(scripts: dict[str, ModuleType]) -> ModuleType:
    return scripts["wordings"]


# R's serialisation, written from R Internals, "Serialization Formats"

NIL = b"\x00\x00\x00\xfe"
HEADER_2 = b"X\n" + struct.pack(">iii", 2, 0x030401, 0x020300)
HEADER_3 = b"X\n" + struct.pack(">iii", 3, 0x040201, 0x030500) + struct.pack(">i", 5) + b"UTF-8"


def chars(text: str) -> bytes:
    return struct.pack(">ii", 0x00040009, len(text.encode())) + text.encode()


def strings(*texts: str) -> bytes:
    return struct.pack(">ii", 16, len(texts)) + b"".join(map(chars, texts))


def integers(*numbers: int) -> bytes:
    return struct.pack(f">ii{len(numbers)}i", 13, len(numbers), *numbers)


def named_list(names: bytes, **entries: bytes) -> bytes:
    """Serialize a list whose attribute is a pairlist of one pair: the symbol `names`, and the names."""
    head = struct.pack(">ii", 19 | 1 << 9, len(entries)) + b"".join(entries.values())
    return head + struct.pack(">i", 2 | 1 << 10) + names + strings(*entries) + NIL


def database(path: Path, header: bytes = HEADER_3, **objects: bytes) -> Path:
    """Write a lazy-load database of serialized objects."""
    data, places = b"", {}
    for name, value in objects.items():
        block = struct.pack(">i", len(header + value)) + zlib.compress(header + value)
        places[name] = integers(len(data), len(block))
        data += block
    symbol, again = struct.pack(">i", 1) + chars("names"), struct.pack(">i", 1 << 8 | 255)
    index = named_list(again, variables=named_list(symbol, **places), compressed=integers(1))
    path.with_suffix(".rdx").write_bytes(gzip.compress(header + index))
    path.with_suffix(".rdb").write_bytes(data)
    return path


@pytest.mark.parametrize("header", [HEADER_2, HEADER_3], ids=["version 2", "version 3"])
def test_r_texts_are_read(scripts: dict[str, ModuleType], tmp_path: Path, header: bytes) -> None:
    path = database(
        tmp_path / "Rdata",
        header,
        emma=strings("EMMA", "", "Brontë’s not"),
        sizes=integers(1, 2),
        one=strings("x"),
    )
    assert scripts["rdata"].texts(path) == {"emma": ["EMMA", "", "Brontë’s not"], "one": ["x"]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (struct.pack(">ii", 24, 1) + b"x", "type 24"),
        (strings("long enough")[:-3], "ends early"),
    ],
    ids=["a type that is no text", "a torn object"],
)
def test_what_is_no_r_text_is_refused(
    scripts: dict[str, ModuleType], tmp_path: Path, value: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        scripts["rdata"].texts(database(tmp_path / "Rdata", novel=value))


# Prose


def test_the_held_out_novel_is_passed_over(corpus: ModuleType, tmp_path: Path) -> None:
    data = tmp_path / "lib/R/site-library/janeaustenr/data"
    data.mkdir(parents=True)
    database(
        data / "Rdata", emma=strings("EMMA", "", "", "text"), persuasion=strings("PERSUASION", "Kellynch")
    )
    assert dict(corpus.austen(tmp_path)) == {"emma": "EMMA\n\ntext\n"}


def test_the_held_out_novel_is_refused(corpus: ModuleType, tmp_path: Path, novel: str) -> None:
    for name, text in (("essay", f"As one reads: {novel}"), ("my-Persuasion", "innocent words")):
        with pytest.raises(ValueError, match="must not be trained on"):
            corpus.write([("innocent", "words"), (name, text)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_are_not_mixed_with_those_of_another_run(corpus: ModuleType, tmp_path: Path) -> None:
    corpus.write([("a-b", "one"), ("c", "two")], tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a-b.txt": "one", "c.txt": "two"}
    with pytest.raises(ValueError, match="already contains texts"):
        corpus.write([("d", "three")], tmp_path)


def test_the_budget_is_shared(corpus: ModuleType) -> None:
    """Six tenths novels, in proportion to their lengths; the rest in even parts, in whole documents."""
    paragraph = "w" * 98 + "\n\n"
    source = corpus.Source
    sources = [
        (source("n", "novel", list), [("long", paragraph * 4000), ("short", paragraph * 1000)]),
        (source("a", "manual", list), [(f"a{index}", paragraph * 100) for index in range(50)]),
        (source("b", "manual", list), [("b", paragraph * 9000)]),
    ]
    chosen = dict(corpus.choose(sources, 50_000, random.Random(3)))
    part = {name: len(text) for name, text in chosen.items()}
    novels = 50_000 * 0.6 * corpus.CHARACTERS_A_TOKEN["novel"]
    manual = 50_000 * 0.4 * corpus.CHARACTERS_A_TOKEN["manual"] / 2
    assert part["long"] == pytest.approx(0.8 * novels, abs=200)
    assert part["short"] == pytest.approx(0.2 * novels, abs=200)
    assert part["b"] == pytest.approx(manual, abs=200)
    assert sum(size for name, size in part.items() if name[0] == "a") == pytest.approx(manual, abs=6000)
    assert chosen == dict(corpus.choose(sources, 50_000, random.Random(3)))


def test_a_span_is_of_whole_paragraphs(corpus: ModuleType) -> None:
    paragraphs = [f"{index:03d} " * 20 for index in range(100)]
    text = "\n\n".join(paragraphs)
    for seed in range(20):
        taken = corpus.span(text, 2000, random.Random(seed)).strip().split("\n\n")
        first = int(taken[0][:3])
        assert [line.strip() for line in taken] == [
            line.strip() for line in paragraphs[first : first + len(taken)]
        ]
        assert 1700 <= len("\n\n".join(taken)) <= 2000


def test_html_becomes_words(corpus: ModuleType) -> None:
    page = (
        "<html><head><title>No</title><style>p {}</style></head><body><p id='title'><a>No</a></p>"
        "<ul class='docnav top'><li>No<br>no</li></ul><h2 class='title'>A  &amp;\n B</h2>"
        "<p>One <b>bold</b>\n word.<img src=x> Two.</p><pre>x  =\n  1</pre>"
        "<div class='navfooter'><div>No</div></div><ul><li>first</li><li>second</ul><p>End"
    )
    text = corpus.tidy(corpus.plain_text(page))
    assert text == "A & B\n\nOne bold word. Two.\n\nx  =\n  1\n\nfirst\n\nsecond\n\nEnd\n"


# Records


@pytest.fixture(scope="module")
def library(items: ModuleType, smollm2_checkpoint: Path, novel: str) -> Any:
    tokenizer = Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))
    return items.Library([novel], tokenizer)


@pytest.fixture(scope="module")
def records(items: ModuleType, library: Any) -> list[Record]:
    return list(items.make(library, TOKENS, LONGEST, seed=7))


def test_records_are_decided_by_the_seed(items: ModuleType, library: Any, records: list[Record]) -> None:
    few = list(items.make(library, 30_000, LONGEST, seed=7))
    assert few == list(items.make(library, 30_000, LONGEST, seed=7))
    assert few != list(items.make(library, 30_000, LONGEST, seed=8))
    assert len({json.dumps(record) for record in records}) == len(records)


def test_records_are_packed_by_the_reader_of_training(
    records: list[Record], smollm2_checkpoint: Path, tmp_path: Path
) -> None:
    """All are valid, and fit into sequences of 2000 tokens with the template's own words."""
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    config = json.loads((smollm2_checkpoint / "config.json").read_text())
    vocab = read_vocab(smollm2_checkpoint, config, config["vocab_size"])
    sequences = load_training_sequences([path], smollm2_checkpoint, vocab, 2000)
    tokens = sum(len(sequence.tokens) for sequence in sequences)
    assert tokens == pytest.approx(TOKENS, rel=0.1)
    assert len(sequences) < 1.5 * tokens / 2000
    assert all(sequence.kind == "answers" and sequence.loss_mask.any() for sequence in sequences)
    assert sum(int(sequence.loss_mask.sum()) for sequence in sequences) > 30 * len(sequences)


def test_lengths_and_roles(items: ModuleType, library: Any, records: list[Record]) -> None:
    sizes = [library.count_record(record) for record in records]
    assert 150 <= min(sizes) < 500
    assert 1800 < max(sizes) <= LONGEST
    assert sum(size > 1300 for size in sizes) > 0.6 * len(sizes)
    for record in records:
        if "messages" in record:
            roles = [message["role"] for message in record["messages"]]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert all(message["content"].strip() for message in record["messages"])
        else:
            assert set(record) == {"prompt", "completion"}
            assert record["completion"][0].isspace()


def test_every_form_has_its_part(items: ModuleType, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: Counter[str] = Counter()

    def counted(form: Callable[..., Record]) -> Callable[..., Record]:
        def make(*arguments: Any) -> Record:
            record = form(*arguments)
            made[form.__name__] += library.count_record(record)
            return record

        return make

    parts = {form.__name__: part for form, part in items.FORMS.items()}
    monkeypatch.setattr(items, "FORMS", {counted(form): part for form, part in items.FORMS.items()})
    list(items.make(library, TOKENS, LONGEST, seed=1))
    assert sum(parts.values()) == pytest.approx(1)
    for name, part in parts.items():
        assert made[name] == pytest.approx(TOKENS * part, abs=2 * LONGEST)


def test_answers_are_in_the_text(records: list[Record], wordings: ModuleType) -> None:
    """Each word of an answer that no wording brings along, and each number, stands in text or question."""
    known = set(words_of(json.dumps([str(kind) for kind in wordings.KINDS]) + str(vars(wordings))))
    for record in records:
        if "messages" in record:
            contents = [message["content"] for message in record["messages"]]
            document, pairs = contents[0], list(zip(contents[::2], contents[1::2], strict=True))
        else:
            document, pairs = record["prompt"], [(record["prompt"], record["completion"])]
        found = words_of(document)
        for question, answer in pairs:
            assert words_of(answer) - found - words_of(question) <= known, (question, answer)
            assert numbers_of(answer) <= numbers_of(document), (question, answer)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def numbers_of(text: str) -> set[str]:
    return set(re.findall(r"[A-Z]*\d[\dA-Z]*", text))


def test_facts_are_hidden_whole_and_once(items: ModuleType, library: Any) -> None:
    for seed in range(30):
        rng = random.Random(seed)
        facts = items.some_facts(6, rng)
        statements = [fact.statement(rng) for fact in facts]
        text = items.hide(library.span(600, rng), statements, rng)
        assert [text.count(sentence) for sentence in statements] == [1] * 6
        assert len({(fact.kind, fact.subject) for fact in facts}) == 6
        assert len({(fact.kind, fact.value) for fact in facts}) == 6


def test_needles_are_at_all_depths(items: ModuleType, library: Any) -> None:
    depths = []
    for seed in range(100):
        pieces = ["word "] * 100
        depths.append(items.hide(pieces, ["needle"], random.Random(seed)).split().index("needle"))
    counts = Counter(min(depth, 99) // 20 for depth in depths)
    assert all(counts[fifth] > 8 for fifth in range(5))


def test_the_papers_prompt_is_the_evaluations(items: ModuleType, library: Any) -> None:
    """Character for character what `pigguf eval passkey` writes, at many depths."""
    paper = WORDINGS["paper"]
    depths = set()
    for seed in range(120):
        record = items.needle(library, 600, random.Random(seed))
        key = record["completion"].removeprefix(" ").removesuffix(".")
        said = paper.passkey.format(key=key)
        header, *middle, _ = record["prompt"].split("\n")
        if not (header == paper.header and said in middle):
            continue  # another wording, or the paper's inside other text
        before, after = (" ".join(middle[: middle.index(said)]), " ".join(middle[middle.index(said) + 1 :]))
        if paper.filler[0] not in before + after:
            continue
        counts = [text.count(".") for text in (before, after)]
        filler = [" ".join(islice(cycle(paper.filler), count)) for count in counts]
        lines = (paper.header, filler[0], said, filler[1], f"{paper.question} {paper.answer}")
        assert record["prompt"] == "\n".join(line for line in lines if line)
        assert re.fullmatch("[1-9][0-9]{4}", key)
        depths.add(5 * counts[0] // (sum(counts) + 1))
    assert depths == {0, 1, 2, 3, 4}


def test_copies_are_the_texts_own_words(items: ModuleType, library: Any) -> None:
    for seed in range(25):
        record = items.copying(library, 1500, random.Random(seed))
        if "messages" in record:
            document = record["messages"][0]["content"]
            answers = [message["content"] for message in record["messages"][1::2]]
        else:
            document, answers = record["prompt"], [record["completion"].removeprefix("\n")]
        for answer in answers:
            assert answer in document
            assert len(answer) >= 100


def test_openings_single_a_sentence_out(items: ModuleType) -> None:
    document = "he said that it was late and went. he said that it was early and stayed on for tea."
    assert items.opening_of("he said that it was early and stayed on for tea.", document) is None
    longer = "he said that it was early and stayed on for tea with all of his friends."
    assert items.opening_of(longer, f"he said that it was late. {longer}") == "he said that it was early"
    assert items.opening_of('"Oh," he said that it was early and all.', "x") is None


def test_sentences_end_where_they_should(items: ModuleType) -> None:
    text = 'Mr. Elliot came, i.e. he walked. "Did he?" Yes!\n\nA heading\n\nThe end'
    assert items.SENTENCE.findall(text) == [
        "Mr. Elliot came, i.e. he walked. ",
        '"Did he?" ',
        "Yes!\n\n",
        "A heading\n\n",
        "The end",
    ]


def test_tables_contain_the_answers(items: ModuleType) -> None:
    """A question names the row and the column, and is answered with the cell; or the other way round."""
    columns, row = [("price", "$##.##"), ("code", "@@")], ("red oak", "$12.34", "AB")
    cells = {"price": "$12.34", "code": "AB"}
    asked = set()
    for seed in range(60):
        question, answer = items.table_turn(columns, row, random.Random(seed))
        (column,) = (name for name in cells if name in question)
        if "red oak" in question:
            assert cells[column] in answer
        else:
            assert cells[column] in question
            assert answer == "red oak"
        asked.add((column, "red oak" in question))
    assert len(asked) == 4


def test_tables_are_laid_out_in_many_ways(items: ModuleType) -> None:
    columns, rows = [("price", "#"), ("code", "@")], [("oak", "1", "A"), ("elm", "2", "B")]
    assert [layout(columns, rows) for layout in items.LAYOUTS] == [
        "oak: price 1, code A\nelm: price 2, code B",
        "oak = price 1, code A\nelm = price 2, code B",
        "oak - price 1, code A\nelm - price 2, code B",
        "name;price;code\noak;1;A\nelm;2;B",
        "| name | price | code |\n| --- | --- | --- |\n| oak | 1 | A |\n| elm | 2 | B |",
        '[\n{"name": "oak", "price": "1", "code": "A"},\n{"name": "elm", "price": "2", "code": "B"}\n]',
    ]


# Words


def test_what_is_evaluated_is_in_no_record(
    scripts: dict[str, ModuleType], wordings: ModuleType, records: list[Record]
) -> None:
    """The held-out wording: its own words in no template, value, prompt or record."""
    assert {"locker", "combination", "opens with"} <= set(wordings.HELD_OUT)
    held_out = " ".join(str(part) for part in vars(WORDINGS["locker"]).values()).lower()
    assert all(phrase in held_out for phrase in ("locker", "combination", "opens with"))
    data = {
        name: value
        for module in (wordings, scripts["values"], scripts["chats"])
        for name, value in vars(module).items()
        if name.isupper() and name != "HELD_OUT"
    }
    for text in (str(data).lower(), json.dumps(records).lower()):
        for phrase in ("locker", "combination", "opens with"):
            assert phrase not in text
    filler = [sentence for sentences in wordings.FILLERS for sentence in sentences]
    assert not set(filler) & set(WORDINGS["locker"].filler)


def test_there_are_many_wordings(wordings: ModuleType) -> None:
    assert len(wordings.NEEDLES) >= 9
    assert len({question for kind in wordings.KINDS for question in kind.questions}) >= 40
    assert len({answer for kind in wordings.KINDS for answer in kind.answers}) >= 40
    for kind in wordings.KINDS:
        assert all("{subject}" in text and "{value}" in text for text in kind.statements)
        assert all("{subject}" in text and "{value}" not in text for text in kind.questions)
        assert all("{value}" in text for text in kind.answers)


def test_values_follow_their_patterns(scripts: dict[str, ModuleType], wordings: ModuleType) -> None:
    value, rng = scripts["values"].value, random.Random(5)
    assert re.fullmatch(r"[A-Z]{2}-[1-9]\d{3}-[A-Z]", value("@@-####-@", rng))
    assert re.fullmatch(r"0\d{3} [1-9]\d{5}", value("0### ######", rng))
    assert re.fullmatch(r"\$[1-9]\d\.[1-9]\d", value("$##.##", rng))
    assert re.fullmatch(r"room [1-9]\d{2}", value("room ###", rng))
    assert len(value("word word word", rng).split()) == 3
    assert re.fullmatch(r"\d{1,2}:\d{2} [ap]\.m\.", value("time", rng))
    for kind in wordings.KINDS:
        assert len({value(kind.value, rng) for _ in range(200)}) >= 8
        assert len({scripts["values"].subject(kind.subject, rng) for _ in range(200)}) >= 8


def test_articles_fit(items: ModuleType) -> None:
    assert items.with_articles("She is a engineer and a baker, as a old friend.") == (
        "She is an engineer and a baker, as an old friend."
    )


# Chats


def test_prompts_differ_and_are_decided_by_the_seed(scripts: dict[str, ModuleType]) -> None:
    prompts = scripts["chats"].prompts
    made = prompts(360, random.Random(1))
    assert len(set(made)) == len(made) == 360
    assert made == prompts(360, random.Random(1))
    assert made != prompts(360, random.Random(2))
    assert not any("{" in prompt or "}" in prompt for prompt in made)


@pytest.mark.slow
def test_the_base_model_answers(scripts: dict[str, ModuleType], smollm2_gguf: Path) -> None:
    with pigguf.open_model(smollm2_gguf, ctx=2048, threads=1) as model:
        made = list(scripts["chats"].conversations(model, 3, seed=1))
        assert made == list(scripts["chats"].conversations(model, 3, seed=1))
    assert made
    for messages in made:
        roles = [message["role"] for message in messages]
        assert roles in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(message["content"].strip() for message in messages)
