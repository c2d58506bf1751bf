"""From speeds to settings: both machines of docs/LOG.md, and the edges."""

from __future__ import annotations

import pytest

from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.tuning.choose_settings import (
    SwitchCost,
    choose_flash_attention,
    fastest_setting,
    prefill_seconds,
    torch_min_prompt,
)
from pigguf.inference.tuning.profile import SpeedAtDepth

MOVE = SwitchCost(0.05, 0.4 / 8192)

# Sapphire Rapids with AMX: (depth, prefill, decode), facts of 8192; both start alike.
AMX_ON = (SpeedAtDepth(0, 1900.0, 60.0), SpeedAtDepth(8192, 180.0, 9.7))
AMX_OFF = (SpeedAtDepth(0, 1900.0, 60.0), SpeedAtDepth(8192, 105.0, 29.7))
# Zen 4: flash attention reads faster at 2048, and slower at 8192.
ZEN_ON = (SpeedAtDepth(0, 900.0, 90.0), SpeedAtDepth(2048, 488.0, 50.0), SpeedAtDepth(8192, 88.0, 24.6))
ZEN_OFF = (SpeedAtDepth(0, 880.0, 90.0), SpeedAtDepth(2048, 343.0, 52.0), SpeedAtDepth(8192, 109.0, 30.6))


def test_where_prompts_always_want_flash_attention_only_tokens_leave_it() -> None:
    flash, handoff = choose_flash_attention(AMX_ON, AMX_OFF, MOVE)
    assert flash is None
    assert handoff is not None
    assert handoff.prefill is None
    assert 0 < handoff.decode < 2048
    # Two moves at 4096 are 0.5 s, and a token of a prompt there gains half of 1/105 - 1/180 s: 252 of them.
    assert handoff.prompt == pytest.approx(252, abs=70)


def test_where_prompts_change_sides_the_depth_between_is_found() -> None:
    flash, handoff = choose_flash_attention(ZEN_ON, ZEN_OFF, MOVE)
    assert flash is None
    assert handoff is not None
    # 1/488 - 1/343 = -0.87 ms at 2048, 1/88 - 1/109 = 2.19 ms at 8192: even at 2048 + 6144 * 0.87 / 3.06
    assert handoff.prefill == pytest.approx(3790, abs=64)


def test_a_dearer_move_is_made_later() -> None:
    _, cheap = choose_flash_attention(AMX_ON, AMX_OFF, MOVE)
    _, dear = choose_flash_attention(AMX_ON, AMX_OFF, SwitchCost(1.0, 2.0 / 8192))
    assert cheap is not None
    assert dear is not None
    assert dear.decode > cheap.decode
    assert dear.prompt > cheap.prompt


def test_without_a_handoff_a_whole_document_and_its_answer_decide() -> None:
    assert choose_flash_attention(AMX_ON, AMX_OFF, None) == (True, None)
    assert choose_flash_attention(ZEN_ON, ZEN_OFF, None) == (False, None)


def test_one_that_is_best_at_everything_needs_no_handoff() -> None:
    slow = [SpeedAtDepth(speed.depth, speed.prefill / 2, speed.decode / 2) for speed in AMX_ON]  # type: ignore[operator]
    assert choose_flash_attention(slow, AMX_ON, MOVE) == (False, None)
    assert choose_flash_attention(AMX_ON, slow, MOVE) == (True, None)


def test_what_is_alike_is_left_to_llama_cpp() -> None:
    nearly = [SpeedAtDepth(speed.depth, speed.prefill * 1.02, speed.decode * 0.98) for speed in AMX_ON]  # type: ignore[operator]
    assert choose_flash_attention(AMX_ON, nearly, MOVE) == (None, None)
    assert choose_flash_attention((), (), MOVE) == (None, None)


def test_a_handoff_that_no_answer_repays_is_none() -> None:
    _, handoff = choose_flash_attention(AMX_ON, AMX_OFF, SwitchCost(60.0, 0.0))
    assert handoff is None


def test_a_handoff_is_made_for_prompts_alone_where_they_repay_it() -> None:
    on = (SpeedAtDepth(0, 1000.0, 50.0), SpeedAtDepth(4096, 500.0, 30.0), SpeedAtDepth(8192, 100.0, 20.0))
    off = (SpeedAtDepth(0, 500.0, 50.0), SpeedAtDepth(4096, 250.0, 30.0), SpeedAtDepth(8192, 200.0, 20.0))
    _, handoff = choose_flash_attention(on, off, MOVE)
    assert handoff is not None
    assert handoff.decode == handoff.prefill
    assert handoff == FlashAttentionSwitch(
        handoff.decode, handoff.prefill
    )  # no prompt goes back: the usual number


def test_whole_prompts_are_the_area_below_their_tokens_times() -> None:
    assert prefill_seconds([(0, 1.0), (100, 3.0)], 100) == pytest.approx(200)
    assert prefill_seconds([(0, 1.0), (100, 3.0)], 200) == pytest.approx(
        200 + 300
    )  # no slower than the deepest seen
    assert prefill_seconds([(0, 2.0)], 10) == pytest.approx(20)


def test_torch_reads_from_where_it_is_faster_for_good() -> None:
    llama = [(0, 1e-3), (8192, 1e-3)]  # a second for 1000 tokens
    assert torch_min_prompt([(1024, 2.0), (2048, 1.5), (4096, 2.0)], llama) == 2048
    assert torch_min_prompt([(1024, 0.5), (2048, 3.0), (4096, 2.0)], llama) == 4096
    assert torch_min_prompt([(1024, 0.5), (2048, 3.0)], llama) is None
    assert torch_min_prompt([(1024, 1.0)], llama) is None  # which is noise
    assert torch_min_prompt([], llama) is None


def test_only_what_is_clearly_faster_displaces_a_default() -> None:
    assert fastest_setting({4: 10.0, 8: 10.3}, 4) == 4
    assert fastest_setting({4: 10.0, 8: 11.0}, 4) == 8
    assert fastest_setting({8: 11.0}, 4) == 4  # nobody knows what 4 does
    assert fastest_setting({}, 4) == 4
