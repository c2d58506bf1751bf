"""Which passages are near a question, by BM25 (bm25s): they share its rare words.

Contract: words are compared without case; scripts that set no spaces between words are compared by
characters. Left out: word forms and synonyms.
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

_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Thai, Lao, kana, Han
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_TOLD_EVERY = 1000  # passages


def words(text: str) -> list[str]:
    """The words of a text, as they are compared."""
    return _WORD.findall(text.casefold())


class BM25Index:
    """The words of passages, to be searched.

    Args:
        progress: one stage, "indexing", in percent.

    Raises:
        MissingPackage: bm25s is not installed.
    """

    def __init__(self, passages: Sequence[Passage], progress: Progress = SILENT) -> None:
        with require_package("choosing passages of documents that do not fit the window"):
            import bm25s
            from bm25s.tokenization import Tokenized
        vocabulary: dict[str, int] = {}
        ids: list[list[int]] = []
        with stage(progress, "indexing", len(passages), "percent"):
            for number, passage in enumerate(passages, start=1):
                ids.append([vocabulary.setdefault(word, len(vocabulary)) for word in words(passage.text)])
                if number % _TOLD_EVERY == 0 or number == len(passages):
                    progress.advance((number - 1) % _TOLD_EVERY + 1)
        self._passages = len(passages)
        self._vocabulary = vocabulary
        self._bm25 = bm25s.BM25(csc_backend="numpy")
        if vocabulary:
            self._bm25.index(Tokenized(ids, vocabulary), create_empty_token=False, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """How near each passage is, float32; 0 is a passage that shares no word."""
        known = [self._vocabulary[word] for word in words(query) if word in self._vocabulary]
        if not known:
            return np.zeros(self._passages, np.float32)
        scores: NDArray[np.float32] = self._bm25.get_scores_from_ids(known)
        return scores
