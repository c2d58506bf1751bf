"""The model that is trained: a checkpoint whose positions are divided, and what of it may change.

transformers does the forward pass, its linear rope scaling the interpolation, peft the LoRA.
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
from pigguf.checkpoint import Checkpoint
from pigguf.checkpoint.adapter import ADAPTER_WEIGHT_FILES
from pigguf.checkpoint.adapter_config import ADAPTER_CONFIG_FILE as ADAPTER_CONFIG
from pigguf.common.quiet_transformers import quiet_transformers
from pigguf.errors import DoesNotFit, TrainingError, UsageError
from pigguf.finetuning.loss import chunked_cross_entropy
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.rope import LearnedPositions

_DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
# What is trained, by the names of the weights in a GGUF (arch/).
_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output")
_EXTRAS = {
    "norms": (
        *("attn_norm", "attn_norm_2", "attn_q_norm", "attn_k_norm", "post_attention_norm"),
        *("ffn_norm", "post_ffw_norm", "output_norm"),
    ),
    "embeddings": ("token_embd",),
}


class TrainedModel:
    """A causal language model with an extended window, ready for training.

    Attributes:
        model: transformers' model, or peft's around it.
        device: where it lies.
    """

    def __init__(self, model: Any, settings: FinetuneSettings, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._dtype = _DTYPES[settings.dtype]
        self._core = model.get_base_model() if settings.method == "lora" else model

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """Every parameter that changes, by name."""
        return {name: value for name, value in self.model.named_parameters() if value.requires_grad}

    def loss(self, tokens: torch.Tensor, positions: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Summed negative log-likelihood, in nats, of the tokens that count, each given those before it.

        Args:
            tokens, positions: (n,) int64.
            counts: (n,) bool; the first is False.
        """
        with self._computing():
            # Without a mask transformers takes a jump in the positions for the next packed sequence, and
            # cuts attention there.
            hidden = self._core.base_model(
                input_ids=tokens[None],
                position_ids=positions[None],
                attention_mask=torch.ones_like(tokens)[None],
                use_cache=False,
            ).last_hidden_state[0]
        wanted = counts[1:].nonzero()[:, 0]
        return chunked_cross_entropy(
            hidden[wanted].to(self._dtype), self._core.get_output_embeddings().weight, tokens[wanted + 1]
        )

    def save(self, directory: Path) -> None:
        """Write the checkpoint's or the adapter's files, rounded to bfloat16; training is over then."""
        with torch.no_grad():
            for parameter in self.trained.values():
                parameter.data = parameter.data.to(torch.bfloat16)
        with _quiet():
            self.model.save_pretrained(directory)

    def _computing(self) -> AbstractContextManager[Any]:
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
    """Load a checkpoint with another config, and mark what is trained.

    Args:
        source: the checkpoint's directory.
        config: its config.json with the extended window's positions.
        family: what its weights are called.
        hparams: its shape, with the extended positions; a table of learned ones is resampled.
        adapter: the directory of a LoRA adapter to begin from; by default one that changes nothing.

    Raises:
        UsageError: no such device, or the adapter is of other settings.
        TrainingError: transformers or peft refuse the checkpoint.
        DoesNotFit: it takes more memory than the device has.
    """
    device = _device(settings.device)
    torch.manual_seed(settings.seed)
    try:
        with _quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                source,
                config=AutoConfig.for_model(**config),
                dtype=torch.float32 if settings.method == "full" else _DTYPES[settings.dtype],
                attn_implementation="sdpa",
                local_files_only=True,
                ignore_mismatched_sizes=isinstance(hparams.rope, LearnedPositions),
            )
            if isinstance(hparams.rope, LearnedPositions):
                _resample(model, source, family, hparams)
            model = model.to(device)
            if settings.gradient_checkpointing:
                _enable_checkpointing(model)
            if settings.method == "lora":
                model = _with_lora(model, family, settings)
        if adapter is not None:
            _take_over(model, adapter, settings)
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            f"{source} does not fit on {device}", "take --method lora, or another --device"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"transformers cannot load {source}: {error}", "is it a whole checkpoint?"
        ) from error
    model.train()
    return TrainedModel(model, settings, device)


def _enable_checkpointing(model: Any) -> None:
    """By the name that transformers 5.20 brought, or the one before it."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@torch.no_grad()
def _resample(model: Any, source: Path, family: Family, hparams: HParams) -> None:
    """Give the table of positions the rows that convert gives it; rows for padding stay before them."""
    (name,) = family.modules("position_embd", parts=5)
    table = model.get_submodule(name).weight
    with Checkpoint.open(source) as checkpoint:
        old = {family.canonical(key): tensor for key, tensor in checkpoint.tensors.items()}[f"{name}.weight"]
        made = map_tensors_to_gguf(family, hparams, checkpoint.tensors, str(source))
        rows = next(tensor for tensor in made if tensor.name == "position_embd.weight").load()
        padding = old.read(0, len(table) - len(rows))
    table.copy_(torch.from_numpy(np.concatenate([padding.astype(np.float32), rows.astype(np.float32)])))


def _with_lora(model: Any, family: Family, settings: FinetuneSettings) -> Any:
    modules = [module for extra in settings.train for module in family.modules(*_EXTRAS[extra])]
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=list(family.modules(*_ATTENTION, parts=2)),
        modules_to_save=modules or None,
        ensure_weight_tying="embeddings" in settings.train and model.config.tie_word_embeddings,
    )
    model = get_peft_model(model, lora)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def _take_over(model: Any, adapter: Path, settings: FinetuneSettings) -> None:
    """Begin from an adapter's weights, which must be those of just the matrices that are trained here."""
    weights = load_file(adapter / ADAPTER_WEIGHT_FILES[0])
    alpha = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("lora_alpha")
    wanted = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(model).items()}
    held = {name: tuple(value.shape) for name, value in weights.items()}
    differing = sorted(name for name in wanted.keys() | held.keys() if wanted.get(name) != held.get(name))
    if differing or alpha != settings.alpha:
        what = f"lora_alpha is {alpha}" if not differing else f"{differing[0]} is {held.get(differing[0])}"
        here = f"{settings.alpha}" if not differing else f"{wanted.get(differing[0])}"
        raise UsageError(
            f"{adapter} was trained with other settings: {what} there, and {here} here",
            "give the --rank, --alpha and --train that it was made with",
        )
    set_peft_model_state_dict(model, weights)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"there is no device {name!r}", "devices are cpu, cuda, cuda:1, ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("PyTorch finds no GPU here", "leave --device out, or install PyTorch for CUDA")
    return device


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice of the libraries' on stderr; what they refuse, they raise."""
    with quiet_transformers(), warnings.catch_warnings():
        # peft asks transformers for what is going to have another name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
