"""Prompts read in PyTorch against llama.cpp's own prefill: the same K and V in every layer, and what follows.

Models are tiny, with a window that was extended by a factor of 4.
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
from pigguf.common.numerics import kl_divergence
from pigguf.errors import Interrupted
from pigguf.gguf_io import TensorType
from pigguf.gguf_io.metadata import Typed, f32, string, u32
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope, Session
from pigguf.inference.torch_prefill import TorchPrefiller, forward, prefill
from pigguf.inference.torch_prefill.backend import PART
from pigguf.inference.torch_prefill.kv_cache import Cache
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.progress import Silent

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
def session_of(path: Path, *, hybrid: bool = True, **options: Any) -> Iterator[Session]:
    """With a reader that reads all prompts where `hybrid`, else with none."""
    with Model.open(path, gpu_layers=0) as model:
        made = ContextOptions(**{"length": min(6000, model.context_length), **options})
        reader = _Always(model, made) if hybrid else None
        with Context(model, made, prefiller=reader) as context, context.sequence() as session:
            yield session


class _Always(TorchPrefiller):
    """Worth it for every prompt, whatever the CPU."""

    def is_worth(self, held: int, count: int) -> bool:
        return self._shape is not None and count > 16


def read(path: Path, tokens: list[int], *, hybrid: bool, **options: Any) -> tuple[bytearray, np.ndarray]:
    """The state after reading tokens, and the logits after the last."""
    with session_of(path, hybrid=hybrid, **options) as session:
        session.set_prompt(tokens)
        assert session.tokens == tokens
        return session.export_state(), session.context.logits(-1).copy()


def continued(path: Path, tokens: list[int], more: list[int], *, hybrid: bool) -> list[np.ndarray]:
    """The logits after each token of `more`, which llama.cpp computes behind what was read."""
    with session_of(path, hybrid=hybrid) as session:
        session.set_prompt(tokens)
        return [logits for _, logits in session.evaluate(more, range(len(more)))]


def by_layers(state: bytearray) -> list[tuple[np.ndarray, np.ndarray]]:
    """K and V of each layer: (cells, width) float32."""
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


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_alike(found: bytearray, expected: bytearray, tolerance: float = 0.02) -> None:
    """Every layer's K and V up to rounding, at every position."""
    assert len(found) == len(expected)
    for ours, theirs in zip(by_layers(found), by_layers(expected), strict=True):
        for x, y in zip(ours, theirs, strict=True):
            assert apart(x, y) < tolerance
            worst = np.linalg.norm(x - y, axis=1) / np.linalg.norm(y, axis=1)
            assert worst.max() < 8 * tolerance


# ---- the same as llama.cpp -----------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["F32", "BF16", "Q8_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_and_what_follows_are_llama_cpps(family: str, type_: str, tmp_path: Path) -> None:
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
    (ours, _), (theirs, _) = (read(path, tokens, hybrid=hybrid) for hybrid in (True, False))
    assert_alike(ours, theirs)
    logits, expected = (continued(path, tokens, tokens[:100], hybrid=hybrid) for hybrid in (True, False))
    kl, same, *_ = np.mean([kl_divergence(*pair, 0) for pair in zip(expected, logits, strict=True)], axis=0)
    assert kl < 3e-4  # a twentieth of what a lost factor makes of it
    assert same >= 0.95


@pytest.mark.parametrize("name", [name for name in GRAPHS if name.startswith("LlamaForCausalLM")])
def test_every_part_that_a_llama_may_have(name: str, tmp_path: Path) -> None:
    """Biases, and an output matrix of its own or none."""
    path = write_tiny(tmp_path / "tiny.gguf", model=GRAPHS[name])
    tokens = text_tokens(64)
    (ours, _), (theirs, _) = (read(path, tokens, hybrid=hybrid, length=64) for hybrid in (True, False))
    assert_alike(ours, theirs)


ROPES: dict[str, dict[str, Typed | None]] = {
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


@pytest.mark.parametrize("divisors", [False, True])
@pytest.mark.parametrize("rope", ROPES)
def test_every_kind_of_scaling_turns_keys_as_llama_cpp_does(
    rope: str, divisors: bool, tmp_path: Path
) -> None:
    """Layer 0's keys depend on nothing but the token and its position: they are equal but for bfloat16."""
    shapes = {"rope_freqs.weight": (8,)} if divisors else {}
    path = write_tiny(tmp_path / "tiny.gguf", ROPES[rope], shapes=shapes)
    tokens = text_tokens(5500)
    options: dict[str, Any] = {"cache_k": "f32", "cache_v": "f32", "flash_attention": False, "batch": 2048}
    (ours, _), (theirs, _) = (read(path, tokens, hybrid=hybrid, **options) for hybrid in (True, False))
    (keys, values), *_ = by_layers(ours)
    (expected_keys, expected_values), *_ = by_layers(theirs)
    for found, expected in ((keys, expected_keys), (values, expected_values)):
        worst = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        assert worst.max() < 0.01
    assert_alike(ours, theirs, 0.03)


@pytest.mark.parametrize(
    ("types", "flash"),
    [
        *itertools.product((("f32", "f32"), ("bf16", "bf16")), (False, True)),
        (("f16", "f32"), False),  # flash attention has one type for both
    ],
)
def test_every_cache_is_filled_in_its_own_types_and_orientation(
    tiny: Path, types: tuple[str, str], flash: bool
) -> None:
    options = {"cache_k": types[0], "cache_v": types[1], "flash_attention": flash}
    tokens = text_tokens(700)
    (ours, logits), (theirs, expected) = (
        read(tiny, tokens, hybrid=hybrid, **options) for hybrid in (True, False)
    )
    assert_alike(ours, theirs)
    assert kl_divergence(expected, logits, 0)[0] < 0.02


def test_a_kernel_of_torchs_own_reads_the_same(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "bfloat16_arithmetic", lambda: frozenset({"amx_bf16"}))
    tokens = text_tokens(1000)
    (ours, _), (theirs, _) = (read(tiny, tokens, hybrid=hybrid) for hybrid in (True, False))
    assert_alike(ours, theirs)


# ---- what a session holds ------------------------------------------------------------------------------


def test_a_session_that_holds_tokens_goes_on_from_them(tiny: Path) -> None:
    tokens = text_tokens(5000)
    with session_of(tiny) as session:
        session.prefill(tokens[:1111])
        before = by_layers(session.export_state())
        assert session.set_prompt(tokens) == 1111
        ours = session.export_state()
    theirs, _ = read(tiny, tokens, hybrid=False)
    assert_alike(ours, theirs)
    for (keys, values), (old_keys, old_values) in zip(by_layers(ours), before, strict=True):
        np.testing.assert_array_equal(keys[:1111], old_keys)  # not computed again
        np.testing.assert_array_equal(values[:1111], old_values)


@pytest.mark.parametrize("flash", [False, True])
def test_cells_that_lie_in_another_order_than_their_positions(tiny: Path, flash: bool) -> None:
    """As after a conversation whose oldest turns were dropped: what comes next fills the hole."""
    tokens = text_tokens(900)
    states = []
    for hybrid in (True, False):
        with session_of(tiny, hybrid=hybrid, flash_attention=flash) as session:
            session.prefill(tokens[:400])
            session.shift(20, 150)
            session.prefill(tokens[400:500])
            if hybrid:
                positions = kv_state_layout.read_layout(session.export_state()).positions
                assert (np.diff(positions) != 1).any()
            session.set_prompt([*session.tokens, *tokens[500:]])
            states.append(session.export_state())
    ours, theirs = states
    order = kv_state_layout.read_layout(theirs).positions.argsort()
    for (keys, values), (expected_keys, expected_values) in zip(
        by_layers(ours), by_layers(theirs), strict=True
    ):
        assert apart(keys, expected_keys[order]) < 0.02
        assert apart(values, expected_values[order]) < 0.02


def test_progress_is_told_in_small_parts_and_adds_up(tiny: Path) -> None:
    told = Told()
    with session_of(tiny) as session:
        session.set_prompt(text_tokens(5001), told)
    (name, total, unit), *_ = told.begun
    assert (name, total, unit) == ("prefill", 5000, "tokens")
    amounts = told.amounts[: told.ends[0]]
    assert sum(amounts) == pytest.approx(5000)
    assert max(amounts) < 2500
    assert len(amounts) > 10


# ---- stopped -------------------------------------------------------------------------------------------


def test_an_interrupted_reading_keeps_the_parts_that_were_done_and_can_go_on(tiny: Path) -> None:
    tokens = text_tokens(5500)
    with session_of(tiny) as session:
        with pytest.raises(Interrupted, match=f"after {16 + PART:,} tokens"):
            session.set_prompt(tokens, Told(at=16 + PART + 100, call=session.interrupt))
        assert session.tokens == tokens[: 16 + PART]
        assert session.set_prompt(tokens) == 16 + PART
        ours = session.export_state()
    theirs, _ = read(tiny, tokens, hybrid=False)
    assert_alike(ours, theirs)


def test_an_interruption_in_the_first_part_leaves_what_llama_cpp_has_read(tiny: Path) -> None:
    tokens = text_tokens(3000)
    with session_of(tiny) as session:
        with pytest.raises(Interrupted):
            session.set_prompt(tokens, Told(at=20, call=session.interrupt))
        assert session.tokens == tokens[:16]
        assert session.set_prompt(tokens) == 16


def test_ctrl_c_keeps_the_parts_that_were_done(tiny: Path) -> None:
    tokens = text_tokens(5500)
    with session_of(tiny) as session:
        with pytest.raises(KeyboardInterrupt):
            session.set_prompt(
                tokens, Told(at=16 + PART + 100, call=lambda: signal.raise_signal(signal.SIGINT))
            )
        assert session.tokens == tokens[: 16 + PART]
        session.prefill(tokens[16 + PART :])
        ours = session.export_state()
    assert_alike(ours, read(tiny, tokens, hybrid=False)[0])


# ---- proved --------------------------------------------------------------------------------------------


def warned_and_read_by_llama_cpp(
    path: Path, caplog: pytest.LogCaptureFixture, tokens: list[int]
) -> list[str]:
    """Read tokens with the hybrid reader where it must give up: llama.cpp's state, and the warnings."""
    with caplog.at_level(logging.WARNING, "pigguf"), session_of(path, length=600) as session:
        session.set_prompt(tokens)
        assert session.tokens == tokens
        assert not session.context.prefiller.is_worth(0, 500)  # type: ignore[union-attr]
        ours = session.export_state()
    theirs, _ = read(path, tokens, hybrid=False, length=600)
    assert_alike(ours, theirs, 1e-3)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("lie", ["factor", "base", "pairs"])
def test_positions_read_otherwise_are_found_out(
    lie: str, tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factor taken away, another base, heads turned in halves and not in pairs: llama.cpp reads."""
    original = forward.Forward.__init__

    def lying(self: forward.Forward, shape: Any, rope: Any, *rest: Any) -> None:
        if lie == "pairs":
            shape = replace(shape, neighbours=not shape.neighbours)
        elif lie == "factor":
            rope = replace(rope, rope_type="none", factor=1.0)
        else:
            rope = replace(rope, rope_theta=100.0)
        original(self, shape, rope, *rest)

    monkeypatch.setattr(forward.Forward, "__init__", lying)
    (warning,) = warned_and_read_by_llama_cpp(tiny, caplog, text_tokens(300))
    assert "K of layer 0 comes out otherwise than in llama.cpp" in warning
    assert str(tiny) in warning


def test_a_factor_given_at_run_time_holds_here_too(tiny: Path) -> None:
    tokens = text_tokens(600)
    states = []
    for hybrid in (True, False):
        with Model.open(tiny, gpu_layers=0, rope=RuntimeRope(factor=2.0)) as model:
            options = ContextOptions(length=600)
            reader = _Always(model, options) if hybrid else None
            with Context(model, options, prefiller=reader) as context, context.sequence() as session:
                session.set_prompt(tokens)
                states.append(session.export_state())
    assert_alike(*states)
    assert apart(by_layers(states[0])[0][0], by_layers(read(tiny, tokens, hybrid=False)[0])[0][0]) > 0.1


def test_torch_that_fails_leaves_the_prompt_to_llama_cpp(
    tiny: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Cache, "take", fail)
    (warning,) = warned_and_read_by_llama_cpp(tiny, caplog, text_tokens(300))
    assert "can't allocate memory" in warning


class Told(Silent):
    """Remembers what it was told, and calls somebody once so much was done."""

    def __init__(self, at: float = np.inf, call: Callable[[], None] = lambda: None) -> None:
        self.begun: list[tuple[str, float, str]] = []
        self.amounts: list[float] = []
        self.ends: list[int] = []
        self._at = at
        self._call = call

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.begun.append((stage, total, unit))

    def advance(self, amount: float) -> None:
        before = sum(self.amounts)
        self.amounts.append(amount)
        if before < self._at <= before + amount:
            self._call()

    def end(self) -> None:
        self.ends.append(len(self.amounts))
