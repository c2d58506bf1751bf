"""Make adapters with peft on tiny seeded models, and merge and run them with peft."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from numpy.typing import NDArray

from pigguf.checkpoint import Adapter, Checkpoint, merge_adapter

PREFIX = "base_model.model."
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL_LINEAR = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def make_adapter(
    base: Path, path: Path, *, rope: dict[str, Any] | None = None, safetensors: bool = True, **options: Any
) -> Path:
    """Save an adapter with random weights; and return its directory.

    With `rope` (rope_parameters and max_position_embeddings) the model is extended first and its
    config.json is saved beside the adapter.
    """
    config = transformers.AutoConfig.from_pretrained(base)
    for key, value in (rope or {}).items():
        setattr(config, key, value)
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of tied embeddings, which are tested here
        model = transformers.AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
        options = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, **options}
        adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        adapted.save_pretrained(path, safe_serialization=safetensors)
    if rope is not None:
        config.save_pretrained(path)
    return path


def peft_model(base: Path, adapter: Path, before: Path | None = None) -> peft.PeftModel:
    """Return the base with the adapter as peft runs it, in float32; `before` is a state dict for the base."""
    config = transformers.AutoConfig.from_pretrained(adapter if (adapter / "config.json").exists() else base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
        if before is not None:
            unexpected = model.load_state_dict(torch.load(before), strict=False).unexpected_keys
            assert not unexpected
        return peft.PeftModel.from_pretrained(model, adapter).eval()


def peft_merge_tensors(
    base: Path, adapter: Path, before: Path | None = None
) -> dict[str, NDArray[np.float32]]:
    """Return the tensors of peft's merge_and_unload, without a tied lm_head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft_model(base, adapter, before).merge_and_unload()
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return state


def merge_tensors(base: Path, adapter: Path) -> dict[str, NDArray[Any]]:
    """Return the tensors that pigguf merges, read a few rows at a time."""
    with Checkpoint.open(base) as checkpoint, Adapter.open(adapter) as opened:
        tensors = merge_adapter(checkpoint, opened)
        return {
            name: np.concatenate([tensor.read(*rows) for rows in tensor.slabs(7 * tensor.row_elements)])
            for name, tensor in tensors.items()
        }


def logits(model: torch.nn.Module, tokens: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        result: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
    return result


def model_with_tensors(base: Path, tensors: dict[str, NDArray[Any]]) -> torch.nn.Module:
    """Return a transformers model with exactly these tensors."""
    tied = "lm_head.weight" not in tensors
    config = transformers.AutoConfig.from_pretrained(base, tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {name: torch.from_numpy(values.astype(np.float32)) for name, values in tensors.items()}
    result = model.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= ({"lm_head.weight"} if tied else set())
    return model.eval()
