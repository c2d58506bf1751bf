"""Generate retrieval and copying records for fine-tuning: facts hidden in text, and questions about them.

    python scripts/training/items.py PROSE OUT [--tokens 900000] [--longest 1950] [--seed 1]
                     [--tokenizer tokenizer.json]

PROSE is the output folder of corpus.py; OUT/items.jsonl gets one record a line, {"prompt", "completion"} or
{"messages"}, of 200 to --longest tokens each, so that every record fits into one training sequence.
FORMS gives the share of tokens of each form: needles as in the paper (arXiv 2306.15595, Section 3.3),
conversations about hidden facts, copying, and tables. With PoSE's skipped positions
(pigguf/finetuning/position_skipping.py) the distances of these short records reach over the whole extended
window.

The same prose, tokenizer and seed give the same file. No record mentions wordings.HELD_OUT, the subjects that
the evaluations ask about.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import values
import wordings
from tokenizers import Tokenizer
from wordings import Kind

ROOT = Path(__file__).resolve().parent.parent.parent
SHORTEST = 200  # tokens of a record
OFTEN, LONG = 0.75, 0.75  # this share of the records is at least this part of --longest long
UNANSWERABLE = 0.1  # share of conversations with a question that the document does not answer
MESSAGE_TOKENS = 8  # of the chat template, around each message; SYSTEM_TOKENS once
SYSTEM_TOKENS = 40

LONGEST_SENTENCE = 200  # tokens; longer ones are mostly listings

# Up to a full stop (not of an abbreviation, not before a lower-case letter) or the end of a paragraph, with
# the white space that follows.
SENTENCE = re.compile(
    r".+?(?:(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?]+[\"'”’)]*(?=\s+[^a-z\s]|\s*\Z)|(?=\n\n)|\Z)\s*",
    re.DOTALL,
)

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("prose", type=Path, metavar="PROSE", help="folder of corpus.py's documents")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for items.jsonl")
    parser.add_argument("--tokens", type=int, default=900_000, help="about how many tokens in all")
    parser.add_argument("--longest", type=int, default=1950, help="tokens of the longest record")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--tokenizer", type=Path, default=ROOT / "models" / "SmolLM2-135M-Instruct" / "tokenizer.json"
    )
    options = parser.parse_args()
    texts = [path.read_text(encoding="utf-8") for path in sorted(options.prose.glob("*.txt"))]
    if not texts:
        sys.exit(f"error: no *.txt in {options.prose}: make them with corpus.py")
    library = Library(texts, Tokenizer.from_file(str(options.tokenizer)))
    records = list(make(library, options.tokens, options.longest, options.seed))
    options.out.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (options.out / "items.jsonl").write_text(lines, encoding="utf-8")
    print(f"{len(records)} records, {sum(map(library.count_record, records))} tokens in {options.out}")


def make(library: Library, tokens: int, longest: int, seed: int) -> Iterator[Record]:
    """Yield records of all forms in random order, each form with its share of the tokens."""
    rng = random.Random(seed)
    left = {form: tokens * part for form, part in FORMS.items()}
    while left:
        form = rng.choices(list(left), [max(budget, 1) for budget in left.values()])[0]
        usual = int(LONG * longest)
        length = rng.randint(usual, longest) if rng.random() < OFTEN else rng.randint(SHORTEST, usual)
        record = form(library, length, rng)
        size = library.count_record(record)
        if size > longest or mentions_held_out(record):
            continue  # try again: rare long values exceed the length
        yield record
        left[form] -= size
        if left[form] <= 0:
            del left[form]


def mentions_held_out(record: Record) -> bool:
    words = json.dumps(record).lower()
    return any(phrase in words for phrase in wordings.HELD_OUT)


# Text to hide things in


@dataclass(frozen=True)
class Sentence:
    """A sentence, or the end of a paragraph, with the white space after it."""

    text: str
    tokens: int


class Library:
    """The prose, split into sentences with token counts.

    Args:
        texts: documents.
        tokenizer: the checkpoint's.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.documents = [self._pieces(flowing(text)) for text in texts]
        self._weights = [len(pieces) for pieces in self.documents]

    def count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def count_record(self, record: Record) -> int:
        """Count the tokens of a record, including its end token, or an upper bound of its chat template's."""
        if "messages" not in record:
            return self.count(record["prompt"]) + self.count(record["completion"]) + 1
        contents = [message["content"] for message in record["messages"]]
        return SYSTEM_TOKENS + sum(self.count(text) + MESSAGE_TOKENS for text in contents)

    def span(self, tokens: int, rng: random.Random, flowing_only: bool = False) -> list[str]:
        """Return consecutive sentences from a random position, of about `tokens` tokens."""
        while True:
            (pieces,) = rng.choices(self.documents, self._weights)
            at = rng.randrange(len(pieces))
            taken: list[str] = []
            used = 0
            for piece in pieces[at:]:
                if used + piece.tokens > tokens:
                    break
                taken.append(piece.text)
                used += piece.tokens
            if used > 0.7 * tokens and not (flowing_only and looks_like_code("".join(taken))):
                return taken

    def filler(self, sentences: Sequence[str], tokens: int) -> list[str]:
        """Repeat the sentences up to about `tokens` tokens."""
        sizes = [self.count(" " + sentence) for sentence in sentences]
        taken: list[str] = []
        used = 0
        for sentence, size in cycle(zip(sentences, sizes, strict=True)):
            used += size
            if used > tokens:
                return taken
            taken.append(sentence + " ")
        return taken

    def some_text(self, tokens: int, rng: random.Random, prose: float = 0.75) -> list[str]:
        """Return prose with probability `prose`, else filler."""
        if rng.random() < prose:
            return self.span(tokens, rng)
        return self.filler(rng.choice(wordings.FILLERS), tokens)

    def _pieces(self, text: str) -> list[Sentence]:
        parts = SENTENCE.findall(text)
        sizes = [len(found) for found in self._tokenizer.encode_batch(parts, add_special_tokens=False)]
        return [
            Sentence(part, size)
            for part, size in zip(parts, sizes, strict=True)
            if size < LONGEST_SENTENCE and not any(phrase in part.lower() for phrase in wordings.HELD_OUT)
        ]


def flowing(text: str) -> str:
    """Join the lines of paragraphs where both sides of a line break are running text."""
    return re.sub(r"(?<=[^\n])\n(?=[^\s\n*|+=~^-])", " ", text)


def looks_like_code(text: str) -> bool:
    return sum(character in "{}[]<>|=_`\\*:/#" for character in text) > len(text) / 50


def hide(pieces: list[str], sentences: Sequence[str], rng: random.Random) -> str:
    """Insert the sentences between the pieces, in random order at uniformly random depths."""
    positions = sorted(rng.randint(0, len(pieces)) for _ in sentences)
    mixed: list[str] = []
    start = 0
    for position, sentence in zip(positions, rng.sample(sentences, len(sentences)), strict=True):
        mixed += pieces[start:position]
        if mixed and not mixed[-1][-1].isspace():
            mixed.append(" ")
        mixed.append(sentence + (rng.choice((" ", "\n")) if position < len(pieces) else ""))
        start = position
    return "".join(mixed + pieces[start:]).strip()


# a. Needles, as raw text


def needle(library: Library, length: int, rng: random.Random) -> Record:
    """Hide one number as in the paper; most often in its exact words, sometimes with another filler."""
    choice = rng.random()
    if choice < 0.2:
        return many_needles(library, length, rng)
    words = wordings.PAPER if choice < 0.7 else rng.choice(wordings.NEEDLES[1:])
    value = values.value(words.value, rng)
    sentence = words.needle.format(value=value)
    budget = length - library.count("\n".join((words.header, sentence, words.question, value))) - 8
    if words is wordings.PAPER and choice < 0.5:
        before, after = paper_filler(library, budget, rng)
        lines = (words.header, before, sentence, after, words.question)
        prompt = "\n".join(line for line in lines if line)
    else:
        text = hide(library.some_text(budget, rng), [sentence], rng)
        prompt = "\n".join((words.header, text, words.question))
    return {"prompt": prompt, "completion": f" {value}."}


def paper_filler(library: Library, tokens: int, rng: random.Random) -> tuple[str, str]:
    """Return the paper's filler before and after the number, each starting with its first sentence."""
    count = len(library.filler(wordings.FILLERS[0], tokens))
    before = rng.randint(0, count)
    first, second = (" ".join(islice(cycle(wordings.FILLERS[0]), n)) for n in (before, count - before))
    return first, second


def many_needles(library: Library, length: int, rng: random.Random) -> Record:
    """Hide several numbers of one kind, and ask for those of some subjects, one a line."""
    statement, asked, pattern = rng.choice(wordings.MANY_NEEDLES)
    subjects = distinct(partial(values.subject, "cities", rng), rng.randint(3, 8))
    numbers = distinct(partial(values.value, pattern, rng), len(subjects))
    facts = [statement.format(subject=s, value=v) for s, v in zip(subjects, numbers, strict=True)]
    budget = length - library.count("\n".join(facts)) - 25 * len(facts)
    pairs = rng.sample(list(zip(subjects, numbers, strict=True)), rng.randint(2, len(subjects)))
    questions = [f"{asked.format(subject=subject)} is" for subject, _ in pairs]
    answers = [f" {number}." for _, number in pairs]
    text = hide(library.some_text(max(budget, 50), rng), facts, rng)
    order = ", ".join(subject for subject, _ in pairs)
    lines = "\n".join(question + answer for question, answer in zip(questions[1:], answers[1:], strict=True))
    prompt = f"{text}\n\nFrom the text above, for {order}:\n{questions[0]}"
    return {"prompt": prompt, "completion": f"{answers[0]}\n{lines}"}


# b. Conversations about hidden facts


@dataclass(frozen=True)
class Fact:
    """A random fact; questions ask for its `value`."""

    kind: Kind
    subject: str
    value: str

    def statement(self, rng: random.Random) -> str:
        return self._filled(rng.choice(self.kind.statements))

    def question(self, rng: random.Random) -> str:
        return self._filled(rng.choice(self.kind.questions))

    def answer(self, rng: random.Random) -> str:
        return self._filled(rng.choice(self.kind.answers))

    def _filled(self, template: str) -> str:
        return with_articles(template.format(subject=self.subject, value=self.value))


def conversation(library: Library, length: int, rng: random.Random) -> Record:
    """Hide facts in a document, and ask about them in one conversation."""
    facts = some_facts(rng.randint(3, 8), rng)
    spare = facts.pop() if rng.random() < UNANSWERABLE else None
    turns = [turn(fact, rng) for fact in rng.sample(facts, len(facts))]
    if spare:
        turns.insert(rng.randint(1, len(turns)), (spare.question(rng), rng.choice(wordings.UNKNOWN)))
    statements = [fact.statement(rng) for fact in facts]
    used = SYSTEM_TOKENS + 40 + library.count("\n".join(statements))
    used += sum(library.count(text) + MESSAGE_TOKENS + 5 for both in turns for text in both)
    document = hide(library.some_text(max(length - used, 50), rng), statements, rng)
    return chat(document, turns, rng, wordings.OPENINGS)


def some_facts(count: int, rng: random.Random) -> list[Fact]:
    """Return distinct facts, sometimes all of one kind."""
    if rng.random() < 0.35:
        kinds = [rng.choice(wordings.KINDS)] * count
    else:
        kinds = [rng.choice(wordings.KINDS) for _ in range(count)]
    subjects = {kind: distinct(partial(values.subject, kind.subject, rng), count) for kind in kinds}
    chosen = {kind: distinct(partial(values.value, kind.value, rng), count) for kind in kinds}
    return [Fact(kind, subjects[kind].pop(), chosen[kind].pop()) for kind in kinds]


def turn(fact: Fact, rng: random.Random) -> tuple[str, str]:
    """Return a question and its answer: a sentence, or the value alone."""
    choice = rng.random()
    if choice < 0.5:
        return fact.question(rng), fact.answer(rng)
    if choice < 0.75:
        return fact.question(rng) + rng.choice(wordings.BRIEF), fact.value
    return fact.question(rng), fact.value


def chat(
    document: str, turns: Sequence[tuple[str, str]], rng: random.Random, openings: Sequence[str]
) -> Record:
    """Return messages: the first contains the document and the first question, before or after it."""
    messages = []
    for index, (question, answer) in enumerate(turns):
        if index == 0:
            asked = opened(document, question, rng, openings)
        else:
            lowered = question[0].lower() + question[1:]
            wording = rng.choice(wordings.FURTHER)
            asked = wording.format(question=question, lowered=lowered)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def opened(document: str, question: str, rng: random.Random, openings: Sequence[str]) -> str:
    choice = rng.random()
    if choice < 0.2:
        return f"{rng.choice(wordings.BEFORE).format(question=question)}\n\n{document}"
    if choice < 0.35:
        return f"{document}\n\n{question}"
    return (
        f"{rng.choice(openings)}\n\n{document}\n\n{rng.choice(wordings.CLOSINGS).format(question=question)}"
    )


# c. Copying


def copying(library: Library, length: int, rng: random.Random) -> Record:
    """Ask for passages of a document, word for word."""
    raw = rng.random() < 0.35
    for _ in range(100):
        budget = length if raw else length - SYSTEM_TOKENS
        pieces = library.span(max(150, int(budget * 0.7)), rng, flowing_only=True)
        document = "".join(pieces).strip()
        tasks = [copy_task(document, pieces, rng) for _ in range(1 if raw else rng.randint(1, 4))]
        turns = list(dict.fromkeys(task for task in tasks if task))
        if not turns:
            continue
        if raw:
            text = turns[0][1]
            start = opening_of(text, document)
            if not start:
                continue
            question = rng.choice(wordings.COPY_RAW).format(start=start)
            return {"prompt": f"{document}\n\n{question}", "completion": f"\n{text}"}
        return chat(document, turns, rng, wordings.OPENINGS)
    raise ValueError("the prose has no sentences to copy: it is too short, or all code")


def copy_task(document: str, pieces: Sequence[str], rng: random.Random) -> tuple[str, str] | None:
    """Return a question and the passage that answers it, or None if the random choice has none."""
    at = rng.randrange(len(pieces))
    sentence = pieces[at].strip()
    form = rng.random()
    if form < 0.3:
        text = "".join(pieces[at : at + rng.randint(2, 4)]).strip()
        start, end = opening_of(text, document), " ".join(text.split()[-4:])
        sound = bool(start) and is_copied(text) and document.count(end) == 1 and '"' not in end
        return (rng.choice(wordings.COPY_ON).format(start=start, end=end), text) if sound else None
    if form < 0.5:
        following = pieces[at + 1].strip() if at + 1 < len(pieces) else ""
        sound = is_copied(following) and '"' not in sentence and bool(opening_of(sentence, document))
        return (rng.choice(wordings.COPY_NEXT).format(before=sentence), following) if sound else None
    start = opening_of(sentence, document)
    question = rng.choice((*wordings.COPY_SENTENCE, *wordings.COPY_COMPLETE))
    return (question.format(start=start), sentence) if start and is_copied(sentence) else None


def is_copied(text: str) -> bool:
    """Return whether a text has a length worth copying and is within one paragraph."""
    return 100 <= len(text) <= 650 and "\n" not in text


def opening_of(text: str, document: str) -> str | None:
    """Return the first words of a text that are unique in the document, at least four, or None.

    Words that contain quotation marks or line breaks cannot be quoted in a question and give None too.
    """
    ends = [found.end() for found in re.finditer(r"\S+", text)]
    starts = (text[:end] for end in ends[3 : min(12, len(ends) // 2)])
    start = next((start for start in starts if document.count(start) == 1), None)
    return None if start is None or set(start) & set('"“”\n') else start


# d. Tables


def table(library: Library, length: int, rng: random.Random) -> Record:
    """Ask for values of a long table."""
    kind = rng.choice(("things", "people"))
    columns = distinct(lambda: rng.choice(COLUMNS), rng.choice((1, 1, 2, 3)))
    asked = rng.randint(4, 8)
    layout = rng.choice(LAYOUTS)
    example = [(values.subject(kind, rng), *(values.value(p, rng) for _, p in columns)) for _ in range(8)]
    row_tokens = library.count(layout(columns, example)) / len(example)
    rows_count = max(asked + 2, int((length - SYSTEM_TOKENS - 60 - asked * 50) / row_tokens))
    keys = distinct(partial(values.subject, kind, rng), rows_count)
    cells = [distinct(partial(values.value, p, rng), rows_count) for _, p in columns]
    rows = list(zip(keys, *cells, strict=True))
    turns = [table_turn(columns, row, rng) for row in rng.sample(rows, asked)]
    text = layout(columns, rows)
    if rng.random() < 0.25:
        (first, value), *others = [(row[0], row[1]) for row in rng.sample(rows, asked)]
        name = columns[0][0]
        completion = f" {value}\n" + "\n".join(f"The {name} of {key} is {found}" for key, found in others)
        order = ", ".join((first, *(key for key, _ in others)))
        prompt = f"{text}\n\nThe {name} in the list above, for {order}:\nThe {name} of {first} is"
        return {"prompt": prompt, "completion": completion}
    return chat(text, turns, rng, wordings.TABLE_OPENINGS)


def table_turn(columns: Sequence[tuple[str, str]], row: Sequence[str], rng: random.Random) -> tuple[str, str]:
    at = rng.randrange(len(columns))
    column, value = columns[at][0], row[at + 1]
    if rng.random() < 0.2:
        return rng.choice(wordings.TABLE_REVERSED).format(column=column, value=value), row[0]
    question = rng.choice(wordings.TABLE_ASKED).format(column=column, key=row[0])
    return question, rng.choice(wordings.TABLE_ANSWERED).format(column=column, key=row[0], value=value)


# Columns of a table: a name, and a pattern of values.py with enough distinct values.
COLUMNS = (
    ("number", "#####"),
    ("code", "@@-####-@"),
    ("telephone", "0### ######"),
    ("keyword", "word word word"),
    ("price", "$###.##"),
    ("balance", "##,###"),
    ("contact", "person"),
    ("reference", "@@@####"),
)


def as_lines(separator: str) -> Callable[..., str]:
    def layout(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
        named = len(columns) > 1
        return "\n".join(
            row[0]
            + separator
            + ", ".join(
                f"{name} {cell}" if named else cell for (name, _), cell in zip(columns, row[1:], strict=True)
            )
            for row in rows
        )

    return layout


def as_csv(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(";".join(row) for row in (("name", *(name for name, _ in columns)), *rows))


def as_markdown(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    lines = [("name", *(name for name, _ in columns)), ("---",) * (len(columns) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_json(columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    names = [name for name, _ in columns]
    objects = (json.dumps({"name": row[0], **dict(zip(names, row[1:], strict=True))}) for row in rows)
    return "[\n" + ",\n".join(objects) + "\n]"


LAYOUTS = (as_lines(": "), as_lines(" = "), as_lines(" - "), as_csv, as_markdown, as_json)

FORMS: dict[Callable[[Library, int, random.Random], Record], float] = {
    needle: 0.35,
    conversation: 0.30,
    copying: 0.20,
    table: 0.15,
}


# Helpers


def distinct(generate: Callable[[], Any], count: int) -> list[Any]:
    """Return `count` distinct values of a random generator, in order of appearance."""
    found: dict[Any, None] = {}
    for _ in range(1000 * count):
        if len(found) == count:
            return list(found)
        found[generate()] = None
    raise ValueError(f"there are only {len(found)} values, but {count} are needed")


def with_articles(text: str) -> str:
    """Replace "a" by "an" before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


if __name__ == "__main__":
    main()
