"""How settings are settled before a model is opened."""

from __future__ import annotations

from pathlib import Path

import pytest

from pigguf.gguf_io import read_header
from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.open_context import RunConfig, settle
from pigguf.inference.tuning import Tuning
from pigguf.inference.tuning.tuning_files import keep_tuning


@pytest.mark.parametrize(("sequences", "handed_off"), [(1, FlashAttentionSwitch(decode=1024)), (4, None)])
def test_sequences_of_one_context_hand_nothing_off(
    smollm2_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sequences: int,
    handed_off: FlashAttentionSwitch | None,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_tuning(read_header(smollm2_gguf), "auto", Tuning(handoff=FlashAttentionSwitch(decode=1024)), ())
    planned, _ = settle(smollm2_gguf, RunConfig(ctx=2048), sequences)
    assert (planned.options.sequences, planned.options.handoff) == (sequences, handed_off)
    assert any("handoff" in what for what in planned.devices[0].extra) == (handed_off is not None)
