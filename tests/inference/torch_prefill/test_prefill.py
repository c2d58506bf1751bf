"""Prefill in PyTorch against llama.cpp's own: the same K and V in every layer, and the same logits after it.

Models are tiny, with a context that was extended by a factor of 4.
"""

from __future__ import annotations

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_checkpoints import make_checkpoint
from support.tiny_gguf import GRAPHS, linear, text_tokens, write_tiny

import pigguf
from pigguf.common.softmax_and_kl import kl_divergence
from pigguf.errors import Interrupted
from pigguf.gguf_io import TensorType
from pigguf.gguf_io.metadata import TypedValue, f32, string, u32
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope, Session
from pigguf.inference.torch_prefill import TorchPrefiller, forward, prefill
from pigguf.inference.torch_prefill.backend import CHUNK_TOKENS
from pigguf.inference.torch_prefill.kv_cache import KVCacheTensors
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.progress import SilentProgress

WINDOW = 16384
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", linear(4.0, WINDOW))


@contextmanager
def session_of(path: Path, *, torch_prefill: bool = True, **options: Any) -> Iterator[Session]:
    """Open a session that prefills all prompts in PyTorch, or with `torch_prefill=False` in llama.cpp."""
    with Model.open(path, gpu_layers=0) as model:
        context_options = ContextOptions(**{"length": min(6000, model.context_length), **options})
        prefiller = _AlwaysPrefiller(model, context_options) if torch_prefill else None
        with Context(model, context_options, prefiller=prefiller) as context, context.sequence() as session:
            yield session


class _AlwaysPrefiller(TorchPrefiller):
    """A prefiller for every prompt, on every CPU."""

    def should_prefill(self, n_past: int, count: int) -> bool:
        return self._shape is not None and count > 16


def prefilled(
    path: Path, tokens: list[int], *, torch_prefill: bool, **options: Any
) -> tuple[bytearray, np.ndarray]:
    """Return the state after prefilling tokens, and the logits of the last one."""
    with session_of(path, torch_prefill=torch_prefill, **options) as session:
        session.set_prompt(tokens)
        assert session.tokens == tokens
        return session.export_state(), session.context.logits(-1).copy()


def continued(path: Path, tokens: list[int], more: list[int], *, torch_prefill: bool) -> list[np.ndarray]:
    """Return the logits of each token of `more`, which llama.cpp computes after the prefill of `tokens`."""
    with session_of(path, torch_prefill=torch_prefill) as session:
        session.set_prompt(tokens)
        return [logits for _, logits in session.evaluate(more, range(len(more)))]


def by_layers(state: bytearray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return K and V of each layer: (n_cells, n_head_kv * head_dim) float32."""
    found = []
    layout = kv_state_layout.read_layout(state)
    for layer, (keys, values) in enumerate(zip(layout.keys, layout.values, strict=True)):
        k = _floats(state[keys], layout.key_types[layer]).reshape(layout.cells, -1)
        v = _floats(state[values], layout.value_types[layer])
        found.append((k, v.reshape(-1, layout.cells).T if layout.transposed else v.reshape(layout.cells, -1)))
    return found


def _floats(data: bytearray, type_: TensorType) -> np.ndarray:
    if type_ is TensorType.BF16:
        return torch.frombuffer(data, dtype=torch.bfloat16).float().numpy()
    return np.frombuffer(data, np.float16 if type_ is TensorType.F16 else np.float32).astype(np.float32)


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_close(found: bytearray, expected: bytearray, tolerance: float = 0.02) -> None:
    """Assert that K and V of every layer and position are equal up to rounding."""
    assert len(found) == len(expected)
    for ours, theirs in zip(by_layers(found), by_layers(expected), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert relative_difference(x, y) < tolerance
            worst = np.linalg.norm(x - y, axis=1) / np.linalg.norm(y, axis=1)
            assert worst.max() < 8 * tolerance


# ---- the same as llama.cpp -----------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_and_the_following_logits_equal_llama_cpps(
    family: str, type_: str, tmp_path: Path
) -> None:
    checkpoint = make_checkpoint(
        tmp_path / "checkpoint",
        family,
        rope_parameters=LINEAR,
        max_position_embeddings=512,
        num_hidden_layers=3,
        **FAMILIES[family],
    )
    path = tmp_path / "model.gguf"
    assert pigguf.convert(checkpoint, path, type=type_).plan.rope.factor == 4
    tokens = [int(token) for token in np.random.default_rng(2).integers(3, 320, 1500)]
    (ours, _), (theirs, _) = (
        prefilled(path, tokens, torch_prefill=torch_prefill) for torch_prefill in (True, False)
    )
    assert_close(ours, theirs)
    logits, expected = (
        continued(path, tokens, tokens[:100], torch_prefill=torch_prefill) for torch_prefill in (True, False)
    )
    kl, same, *_ = np.mean([kl_divergence(*pair, 0) for pair in zip(expected, logits, strict=True)], axis=0)
    assert kl < 3e-4  # a twentieth of what a lost factor makes of it
    assert same >= 0.95


@pytest.mark.parametrize("name", [name for name in GRAPHS if name.startswith("LlamaForCausalLM")])
def test_every_optional_tensor_of_a_llama(name: str, tmp_path: Path) -> None:
    """Biases, and an output matrix of its own or none."""
    path = write_tiny(tmp_path / "tiny.gguf", model=GRAPHS[name])
    tokens = text_tokens(64)
    (ours, _), (theirs, _) = (
        prefilled(path, tokens, torch_prefill=torch_prefill, length=64) for torch_prefill in (True, False)
    )
    assert_close(ours, theirs)


ROPES: dict[str, dict[str, TypedValue | None]] = {
    "none": {"llama.context_length": u32(WINDOW)},
    "linear": linear(4.0, WINDOW),
    "linear, odd": {**linear(3.7, WINDOW), "llama.rope.freq_base": f32(123456.0)},
    "yarn": {**linear(4.0, WINDOW), "llama.rope.scaling.type": string("yarn")},
    "yarn, attention": {
        **linear(8.0, WINDOW),
        "llama.rope.scaling.type": string("yarn"),
        "llama.rope.scaling.original_context_length": u32(128),
        "llama.rope.scaling.attn_factor": f32(0.8),
    },
}


@pytest.mark.parametrize("freq_factors", [False, True])
@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_type_rotates_keys_as_llama_cpp_does(
    rope: str, freq_factors: bool, tmp_path: Path
) -> None:
    """Layer 0 keys depend on the token and its position only: they are equal except for bfloat16 rounding."""
    shapes = {"rope_freqs.weight": (8,)} if freq_factors else {}
    path = write_tiny(tmp_path / "tiny.gguf", ROPES[rope], shapes=shapes)
    tokens = text_tokens(5500)
    options: dict[str, Any] = {"cache_k": "f32", "cache_v": "f32", "flash_attention": False, "batch": 2048}
    (ours, _), (theirs, _) = (
        prefilled(path, tokens, torch_prefill=torch_prefill, **options) for torch_prefill in (True, False)
    )
    (keys, values), *_ = by_layers(ours)
    (expected_keys, expected_values), *_ = by_layers(theirs)
    for found, expected in ((keys, expected_keys), (values, expected_values)):
        worst = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert worst.max() < 0.01
    assert_close(ours, theirs, 0.03)


@pytest.mark.parametrize(
    ("types", "flash"),
    [
        *itertools.product((("f32", "f32"), ("bf16", "bf16")), (False, True)),
        (("f16", "f32"), False),  # flash attention has one type for both
    ],
)
def test_every_kv_cache_type_and_layout_is_filled(tiny: Path, types: tuple[str, str], flash: bool) -> None:
    options = {"cache_k": types[0], "cache_v": types[1], "flash_attention": flash}
    tokens = text_tokens(700)
    (ours, logits), (theirs, expected) = (
        prefilled(tiny, tokens, torch_prefill=torch_prefill, **options) for torch_prefill in (True, False)
    )
    assert_close(ours, theirs)
    assert kl_divergence(expected, logits, 0)[0] < 0.02


def test_torchs_own_attention_kernel_gives_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "bfloat16_instructions", lambda: frozenset({"amx_bf16"}))
    tokens = text_tokens(1000)
    (ours, _), (theirs, _) = (
        prefilled(tiny, tokens, torch_prefill=torch_prefill) for torch_prefill in (True, False)
    )
    assert_close(ours, theirs)


# ---- sessions with tokens ------------------------------------------------------------------------------


def test_a_session_with_tokens_continues_from_them(tiny: Path) -> None:
    tokens = text_tokens(5000)
    with session_of(tiny) as session:
        session.prefill(tokens[:1111])
        before = by_layers(session.export_state())
        assert session.set_prompt(tokens) == 1111
        ours = session.export_state()
    theirs, _ = prefilled(tiny, tokens, torch_prefill=False)
    assert_close(ours, theirs)
    for (keys, values), (old_keys, old_values) in zip(by_layers(ours), before, strict=True):
        np.testing.assert_array_equal(keys[:1111], old_keys)  # not computed again
        np.testing.assert_array_equal(values[:1111], old_values)


@pytest.mark.parametrize("flash", [False, True])
def test_cells_in_another_order_than_their_positions(tiny: Path, flash: bool) -> None:
    """After a context shift, the next tokens reuse the cells of the removed ones."""
    tokens = text_tokens(900)
    states = []
    for torch_prefill in (True, False):
        with session_of(tiny, torch_prefill=torch_prefill, flash_attention=flash) as session:
            session.prefill(tokens[:400])
            session.shift(20, 150)
            session.prefill(tokens[400:500])
            if torch_prefill:
                positions = kv_state_layout.read_layout(session.export_state()).positions
                assert (np.diff(positions) != 1).any()
            session.set_prompt([*session.tokens, *tokens[500:]])
            states.append(session.export_state())
    ours, theirs = states
    order = kv_state_layout.read_layout(theirs).positions.argsort()
    for (keys, values), (expected_keys, expected_values) in zip(
        by_layers(ours), by_layers(theirs), strict=True
    ):
        assert relative_difference(keys, expected_keys[order]) < 0.02
        assert relative_difference(values, expected_values[order]) < 0.02


def test_progress_is_reported_in_small_steps_and_adds_up(tiny: Path) -> None:
    progress = RecordedProgress()
    with session_of(tiny) as session:
        session.set_prompt(text_tokens(5001), progress)
    (name, total, unit), *_ = progress.stages
    assert (name, total, unit) == ("prefill", 5000, "tokens")
    amounts = progress.amounts[: progress.ends[0]]
    assert sum(amounts) == pytest.approx(5000)
    assert max(amounts) < 2500
    assert len(amounts) > 10


# ---- interrupted ---------------------------------------------------------------------------------------


def test_an_interrupted_prefill_keeps_complete_chunks_and_can_continue(tiny: Path) -> None:
    tokens = text_tokens(5500)
    with session_of(tiny) as session:
        with pytest.raises(Interrupted, match=f"after {16 + CHUNK_TOKENS:,} tokens"):
            session.set_prompt(tokens, RecordedProgress(at=16 + CHUNK_TOKENS + 100, call=session.interrupt))
        assert session.tokens == tokens[: 16 + CHUNK_TOKENS]
        assert session.set_prompt(tokens) == 16 + CHUNK_TOKENS
        ours = session.export_state()
    theirs, _ = prefilled(tiny, tokens, torch_prefill=False)
    assert_close(ours, theirs)


def test_an_interruption_in_the_first_chunk_keeps_what_llama_cpp_has_prefilled(tiny: Path) -> None:
    tokens = text_tokens(3000)
    with session_of(tiny) as session:
        with pytest.raises(Interrupted):
            session.set_prompt(tokens, RecordedProgress(at=20, call=session.interrupt))
        assert session.tokens == tokens[:16]
        assert session.set_prompt(tokens) == 16


def test_ctrl_c_keeps_complete_chunks(tiny: Path) -> None:
    tokens = text_tokens(5500)
    with session_of(tiny) as session:
        with pytest.raises(KeyboardInterrupt):
            session.set_prompt(
                tokens,
                RecordedProgress(at=16 + CHUNK_TOKENS + 100, call=lambda: signal.raise_signal(signal.SIGINT)),
            )
        assert session.tokens == tokens[: 16 + CHUNK_TOKENS]
        session.prefill(tokens[16 + CHUNK_TOKENS :])
        ours = session.export_state()
    assert_close(ours, prefilled(tiny, tokens, torch_prefill=False)[0])


# ---- verified ------------------------------------------------------------------------------------------


def prefilled_by_llama_cpp_with_warning(
    path: Path, caplog: pytest.LogCaptureFixture, tokens: list[int]
) -> list[str]:
    """Prefill tokens where PyTorch must give up, assert llama.cpp's state, and return the warnings."""
    with caplog.at_level(logging.WARNING, "pigguf"), session_of(path, length=600) as session:
        session.set_prompt(tokens)
        assert session.tokens == tokens
        assert not session.context.prefiller.should_prefill(0, 500)  # type: ignore[union-attr]
        ours = session.export_state()
    theirs, _ = prefilled(path, tokens, torch_prefill=False, length=600)
    assert_close(ours, theirs, 1e-3)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("mistake", ["factor", "base", "pairs"])
def test_wrong_rope_parameters_are_detected(
    mistake: str, tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no factor, another rope_theta, or the other style of pairs, llama.cpp prefills."""
    original = forward.PrefillForward.__init__

    def mistaken(self: forward.PrefillForward, shape: Any, rope: Any, *rest: Any) -> None:
        if mistake == "pairs":
            shape = replace(shape, interleaved=not shape.interleaved)
        elif mistake == "factor":
            rope = replace(rope, factor=1.0)
        else:
            rope = replace(rope, rope_theta=100.0)
        original(self, shape, rope, *rest)

    monkeypatch.setattr(forward.PrefillForward, "__init__", mistaken)
    (warning,) = prefilled_by_llama_cpp_with_warning(tiny, caplog, text_tokens(300))
    assert "K of layer 0 differs from what llama.cpp computes" in warning
    assert str(tiny) in warning


def test_a_runtime_factor_override_applies(tiny: Path) -> None:
    tokens = text_tokens(600)
    states = []
    for torch_prefill in (True, False):
        with Model.open(tiny, gpu_layers=0, rope=RuntimeRope(factor=2.0)) as model:
            options = ContextOptions(length=600)
            prefiller = _AlwaysPrefiller(model, options) if torch_prefill else None
            with Context(model, options, prefiller=prefiller) as context, context.sequence() as session:
                session.set_prompt(tokens)
                states.append(session.export_state())
    assert_close(*states)
    assert (
        relative_difference(
            by_layers(states[0])[0][0], by_layers(prefilled(tiny, tokens, torch_prefill=False)[0])[0][0]
        )
        > 0.1
    )


def test_torch_that_fails_leaves_the_prompt_to_llama_cpp(
    tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(KVCacheTensors, "load_state", fail)
    (warning,) = prefilled_by_llama_cpp_with_warning(tiny, caplog, text_tokens(300))
    assert "can't allocate memory" in warning


class RecordedProgress(SilentProgress):
    """Record progress, and call a function when `at` tokens are done."""

    def __init__(self, at: float = np.inf, call: Callable[[], None] = lambda: None) -> None:
        self.stages: list[tuple[str, float, str]] = []
        self.amounts: list[float] = []
        self.ends: list[int] = []
        self._at = at
        self._call = call

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.stages.append((stage, total, unit))

    def advance(self, amount: float) -> None:
        before = sum(self.amounts)
        self.amounts.append(amount)
        if before < self._at <= before + amount:
            self._call()

    def end(self) -> None:
        self.ends.append(len(self.amounts))
