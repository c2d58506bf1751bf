"""Which passages are relevant to a question, by BM25 (bm25s): those that share its rare words.

Words are compared without case. Scripts without spaces between words (Chinese, Japanese, Thai, Lao) are
compared character by character. Not here: word forms and synonyms.

Source: Lù, "BM25S: Orders of magnitude faster lexical search" (arXiv 2407.03618); Lucene's variant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pigguf.documents.document import Passage
from pigguf.documents.parser_errors import require_package
from pigguf.progress import SILENT, Progress, stage

_UNSPACED_SCRIPTS = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Lao, kana, Han
_WORD = re.compile(rf"[{_UNSPACED_SCRIPTS}]|[^\W{_UNSPACED_SCRIPTS}]+")
_PROGRESS_INTERVAL = 1000  # passages


def split_words(text: str) -> list[str]:
    """Return the words of a text in the form in which they are compared."""
    return _WORD.findall(text.casefold())


class BM25Index:
    """A BM25 index of passages.

    Args:
        passages: The passages to search.
        progress: Reports one stage, "indexing", in percent.

    Raises:
        MissingPackage: bm25s is not installed.
    """

    def __init__(self, passages: Sequence[Passage], progress: Progress = SILENT) -> None:
        with require_package("choosing passages of documents that do not fit the window"):
            import bm25s
            from bm25s.tokenization import Tokenized
        vocabulary: dict[str, int] = {}
        word_ids: list[list[int]] = []
        with stage(progress, "indexing", len(passages), "percent"):
            for number, passage in enumerate(passages, start=1):
                words = split_words(passage.text)
                word_ids.append([vocabulary.setdefault(word, len(vocabulary)) for word in words])
                if number % _PROGRESS_INTERVAL == 0 or number == len(passages):
                    progress.advance((number - 1) % _PROGRESS_INTERVAL + 1)
        self._n_passages = len(passages)
        self._vocabulary = vocabulary
        self._bm25 = bm25s.BM25(csc_backend="numpy")
        if vocabulary:
            self._bm25.index(Tokenized(word_ids, vocabulary), create_empty_token=False, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """Return each passage's relevance to a query.

        Returns:
            (n_passages,), float32; 0 for a passage that shares no word with the query.
        """
        known = [self._vocabulary[word] for word in split_words(query) if word in self._vocabulary]
        if not known:
            return np.zeros(self._n_passages, np.float32)
        scores: NDArray[np.float32] = self._bm25.get_scores_from_ids(known)
        return scores
