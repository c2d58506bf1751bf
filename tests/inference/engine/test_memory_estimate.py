"""Memory estimates compared with the buffers that llama.cpp then allocates, by its own log of them."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
from support.tiny_gguf import WIDE_GRAPHS, write_tiny

from pigguf.errors import BackendUnavailable, DoesNotFit, EngineError, GGUFError, UsageError
from pigguf.gguf_io import TensorType, read_header
from pigguf.gguf_io.metadata import u32
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope, library
from pigguf.inference.engine.context_options import MAX_LOGITS_BYTES
from pigguf.inference.engine.memory_estimate import HOST, MAX_CELLS, BufferSizes, MemoryEstimator
from pigguf.llama_cpp_internals import log_lines, symbols
from pigguf.operations.inspect import inspect

ROUNDING = 0.005 * 2**20  # of a logged size
LOGGED = re.compile(r"\s*\S+\s+(model|KV|compute|output) buffer size =\s*([\d.]+) MiB")

OPTIONS = (
    ContextOptions(length=2048),
    ContextOptions(length=2048, flash_attention=False),
    ContextOptions(length=2048, cache_k="q8_0", cache_v="q8_0", flash_attention=True),
    ContextOptions(length=100, cache_k="q4_0", cache_v="bf16"),
    ContextOptions(length=300, batch=64, sequences=3, cache_k="f32"),
)


def logged(lines: list[str]) -> Counter[str]:
    """Bytes of real buffers by what they are for."""
    found: Counter[str] = Counter()
    for line in lines:
        if match := LOGGED.match(line):
            found[match[1]] += round(float(match[2]) * 2**20)
    return found


def compare(path: Path, *options: ContextOptions, rope: RuntimeRope | None = None) -> None:
    """Compare estimates with real loads, whose weights are read into memory so that all are counted."""
    with MemoryEstimator(read_header(path), rope=rope, use_mmap=False) as run:
        planned = [run.estimate(each) for each in options]
    with library.capture_log() as lines:
        model = Model.open(path, gpu_layers=0, use_mmap=False, rope=rope)
    of_model = logged(lines)
    with model:
        for each, [host] in zip(options, planned, strict=True):
            with library.capture_log() as lines, Context(model, each):
                pass
            real = of_model + logged(lines)
            parts = {"model": host.weights, "KV": host.cache, "compute": host.compute, "output": host.output}
            assert {"model", "KV", "compute"} <= set(real) <= set(parts)
            for what, count in parts.items():
                assert count == pytest.approx(real[what], rel=0.01, abs=2 * ROUNDING), (what, each)
            assert host.total == pytest.approx(real.total(), rel=0.05), each


def estimate(path: Path, options: ContextOptions) -> BufferSizes:
    with MemoryEstimator(read_header(path), use_mmap=False) as run:
        [host] = run.estimate(options)
    return host


@pytest.mark.parametrize("name", WIDE_GRAPHS)
def test_every_graph_takes_what_was_estimated(name: str, tmp_path: Path) -> None:
    model = WIDE_GRAPHS[name]
    learned = model.shapes.get("position_embd.weight")
    rows = {"position_embd.weight": (2048, learned[1])} if learned else {}
    longer = {f"{model.architecture}.context_length": u32(2048)}
    path = write_tiny(tmp_path / "m.gguf", longer, shapes=rows, model=model)
    compare(path, *OPTIONS)


def test_a_real_model_takes_what_was_estimated(smollm2_gguf: Path) -> None:
    compare(smollm2_gguf, *OPTIONS, ContextOptions(length=8192))


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "Q8_0"])
def test_weights_that_are_copied_into_another_order_are_counted(kind: str, tmp_path: Path) -> None:
    """Which types the CPU repacks, and what of a tied output is there twice, only the library knows."""
    model = next(tiny for name, tiny in WIDE_GRAPHS.items() if "Llama" in name)
    shapes: dict[str, tuple[int, ...] | None] = {"output.weight": None}
    types = {
        name: TensorType[kind]
        for name, shape in model.shapes.items()
        if len(shape) == 2 and name != "output.weight"
    }
    path = write_tiny(tmp_path / "m.gguf", types=types, shapes=shapes, model=model)
    compare(path, ContextOptions(length=64))


def test_a_window_past_the_files_own_is_measured_by_its_override(smollm2_gguf: Path) -> None:
    compare(smollm2_gguf, ContextOptions(length=16384), rope=RuntimeRope(2.0, context_length=16384))


def test_weights_in_the_files_pages_are_counted_apart(smollm2_gguf: Path) -> None:
    options = ContextOptions(length=256)
    read = estimate(smollm2_gguf, options)
    with MemoryEstimator(read_header(smollm2_gguf)) as run:
        [mapped] = run.estimate(options)
    assert mapped.device == HOST
    assert mapped.mapped > 0
    assert (read.mapped, read.weights) == (0, mapped.mapped + mapped.weights)
    assert read.total == mapped.total


# ---- what it costs -----------------------------------------------------------------------------------

COST = """
import resource, sys
from pathlib import Path
from pigguf.inference.engine import ContextOptions, library
from pigguf.inference.engine.memory_estimate import MemoryEstimator
from pigguf.gguf_io import read_header
library.load()
file = read_header(Path(sys.argv[1]))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
with MemoryEstimator(file) as run:
    [host] = run.estimate(ContextOptions(length=8192))
print(host.total, peak() - before)
"""

RESIDENT = """
import re, sys
from pathlib import Path
from pigguf.inference.engine import Context, ContextOptions, Model, library
from pigguf.inference.engine.memory_estimate import MemoryEstimator
from pigguf.gguf_io import read_header
library.load()
options, path = ContextOptions(length=2048, cache_k="f32", cache_v="f32"), Path(sys.argv[1])
with MemoryEstimator(read_header(path), use_mmap=False) as run:
    [host] = run.estimate(options)
resident = lambda: 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = resident()
with Model.open(path, gpu_layers=0, use_mmap=False) as model, Context(model, options) as context:
    with context.sequence() as session:
        for _ in session.evaluate_batches(range(1000, 1512), range(341), lambda *_: None):
            pass
        print(host.total, resident() - before)
"""


def child(code: str, path: Path) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    planned, measured = map(int, done.stdout.split())
    return planned, measured


def test_an_estimate_takes_little_memory(smollm2_gguf: Path) -> None:
    planned, taken = child(COST, smollm2_gguf)
    assert planned > 300e6
    assert taken < 64e6


def test_what_a_process_grows_by_is_what_was_planned(smollm2_gguf: Path) -> None:
    planned, grown = child(RESIDENT, smollm2_gguf)
    assert grown == pytest.approx(planned + MAX_LOGITS_BYTES, rel=0.1)  # of the logits of all, which it wants


def test_two_at_once_read_each_its_own_lines(tmp_path: Path, smollm2_gguf: Path) -> None:
    tiny = write_tiny(tmp_path / "m.gguf")
    cases = ((tiny, ContextOptions(length=512)), (smollm2_gguf, ContextOptions(length=4096)))
    alone = [estimate(*case) for case in cases]
    found: dict[int, list[BufferSizes]] = {0: [], 1: []}

    def again(number: int) -> None:
        with MemoryEstimator(read_header(cases[number][0]), use_mmap=False) as run:
            found[number] = [run.estimate(cases[number][1])[0] for _ in range(20)]

    threads = [threading.Thread(target=again, args=(number,)) for number in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [sizes] * 20 for number, sizes in enumerate(alone)}


# ---- what it refuses ---------------------------------------------------------------------------------


def test_a_bad_file_is_refused_before_llama_cpp_sees_it(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", {"llama.block_count": u32(0)})
    with pytest.raises(GGUFError, match="block_count"):
        MemoryEstimator(read_header(path))


def test_a_cache_type_that_does_not_fit_the_heads_is_wrong_usage(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")  # heads of 16
    with MemoryEstimator(read_header(path)) as run, pytest.raises(UsageError, match="q8_0 does not fit"):
        run.estimate(ContextOptions(length=64, cache_k="q8_0"))


def test_more_cells_than_can_be_estimated_are_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with MemoryEstimator(read_header(path), rope=RuntimeRope(context_length=2**31 - 1)) as run:
        [longest] = run.estimate(ContextOptions(length=MAX_CELLS))
        assert longest.cache == MAX_CELLS * 256
        for options in (ContextOptions(length=MAX_CELLS + 1), ContextOptions(length=2**30, sequences=256)):
            with pytest.raises(DoesNotFit, match="more than the 4,194,304 there can be"):
                run.estimate(options)


def test_an_engine_without_the_log_lines_or_the_function_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    monkeypatch.setitem(log_lines.BUFFER_SIZE_LINES, "compute", re.compile("scratch size = "))
    with (
        MemoryEstimator(read_header(path)) as run,
        pytest.raises(EngineError, match="its compute buffers") as refused,
    ):
        run.estimate(ContextOptions(length=64))
    assert "pigguf doctor" in (refused.value.hint or "")
    monkeypatch.setattr(symbols, "GRAPH_RESERVE", symbols.GRAPH_RESERVE._replace(name="_Z4gone"))
    with pytest.raises(BackendUnavailable, match="cannot estimate memory: it has no function _Z4gone"):
        MemoryEstimator(read_header(path))


@pytest.mark.parametrize("name", WIDE_GRAPHS)
def test_inspect_computes_the_cache_size_that_is_estimated(name: str, tmp_path: Path) -> None:
    """Compare with inspect, which computes sizes from headers alone, of all architectures."""
    path = write_tiny(tmp_path / "m.gguf", model=WIDE_GRAPHS[name])
    for cache in inspect(path).cache:
        kind = cache.type.lower()
        sizes = estimate(path, ContextOptions(length=64, cache_k=kind, cache_v=kind))
        assert sizes.cache == cache.bytes_per_token * 256  # llama.cpp's least window


def test_a_log_that_another_package_took_is_read_all_the_same_and_given_back(tmp_path: Path) -> None:
    """llama_cpp.Llama takes the library's only log when it is imported, and so may any program beside us."""
    llama, received = library.load(), []
    theirs = llama.llama_log_callback(lambda level, text, data: received.append(text))
    llama.llama_log_set(theirs, None)
    try:
        with MemoryEstimator(read_header(write_tiny(tmp_path / "m.gguf"))) as run:
            [host] = run.estimate(ContextOptions(length=64))
        assert host.compute > 0
        before = len(received)
        llama.llama_model_load_from_file(b"nothing", llama.llama_model_default_params())
        assert len(received) > before
    finally:
        llama.llama_log_set(library._router.callback(llama), None)


def test_ctrl_c_meanwhile_is_not_lost(tmp_path: Path) -> None:
    """It comes while the library logs, through which no exception can travel."""
    path = write_tiny(tmp_path / "tiny.gguf")
    with MemoryEstimator(read_header(path)) as run, Model.open(path) as model:
        library.log_to(lambda line: signal.raise_signal(signal.SIGINT))
        try:
            with pytest.raises(KeyboardInterrupt):
                run.estimate(ContextOptions(length=256))
            with pytest.raises(KeyboardInterrupt):
                Context(model, ContextOptions(length=256))
        finally:
            library.log_to(None)
