"""Models: opened, refused, stopped while loading; text and tokens; positions that follow the file."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from support.tiny_gguf import (
    LAYERS,
    VOCABULARY,
    WIDTH,
    WINDOW,
    linear,
    text_tokens,
    write_tiny,
)

from pigguf.errors import (
    BackendUnavailable,
    ContextOverflow,
    DoesNotFit,
    EngineError,
    GGUFError,
    UnsupportedModel,
    UsageError,
)
from pigguf.gguf_io import TensorType
from pigguf.gguf_io.metadata import TypedValue, array, boolean, f32, string, u32
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope, log_to
from pigguf.progress import SilentProgress


class Listener(SilentProgress):
    def __init__(self) -> None:
        self.stages: list[tuple[str, float, str]] = []
        self.done = 0.0
        self.ended = 0

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.stages.append((stage, total, unit))

    def advance(self, amount: float) -> None:
        assert amount > 0
        self.done += amount

    def end(self) -> None:
        self.ended += 1


# ---- what a model reports---------------------------------------------------------------------------


def test_a_model_reports_what_its_file_states(smollm2_gguf: Path) -> None:
    with Model.open(smollm2_gguf) as model:
        assert model.architecture == "llama"
        assert model.description == "llama 135M Q4_1"
        assert (model.context_length, model.rope.rope_type, model.rope.rope_theta) == (8192, "none", 100000.0)
        assert (model.vocab_size, model.embedding_length, model.layers) == (49152, 576, 30)
        assert (model.bos, model.bos_text, model.eos, model.eos_text) == (1, "<|im_start|>", 2, "<|im_end|>")
        assert model.chat_template is not None
        assert "im_start" in model.chat_template
        assert model.parameters == 134_515_008
        assert 0.9 < model.size_bytes / smollm2_gguf.stat().st_size < 1
        assert model.is_eog(2)
        assert not model.is_eog(3)


@pytest.mark.parametrize(
    "text", ["Hello world", "caf\u00e9 \U0001f600 \u4f60\u597d", "  two  spaces\n\n\ttabs 1234567890", ""]
)
def test_text_survives_tokens(smollm2_gguf: Path, text: str) -> None:
    with Model.open(smollm2_gguf, vocab_only=True) as model:
        tokens = model.tokenize(text)
        assert model.detokenize(tokens) == text
        assert b"".join(map(model.token_to_piece, tokens)).decode() == text
        assert all(len(model.token_to_piece(token)) <= model.max_piece_bytes for token in tokens)


def test_a_sentencepiece_model_puts_a_space_first_and_detokenize_takes_it_off(tmp_path: Path) -> None:
    with Model.open(write_tiny(tmp_path / "m.gguf"), vocab_only=True) as model:
        assert model.add_space_prefix
        tokens = model.tokenize("an \u00e9")
        assert tokens[0] == model.bos
        assert b"".join(map(model.token_to_piece, tokens)) == " an \u00e9".encode()
        assert model.detokenize(tokens) == "an \u00e9"
        assert model.tokenize("an \u00e9", add_special=False) == tokens[1:]


def test_special_tokens_are_read_only_when_asked(smollm2_gguf: Path) -> None:
    with Model.open(smollm2_gguf, vocab_only=True) as model:
        assert model.tokenize("<|im_end|>", parse_special=True) == [2]
        plain = model.tokenize("<|im_end|>")
        assert len(plain) > 1
        assert model.detokenize(plain) == "<|im_end|>"
        assert model.token_to_piece(2) == b""
        assert model.token_to_piece(2, special=True) == b"<|im_end|>"
        assert model.detokenize([2], special=True) == "<|im_end|>"


def test_a_text_of_special_tokens_is_refused(smollm2_gguf: Path) -> None:
    """They take llama.cpp time by the square of their number."""
    with Model.open(smollm2_gguf, vocab_only=True) as model:
        assert model.tokenize("<|im_end|>a" * 6000, parse_special=True)[:2] == [2, *model.tokenize("a")]
        with pytest.raises(UsageError, match="holds 70,000 special tokens"):
            model.tokenize("<|im_end|>a" * 70_000, parse_special=True)
        assert len(model.tokenize("<|im_end|>a" * 70_000)) > 140_000


def test_tokens_outside_the_vocabulary_are_refused(smollm2_gguf: Path) -> None:
    with Model.open(smollm2_gguf, vocab_only=True) as model:
        for token in (-1, model.vocab_size):
            with pytest.raises(UsageError, match="there is no token"):
                model.token_to_piece(token)
        with pytest.raises(UsageError, match="half a character at 1"):
            model.tokenize("a\ud800b")


# ---- opening and closing -----------------------------------------------------------------------------


def test_loading_progress_reaches_the_end(smollm2_gguf: Path) -> None:
    listener = Listener()
    Model.open(smollm2_gguf, progress=listener).close()
    assert listener.stages == [("loading", 100, "percent")]
    assert listener.done == pytest.approx(100)
    assert listener.ended == 1


def test_ctrl_c_stops_the_loading(smollm2_gguf: Path) -> None:
    class Impatient(Listener):
        def advance(self, amount: float) -> None:
            super().advance(amount)
            signal.raise_signal(signal.SIGINT)

    listener = Impatient()
    with pytest.raises(KeyboardInterrupt):
        Model.open(smollm2_gguf, progress=listener)
    assert listener.done < 50
    assert listener.ended == 1
    Model.open(smollm2_gguf).close()


def test_a_listeners_exception_stops_the_loading_and_arrives(smollm2_gguf: Path) -> None:
    class Broken(Listener):
        def advance(self, amount: float) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Model.open(smollm2_gguf, progress=Broken())


def test_a_closed_model_refuses_and_has_closed_its_contexts(tmp_path: Path) -> None:
    model = Model.open(write_tiny(tmp_path / "m.gguf"))
    context = Context(model, ContextOptions(length=64))
    session = context.sequence()
    session.prefill([1, 2])
    model.close()
    model.close()
    for use in (
        lambda: model.tokenize("a"),
        lambda: model.token_to_piece(5),
        lambda: model.is_eog(2),
        lambda: Context(model),
        context.sequence,
        lambda: session.prefill([1]),
        lambda: session.truncate(0),
        lambda: session.generate(),
        lambda: session.evaluate([1], [0]),
    ):
        with pytest.raises(EngineError, match="closed"):
            use()
    session.close()
    context.close()


def test_a_vocabulary_alone_cannot_compute(tmp_path: Path) -> None:
    with (
        Model.open(write_tiny(tmp_path / "m.gguf"), vocab_only=True) as model,
        pytest.raises(EngineError, match="vocabulary only"),
    ):
        Context(model, ContextOptions(length=64))


def test_the_log_is_silent_until_someone_listens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    lines: list[str] = []
    Model.open(path).close()
    log_to(lines.append)
    try:
        Model.open(path).close()
        heard = len(lines)
    finally:
        log_to(None)
    Model.open(path).close()
    assert any("loaded meta data" in line for line in lines)
    assert heard == len(lines) > 20
    assert not any(line.endswith("\n") for line in lines)
    assert capfd.readouterr() == ("", "")


def test_a_listener_that_fails_does_not_stop_the_work(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_to(lambda line: 1 // 0)
    try:
        Model.open(write_tiny(tmp_path / "m.gguf")).close()
    finally:
        log_to(None)
    assert capfd.readouterr() == ("", "")


# ---- what is refused ---------------------------------------------------------------------------------

Changes = dict[str, TypedValue | None]
BAD_KEYS: dict[str, tuple[Changes, str]] = {
    "an unknown rope type": (
        {"llama.rope.scaling.type": string("dynamic")},
        "rope.scaling.type is 'dynamic'",
    ),
    "no layers": ({"llama.block_count": u32(0)}, "llama.block_count is 0"),
    "too many layers": ({"llama.block_count": u32(513)}, "llama.block_count is 513"),
    "no window": ({"llama.context_length": None}, "llama.context_length is missing"),
    "heads that do not divide": ({"llama.attention.head_count_kv": u32(3)}, "head_count_kv is 3"),
    "no heads": ({"llama.attention.head_count": u32(0)}, "head_count is 0"),
    "an odd head": ({"llama.attention.key_length": u32(15)}, "key_length is 15"),
    "a negative rope theta": ({"llama.rope.freq_base": f32(-1)}, "rope.freq_base is -1"),
    "a factor that is nan": ({"llama.rope.scaling.factor": f32(float("nan"))}, "scaling.factor is nan"),
    "experts without use": ({"llama.expert_count": u32(8)}, "expert_used_count is 0"),
    "no tokens": ({"tokenizer.ggml.tokens": array("str", ())}, "tokenizer.ggml.tokens holds no tokens"),
    "a token twice": (
        {"tokenizer.ggml.tokens": array("str", ("<unk>", "a", "a"))},
        "tokenizer.ggml.tokens holds 'a' twice, at 1 and 2",
    ),
    "no byte tokens": ({"tokenizer.ggml.tokens": array("str", ("<unk>", "a"))}, "no byte token <0x00>"),
    "a bos outside": ({"tokenizer.ggml.bos_token_id": u32(10**6)}, "bos_token_id is 1000000"),
    "a key of another type": ({"llama.block_count": string("two")}, "llama.block_count is str"),
}


@pytest.mark.parametrize("case", BAD_KEYS)
def test_what_would_abort_the_process_is_refused(tmp_path: Path, case: str) -> None:
    changes, message = BAD_KEYS[case]
    path = write_tiny(tmp_path / "bad.gguf", changes)
    with pytest.raises(GGUFError, match=message) as refusal:
        Model.open(path)
    assert str(path) in refusal.value.message
    assert "\n" not in refusal.value.message


def test_an_error_of_llama_cpp_is_quoted(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "bad.gguf", shapes={"blk.1.ffn_up.weight": None})
    with pytest.raises(GGUFError, match=r"cannot load it: .*missing tensor 'blk.1.ffn_up.weight'|not found"):
        Model.open(path)


@pytest.mark.parametrize("kind", [TensorType.I32, TensorType.F64, TensorType.I8])
def test_types_that_cannot_be_weights_are_refused(tmp_path: Path, kind: TensorType) -> None:
    path = write_tiny(tmp_path / "bad.gguf", types={"blk.0.ffn_up.weight": kind})
    with pytest.raises(GGUFError, match=rf"blk.0.ffn_up.weight is of type {kind.name}"):
        Model.open(path)


def test_norms_of_half_precision_are_refused(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "bad.gguf", types={"output_norm.weight": TensorType.F16})
    with pytest.raises(GGUFError, match=r"output_norm.weight is of type F16"):
        Model.open(path)


def test_other_architectures_and_tokenizers_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="'mamba'"):
        Model.open(write_tiny(tmp_path / "a.gguf", {"general.architecture": string("mamba")}))
    with pytest.raises(UnsupportedModel, match="is 'no_vocab'"):
        Model.open(write_tiny(tmp_path / "b.gguf", {"tokenizer.ggml.model": string("no_vocab")}))


def test_a_bos_that_is_wanted_and_missing_is_refused(tmp_path: Path) -> None:
    keys: Changes = {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.merges": array("str", ("a n",)),
        "tokenizer.ggml.pre": string("glm4"),  # which has no BOS by default
        "tokenizer.ggml.bos_token_id": None,
        "tokenizer.ggml.add_bos_token": boolean(True),
    }
    with pytest.raises(GGUFError, match="add_bos_token is set and there is no bos token"):
        Model.open(write_tiny(tmp_path / "bad.gguf", keys))


def test_layers_on_a_gpu_that_is_not_there_are_refused(tmp_path: Path) -> None:
    from pigguf.inference.engine.devices import list_devices

    if any("gpu" in device.kind for device in list_devices()):
        pytest.skip("there is a GPU")
    path = write_tiny(tmp_path / "m.gguf")
    for wanted in ("all", 1):
        with pytest.raises(BackendUnavailable, match="finds no GPU"):
            Model.open(path, gpu_layers=wanted)  # type: ignore[arg-type]
    with Model.open(path, gpu_layers=0) as model:
        assert model.gpu_layers == 0


# ---- positions follow the file -----------------------------------------------------------------------


def logits(path: Path, rope: RuntimeRope | None = None, *, use_mmap: bool = True) -> NDArray[np.float32]:
    """After the last of 200 tokens."""
    options = ContextOptions(length=256)
    with Model.open(path, rope=rope, use_mmap=use_mmap) as model, Context(model, options) as context:
        tokens = text_tokens(200)
        [(_, row)] = context.sequence().evaluate(tokens, [len(tokens) - 1])
        return row


def test_positions_follow_the_file_and_an_override_reproduces_each(tmp_path: Path) -> None:
    plain = write_tiny(tmp_path / "plain.gguf")
    scaled = write_tiny(tmp_path / "scaled.gguf", linear(4.0, 4 * WINDOW))
    by_one, by_four = logits(plain), logits(scaled)
    assert np.abs(by_one - by_four).max() > 0.1 * by_one.std()
    np.testing.assert_array_equal(logits(plain, RuntimeRope(factor=4.0)), by_four)
    np.testing.assert_array_equal(logits(scaled, RuntimeRope(factor=1.0)), by_one)
    # It replaces the file's factor and does not multiply it.
    np.testing.assert_array_equal(logits(scaled, RuntimeRope(factor=4.0)), by_four)
    assert np.abs(logits(plain, RuntimeRope(theta=500000.0)) - by_one).max() > 0.1 * by_one.std()
    np.testing.assert_array_equal(logits(scaled, RuntimeRope(theta=10000.0)), by_four)


def test_the_window_is_the_files_or_the_overrides(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", linear(2.0, 2 * WINDOW))
    with Model.open(path) as model:
        assert (model.context_length, model.rope.factor) == (2 * WINDOW, 2.0)
        with pytest.raises(ContextOverflow, match="4,096 tokens is longer than the 2,048") as refusal:
            Context(model, ContextOptions(length=4 * WINDOW))
        assert refusal.value.hint is not None
        assert "override" in refusal.value.hint
    rope = RuntimeRope(factor=4.0, context_length=4 * WINDOW)
    with Model.open(path, rope=rope) as model, Context(model, ContextOptions(length=4 * WINDOW)) as context:
        assert (context.length, model.rope.factor) == (4 * WINDOW, 4.0)


def test_an_override_out_of_range_is_refused(tmp_path: Path) -> None:
    for wrong in ({"factor": 0.0}, {"factor": float("inf")}, {"theta": -1.0}, {"context_length": 0}):
        with pytest.raises(UsageError):
            RuntimeRope(**wrong)  # type: ignore[arg-type]
    yarn = write_tiny(tmp_path / "yarn.gguf", {**linear(2.0), "llama.rope.scaling.type": string("yarn")})
    with pytest.raises(UsageError, match="scales its positions by yarn"):
        Model.open(yarn, rope=RuntimeRope(factor=4.0))
    Model.open(yarn).close()


def test_a_scaling_type_replaces_any_scaling_that_the_file_has(tmp_path: Path) -> None:
    plain = write_tiny(tmp_path / "plain.gguf")
    keys = {**linear(4.0, 4 * WINDOW), "llama.rope.scaling.original_context_length": u32(WINDOW)}
    yarn = write_tiny(tmp_path / "yarn.gguf", {**keys, "llama.rope.scaling.type": string("yarn")})
    by_one, by_yarn = logits(plain), logits(yarn)
    by_four = logits(plain, RuntimeRope(factor=4.0))
    assert np.abs(by_yarn - by_four).max() > 0.01 * by_four.std()
    np.testing.assert_array_equal(logits(yarn, RuntimeRope(1.0, scaling_type="linear")), by_one)
    np.testing.assert_array_equal(logits(yarn, RuntimeRope(4.0, scaling_type="linear")), by_four)
    # from the original window of the file, not from the longer one that the override permits
    widened = RuntimeRope(4.0, context_length=4 * WINDOW, scaling_type="yarn")
    np.testing.assert_array_equal(logits(plain, widened), by_yarn)
    np.testing.assert_array_equal(logits(yarn, RuntimeRope(4.0, scaling_type="yarn")), by_yarn)
    longrope = write_tiny(tmp_path / "longrope.gguf", {**keys, "llama.rope.scaling.type": string("longrope")})
    with pytest.raises(UsageError, match=r"longrope scaling .* cannot be replaced by linear"):
        Model.open(longrope, rope=RuntimeRope(1.0, scaling_type="linear"))
    for wrong in ({"scaling_type": "yarn"}, {"scaling_type": "yarn", "factor": 0.5}):
        with pytest.raises(UsageError):
            RuntimeRope(**wrong)  # type: ignore[arg-type]


def test_reading_gives_the_same_as_mapping(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    np.testing.assert_array_equal(logits(path, use_mmap=False), logits(path))


# ---- sizes -------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_with_the_sizes(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf")
    with Model.open(path, rope=RuntimeRope(context_length=2**30)) as model:
        a_token = LAYERS * 2 * (WIDTH // 4) * 2 * 2  # layers, KV heads, head length, K and V, two bytes
        assert model.kv_cache_bytes(1) == a_token
        assert model.kv_cache_bytes(256, "f32", "f32") == 512 * a_token
        with pytest.raises(DoesNotFit, match=r"512\.0 GiB for its KV cache and .* of memory are free"):
            Context(model, ContextOptions(cache_k="f32", cache_v="f32"))
        with pytest.raises(DoesNotFit):
            Context(model, ContextOptions(sequences=256))


def test_counts_of_the_tiny_model(tmp_path: Path) -> None:
    with Model.open(write_tiny(tmp_path / "m.gguf")) as model:
        assert (model.vocab_size, model.layers, model.embedding_length) == (VOCABULARY, LAYERS, WIDTH)
