"""Verify: right files of every kind are the checkpoint, and files that are wrong in one thing are not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as torch_load
from safetensors.torch import save_file as torch_save
from support.meta_checkpoints import convert_to_meta
from support.tiny_checkpoints import VOCAB_SIZE, edit_config, make_checkpoint

import pigguf
from pigguf import errors
from pigguf.gguf_io import read_header
from pigguf.operations import verify
from pigguf.operations.verify import VerificationResult

ORIGINAL, FACTOR = 64, 4
LINEAR = {"rope_type": "linear", "factor": float(FACTOR), "rope_theta": 10000.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


def make(path: Path, **config: Any) -> Path:
    """Make a model with weights as wide as a block of the k-quants and predictions that are not flat."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 8, "num_key_value_heads": 4}
    return make_checkpoint(path, **{**sizes, "rope_parameters": LINEAR, **config})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("right") / "piglet")


@pytest.fixture(scope="module")
def right(checkpoint: Path) -> Path:
    target = checkpoint.parent / "right.gguf"
    pigguf.convert(checkpoint, target, type="F32")
    return target


def converted(checkpoint: Path, type: str = "F32", **options: Any) -> Path:
    target = checkpoint.parent / f"{checkpoint.name}-{type}.gguf"
    pigguf.convert(checkpoint, target, type=type, **options)
    return target


def copied(checkpoint: Path, path: Path) -> Path:
    shutil.copytree(checkpoint, path)
    return path


def differing(found: VerificationResult) -> set[str]:
    return {difference.name for difference in found.differences}


# ---- right files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "verdict"),
    [
        ("F32", "same"),
        ("F16", "same"),
        ("BF16", "same"),
        ("Q8_0", "same except for quantization"),
        ("Q4_K_M", "same except for quantization"),
        ("Q2_K", "same except for quantization"),
    ],
)
def test_a_converted_file_is_its_checkpoint(
    type: str, verdict: str, checkpoint: Path, tmp_path: Path
) -> None:
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type=type)
    found = pigguf.verify(tmp_path / "model.gguf", checkpoint)
    assert found.differences == found.notes == ()
    assert found.verdict == verdict
    assert [depth.depth for depth in found.logits.depths] == [16, 32, 64, 128, 256]
    assert found.structure.compared > 30
    assert found.tokenizer.compared > VOCAB_SIZE


@pytest.mark.parametrize(
    "kind", [*["gpt2", "bloom", "gptneox", "phi3"], "mixtral, factor 4", "gemma2, factor 4"]
)
def test_every_kind_of_position_and_layer_is_compared(kind: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet", kind)
    found = pigguf.verify(converted(checkpoint), checkpoint)
    assert (found.verdict, found.logits.skipped_reason) == ("same", "")


def test_longrope_beyond_its_original_window_is_compared_by_one_list(tmp_path: Path) -> None:
    half = 16
    longrope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0 + pair / 16 for pair in range(half)],
        "long_factor": [1.0 + pair for pair in range(half)],
        "original_max_position_embeddings": 256,
    }
    checkpoint = make(tmp_path / "piglet", rope_parameters=longrope, max_position_embeddings=1024)
    file = converted(checkpoint)
    assert pigguf.verify(file, checkpoint, depths=[64, 256]).verdict == "same"
    assert pigguf.verify(file, checkpoint, depths=[64, 256, 1024]).verdict == "same"


def test_a_key_that_transformers_ignores_counts(checkpoint: Path, right: Path, tmp_path: Path) -> None:
    """LongChat's: the evidence decides, here as in a conversion."""
    older = copied(checkpoint, tmp_path / "longchat")
    edit_config(older, rope_parameters=..., rope_condense_ratio=FACTOR, rope_theta=10000.0)
    found = pigguf.verify(right, older)
    assert found.verdict == "same"
    assert found.logits.depths[-1].depth == ORIGINAL * FACTOR


def test_keys_at_their_defaults_may_be_absent_and_names_differ(
    checkpoint: Path, right: Path, tmp_path: Path
) -> None:
    keys = ("llama.rope.scaling.original_context_length", "llama.rope.freq_base", "llama.vocab_size")
    other = tmp_path / "other.gguf"
    pigguf.repair(
        right, other, remove=[*keys, "tokenizer.ggml.unknown_token_id"], set={"general.name": "Another One"}
    )
    found = pigguf.verify(other, checkpoint)
    assert found.verdict == "same"
    assert {note.name for note in found.notes} == {*keys, "general.name", "unk token"}


def test_a_split_file_is_one(checkpoint: Path, tmp_path: Path) -> None:
    result = pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32", shard_size=10**6)
    assert len(result.shards) > 2
    assert pigguf.verify(result.shards[1], checkpoint).verdict == "same"


def test_a_text_of_ones_own_is_read_as_far_as_it_goes(checkpoint: Path, right: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged. " * 3)
    found = pigguf.verify(right, checkpoint, text=text)
    depths = [depth.depth for depth in found.logits.depths]
    assert found.verdict == "same"
    assert found.logits.text == str(text)
    assert 16 < depths[-1] < ORIGINAL * FACTOR
    assert [depth.depth for depth in pigguf.verify(right, checkpoint, tokens=100).logits.depths][-1] == 100


@pytest.mark.parametrize("form", ["meta", "float8"])
def test_weights_that_transformers_does_not_read_as_numbers(form: str, tmp_path: Path) -> None:
    sizes = {"num_key_value_heads": 8, "intermediate_size": 704}  # that of a Llama of this width
    checkpoint = make(tmp_path / "piglet", rope_parameters=PLAIN, **sizes)
    if form == "meta":
        convert_to_meta(checkpoint, max_seq_len=ORIGINAL)
    else:
        in_float8(checkpoint)
    found = pigguf.verify(converted(checkpoint), checkpoint)
    assert (found.verdict, found.logits.skipped_reason) == ("same", "")


def in_float8(checkpoint: Path) -> None:
    state = torch_load(checkpoint / "model.safetensors")
    for name in [name for name in state if "_proj" in name]:
        scale = state[name].abs().max() / 448
        state[name] = (state[name] / scale).to(torch.float8_e4m3fn)
        state[f"{name}_scale"] = scale
    torch_save(state, checkpoint / "model.safetensors", metadata={"format": "pt"})
    edit_config(
        checkpoint,
        quantization_config={
            "quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]
        },
    )  # fmt: skip


@pytest.mark.slow
def test_the_real_model_is_its_checkpoint_and_with_another_base_is_not(
    smollm2_gguf: Path, smollm2_checkpoint: Path, novel: str, tmp_path: Path
) -> None:
    text, wrong = tmp_path / "novel.txt", tmp_path / "wrong.gguf"
    text.write_text(novel)
    right = pigguf.verify(smollm2_gguf, smollm2_checkpoint, text=text, depths=[256, 1024])
    assert right.verdict == "same except for quantization"
    pigguf.repair(smollm2_gguf, wrong, set={"llama.rope.freq_base": "10000"})
    found = pigguf.verify(wrong, smollm2_checkpoint, text=text, depths=[256, 1024])
    assert found.verdict == "different"
    assert differing(found) == {"llama.rope.freq_base"}
    for depth, expected in zip(found.logits.depths, right.logits.depths, strict=True):
        assert depth.kl_divergence > 5 * expected.kl_divergence


# ---- wrong files ---------------------------------------------------------------------------------------

TYPES = ("F32", "F16", "Q8_0", "Q4_K_M")
LOST = "llama.rope.scaling.factor"


@pytest.mark.parametrize("type", TYPES)
def test_a_lost_factor_is_another_model_with_the_depth_where_it_breaks(
    type: str, checkpoint: Path, tmp_path: Path
) -> None:
    """The window is right, and positions are not divided."""
    right, wrong = tmp_path / "right.gguf", tmp_path / "wrong.gguf"
    pigguf.convert(checkpoint, right, type=type)
    pigguf.repair(right, wrong, set={LOST: "1.0"})
    found = pigguf.verify(wrong, checkpoint)
    assert found.verdict == "different"
    assert LOST in differing(found)
    assert found.logits.first_failing_depth is not None


@pytest.mark.parametrize("type", TYPES)
def test_a_lost_base_is_another_model(type: str, checkpoint: Path, tmp_path: Path) -> None:
    based = copied(checkpoint, tmp_path / "based")
    edit_config(based, rope_parameters={**LINEAR, "rope_theta": 1e6})
    right, wrong = converted(based, type), tmp_path / "wrong.gguf"
    pigguf.repair(right, wrong, remove=["llama.rope.freq_base"])
    found = pigguf.verify(wrong, based)
    assert found.verdict == "different"
    assert differing(found) == {"llama.rope.freq_base"}
    assert found.logits.first_failing_depth is not None


def permuted(state: dict[str, np.ndarray[Any, Any]]) -> None:
    """Reorder the first query head of a layer, as a converter does that does not permute it."""
    query = state["model.layers.0.self_attn.q_proj.weight"]
    query[:32] = query[:32].reshape(2, 16, -1).swapaxes(0, 1).reshape(32, -1)


def tuned(state: dict[str, np.ndarray[Any, Any]]) -> None:
    noise = np.random.default_rng(3)
    for values in state.values():
        values += 0.1 * values.std() * noise.standard_normal(values.shape).astype(np.float32)


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("edit", [permuted, tuned])
def test_other_weights_under_the_same_header_are_another_model(
    edit: Callable[..., None], type: str, checkpoint: Path, tmp_path: Path
) -> None:
    other = copied(checkpoint, tmp_path / "piglet")
    state = load_file(other / "model.safetensors")
    edit(state)
    save_file(state, other / "model.safetensors", metadata={"format": "pt"})
    found = pigguf.verify(converted(other, type), checkpoint)
    assert (found.structure.differences, found.tokenizer.differences) == ((), ())
    assert found.verdict == "different"
    query = "blk.0.attn_q.weight"
    assert differing(found) == {query} if edit is permuted else {query} < differing(found)
    if type != "Q4_K_M":  # of which predictions are as far off by themselves
        assert found.logits.first_failing_depth is not None


def test_another_tokenizer_of_the_same_size_is_another_model(checkpoint: Path, tmp_path: Path) -> None:
    other = copied(checkpoint, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = list(vocab)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = pigguf.verify(converted(other), checkpoint)
    assert found.verdict == "different"
    assert found.structure.differences == ()
    assert {"token 40", "tokens of a sample"} <= differing(found)
    assert found.logits.verdict == "same"  # of tokens that are the checkpoint's


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("tokenizer.ggml.eos_token_id", "1", "eos token"),
        ("tokenizer.ggml.add_bos_token", "true", "tokenizer.ggml.add_bos_token"),
        ("tokenizer.chat_template", "{{ messages }}", "tokenizer.chat_template"),
        ("llama.context_length", "64", "llama.context_length"),
        ("llama.attention.layer_norm_rms_epsilon", "1e-6", "llama.attention.layer_norm_rms_epsilon"),
    ],
)
def test_one_key_that_differs_is_reported(
    key: str, value: str, what: str, checkpoint: Path, right: Path, tmp_path: Path
) -> None:
    pigguf.repair(right, tmp_path / "wrong.gguf", set={key: value})
    found = pigguf.verify(tmp_path / "wrong.gguf", checkpoint)
    assert found.verdict == "different"
    assert what in differing(found)
    assert found.logits.depths[-1].depth == ORIGINAL * FACTOR  # the window's end, whatever it claims


def test_another_shape_is_reported_tensor_by_tensor(right: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", num_hidden_layers=3, vocab_size=VOCAB_SIZE + 8)
    found = pigguf.verify(right, other)
    assert {"llama.block_count", "token_embd.weight", "blk.2.ffn_up.weight", "tokens"} <= differing(found)
    assert found.verdict == "different"
    assert (
        f"{VOCAB_SIZE} tokens in the file, {VOCAB_SIZE + 8} in the checkpoint" in found.logits.skipped_reason
    )


# ---- what cannot be compared ---------------------------------------------------------------------------


def test_predictions_are_skipped_without_a_class_in_transformers(checkpoint: Path, tmp_path: Path) -> None:
    """InternLM2, whose own code is never run."""
    other = as_internlm2(copied(checkpoint, tmp_path / "intern"))
    found = pigguf.verify(converted(other), other)
    assert (found.structure.verdict, found.tokenizer.verdict) == ("same", "same")
    assert found.verdict == "not compared"
    assert "InternLM2ForCausalLM" in found.logits.skipped_reason


def as_internlm2(path: Path) -> Path:
    renamed: dict[str, np.ndarray[Any, Any]] = {}
    names = {
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "tok_embeddings", "lm_head": "output",
    }  # fmt: skip
    state = load_file(path / "model.safetensors")
    for name, values in state.items():
        if "self_attn.q_proj" in name:
            parts = [state[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            renamed[name.replace("self_attn.q_proj", "attention.wqkv")] = np.concatenate(parts)
        elif "self_attn.k_proj" not in name and "self_attn.v_proj" not in name:
            for theirs, ours in names.items():
                name = name.replace(theirs, ours)
            renamed[name] = values
    save_file(renamed, path / "model.safetensors", metadata={"format": "pt"})
    edit_config(
        path,
        architectures=["InternLM2ForCausalLM"],
        model_type="internlm2",
        bias=False,
        auto_map={"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
    )
    return path


def test_predictions_are_skipped_if_transformers_cannot_scale_positions(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "piglet", "gptj")
    edit_config(checkpoint, rope_scaling={"type": "linear", "factor": 4.0})
    found = pigguf.verify(converted(checkpoint), checkpoint)
    assert found.verdict == "not compared"
    assert "GPTJForCausalLM scales no positions" in found.logits.skipped_reason


def refused(error: type[errors.PigError], *words: str, **options: Any) -> None:
    with pytest.raises(error) as caught:
        pigguf.verify(options.pop("file"), options.pop("source"), **options)
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message


def test_bad_input_is_named(checkpoint: Path, right: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("Call me Ishmael.")
    both = {"file": right, "source": checkpoint}
    refused(errors.GGUFError, "config.json", "not a GGUF", file=checkpoint / "config.json", source=checkpoint)
    refused(errors.GGUFError, "none.gguf", file=tmp_path / "none.gguf", source=checkpoint)
    refused(errors.CheckpointError, "nothing", file=right, source=tmp_path / "nothing")
    refused(errors.CheckpointError, "right.gguf", file=right, source=right)
    refused(errors.ContextOverflow, "300", "256", depths=[32, 300], **both)
    refused(errors.UsageError, "3", depths=[3], **both)
    refused(errors.UsageError, "4 tokens", tokens=4, **both)
    refused(errors.TextError, "short.txt", "128", text=short, depths=[128], **both)
    refused(errors.TextError, "short.txt", text=short, **both)
    refused(errors.ReadError, str(tmp_path), text=tmp_path, **both)


def test_weights_that_transformers_would_initialize_at_random_are_an_error(
    checkpoint: Path, tmp_path: Path
) -> None:
    """Check that missing weights are not initialized at random, for example of shards without their index."""
    other = copied(checkpoint, tmp_path / "other")
    file = converted(other)
    state = load_file(other / "model.safetensors")
    save_file({name: state[name] for name in list(state)[:5]}, other / "model.safetensors")
    save_file(state, other / "model-00001-of-00001.safetensors")
    refused(errors.PigError, str(other), file=file, source=other)


@pytest.mark.parametrize("package", verify.PACKAGES)
def test_a_missing_package_is_named_with_its_extra(package: str, checkpoint: Path, right: Path) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import pigguf\n"
        "try: pigguf.verify(sys.argv[1], sys.argv[2])\n"
        "except pigguf.PigError as error: print(type(error).__name__, error.message, error.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, right, checkpoint], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("MissingPackage")
    assert package in done.stdout
    assert 'pip install -e ".[verify]"' in done.stdout


def test_the_extra_brings_every_package() -> None:
    text = (Path(pigguf.__file__).parent.parent / "pyproject.toml").read_text()
    (extra,) = [line for line in text.splitlines() if line.startswith("verify = ")]
    assert all(f'"{package}>=' in extra for package in verify.PACKAGES)


def test_progress_is_one_stage_in_tokens(checkpoint: Path, right: Path) -> None:
    events: list[tuple[Any, ...]] = []

    class Listener:
        def begin(self, stage: str, total: float, unit: str) -> None:
            events.append((stage, total, unit))

        def advance(self, amount: float) -> None:
            events.append((amount,))

        def end(self) -> None:
            events.append(("end",))

    pigguf.verify(right, checkpoint, progress=Listener())
    size = sum(tensor.nbytes for tensor in read_header(right).tensors.values())
    assert events[0] == ("comparing weights", size, "bytes")
    weights = events.index(("end",))
    assert sum(amount for (amount,) in events[1:weights]) == size
    tokens = ORIGINAL * FACTOR
    assert events[weights + 1 :] == [("comparing", tokens, "tokens"), (tokens,), ("end",)]
