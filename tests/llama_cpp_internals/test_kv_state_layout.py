"""KV states, as the pinned library lays them out: read, transposed, built, switched, shifted, saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support.tiny_gguf import (
    GRAPHS,
    HEADS,
    KV_HEADS,
    LAYERS,
    WIDTH,
    linear,
    text_tokens,
    write_tiny,
)

from pigguf.common.softmax_and_kl import kl_divergence
from pigguf.errors import EngineError, UsageError
from pigguf.gguf_io import TensorType
from pigguf.gguf_io.metadata import u32
from pigguf.inference.engine import (
    Context,
    ContextOptions,
    FlashAttentionSwitch,
    Model,
    RuntimeRope,
    SamplingParams,
    Session,
)
from pigguf.llama_cpp_internals import kv_state_layout

GREEDY = SamplingParams(temperature=0)
TOKENS = text_tokens(72)
GEMMA3 = next(model for model in GRAPHS.values() if model.architecture == "gemma3")
CACHE_TYPES = ("f16", "f32", "bf16")
WIDTHS = (WIDTH * KV_HEADS // HEADS,) * LAYERS


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", linear(4.0))


@contextmanager
def session_of(path: Path, rope: RuntimeRope | None = None, **options: object) -> Iterator[Session]:
    with (
        Model.open(path, rope=rope) as model,
        Context(model, ContextOptions(**{"length": 512, "batch": 32, **options})) as context,  # type: ignore[arg-type]
        context.sequence() as session,
    ):
        yield session


def last_logits(session: Session, tokens: list[int]) -> np.ndarray:
    *_, (_, logits) = session.evaluate(tokens, [len(tokens) - 1])
    return logits


# ---- the layout, against the library -----------------------------------------------------------------


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_every_byte_of_the_librarys_state_is_accounted_for(tiny: Path, cache_type: str, flash: bool) -> None:
    with session_of(tiny, cache_k=cache_type, cache_v=cache_type, flash_attention=flash) as session:
        session.prefill(TOKENS)
        layout = kv_state_layout.read_layout(session.export_state())
    assert (layout.cells, layout.transposed) == (len(TOKENS), not flash)
    assert layout.positions.tolist() == list(range(len(TOKENS)))
    assert layout.value_widths == WIDTHS
    assert {type_.name for type_ in layout.key_types + layout.value_types} == {cache_type.upper()}


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_a_transposed_state_is_the_librarys_own_without_flash_attention(tiny: Path, cache_type: str) -> None:
    states = []
    for flash in (True, False):
        with session_of(tiny, cache_k=cache_type, cache_v=cache_type, flash_attention=flash) as session:
            session.prefill(TOKENS)  # the first layer's K and V come before any attention
            states.append(session.export_state())
    with_flash, without = states
    kv_state_layout.transpose_values(with_flash)
    layout = kv_state_layout.read_layout(without)
    assert len(with_flash) == len(without)
    assert with_flash[: layout.keys[0].stop] == without[: layout.keys[0].stop]
    rows = slice(layout.values[0].start - 12, layout.values[0].stop)  # with its head
    assert with_flash[rows] == without[rows]


@pytest.mark.parametrize("cells", [1, 37, 5000])
def test_transposing_twice_gives_the_same_bytes_and_once_the_transpose(cells: int) -> None:
    state, layout = kv_state_layout.new_state(
        cells, TensorType.F16, TensorType.F32, (48, 2100), transposed=False
    )
    random = np.random.default_rng(0)
    for rows in (*layout.keys, *layout.values):
        state[rows] = random.bytes(rows.stop - rows.start)
    before = bytes(state)
    kv_state_layout.transpose_values(state)
    transposed_layout = kv_state_layout.read_layout(state)
    assert transposed_layout.transposed
    for rows, width in zip(layout.values, (48, 2100), strict=True):
        values = np.frombuffer(before[rows], np.uint32).reshape(cells, width)
        assert np.frombuffer(state[rows], np.uint32).tobytes() == values.T.tobytes()
    kv_state_layout.transpose_values(state)
    assert state == before


@pytest.mark.parametrize("transposed", [False, True])
def test_a_state_made_here_is_one_the_library_takes(tiny: Path, transposed: bool) -> None:
    with session_of(tiny, flash_attention=not transposed) as session:
        session.prefill(TOKENS)
        theirs = session.export_state()
        made, layout = kv_state_layout.new_state(
            len(TOKENS), TensorType.F16, TensorType.F16, WIDTHS, transposed=transposed
        )
        for rows in (*layout.keys, *layout.values):
            made[rows] = theirs[rows]
        assert made == theirs
        session.truncate(0)
        session.import_state(made, TOKENS)
        assert session.export_state() == theirs


@pytest.mark.parametrize("damage", [0, 8, 12, 16 + 4, -1])
def test_a_state_that_is_not_understood_is_refused(tiny: Path, damage: int) -> None:
    with session_of(tiny) as session:
        session.prefill(TOKENS)
        state = session.export_state()
    if damage < 0:
        del state[-1]
    else:
        state[damage] ^= 0xFF
    with pytest.raises(EngineError, match="not laid out"):
        kv_state_layout.read_layout(state)


def test_two_caches_of_a_model_with_sliding_layers_are_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "gemma3.gguf", model=GEMMA3)
    with session_of(path, length=64) as session:
        assert session.context.model.sliding_window
        session.prefill(TOKENS[:40])
        with pytest.raises(EngineError, match="not laid out"):
            kv_state_layout.read_layout(session.export_state())


# ---- flash attention switch --------------------------------------------------------------------------


@pytest.mark.parametrize("cache_k", ["f16", "f32"])
def test_decode_after_the_switch_is_plain_decode(tiny: Path, cache_k: str) -> None:
    with session_of(tiny, cache_k=cache_k, flash_attention=True) as session:
        session.prefill(TOKENS)
        expected = list(session.generate(GREEDY, max_tokens=24))
    with session_of(
        tiny, cache_k=cache_k, flash_attention_switch=FlashAttentionSwitch(decode=32, prompt=16)
    ) as session:
        session.prefill(TOKENS)
        assert not session.context.values_transposed
        assert list(session.generate(GREEDY, max_tokens=24)) == expected
        assert session.context.values_transposed
        assert session.tokens == TOKENS + expected[:-1]


def test_the_switch_goes_back_for_a_long_prompt_and_not_for_a_short_one(tiny: Path) -> None:
    with session_of(tiny, flash_attention_switch=FlashAttentionSwitch(decode=32, prompt=16)) as session:
        session.prefill(TOKENS)
        texts = session.generate(GREEDY, max_tokens=2)
        next(texts)
        assert not session.context.values_transposed, "the first token does not wait for the move"
        next(texts)
        session.prefill(TOKENS[:8])
        assert session.context.values_transposed
        session.prefill(TOKENS)
        assert not session.context.values_transposed
        switched = last_logits(session, TOKENS[:1])
        tokens = session.tokens
    with session_of(tiny) as session:
        assert kl_divergence(last_logits(session, tokens), switched, 0)[0] < 1e-5


def test_prompts_leave_flash_attention_at_the_given_depth(tiny: Path) -> None:
    with session_of(
        tiny, flash_attention_switch=FlashAttentionSwitch(decode=64, prefill=64, prompt=16)
    ) as session:
        session.prefill(TOKENS[:64])
        assert not session.context.values_transposed
        session.prefill(TOKENS[64:] + TOKENS)
        assert session.context.values_transposed


def test_an_answer_that_grows_past_the_depth_moves_on_its_way(tiny: Path) -> None:
    with session_of(tiny, flash_attention=True) as session:
        session.prefill(TOKENS)
        expected = list(session.generate(GREEDY, max_tokens=24))
    with session_of(
        tiny, flash_attention_switch=FlashAttentionSwitch(decode=len(TOKENS) + 8, prompt=16)
    ) as session:
        session.prefill(TOKENS)
        texts = session.generate(GREEDY, max_tokens=24)
        generated = [next(texts) for _ in range(4)]
        assert not session.context.values_transposed
        generated += texts
        assert session.context.values_transposed
    assert generated == expected


def test_several_sequences_move_together(tiny: Path) -> None:
    options = ContextOptions(
        length=256, batch=32, sequences=3, flash_attention_switch=FlashAttentionSwitch(decode=32, prompt=16)
    )
    with Model.open(tiny) as model, Context(model, options) as context:
        sessions = [context.sequence() for _ in range(3)]
        for number, session in enumerate(sessions):
            session.prefill(TOKENS[number:])
        next(sessions[1].generate(GREEDY, max_tokens=1))
        assert context.values_transposed
        generated = [list(session.generate(GREEDY, max_tokens=8)) for session in sessions]
    for number, answer in enumerate(generated):
        with session_of(tiny) as session:
            session.prefill(TOKENS[number:])
            assert list(session.generate(GREEDY, max_tokens=8)) == answer


def test_a_layout_that_was_not_understood_costs_a_second_prefill_and_a_warning(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with session_of(tiny) as session:
        session.prefill(TOKENS)
        expected = list(session.generate(GREEDY, max_tokens=16))

    def garble(state: bytearray) -> None:
        transpose(state)
        for rows in kv_state_layout.read_layout(state).values:
            state[rows] = np.frombuffer(state[rows], np.uint16)[::-1].tobytes()

    transpose = kv_state_layout.transpose_values
    monkeypatch.setattr(kv_state_layout, "transpose_values", garble)
    with (
        caplog.at_level(logging.WARNING, logger="pigguf"),
        session_of(tiny, flash_attention_switch=FlashAttentionSwitch(decode=32, prompt=16)) as session,
    ):
        session.prefill(TOKENS)
        assert list(session.generate(GREEDY, max_tokens=16)) == expected
        session.prefill(TOKENS)
        assert len(list(session.generate(GREEDY, max_tokens=4))) == 4
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "flash attention stays off" in caplog.text


def test_models_with_sliding_layers_stay_as_they_are(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "gemma3.gguf", model=GEMMA3)
    with session_of(
        path, length=64, flash_attention_switch=FlashAttentionSwitch(decode=8, prompt=4)
    ) as session:
        session.prefill(TOKENS[:40])
        assert len(list(session.generate(GREEDY, max_tokens=2))) == 2
        assert not session.context.values_transposed


def test_a_switch_beside_options_that_fix_flash_attention_is_refused() -> None:
    with pytest.raises(UsageError, match="flash attention switch"):
        ContextOptions(flash_attention=True, flash_attention_switch=FlashAttentionSwitch(decode=1))
    with pytest.raises(UsageError, match="flash attention switch"):
        ContextOptions(cache_v="q8_0", flash_attention_switch=FlashAttentionSwitch(decode=1))


# ---- saved and loaded --------------------------------------------------------------------------------


def test_a_saved_state_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "state")
    with session_of(tiny) as session:
        session.prefill(TOKENS)
        session.save_state(file)
        expected = list(session.generate(GREEDY, max_tokens=16))
    with session_of(tiny) as session:
        session.prefill(TOKENS[:9])
        session.load_state(file, TOKENS)
        assert session.tokens == TOKENS
        assert list(session.generate(GREEDY, max_tokens=16)) == expected


def test_a_state_of_other_tokens_leaves_an_empty_session(tiny: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "state")
    with session_of(tiny) as session:
        session.prefill(TOKENS)
        session.save_state(file)
        for others in (TOKENS[1:] + TOKENS[:1], TOKENS[:-1], [*TOKENS, 5]):
            with pytest.raises(EngineError):
                session.load_state(file, others)
            assert session.tokens == []
        session.prefill(TOKENS)
        state = session.export_state()
        with pytest.raises(EngineError, match="holds other tokens"):
            session.import_state(state, TOKENS[:-1])
        assert session.tokens == []


# ---- moved to other positions ------------------------------------------------------------------------

ONE_LAYER = {f"blk.1.{name}.weight": None for name in (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down",
)}  # fmt: skip


def one_layer_of(path: Path, heads: int) -> Path:
    """In one layer, K and V depend on a token and its position alone."""
    keys = {"block_count": 1, "attention.head_count": heads, "attention.head_count_kv": heads}
    keys["rope.dimension_count"] = WIDTH // heads
    widths = {f"blk.0.attn_{name}.weight": (WIDTH, WIDTH) for name in "kv"}
    metadata = {**linear(4.0), **{f"llama.{key}": u32(value) for key, value in keys.items()}}
    return write_tiny(path, metadata, shapes={**ONE_LAYER, **widths})


@pytest.mark.parametrize(
    ("cache_k", "heads", "most"), [("f32", 4, 1e-9), ("f16", 4, 1e-5), ("q8_0", 1, 0.05)]
)
def test_after_a_drop_the_keys_are_those_of_a_fresh_prefill(
    tmp_path: Path, cache_k: str, heads: int, most: float
) -> None:
    """Compare K shift with a new prefill.

    With one head of 64 dimensions llama.cpp rotates quantized keys (attn_rot). The type itself costs this
    model 0.02 nats, tokens at wrong positions 3.
    """
    path = one_layer_of(tmp_path / "one.gguf", heads)
    remaining = TOKENS[:10] + TOKENS[30:]
    with session_of(path, cache_k=cache_k, cache_v="f32", flash_attention=False) as session:
        session.prefill(TOKENS)
        session.shift(10, 30)
        assert session.tokens == remaining
        shifted = last_logits(session, TOKENS[:5])
        session.truncate(0)
        fresh = last_logits(session, remaining + TOKENS[:5])
    assert kl_divergence(fresh, shifted, 0)[0] < most


def test_a_drop_by_another_factor_or_none_would_be_seen(tmp_path: Path) -> None:
    """What the test above holds on to: the same tokens at other positions give other logits."""
    one_layer = one_layer_of(tmp_path / "one.gguf", heads=4)
    remaining = TOKENS[:10] + TOKENS[30:] + TOKENS[:5]
    logits = []
    for rope in (None, RuntimeRope(factor=1.0, context_length=1024)):
        with session_of(one_layer, rope=rope) as session:
            logits.append(last_logits(session, remaining))
    assert kl_divergence(logits[0], logits[1], 0)[0] > 1e-4


@pytest.mark.parametrize("refused", ["keys of 32 that are quantized", "yarn"])
def test_what_llama_cpp_would_move_wrongly_or_crash_on_is_refused(tmp_path: Path, refused: str) -> None:
    path = one_layer_of(tmp_path / "one.gguf", heads=2)
    rope = RuntimeRope(factor=4.0, context_length=1024, scaling_type="yarn") if refused == "yarn" else None
    cache_k = "f16" if refused == "yarn" else "q8_0"
    with session_of(path, rope=rope, cache_k=cache_k, cache_v="f16") as session:
        session.prefill(TOKENS)
        with pytest.raises(EngineError, match="cannot move"):
            session.shift(10, 30)
        assert session.tokens == TOKENS
        last_logits(session, TOKENS[:5])


def test_tokens_outside_the_cache_cannot_be_removed(tiny: Path) -> None:
    with session_of(tiny) as session:
        session.prefill(TOKENS[:20])
        for start, stop in ((-1, 5), (5, 5), (5, 20), (30, 40)):
            with pytest.raises(UsageError):
                session.shift(start, stop)
        assert session.tokens == TOKENS[:20]


class RecordingCache:
    """A PromptCache that records what is saved."""

    def __init__(self) -> None:
        self.saved: list[list[int]] = []

    def restore(self, session: Session, tokens: Sequence[int]) -> None:
        pass

    def save(self, session: Session) -> None:
        self.saved.append(session.tokens)


def test_what_depends_on_removed_tokens_is_not_saved(tiny: Path) -> None:
    cache = RecordingCache()
    with (
        Model.open(tiny) as model,
        Context(model, ContextOptions(length=512), prompt_cache=cache) as context,
        context.sequence() as session,
    ):
        session.set_prompt(TOKENS)
        session.shift(10, 20)
        session.shift(5, 8)
        session.set_prompt(session.tokens + TOKENS[:4])
        session.set_prompt(TOKENS[:5] + TOKENS)
    assert cache.saved == [TOKENS, TOKENS[:5] + TOKENS]
