"""How far positions reach: to a learned table's end and no further, anywhere with distances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.tiny_gguf import GRAPHS, WIDTH, TinyModel, text_tokens, write_tiny

from pigguf.errors import ContextOverflow, UsageError
from pigguf.gguf_io.metadata import u32
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope

WINDOW = 64
TABLE = "position_embd.weight"
LEARNED = {architecture: GRAPHS[name] for architecture, name in (
    ("gpt2", "GPT2LMHeadModel, 2 layers, untied"), ("starcoder", "GPTBigCodeForCausalLM, 2 layers, untied")
)}  # fmt: skip
ALIBI = {architecture: GRAPHS[name] for architecture, name in (
    ("bloom", "BloomForCausalLM, 2 layers, untied"),
    ("mpt", "MptForCausalLM, 2 layers, untied"),
    ("baichuan", "BaichuanForCausalLM, 40 layers, untied"),
)}  # fmt: skip
# MPT may have a table beside its distances.
WITH_TABLE = {**LEARNED, "mpt": ALIBI["mpt"]._replace(shapes={**ALIBI["mpt"].shapes, TABLE: (WINDOW, WIDTH)})}


def logits_at_end(path: Path, length: int, rope: RuntimeRope | None = None) -> np.ndarray:
    with Model.open(path, rope=rope) as model, Context(model, ContextOptions(length, threads=1)) as context:
        session = context.sequence()
        session.prefill(text_tokens(length))
        return context.logits(-1).copy()


@pytest.mark.parametrize("tiny", WITH_TABLE.values(), ids=WITH_TABLE)
def test_a_learned_table_is_used_to_its_last_row(tiny: TinyModel, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", model=tiny)
    assert np.isfinite(logits_at_end(path, WINDOW, RuntimeRope(context_length=WINDOW))).all()
    with Model.open(path) as model, Context(model) as context, context.sequence() as session:
        session.prefill(text_tokens(WINDOW))
        with pytest.raises(ContextOverflow):
            session.prefill([1])


@pytest.mark.parametrize("tiny", WITH_TABLE.values(), ids=WITH_TABLE)
@pytest.mark.parametrize("rope", [None, RuntimeRope(context_length=65), RuntimeRope(1.0, context_length=128)])
def test_nothing_reaches_past_a_learned_table(
    rope: RuntimeRope | None, tiny: TinyModel, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "m.gguf", model=tiny)
    with pytest.raises(ContextOverflow) as caught:
        logits_at_end(path, WINDOW + 1, rope)
    assert str(path) in caught.value.message
    assert "64" in caught.value.message
    if rope is not None:
        assert f"{rope.context_length} tokens" in caught.value.message
        assert "pigguf convert --context N" in (caught.value.hint or "")


@pytest.mark.parametrize("tiny", LEARNED.values(), ids=LEARNED)
def test_the_hint_says_how_a_learned_table_gets_longer(tiny: TinyModel, tmp_path: Path) -> None:
    with (
        Model.open(write_tiny(tmp_path / "m.gguf", model=tiny)) as model,
        pytest.raises(ContextOverflow) as caught,
    ):
        Context(model, ContextOptions(WINDOW + 1))
    assert "--context N`, which resamples" in (caught.value.hint or "")


def test_a_window_shorter_than_the_table_needs_no_override(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", model=LEARNED["gpt2"])
    with pytest.raises(UsageError, match=r"a window of 32 tokens .* has 64") as caught:
        Model.open(path, rope=RuntimeRope(context_length=32))
    assert caught.value.hint == "a shorter context needs no override"
    assert np.isfinite(logits_at_end(path, 32)).all()


@pytest.mark.parametrize("tiny", ALIBI.values(), ids=ALIBI)
def test_distances_reach_past_the_window_when_asked(tiny: TinyModel, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", model=tiny)
    longer = {f"{tiny.architecture}.context_length": u32(4 * WINDOW)}
    made_longer = write_tiny(tmp_path / "longer.gguf", longer, model=tiny)
    with pytest.raises(ContextOverflow) as caught:
        logits_at_end(path, 4 * WINDOW)
    assert caught.value.hint == "use 64 at most, or override its context length"
    far = logits_at_end(path, 4 * WINDOW, RuntimeRope(context_length=4 * WINDOW))
    np.testing.assert_array_equal(far, logits_at_end(made_longer, 4 * WINDOW))
    assert np.isfinite(far).all()


@pytest.mark.parametrize("tiny", [*LEARNED.values(), *ALIBI.values()], ids=[*LEARNED, *ALIBI])
@pytest.mark.parametrize(
    "rope",
    [RuntimeRope(4.0), RuntimeRope(4.0, scaling_type="yarn"), RuntimeRope(theta=5e5)],
    ids=["factor", "yarn", "theta"],
)
def test_models_without_rotary_positions_take_no_rope_override(
    rope: RuntimeRope, tiny: TinyModel, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "m.gguf", model=tiny)
    with pytest.raises(UsageError) as caught:
        Model.open(path, rope=rope)
    assert str(path) in caught.value.message
    assert ("factor 4" if rope.theta is None else "theta 500000") in caught.value.message
    assert caught.value.hint == "leave it out: the model has no rotary positions"
