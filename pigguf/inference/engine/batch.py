"""A llama_batch whose arrays are allocated once and filled for each decode."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class BatchToken(NamedTuple):
    """A token of a batch that mixes sequences."""

    token: int
    position: int
    seq_id: int
    wants_logits: bool


class LlamaBatch:
    """A llama_batch of up to `size` tokens, of one sequence or of several.

    Attributes:
        c: the C structure.
    """

    def __init__(self, llama: Any, size: int, n_sequences: int) -> None:
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._outputs = (ctypes.c_int8 * size)()
        self._seq_id_counts = (ctypes.c_int32 * size)(*[1] * size)
        self._seq_id = (ctypes.c_int32 * 1)()
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._same_seq_ids = (pointer * size)(*[ctypes.cast(self._seq_id, pointer)] * size)
        self._mixed_seq_ids = (pointer * size)()
        self._all_seq_ids = (ctypes.c_int32 * n_sequences)(*range(n_sequences))  # C only has its address
        self._seq_id_pointers = [
            ctypes.cast(ctypes.byref(self._all_seq_ids, 4 * seq_id), pointer) for seq_id in range(n_sequences)
        ]
        self.c = llama.llama_batch(
            0, self._tokens, None, self._positions, self._seq_id_counts, self._same_seq_ids, self._outputs
        )

    def fill(self, seq_id: int, tokens: Sequence[int], position: int, outputs: Sequence[int]) -> None:
        """Fill the batch with tokens of one sequence, the first of them at `position`."""
        count = len(tokens)
        self._seq_id[0] = seq_id
        self._tokens[:count] = list(tokens)
        self._positions[:count] = list(range(position, position + count))
        ctypes.memset(self._outputs, 0, count)
        for index in outputs:
            self._outputs[index] = 1
        self.c.seq_id = self._same_seq_ids
        self.c.n_tokens = count

    def fill_mixed(self, batch: Sequence[BatchToken]) -> None:
        """Fill the batch with tokens of several sequences."""
        for index, entry in enumerate(batch):
            self._tokens[index] = entry.token
            self._positions[index] = entry.position
            self._mixed_seq_ids[index] = self._seq_id_pointers[entry.seq_id]
            self._outputs[index] = entry.wants_logits
        self.c.seq_id = self._mixed_seq_ids
        self.c.n_tokens = len(batch)


class AbortCheck:
    """The function that llama.cpp calls during a decode to ask whether to abort it.

    It has no reference to its context, because that would be a reference cycle through C.

    Attributes:
        should_abort: the check of the decode in progress, or None.
    """

    def __init__(self) -> None:
        self.should_abort: Callable[[], bool] | None = None

    def __call__(self, _: object) -> bool:
        """Return whether the decode in progress is to be aborted."""
        return self.should_abort is not None and self.should_abort()
