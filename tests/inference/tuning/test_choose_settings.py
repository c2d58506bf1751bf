"""From speeds to settings: both machines of docs/LOG.md, and the edges."""

from __future__ import annotations

import pytest

from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.tuning.choose_settings import Move, fastest, flash_attention, seconds, torch_from
from pigguf.inference.tuning.profile import Speed

MOVE = Move(0.05, 0.4 / 8192)

# Sapphire Rapids with AMX: (depth, prefill, decode), facts of 8192; both start alike.
AMX_ON = (Speed(0, 1900.0, 60.0), Speed(8192, 180.0, 9.7))
AMX_OFF = (Speed(0, 1900.0, 60.0), Speed(8192, 105.0, 29.7))
# Zen 4: flash attention reads faster at 2048, and slower at 8192.
ZEN_ON = (Speed(0, 900.0, 90.0), Speed(2048, 488.0, 50.0), Speed(8192, 88.0, 24.6))
ZEN_OFF = (Speed(0, 880.0, 90.0), Speed(2048, 343.0, 52.0), Speed(8192, 109.0, 30.6))


def test_where_prompts_always_want_flash_attention_only_tokens_leave_it() -> None:
    flash, handoff = flash_attention(AMX_ON, AMX_OFF, MOVE)
    assert flash is None
    assert handoff is not None
    assert handoff.prefill is None
    assert 0 < handoff.decode < 2048
    # Two moves at 4096 are 0.5 s, and a token of a prompt there gains half of 1/105 - 1/180 s: 252 of them.
    assert handoff.prompt == pytest.approx(252, abs=70)


def test_where_prompts_change_sides_the_depth_between_is_found() -> None:
    flash, handoff = flash_attention(ZEN_ON, ZEN_OFF, MOVE)
    assert flash is None
    assert handoff is not None
    # 1/488 - 1/343 = -0.87 ms at 2048, 1/88 - 1/109 = 2.19 ms at 8192: even at 2048 + 6144 * 0.87 / 3.06
    assert handoff.prefill == pytest.approx(3790, abs=64)


def test_a_dearer_move_is_made_later() -> None:
    _, cheap = flash_attention(AMX_ON, AMX_OFF, MOVE)
    _, dear = flash_attention(AMX_ON, AMX_OFF, Move(1.0, 2.0 / 8192))
    assert cheap is not None
    assert dear is not None
    assert dear.decode > cheap.decode
    assert dear.prompt > cheap.prompt


def test_without_a_handoff_a_whole_document_and_its_answer_decide() -> None:
    assert flash_attention(AMX_ON, AMX_OFF, None) == (True, None)
    assert flash_attention(ZEN_ON, ZEN_OFF, None) == (False, None)


def test_one_that_is_best_at_everything_needs_no_handoff() -> None:
    slow = [Speed(speed.depth, speed.prefill / 2, speed.decode / 2) for speed in AMX_ON]  # type: ignore[operator]
    assert flash_attention(slow, AMX_ON, MOVE) == (False, None)
    assert flash_attention(AMX_ON, slow, MOVE) == (True, None)


def test_what_is_alike_is_left_to_llama_cpp() -> None:
    nearly = [Speed(speed.depth, speed.prefill * 1.02, speed.decode * 0.98) for speed in AMX_ON]  # type: ignore[operator]
    assert flash_attention(AMX_ON, nearly, MOVE) == (None, None)
    assert flash_attention((), (), MOVE) == (None, None)


def test_a_handoff_that_no_answer_repays_is_none() -> None:
    _, handoff = flash_attention(AMX_ON, AMX_OFF, Move(60.0, 0.0))
    assert handoff is None


def test_a_handoff_is_made_for_prompts_alone_where_they_repay_it() -> None:
    on = (Speed(0, 1000.0, 50.0), Speed(4096, 500.0, 30.0), Speed(8192, 100.0, 20.0))
    off = (Speed(0, 500.0, 50.0), Speed(4096, 250.0, 30.0), Speed(8192, 200.0, 20.0))
    _, handoff = flash_attention(on, off, MOVE)
    assert handoff is not None
    assert handoff.decode == handoff.prefill
    assert handoff == FlashAttentionSwitch(
        handoff.decode, handoff.prefill
    )  # no prompt goes back: the usual number


def test_whole_prompts_are_the_area_below_their_tokens_times() -> None:
    assert seconds([(0, 1.0), (100, 3.0)], 100) == pytest.approx(200)
    assert seconds([(0, 1.0), (100, 3.0)], 200) == pytest.approx(200 + 300)  # no slower than the deepest seen
    assert seconds([(0, 2.0)], 10) == pytest.approx(20)


def test_torch_reads_from_where_it_is_faster_for_good() -> None:
    llama = [(0, 1e-3), (8192, 1e-3)]  # a second for 1000 tokens
    assert torch_from([(1024, 2.0), (2048, 1.5), (4096, 2.0)], llama) == 2048
    assert torch_from([(1024, 0.5), (2048, 3.0), (4096, 2.0)], llama) == 4096
    assert torch_from([(1024, 0.5), (2048, 3.0)], llama) is None
    assert torch_from([(1024, 1.0)], llama) is None  # which is noise
    assert torch_from([], llama) is None


def test_only_what_is_clearly_faster_displaces_a_default() -> None:
    assert fastest({4: 10.0, 8: 10.3}, 4) == 4
    assert fastest({4: 10.0, 8: 11.0}, 4) == 8
    assert fastest({8: 11.0}, 4) == 4  # nobody knows what 4 does
    assert fastest({}, 4) == 4
