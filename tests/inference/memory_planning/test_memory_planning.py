"""Memory plans: parameters that fit, refusals whose hints then work, longest contexts, layers on GPUs.

FreeMemory makes memory small. Most machines that run the tests have no GPU: the search for layers is tested
with a table of memory estimates; tests/inference/engine/test_gpu.py has a real GPU.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.tiny_gguf import write_tiny

from pigguf.errors import BackendUnavailable, ContextOverflow, DoesNotFit, UsageError
from pigguf.gguf_io import read_header
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope
from pigguf.inference.engine.context_options import FlashAttentionSwitch
from pigguf.inference.engine.devices import Device
from pigguf.inference.engine.memory_estimate import HOST, BufferSizes
from pigguf.inference.memory_planning import FreeMemory, MemoryPlanner, fit_to_memory, plan

MIB, GIB = 1 << 20, 1 << 30
RESERVE = 128 * MIB


# ---- one computer, a real model ----------------------------------------------------------------------


def test_with_enough_memory_nothing_is_changed(smollm2_gguf: Path) -> None:
    planned = plan(smollm2_gguf, free_memory=FreeMemory(16 * GIB))
    assert planned.fits
    assert planned.require_fit() is planned
    assert (
        planned.context_length,
        planned.model_context_length,
        planned.gpu_layers,
        planned.offloadable_layers,
    ) == (8192, 8192, 0, 31)
    [host] = planned.devices
    assert host.sizes.cache == 8192 * 23040
    assert host.available == 16 * GIB - RESERVE
    assert planned.total_bytes == host.total == host.sizes.total
    assert [(window.cache_k, window.length) for window in planned.longest_contexts] == [
        ("f16", 8192),
        ("q8_0", 8192),
        ("q4_0", 8192),
    ]
    assert planned.longest_contexts[0].total == planned.total_bytes


def test_a_header_serves_as_well_as_a_path(smollm2_gguf: Path) -> None:
    options, resources = ContextOptions(length=2048), FreeMemory(16 * GIB)
    assert plan(read_header(smollm2_gguf), options, free_memory=resources) == plan(
        str(smollm2_gguf), options, free_memory=resources
    )


def test_by_default_the_memory_that_is_free_now_counts(smollm2_gguf: Path) -> None:
    [host] = fit_to_memory(smollm2_gguf, ContextOptions(length=256)).devices
    assert host.available is not None
    assert host.total < host.available


@pytest.mark.parametrize("memory", [420, 500, 600])
def test_what_does_not_fit_is_refused_and_the_hint_then_works(smollm2_gguf: Path, memory: int) -> None:
    resources = FreeMemory(memory * MIB)
    asked = ContextOptions(length=8192, cache_k="f32", cache_v="f32")
    with pytest.raises(
        DoesNotFit, match=r"a context of 8,192 tokens needs [\d.]+ MiB of this computer's"
    ) as no:
        fit_to_memory(smollm2_gguf, asked, free_memory=resources)
    planned = plan(smollm2_gguf, asked, free_memory=resources)
    assert not planned.fits
    assert planned.nearest
    for params in planned.nearest:
        options = params.options
        assert (f"{options.length:,} tokens" if options.length != 8192 else options.cache_k) in no.value.hint
        chosen = fit_to_memory(smollm2_gguf, options, free_memory=resources)
        assert chosen.params == params
        assert chosen.total_bytes <= resources.host - RESERVE
    with Model.open(smollm2_gguf) as model, Context(model, planned.nearest[0].options) as context:
        assert context.length == planned.nearest[0].options.length


def test_one_window_more_than_the_longest_does_not_fit(smollm2_gguf: Path) -> None:
    resources = FreeMemory(300 * MIB)
    planned = plan(smollm2_gguf, free_memory=resources)
    lengths = [window.length for window in planned.longest_contexts]
    assert lengths == sorted(lengths)
    for window in planned.longest_contexts:
        options = ContextOptions(length=window.length, cache_k=window.cache_k, cache_v=window.cache_v)
        assert fit_to_memory(smollm2_gguf, options, free_memory=resources).total_bytes == window.total
        with pytest.raises(DoesNotFit):
            fit_to_memory(smollm2_gguf, replace(options, length=window.length + 256), free_memory=resources)


@pytest.mark.parametrize(
    ("memory", "length"),
    # 92 MiB of weights, 66 MiB of compute buffers, 22.5 KiB per token
    [(None, 8192), (16 * GIB, 8192), (512 * MIB, 8192), (400 * MIB, 4864), (330 * MIB, 1792), (1, 1024)],
)
def test_a_context_length_that_was_not_asked_for_uses_half_of_the_free_memory(
    smollm2_gguf: Path, memory: int | None, length: int
) -> None:
    planned = plan(smollm2_gguf, free_memory=FreeMemory(memory))
    assert planned.context_length == pytest.approx(length, abs=1024 if 1024 < length < 8192 else 0)
    assert planned.fits is (memory != 1)
    if memory and length < 8192:
        host = planned.devices[0]
        assert host.sizes.cache <= memory // 2 or planned.context_length == 1024


def test_nothing_that_would_fit_is_a_hint_to_smaller_weights(smollm2_gguf: Path) -> None:
    with pytest.raises(DoesNotFit, match=r"and 72\.0 MiB are available") as refused:
        fit_to_memory(smollm2_gguf, free_memory=FreeMemory(200 * MIB))
    assert refused.value.hint == "use a smaller quantization of the model, or close other programs"


def test_a_window_too_long_to_measure_is_refused_with_the_longest_that_fits(tmp_path: Path) -> None:
    path, rope = write_tiny(tmp_path / "m.gguf"), RuntimeRope(context_length=2**30)
    with pytest.raises(DoesNotFit, match="there can be") as refused:
        fit_to_memory(path, ContextOptions(length=2**30), rope=rope, free_memory=FreeMemory(16 * GIB))
    assert "a context of 4,194,304 tokens" in (refused.value.hint or "")


def test_wrong_parameters_raise_the_engines_errors(smollm2_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextOverflow, match=r"9,000 tokens is longer than the 8,192"):
        plan(smollm2_gguf, ContextOptions(length=9000))
    assert plan(smollm2_gguf, ContextOptions(length=9000), rope=RuntimeRope(2.0, context_length=9000)).fits
    with pytest.raises(BackendUnavailable, match="no GPU"):
        plan(smollm2_gguf, gpu_layers=3, free_memory=FreeMemory(None))
    with pytest.raises(UsageError, match="gpu_layers=-1` is negative"):
        plan(smollm2_gguf, gpu_layers=-1)
    with pytest.raises(UsageError, match="q4_0 does not fit"):
        plan(write_tiny(tmp_path / "m.gguf"), ContextOptions(cache_k="q4_0"))


def test_cache_types_that_do_not_fit_the_heads_have_no_window(tmp_path: Path) -> None:
    windows = plan(
        write_tiny(tmp_path / "m.gguf"), ContextOptions(cache_v="f32")
    ).longest_contexts  # heads of 16
    assert [(window.cache_v, window.length) for window in windows] == [
        ("f16", 1024),
        ("q8_0", None),
        ("q4_0", None),
        ("f32", 1024),
    ]


def test_other_memory_is_part_of_the_sum(smollm2_gguf: Path) -> None:
    options, extra = ContextOptions(length=4096), {"prefill move": lambda tokens: tokens * 50_000}
    without = plan(smollm2_gguf, options, free_memory=FreeMemory(512 * MIB))
    planned = plan(smollm2_gguf, options, free_memory=FreeMemory(512 * MIB), extra_bytes=extra)
    assert planned.devices[0].extra == {"prefill move": 4096 * 50_000}
    assert planned.total_bytes == without.total_bytes + 4096 * 50_000
    assert without.fits
    with pytest.raises(DoesNotFit, match=r"prefill move 195\.3 MiB"):
        planned.require_fit()
    assert planned.nearest[0].options.length < 4096


def test_a_flash_attention_switch_needs_the_larger_buffers_and_a_copy_of_the_cache(
    smollm2_gguf: Path,
) -> None:
    def of(**how: object) -> BufferSizes:
        options = ContextOptions(length=8192, **how)  # type: ignore[arg-type]
        return plan(smollm2_gguf, options, free_memory=FreeMemory(None)).devices[0].sizes

    options = ContextOptions(length=8192, flash_attention_switch=FlashAttentionSwitch(decode=1024))
    planned = plan(smollm2_gguf, options, free_memory=FreeMemory(None))
    [host] = planned.devices
    assert host.sizes.compute == max(of(flash_attention=True).compute, of(flash_attention=False).compute)
    assert list(host.extra.values()) == [host.sizes.cache]
    assert planned.options.flash_attention_switch == options.flash_attention_switch
    # where only it does not fit, it is given up
    tight = fit_to_memory(smollm2_gguf, options, free_memory=FreeMemory(500 * MIB))
    assert (tight.options.flash_attention_switch, tight.context_length) == (None, 8192)


# ---- GPUs, by a table --------------------------------------------------------------------------------

LAYERS, WEIGHTS, PER_TOKEN, COMPUTE = 33, 120 * MIB, 4096, 300 * MIB


def sizes(gpu_layers: int, options: ContextOptions, gpus: int = 1) -> tuple[BufferSizes, ...]:
    """Return the buffers of a model of 33 layers, spread evenly over GPUs in blocks."""
    quantized = {"f16": 1.0, "q8_0": 0.53, "q4_0": 0.28}[options.cache_k]
    cache = int(PER_TOKEN * (options.length or 0) * quantized)
    on = [len(range(number, gpu_layers, gpus)) for number in range(gpus)]
    host = LAYERS - gpu_layers
    found = [BufferSizes(HOST, mapped=host * WEIGHTS, cache_k=host * cache, compute=COMPUTE // 10)]
    found += [
        BufferSizes(f"CUDA{number}", weights=count * WEIGHTS, cache_k=count * cache, compute=COMPUTE)
        for number, count in enumerate(on)
        if count
    ]
    return tuple(found)


def planner(*free: float, memory: float = 64, window: int = 131072, kind: str = "gpu") -> MemoryPlanner:
    """Return a planner for GPUs of 24 GiB, each with `free` GiB free, and `memory` GiB on the host."""
    gpus = tuple(
        Device(f"CUDA{number}", "", kind, "CUDA", int(gib * GIB), 24 * GIB)  # type: ignore[arg-type]
        for number, gib in enumerate(free)
    )
    return MemoryPlanner(
        Path("m.gguf"),
        window,
        LAYERS,
        lambda layers, options: sizes(layers, options, len(gpus)),
        FreeMemory(int(memory * GIB), gpus),
    )


@pytest.mark.parametrize("free", [(2.0,), (5.5,), (9.0,), (24.0,), (3.0, 5.0), (1.0,)], ids=str)
@pytest.mark.parametrize("length", [4096, 32768])
def test_auto_is_the_largest_number_of_layers_that_fits(free: tuple[float, ...], length: int) -> None:
    options, search = ContextOptions(length=length), planner(*free)
    room = {f"CUDA{number}": int(gib * GIB) - GIB for number, gib in enumerate(free)}
    fitting = [
        layers
        for layers in range(LAYERS + 1)
        if all(size.total <= room[size.device] for size in sizes(layers, options, len(free))[1:])
    ]
    planned = search.plan(options, "auto")
    assert planned.fits
    assert planned.gpu_layers == max(fitting)
    assert (len(planned.devices) == 1) is (max(fitting) == 0)


def test_a_context_length_that_was_not_asked_for_is_cut_to_keep_all_layers_on_the_gpu() -> None:
    whole = planner(24.0).plan(ContextOptions(), "auto")
    assert (whole.gpu_layers, whole.context_length) == (LAYERS, 131072)
    cut = planner(8.0).plan(ContextOptions(), "auto")
    assert cut.gpu_layers == LAYERS
    assert 8192 <= cut.context_length < 131072
    assert not planner(8.0).plan(ContextOptions(length=cut.context_length + 256), LAYERS).fits
    # where a good window needs the computer's memory too, it is not cut
    both = planner(4.5).plan(ContextOptions(), "auto")
    assert 0 < both.gpu_layers < LAYERS
    assert both.context_length == 131072


def test_too_many_layers_are_refused_with_the_number_that_fits() -> None:
    search, options = planner(6.0), ContextOptions(length=32768)
    planned = search.plan(options, "all")
    with pytest.raises(DoesNotFit, match=r"of CUDA0's memory .* 5\.0 GiB are available") as refused:
        planned.require_fit()
    for params in planned.nearest:
        assert search.plan(params.options, params.gpu_layers).fits
    shorter, fewer = planned.nearest  # no cache type is small enough
    assert (shorter.gpu_layers, fewer.options) == (LAYERS, options)
    assert f"a context of {shorter.options.length:,} tokens" in (refused.value.hint or "")
    assert fewer.gpu_layers == search.plan(options, "auto").gpu_layers
    assert f"{fewer.gpu_layers} layers on the GPU" in (refused.value.hint or "")


def test_a_gpu_that_works_in_the_computers_memory_does_not_add_to_it() -> None:
    options = ContextOptions(length=32768)
    assert planner(24.0, memory=6.0).plan(options, LAYERS).fits
    shared = planner(24.0, memory=6.0, kind="integrated gpu").plan(options, LAYERS)
    with pytest.raises(DoesNotFit, match="with its GPU"):
        shared.require_fit()


def test_a_gpu_that_does_not_report_free_memory_gets_no_layers_by_default() -> None:
    silent = planner(0.0)
    silent = replace(
        silent,
        free_memory=replace(silent.free_memory, gpus=(replace(silent.free_memory.gpus[0], memory_total=0),)),
    )
    assert silent.plan(ContextOptions(length=4096), "auto").gpu_layers == 0
    assert silent.plan(ContextOptions(length=4096), "all").fits
