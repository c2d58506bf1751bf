"""How a run is decided before a model is opened, and the reasons that are given."""

from __future__ import annotations

from pathlib import Path

import pytest

from pigguf.gguf_io import read_header
from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.memory_planning import MeasuredSpeed
from pigguf.inference.resolve_run import plan_run, resolve_run
from pigguf.inference.run_config import RunConfig
from pigguf.inference.tuning import SpeedAtDepth, TuningProfile
from pigguf.inference.tuning.profile_store import save_tuning_profile


@pytest.mark.parametrize(("sequences", "switch"), [(1, FlashAttentionSwitch(decode=1024)), (4, None)])
def test_sequences_that_share_a_context_do_not_switch_flash_attention(
    smollm2_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sequences: int,
    switch: FlashAttentionSwitch | None,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    save_tuning_profile(
        read_header(smollm2_gguf),
        "auto",
        TuningProfile(flash_attention_switch=FlashAttentionSwitch(decode=1024)),
        (),
    )
    resolved = resolve_run(smollm2_gguf, RunConfig(ctx=2048), sequences)
    assert (resolved.options.sequences, resolved.options.flash_attention_switch) == (sequences, switch)
    assert any("switch" in name for name in resolved.plan.devices[0].extra) == (switch is not None)
    reasons = {decision.setting: decision.reason for decision in resolved.decisions}
    shared = "sequences that share a context cannot switch"
    assert reasons["flash attention"] == ("the built-in default profile" if switch else shared)


def test_every_decision_has_a_reason(smollm2_gguf: Path) -> None:
    config = RunConfig(ctx=2048, threads=1, gpu_layers=0, flash_attention=True, prefill="llama.cpp")
    resolved = resolve_run(smollm2_gguf, config)
    found = {decision.setting: (decision.value, decision.reason) for decision in resolved.decisions}
    assert found["context length"] == ("2,048 tokens", "asked for")
    assert found["threads"] == ("1 for decode, 1 for prefill", "asked for")
    assert found["flash attention"] == ("on", "asked for")
    assert found["prefill"] == ("llama.cpp", "asked for")
    assert resolved.torch_min_prompt is None
    assert resolved.config is config


def test_a_planned_run_has_the_speed_measured_nearest_to_its_context(
    smollm2_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    speeds = (SpeedAtDepth(0, 200.0, 20.0), SpeedAtDepth(512, 100.0, 10.0), SpeedAtDepth(8000, 50.0, 5.0))
    save_tuning_profile(
        read_header(smollm2_gguf), "auto", TuningProfile(speeds=speeds, source="measured"), ()
    )
    assert plan_run(smollm2_gguf, RunConfig(ctx=1024)).speed == MeasuredSpeed(512, 100.0, 10.0)
    assert plan_run(smollm2_gguf, RunConfig(ctx=8192)).speed == MeasuredSpeed(8000, 50.0, 5.0)
