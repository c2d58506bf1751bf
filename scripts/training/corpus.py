"""Collect public prose as plain text for fine-tuning: five novels and eight manuals.

    python scripts/training/corpus.py OUT [--tokens 1100000] [--seed 1] [--downloads FOLDER]

The texts come from packages of Debian 12, through `apt-get download`; nothing is installed or run. One
document is written to each file OUT/*.txt, its chapters in order; OUT must not contain other texts. NOVELS is
the share of the tokens that are novels. Jane Austen's Persuasion is the held-out text of the evaluations: it
is skipped, and a document that quotes it is an error.

Not included: other languages, indexes and tables of contents, and documents shorter than SHORTEST.
"""

from __future__ import annotations

import argparse
import gzip
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

from rdata import texts
from values import words

ROOT = Path(__file__).resolve().parent.parent.parent
NOVELS = 0.6
CHARACTERS_A_TOKEN = {"novel": 4.35, "manual": 4.0}  # SmolLM2's tokenizer on these, measured
SHORTEST = 6000  # characters of a document worth training long context on
HELD_OUT = "persuasion"
HELD_OUT_WORDS = ("Kellynch", "Uppercross", "Wentworth")  # places and people of Persuasion only

Document = tuple[str, str]  # (name, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the documents")
    parser.add_argument("--tokens", type=int, default=1_100_000, help="about how many tokens in all")
    parser.add_argument("--seed", type=int, default=1, help="decides which spans are taken")
    parser.add_argument("--downloads", type=Path, default=ROOT / "build" / "training" / "downloads")
    options = parser.parse_args()
    try:
        sources = [(source, list(source.documents(options.downloads))) for source in SOURCES]
        chosen = choose(sources, options.tokens, random.Random(options.seed))
        write(chosen, options.out)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")


def choose(
    sources: Sequence[tuple[Source, Sequence[Document]]], tokens: int, rng: random.Random
) -> list[Document]:
    """Choose documents for the token budget: the share NOVELS for novels, the rest evenly for manuals."""
    chosen: list[Document] = []
    for kind, part in (("novel", NOVELS), ("manual", 1 - NOVELS)):
        own = [documents for source, documents in sources if source.kind == kind]
        share = tokens * part * CHARACTERS_A_TOKEN[kind] / len(own)
        for documents in own:
            chosen += (
                spans(documents, int(share), rng) if kind == "novel" else pick(documents, int(share), rng)
            )
    return chosen


def spans(novels: Sequence[Document], budget: int, rng: random.Random) -> list[Document]:
    """Return one contiguous span of every novel, proportional to its length, starting at a paragraph."""
    part = min(1.0, budget / sum(len(text) for _, text in novels))
    return [(name, span(text, int(len(text) * part), rng)) for name, text in novels]


def pick(documents: Sequence[Document], budget: int, rng: random.Random) -> list[Document]:
    """Pick documents in random order until the budget is used; the last one is cut to the remainder."""
    chosen = []
    for name, text in rng.sample(documents, len(documents)):
        if budget < SHORTEST:
            break
        chosen.append((name, span(text, budget, rng)))
        budget -= len(text)
    return chosen


def span(text: str, length: int, rng: random.Random) -> str:
    """Return about `length` characters of whole paragraphs, from a random offset."""
    if len(text) <= length:
        return text
    start = text.find("\n\n", rng.randrange(len(text) - length + 1))
    end = text.rfind("\n\n", 0, start + 2 + length)
    return text[start:end].strip() + "\n"


def write(documents: Iterable[Document], out: Path) -> None:
    """Write each document to its file.

    Raises:
        ValueError: a document is, or quotes, the held-out novel, or OUT contains texts; nothing was written.
    """
    documents = list(documents)
    for name, text in documents:
        refuse_held_out(name, text)
    if any(out.glob("*.txt")):
        raise ValueError(f"{out} already contains texts: give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    for name, text in documents:
        (out / f"{name}.txt").write_text(text, encoding="utf-8")
    print(f"{len(documents)} documents, {sum(len(text) for _, text in documents)} characters in {out}")


def refuse_held_out(name: str, text: str) -> None:
    found = [word for word in HELD_OUT_WORDS if word in text]
    if HELD_OUT in name.lower() or found:
        raise ValueError(f"{name}: Persuasion is the held-out test and must not be trained on {found}")


# Sources


@dataclass(frozen=True)
class Source:
    """A Debian package, and the function that reads documents from its unpacked files."""

    package: str
    kind: str  # "novel" or "manual"
    read: Callable[[Path], Iterable[Document]]

    def documents(self, downloads: Path) -> Iterator[Document]:
        folder = downloads / self.package
        if not folder.exists():
            fetch(self.package, downloads)
        for name, text in self.read(folder / "usr"):
            if len(text) >= SHORTEST:
                yield f"{self.package}-{name}", text


def fetch(package: str, downloads: Path) -> None:
    """Download a package from this machine's Debian sources and unpack it into downloads/PACKAGE."""
    downloads.mkdir(parents=True, exist_ok=True)
    for old in downloads.glob(f"{package}_*.deb"):
        old.unlink()
    subprocess.run(["apt-get", "download", package], cwd=downloads, check=True, stdout=sys.stderr)
    (archive,) = downloads.glob(f"{package}_*.deb")
    with TemporaryDirectory(dir=downloads) as unpacked:
        subprocess.run(["dpkg-deb", "-x", str(archive), unpacked], check=True)
        Path(unpacked).rename(downloads / package)
        Path(unpacked).mkdir()  # for the context manager to remove


def austen(base: Path) -> Iterator[Document]:
    """Yield the novels of R's janeaustenr by name, without the held-out one."""
    for name, lines in texts(base / "lib/R/site-library/janeaustenr/data/Rdata").items():
        if name != HELD_OUT:
            yield name, tidy("\n".join(lines))


def handbook(base: Path) -> Iterator[Document]:
    """Yield the Debian Administrator's Handbook, one document for each chapter, pages in order."""
    html = base / "share/doc/debian-handbook/html/en-US"
    names = re.findall(r'href="([\w.-]+\.html)(?:#[^"]*)?"', (html / "index.html").read_text("utf-8"))
    chapters: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        if not name.startswith("sect."):
            chapters[name] = []
        if chapters:
            list(chapters.values())[-1].append(plain_text((html / name).read_text("utf-8")))
    for name, parts in chapters.items():
        yield Path(name).stem, tidy("\n\n".join(parts))


def kernel(base: Path) -> Iterator[Document]:
    """Yield the Linux kernel's documentation in reStructuredText, without translations."""
    return pages(base / "share/doc/linux-doc-6.1/Documentation", "**/*.rst.gz", "translations")


def python(base: Path) -> Iterator[Document]:
    return pages(base / "share/doc/python3.11/html/_sources", "**/*.rst.txt")


def sqlalchemy(base: Path) -> Iterator[Document]:
    return pages(base / "share/doc/python-sqlalchemy-doc/rst", "**/*.rst", "changelog")


def git(base: Path) -> Iterator[Document]:
    return pages(base / "share/doc/git-doc", "**/*.txt", "RelNotes")


def anarchism(base: Path) -> Iterator[Document]:
    """Yield the essays of An Anarchist FAQ."""
    return pages(base / "share/doc/anarchism/html", "sec*.html")


def postgresql(base: Path) -> Iterator[Document]:
    return pages(base / "share/doc/postgresql-doc-15/html", "*.html", "bookindex.html")


def django(base: Path) -> Iterator[Document]:
    return pages(
        base / "share/doc/python-django-doc/html", "**/*.html", "genindex.html", "_modules", "releases"
    )


def pages(base: Path, pattern: str, *without: str) -> Iterator[Document]:
    """Yield the files that match a pattern, in order, named by their paths: text as is, HTML as plain text.

    Args:
        without: names of files and folders that are skipped.
    """
    found = sorted(path for path in base.glob(pattern) if not {*without} & {*path.relative_to(base).parts})
    if not found:
        raise ValueError(f"no {pattern} in {base}: the package has changed")
    for path in found:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = data.decode("utf-8")
        name = re.sub(r"(\.(gz|html|rst|txt))+$", "", "-".join(path.relative_to(base).parts))
        yield name, tidy(plain_text(text) if path.suffix == ".html" else text)


SOURCES = (
    Source("r-cran-janeaustenr", "novel", austen),
    Source("debian-handbook", "manual", handbook),
    Source("anarchism", "manual", anarchism),
    Source("linux-doc-6.1", "manual", kernel),
    Source("python3.11-doc", "manual", python),
    Source("postgresql-doc-15", "manual", postgresql),
    Source("python-django-doc", "manual", django),
    Source("python-sqlalchemy-doc", "manual", sqlalchemy),
    Source("git-doc", "manual", git),
)


# Text


def tidy(text: str) -> str:
    """Remove trailing spaces, and collapse runs of empty lines into one."""
    text = re.sub(r"[ \t]+$", "", text.replace("\r\n", "\n").replace("\xa0", " "), flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def plain_text(page: str) -> str:
    """Return the text of an HTML page's body, one empty line between paragraphs, without navigation."""
    reader = _PlainText()
    reader.feed(page)
    return "".join(reader.pieces)


class _PlainText(HTMLParser):
    VOID = frozenset(words("area base br col embed hr img input link meta source track wbr"))
    BLOCKS = frozenset(
        words("address blockquote dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p pre section table tr ul")
    )
    # What is navigation, by tag, #id or .class: the handbook's, Sphinx's, PostgreSQL's.
    HIDDEN = frozenset(
        words(
            "head script style nav #banner #title .docnav .toc .related .sphinxsidebar .headerlink .footer "
            "#global-nav #hd #ft .nav .navheader .navfooter .id_link"
        )
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self.open: list[str] = []
        self.hidden_from: int | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._part(tag)
        if tag in self.VOID:
            return
        self.open.append(tag)
        sign = {"id": "#", "class": "."}
        names = {sign[key] + word for key, value in attrs if key in sign for word in words(value or "")}
        if self.hidden_from is None and self.HIDDEN & {tag, *names}:
            self.hidden_from = len(self.open)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.open:
            return
        while self.open.pop() != tag:
            pass
        if self.hidden_from is not None and len(self.open) < self.hidden_from:
            self.hidden_from = None
        self._part(tag)

    def handle_data(self, data: str) -> None:
        if self.hidden_from is None:
            self.pieces.append(data if "pre" in self.open else self._flowing(data))

    def _part(self, tag: str) -> None:
        if self.hidden_from is None and (tag in self.BLOCKS or tag == "br"):
            self.pieces.append("\n" if tag in ("br", "li", "tr") else "\n\n")

    def _flowing(self, data: str) -> str:
        """Collapse white space to single spaces, and remove it at the start of a line."""
        words = re.sub(r"\s+", " ", data)
        at_start = not self.pieces or self.pieces[-1].endswith("\n")
        return words.lstrip(" ") if at_start else words


if __name__ == "__main__":
    main()
