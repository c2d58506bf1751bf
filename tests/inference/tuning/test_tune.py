"""A tuning on the real engine: what is measured, what is skipped, and that nothing is chosen unmeasured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from support.tiny_gguf import GRAPHS, linear, write_tiny

from pigguf.errors import UsageError
from pigguf.gguf_io import TensorType, read_header
from pigguf.gguf_io.metadata import u32
from pigguf.inference.engine import CacheType, Context, ContextOptions, Model
from pigguf.inference.tuning import TuningResult, load_tuning_profile, tune
from pigguf.inference.tuning.default_profiles import ON_CPU
from pigguf.inference.tuning.measure_speed import (
    SpeedSample,
    fill_cache,
    measure_speed,
    measure_switch_cost,
    random_tokens,
)
from pigguf.inference.tuning.timed_comparison import ROUNDS
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.progress import SilentProgress

GEMMA3 = next(model for model in GRAPHS.values() if model.architecture == "gemma3")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # heads of 32 dimensions, which blocks of every type of cache fit
    return write_tiny(
        tmp_path_factory.mktemp("model") / "tiny.gguf",
        {
            "llama.attention.head_count": u32(2),
            "llama.attention.head_count_kv": u32(1),
            "llama.rope.dimension_count": u32(32),
            **linear(4.0, 4096),
        },
    )


class Stages(SilentProgress):
    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []
        self.done: dict[str, float] = {}

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.stages.append((stage, total))

    def advance(self, amount: float) -> None:
        name = self.stages[-1][0]
        self.done[name] = self.done.get(name, 0) + amount


@pytest.fixture(scope="module")
def tuned(tiny: Path) -> tuple[TuningResult, Stages]:
    stages = Stages()
    return tune(tiny, budget=60, progress=stages), stages


def test_everything_is_measured_if_there_is_time(tuned: tuple[TuningResult, Stages]) -> None:
    result, stages = tuned
    assert result.skipped == ()
    assert {one.samples for one in result.measurements} <= {1, ROUNDS}
    of = {(one.group, one.setting, one.speed.depth) for one in result.measurements}
    assert {("flash attention", name, depth) for name in ("on", "off") for depth in (0, 2048, 3328)} <= of
    assert {("batch", f"{size} tokens", 0) for size in (256, 512, 1024)} <= of
    assert {
        ("cache types", f"{pair}", 2048) for pair in ("f16/f16", "q8_0/f16", "q8_0/q8_0", "q4_0/q4_0")
    } <= of
    assert all(
        stages.done[name] == total for name, total in stages.stages if name not in ("loading", "prefill")
    )
    sizes = {one.setting: one.cache_bytes for one in result.measurements if one.group == "cache types"}
    assert sizes["f16/f16"] == 2 * 2 * 32 * 2 * 4096
    assert sizes["q4_0/q4_0"] * 32 == sizes["f16/f16"] * 9  # 18 bytes for 32 elements


def test_chosen_settings_were_measured_and_are_loaded_again(
    tiny: Path, tuned: tuple[TuningResult, Stages]
) -> None:
    result, _ = tuned
    profile = result.profile
    assert profile.source == "measured"
    assert load_tuning_profile(read_header(tiny)) == profile
    batches = {one.setting for one in result.measurements if one.group == "batch"}
    assert f"{profile.batch} tokens" in batches
    measured = {
        (one.speed.depth, rate)
        for one in result.measurements
        if one.group == "flash attention"
        for rate in (one.speed.prefill, one.speed.decode)
    }
    assert [speed.depth for speed in profile.speeds] == [0, 2048, 3328]
    assert {(s.depth, rate) for s in profile.speeds for rate in (s.prefill, s.decode)} <= measured
    assert {"flash attention", "batch"} <= {one.setting for one in result.decisions}
    assert all("tokens/s" in one.reason or " s against " in one.reason for one in result.decisions)


def test_a_tiny_budget_skips_everything_and_reports_it(tiny: Path) -> None:
    result = tune(tiny, budget=1e-6)
    assert result.measurements == ()
    assert any("flash attention: on at 2,048 tokens: it would take" in line for line in result.skipped)
    profile = result.profile
    assert (profile.threads, profile.batch, profile.flash_attention) == (None, 512, None)
    assert (
        profile.flash_attention_switch == ON_CPU.flash_attention_switch
    )  # what was not measured is the built-in default
    assert profile.speeds == ()
    with pytest.raises(UsageError, match="budget"):
        tune(tiny, budget=0)


def test_two_caches_are_filled_by_prefill_and_never_switch(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "gemma3.gguf", model=GEMMA3)
    result = tune(path, budget=30)
    assert result.profile.flash_attention_switch is None
    assert {one.speed.depth for one in result.measurements if one.group == "flash attention"} == {0}


@pytest.mark.parametrize("flash", [True, False])
@pytest.mark.parametrize("cache_k", get_args(CacheType))
def test_a_cache_of_any_type_is_filled_without_prefill(tiny: Path, cache_k: CacheType, flash: bool) -> None:
    cache_v: CacheType = cache_k if flash else "f16"
    options = ContextOptions(length=512, cache_k=cache_k, cache_v=cache_v, flash_attention=flash)
    with (
        Model.open(tiny) as model,
        Context(model, options) as context,
        context.sequence() as session,
    ):
        fill_cache(session, 300)
        assert session.tokens == random_tokens(model, 300)
        layout = kv_state_layout.read_layout(session.export_state())
        assert (layout.cells, layout.key_types[0]) == (300, TensorType[cache_k.upper()])
        [(_, logits)] = session.evaluate([5], [0])
        assert logits.std() > 0


def test_a_sample_measures_everything_that_was_asked_for(tiny: Path) -> None:
    with Model.open(tiny) as model:
        speed = measure_speed(model, SpeedSample(ContextOptions(), 100, 32, 3))
        assert speed.depth == 100
        assert speed.prefill
        assert speed.decode
        assert measure_speed(model, SpeedSample(ContextOptions(), 0, 32, 0)).decode is None
        cost = measure_switch_cost(model, 2048)
        assert cost.seconds(2048) > 0


def test_samples_fit_into_a_short_context(tmp_path: Path) -> None:
    """Tune a model with a context as short as a prompt's sample."""
    path = write_tiny(tmp_path / "short.gguf", linear(1.0, 40))
    result = tune(path, budget=20)
    assert {one.speed.depth for one in result.measurements} == {0}
