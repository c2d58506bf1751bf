"""Documents as text: plain text, Markdown, HTML, PDF, DOCX, EPUB, source code; single files and folders.

    collection = load_documents(["notes/", "report.pdf"])
    for document in collection.documents:
        for passage in split_document(document, 1500):
            print(passage.location, passage.text)

    document.py        Document, Passage, SourceLocation: text with line, page, paragraph or chapter numbers
    loader.py          load_documents: files and folders
    formats.py         load_document: which format a file has; pdf.py, docx.py, epub.py, html.py,
                       plain_text.py read one each
    chunking.py        split_document: passages
    bm25_retrieval.py  BM25Index: which passages are relevant to a question
    citations.py       find_quotes: which words of an answer are quoted from a passage

Not here: questions about documents (chat/document_qa.py) and summaries (chat/summarization.py).
"""

from pigguf.documents.chunking import split_document
from pigguf.documents.document import Document, Passage, SourceLocation
from pigguf.documents.formats import load_document
from pigguf.documents.loader import MAX_CHARACTERS, DocumentCollection, SkippedFile, load_documents

__all__ = [
    "MAX_CHARACTERS",
    "Document",
    "DocumentCollection",
    "Passage",
    "SkippedFile",
    "SourceLocation",
    "load_document",
    "load_documents",
    "split_document",
]
