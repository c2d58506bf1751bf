"""The model that is fine-tuned: a checkpoint with interpolated positions, trained in full or by LoRA.

transformers does the forward pass, with its linear rope scaling as the interpolation; peft does the LoRA.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from pigguf.architectures import Family, map_tensors_to_gguf
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_names import canonical_name, module_names
from pigguf.checkpoint import Checkpoint
from pigguf.checkpoint.adapter import ADAPTER_WEIGHT_FILES
from pigguf.checkpoint.adapter_config import ADAPTER_CONFIG_FILE
from pigguf.common.quiet_transformers import quiet_transformers
from pigguf.errors import DoesNotFit, TrainingError, UsageError
from pigguf.finetuning.loss import chunked_cross_entropy
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.rope import LearnedPositions

_DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
# What is trained, by the names of the tensors in a GGUF (architectures/).
_LORA_TENSORS = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output")
_EXTRA_TENSORS: dict[str, tuple[str, ...]] = {
    "norms": (
        *("attn_norm", "attn_norm_2", "attn_q_norm", "attn_k_norm", "post_attention_norm"),
        *("ffn_norm", "post_ffw_norm", "output_norm"),
    ),
    "embeddings": ("token_embd",),
}


class TrainedModel:
    """A causal language model with an extended context window, ready for training.

    Args:
        model: the model of transformers, or the one of peft around it.
        settings: the settings of the run.
        device: the device that it is on.

    Attributes:
        model: the model of transformers, or the one of peft around it.
        device: the device that it is on.
    """

    def __init__(self, model: Any, settings: FinetuneSettings, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._dtype = _DTYPES[settings.dtype]
        self._causal_lm = model.get_base_model() if settings.method == "lora" else model

    @property
    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def loss(self, tokens: torch.Tensor, positions: torch.Tensor, loss_mask: torch.Tensor) -> torch.Tensor:
        """Return the next-token cross entropy of a sequence, summed over the tokens of the mask, in nats.

        Args:
            tokens: the token ids, (n_tokens,), int64.
            positions: the position ids, (n_tokens,), int64.
            loss_mask: whether the loss covers the prediction of each token, (n_tokens,), bool; False for the
                first.

        Returns:
            A scalar, float32.
        """
        with self._autocast():
            # Without an attention mask, transformers takes a skip in the position ids for the start of the
            # next packed sequence, and does not attend across it.
            hidden = self._causal_lm.base_model(
                input_ids=tokens[None],  # (1, n_tokens)
                position_ids=positions[None],
                attention_mask=torch.ones_like(tokens)[None],
                use_cache=False,
            ).last_hidden_state[0]  # (n_tokens, n_embd)
        rows = loss_mask[1:].nonzero()[:, 0]  # (n_scored,): row i predicts token i + 1
        output_weight = self._causal_lm.get_output_embeddings().weight  # (vocab_size, n_embd)
        return chunked_cross_entropy(hidden[rows].to(self._dtype), output_weight, tokens[rows + 1])

    def save(self, directory: Path) -> None:
        """Write the checkpoint or the adapter in bfloat16, which ends the training of this model."""
        with torch.no_grad():
            for parameter in self.trained_parameters.values():
                parameter.data = parameter.data.to(torch.bfloat16)
        with _quiet_libraries():
            self.model.save_pretrained(directory)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)


def load_model(
    source: Path,
    config: dict[str, Any],
    family: Family,
    hparams: HParams,
    settings: FinetuneSettings,
    adapter: Path | None = None,
) -> TrainedModel:
    """Load a checkpoint with another config, and set up what is trained.

    Args:
        source: the directory of the checkpoint.
        config: its config.json with the positions of the extended window.
        family: the model family, for the names of its weights.
        hparams: its hyperparameters with the extended positions; a learned position table is resampled.
        settings: the settings of the run.
        adapter: the directory of a LoRA adapter to start from; by default, LoRA's initialization.

    Raises:
        UsageError: if there is no such device, or the adapter was trained with other settings.
        TrainingError: if transformers or peft cannot load the checkpoint.
        DoesNotFit: if it does not fit into the memory of the device.
    """
    device = _torch_device(settings.device)
    torch.manual_seed(settings.seed)
    try:
        with _quiet_libraries():
            model: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=AutoConfig.for_model(**config),
                dtype=torch.float32 if settings.method == "full" else _DTYPES[settings.dtype],
                attn_implementation="sdpa",
                local_files_only=True,
                ignore_mismatched_sizes=isinstance(hparams.rope, LearnedPositions),
            )
            if isinstance(hparams.rope, LearnedPositions):
                _resample_positions(model, source, family, hparams)
            model = model.to(device)
            if settings.gradient_checkpointing:
                _enable_gradient_checkpointing(model)
            if settings.method == "lora":
                model = _add_lora(model, family, settings)
        if adapter is not None:
            _load_adapter(model, adapter, settings)
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            f"{source} does not fit into the memory of {device}", "use `method=lora`, or another `device`"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"transformers cannot load {source}: {error}", "check that the checkpoint is complete"
        ) from error
    model.train()
    return TrainedModel(model, settings, device)


def _enable_gradient_checkpointing(model: Any) -> None:
    """Call the method by its name in transformers 5.20 and later, or by its earlier one."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@torch.no_grad()
def _resample_positions(model: Any, source: Path, family: Family, hparams: HParams) -> None:
    """Replace the learned position table by the one that convert writes, after its rows for padding."""
    (name,) = module_names(family, "position_embd", depth=5)
    table = model.get_submodule(name).weight  # (n_padding + context_length, n_embd)
    with Checkpoint.open(source) as checkpoint:
        old = {canonical_name(family, key): tensor for key, tensor in checkpoint.tensors.items()}[
            f"{name}.weight"
        ]
        converted = map_tensors_to_gguf(family, hparams, checkpoint.tensors, str(source))
        rows = next(tensor for tensor in converted if tensor.name == "position_embd.weight").load()
        padding = old.read(0, len(table) - len(rows))
    table.copy_(torch.from_numpy(np.concatenate([padding.astype(np.float32), rows.astype(np.float32)])))


def _add_lora(model: Any, family: Family, settings: FinetuneSettings) -> Any:
    modules = [module for extra in settings.train for module in module_names(family, *_EXTRA_TENSORS[extra])]
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(module_names(family, *_LORA_TENSORS, depth=2)),
        modules_to_save=modules or None,
        ensure_weight_tying="embeddings" in settings.train and model.config.tie_word_embeddings,
    )
    model = get_peft_model(model, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _load_adapter(model: Any, adapter: Path, settings: FinetuneSettings) -> None:
    """Load the weights of an adapter, which must have exactly the matrices that are trained here."""
    weights = load_file(adapter / ADAPTER_WEIGHT_FILES[0])
    alpha = json.loads((adapter / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8")).get("lora_alpha")
    expected = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(model).items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    different = sorted(
        name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name)
    )
    if different or alpha != settings.alpha:
        name = different[0] if different else "lora_alpha"
        theirs, ours = (shapes.get(name), expected.get(name)) if different else (alpha, settings.alpha)
        raise UsageError(
            f"{adapter} was trained with other settings: {name} is {theirs} there, and {ours} here",
            "give the `rank`, `alpha` and `train` that it was trained with",
        )
    set_peft_model_state_dict(model, weights)


def _torch_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", "use cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "PyTorch finds no GPU on this machine", "leave `device` out, or install PyTorch for CUDA"
        )
    return device


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Suppress the progress bars and warnings of the libraries; their errors are raised."""
    with quiet_transformers(), warnings.catch_warnings():
        # peft uses an attribute of transformers that is deprecated
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
