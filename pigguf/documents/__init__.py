"""Documents as text with places: text, Markdown, HTML, PDF, DOCX, EPUB, source code; files and folders.

    read = read_documents(["notes/", "report.pdf"])
    for document in read.documents:
        for passage in cut(document, 1500):
            print(passage.place, passage.text)

formats.py has the registry of formats, folder.py walks, passages.py cuts, retrieval.py finds what is near
a question, quotes.py where an answer's words stand.
Left out: what is asked about them (chat/document_qa.py, chat/summarization.py).
"""

from pigguf.documents.chunking import cut
from pigguf.documents.document import Document, Passage, Place
from pigguf.documents.formats import read_file
from pigguf.documents.load_documents import MOST_CHARACTERS, Collection, LeftOut, read_documents

__all__ = [
    "MOST_CHARACTERS",
    "Collection",
    "Document",
    "LeftOut",
    "Passage",
    "Place",
    "cut",
    "read_documents",
    "read_file",
]
