"""Documents as text with places: text, Markdown, HTML, PDF, DOCX, EPUB, source code; files and folders.

    read = read_documents(["notes/", "report.pdf"])
    for document in read.documents:
        for passage in cut(document, 1500):
            print(passage.place, passage.text)

formats.py has the registry of formats, folder.py walks, passages.py cuts, retrieval.py finds what is near
a question, quotes.py where an answer's words stand.
Left out: what is asked about them (chat/document_qa.py, chat/summarization.py).
"""

from pigguf.documents.chunking import split_document
from pigguf.documents.document import Document, Passage, SourceLocation
from pigguf.documents.formats import load_document
from pigguf.documents.loader import MAX_CHARACTERS, DocumentCollection, SkippedFile, load_documents

__all__ = [
    "MAX_CHARACTERS",
    "DocumentCollection",
    "Document",
    "SkippedFile",
    "Passage",
    "SourceLocation",
    "split_document",
    "load_documents",
    "load_document",
]
