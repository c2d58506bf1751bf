"""OPT on GPT-2's graph: the error of ReLU by GELU in float and quantized types, and unsupported configs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.compare import engine_logits, log_softmax
from support.tiny_checkpoints import VOCAB_SIZE, edit_config, make_checkpoint
from transformers import AutoModelForCausalLM

import pigguf
import pigguf.architectures.registry
from pigguf.architectures import family_from_metadata, hparams_from_metadata, map_tensors_to_hf
from pigguf.architectures.opt import OPT
from pigguf.architectures.tensor_rules import IDENTITY
from pigguf.errors import UnsupportedModel
from pigguf.gguf_io import TensorData, read_header
from pigguf.quantization import float_tensors

State = dict[str, torch.Tensor]
Logits = np.ndarray[Any, Any]

WIDE: dict[str, Any] = {"hidden_size": 256, "word_embed_proj_dim": 256, "ffn_dim": 512}
TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, 64)]
QUANTIZED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K")


@pytest.fixture(scope="module", params=[0.02, 0.005], ids=["wide weights", "narrow weights"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("opt") / "checkpoint"
    return make_checkpoint(path, "opt", init_std=request.param, **WIDE)


def transformers_logits(
    checkpoint: Path, state: State | None = None, gelu: bool = False
) -> np.ndarray[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    if state is not None:
        model.load_state_dict(state, strict=False)
    if gelu:
        for layer in model.model.decoder.layers:
            layer.activation_fn = torch.nn.GELU("tanh")
    with torch.no_grad():
        logits: Logits = model(torch.tensor([TOKENS])).logits[0].numpy()
    return logits


def mean_kl(reference: Logits, logits: Any) -> float:
    pairs = [(log_softmax(a), log_softmax(b)) for a, b in zip(reference, logits, strict=True)]
    return float(np.mean([(np.exp(p) * (p - q)).sum() for p, q in pairs]))


def exported(gguf: Path) -> State:
    """Return a GGUF's dequantized weights under OPT's names."""
    file = read_header(gguf)
    family = family_from_metadata(file.metadata)
    assert family.model_type == "opt"
    hparams = hparams_from_metadata(family, file.metadata, file.tensors)
    with TensorData(file) as data:
        by_name = {tensor.name: tensor for tensor in float_tensors(file, data)}
        tensors = map_tensors_to_hf(family, hparams, by_name, str(gguf))
        return {tensor.name: torch.from_numpy(np.array(tensor.load(), np.float32)) for tensor in tensors}


@pytest.mark.parametrize("type", ["F32", "F16"])
def test_relu_approximated_by_gelu_is_almost_exact(type: str, checkpoint: Path, tmp_path: Path) -> None:
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type=type)
    assert mean_kl(transformers_logits(checkpoint), engine_logits(tmp_path / "model.gguf", TOKENS)) <= 1e-6


@pytest.mark.parametrize("type", QUANTIZED)
def test_scaled_weights_quantize_as_well_as_unscaled_ones(
    type: str, checkpoint: Path, tmp_path: Path
) -> None:
    """Compare with quantized weights that are not scaled, whose KL with ReLU in transformers is `weights_kl`.

    The engine also quantizes activations; the KL of that, with the GELU that it then computes, is
    `activations_kl`. Scaling makes block scales smaller, some of them subnormal in half precision: up to a
    third more.
    """
    reference = transformers_logits(checkpoint)
    pigguf.convert(checkpoint, tmp_path / "scaled.gguf", type=type)
    weights = with_quantized(checkpoint, tmp_path / "unscaled.gguf", type)
    weights_kl = mean_kl(reference, transformers_logits(checkpoint, weights))
    gelu = transformers_logits(checkpoint, weights, gelu=True)
    activations_kl = mean_kl(gelu, engine_logits(tmp_path / "unscaled.gguf", TOKENS))
    scaled = mean_kl(reference, engine_logits(tmp_path / "scaled.gguf", TOKENS))
    assert scaled <= 1.35 * (weights_kl + activations_kl)


def with_quantized(checkpoint: Path, gguf: Path, type: str) -> State:
    """Return OPT's weights, quantized without scaling and dequantized."""
    plain = replace(OPT, tensor_rules=tuple(replace(rule, transform=IDENTITY) for rule in OPT.tensor_rules))
    families = pigguf.architectures.registry.FAMILIES
    pigguf.architectures.registry.FAMILIES = tuple(plain if family is OPT else family for family in families)
    try:
        pigguf.convert(checkpoint, gguf, type=type)
        return exported(gguf)
    finally:
        pigguf.architectures.registry.FAMILIES = families


def test_an_export_has_the_same_weights_again(checkpoint: Path, tmp_path: Path) -> None:
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32")
    state = exported(tmp_path / "model.gguf")
    for name, weights in AutoModelForCausalLM.from_pretrained(checkpoint).state_dict().items():
        if name in state:
            rows = slice(2, None) if "embed_positions" in name else slice(None)
            assert torch.equal(state[name][rows], weights[rows]), name


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before = false"),
        ({"word_embed_proj_dim": 32}, "word_embed_proj_dim = 32"),
        ({"activation_function": "gelu"}, 'activation_function = "gelu"'),
        ({"enable_bias": False}, "enable_bias = false"),
    ],
)
def test_opt_350m_and_other_layouts_are_rejected(changes: dict[str, Any], part: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", "opt")
    edit_config(checkpoint, **changes)
    with pytest.raises(UnsupportedModel) as caught:
        pigguf.convert(checkpoint, tmp_path / "model.gguf")
    assert part in caught.value.message
    assert caught.value.hint
