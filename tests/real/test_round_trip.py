"""The demo model converted to a checkpoint and back, against transformers on real prose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from support.compare import agreement
from transformers import AutoTokenizer

import pigguf
from pigguf.gguf_io import TensorData, read_header
from pigguf.quantization import float_tensors


def test_the_exported_model_is_transformers_own_on_a_thousand_tokens_of_prose(
    smollm2_checkpoint: Path, novel: str, tmp_path: Path
) -> None:
    pigguf.convert(smollm2_checkpoint, tmp_path / "model.gguf", type="F32")
    tokenizer = AutoTokenizer.from_pretrained(smollm2_checkpoint)
    tokens = tokenizer(novel)["input_ids"][:1000]
    assert len(tokens) == 1000
    found = agreement(tmp_path / "model.gguf", smollm2_checkpoint, tokens)
    assert found.mean_kl <= 1e-6
    assert found.same_top >= 0.99


def test_the_exported_weights_are_the_dequantized_ones_rounded_to_bfloat16(
    smollm2_checkpoint: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    pigguf.convert(smollm2_checkpoint, tmp_path / "model.gguf", type="BF16")
    source, converted = read_header(smollm2_gguf), read_header(tmp_path / "model.gguf")
    assert set(converted.tensors) == set(source.tensors)
    with TensorData(source) as before, TensorData(converted) as after:
        converted_tensors = {tensor.name: tensor for tensor in float_tensors(converted, after)}
        for tensor in float_tensors(source, before):
            rounded = (
                tensor.load().astype(converted_tensors["token_embd.weight"].load().dtype).astype(np.float32)
            )
            np.testing.assert_array_equal(converted_tensors[tensor.name].load().astype(np.float32), rounded)


def test_the_tokenizer_and_the_template_come_back_as_they_were(
    smollm2_checkpoint: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    pigguf.convert(smollm2_checkpoint, tmp_path / "model.gguf", type="Q8_0")
    before, after = read_header(smollm2_gguf).metadata, read_header(tmp_path / "model.gguf").metadata
    same = [key for key in before if key.startswith("tokenizer.")]
    assert "tokenizer.chat_template" in same
    for key in same:
        if key in after or key not in ("tokenizer.ggml.add_space_prefix", "tokenizer.ggml.add_bos_token"):
            assert after[key] == before[key], key
    conversation = [{"role": "user", "content": "Hello"}]
    rendered = AutoTokenizer.from_pretrained(smollm2_checkpoint).apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True
    )
    assert rendered.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
