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

COST = SwitchCost(0.05, 0.4 / 8192)

# Sapphire Rapids with AMX: (depth, prefill, decode), facts of 8192; both start alike.
AMX_ON = (SpeedAtDepth(0, 1900.0, 60.0), SpeedAtDepth(8192, 180.0, 9.7))
AMX_OFF = (SpeedAtDepth(0, 1900.0, 60.0), SpeedAtDepth(8192, 105.0, 29.7))
# Zen 4: flash attention reads faster at 2048, and slower at 8192.
ZEN_ON = (SpeedAtDepth(0, 900.0, 90.0), SpeedAtDepth(2048, 488.0, 50.0), SpeedAtDepth(8192, 88.0, 24.6))
ZEN_OFF = (SpeedAtDepth(0, 880.0, 90.0), SpeedAtDepth(2048, 343.0, 52.0), SpeedAtDepth(8192, 109.0, 30.6))


def test_if_prefill_is_always_faster_with_flash_attention_only_decode_leaves_it() -> None:
    flash, switch = choose_flash_attention(AMX_ON, AMX_OFF, COST)
    assert flash is None
    assert switch is not None
    assert switch.prefill is None
    assert 0 < switch.decode < 2048
    # Two switches at 4096 take 0.5 s; a token of a prompt gains half of 1/105 - 1/180 s there: 252 of them
    assert switch.prompt == pytest.approx(252, abs=70)


def test_the_depth_at_which_prefill_becomes_slower_is_found() -> None:
    flash, switch = choose_flash_attention(ZEN_ON, ZEN_OFF, COST)
    assert flash is None
    assert switch is not None
    # 1/488 - 1/343 = -0.87 ms at 2048, 1/88 - 1/109 = 2.19 ms at 8192: even at 2048 + 6144 * 0.87 / 3.06
    assert switch.prefill == pytest.approx(3790, abs=64)


def test_a_more_expensive_switch_is_made_later() -> None:
    _, cheap = choose_flash_attention(AMX_ON, AMX_OFF, COST)
    _, expensive = choose_flash_attention(AMX_ON, AMX_OFF, SwitchCost(1.0, 2.0 / 8192))
    assert cheap is not None
    assert expensive is not None
    assert expensive.decode > cheap.decode
    assert expensive.prompt > cheap.prompt


def test_without_a_switch_the_time_of_a_document_and_its_answer_decides() -> None:
    assert choose_flash_attention(AMX_ON, AMX_OFF, None) == (True, None)
    assert choose_flash_attention(ZEN_ON, ZEN_OFF, None) == (False, None)


def test_a_setting_that_is_always_faster_needs_no_switch() -> None:
    slow = [SpeedAtDepth(speed.depth, speed.prefill / 2, speed.decode / 2) for speed in AMX_ON]  # type: ignore[operator]
    assert choose_flash_attention(slow, AMX_ON, COST) == (False, None)
    assert choose_flash_attention(AMX_ON, slow, COST) == (True, None)


def test_equal_speeds_are_left_to_llama_cpp() -> None:
    nearly = [SpeedAtDepth(speed.depth, speed.prefill * 1.02, speed.decode * 0.98) for speed in AMX_ON]  # type: ignore[operator]
    assert choose_flash_attention(AMX_ON, nearly, COST) == (None, None)
    assert choose_flash_attention((), (), COST) == (None, None)


def test_a_switch_that_pays_off_in_no_answer_is_not_chosen() -> None:
    _, switch = choose_flash_attention(AMX_ON, AMX_OFF, SwitchCost(60.0, 0.0))
    assert switch is None


def test_a_switch_is_made_for_prefill_alone_if_that_pays_off() -> None:
    on = (SpeedAtDepth(0, 1000.0, 50.0), SpeedAtDepth(4096, 500.0, 30.0), SpeedAtDepth(8192, 100.0, 20.0))
    off = (SpeedAtDepth(0, 500.0, 50.0), SpeedAtDepth(4096, 250.0, 30.0), SpeedAtDepth(8192, 200.0, 20.0))
    _, switch = choose_flash_attention(on, off, COST)
    assert switch is not None
    assert switch.decode == switch.prefill
    assert switch == FlashAttentionSwitch(
        switch.decode, switch.prefill
    )  # no prompt switches back: the default


def test_a_prompts_seconds_are_the_integral_over_its_tokens() -> None:
    assert prefill_seconds([(0, 1.0), (100, 3.0)], 100) == pytest.approx(200)
    assert prefill_seconds([(0, 1.0), (100, 3.0)], 200) == pytest.approx(
        200 + 300
    )  # no slower than the deepest seen
    assert prefill_seconds([(0, 2.0)], 10) == pytest.approx(20)


def test_torch_prefills_from_where_it_stays_faster() -> None:
    llama = [(0, 1e-3), (8192, 1e-3)]  # a second for 1000 tokens
    assert torch_min_prompt([(1024, 2.0), (2048, 1.5), (4096, 2.0)], llama) == 2048
    assert torch_min_prompt([(1024, 0.5), (2048, 3.0), (4096, 2.0)], llama) == 4096
    assert torch_min_prompt([(1024, 0.5), (2048, 3.0)], llama) is None
    assert torch_min_prompt([(1024, 1.0)], llama) is None  # which is noise
    assert torch_min_prompt([], llama) is None


def test_only_a_clearly_faster_setting_replaces_the_default() -> None:
    assert fastest_setting({4: 10.0, 8: 10.3}, 4) == 4
    assert fastest_setting({4: 10.0, 8: 11.0}, 4) == 8
    assert fastest_setting({8: 11.0}, 4) == 4  # 4 was not measured
    assert fastest_setting({}, 4) == 4
