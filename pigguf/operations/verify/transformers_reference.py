"""A checkpoint as transformers computes it, in float32 on the CPU, a batch of tokens at a time.

    reference = load_reference(checkpoint, family, hparams, length=8192)
    logits = reference.logits(tokens[:256])        # (256, vocab_size); the next call continues after them

transformers' own classes read the files. The positions are those decided from the checkpoint's evidence
(rope/), put into the config instead of its own: a key of an old fork that transformers ignores counts as it
does in a conversion. Code that comes with a checkpoint is never run.

Except for fine-tuning this is the only module that imports transformers. It needs the extra `pigguf[verify]`
and is imported only where it is used. Not here: GPUs, and adapters.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, DynamicCache

from pigguf.architectures import Family, config_with_positions
from pigguf.architectures.hparams import HParams
from pigguf.checkpoint import Checkpoint
from pigguf.checkpoint.json_file import read_json
from pigguf.common.format_bytes import format_memory
from pigguf.common.quiet_transformers import quiet_transformers
from pigguf.common.system_memory import available_memory
from pigguf.errors import CheckpointError, DoesNotFit, PigError, UnsupportedModel
from pigguf.rope.longrope import LongRopeScaling

_COMPARED_ANYWAY = "structure, tokenizer and weights are compared all the same"
# transformers classes whose table of positions has no scaling factor (models/gptj/modeling_gptj.py).
_WITHOUT_SCALING = ("gptj",)


class TransformersReference:
    """A transformers model with the tokens that it has computed so far.

    Attributes:
        vocab_size: The size of its logits.
    """

    def __init__(self, model: Any) -> None:
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self._model = model
        self._cache = DynamicCache(config=model.config)
        # the keyword is `cache` since transformers 5.24
        names = inspect.signature(model.forward).parameters
        self._cache_keyword = "cache" if "cache" in names else "past_key_values"

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Compute tokens after those of earlier calls.

        Returns:
            The logits at each token, (len(tokens), vocab_size), float32.
        """
        cache = {self._cache_keyword: self._cache, "use_cache": True}
        logits: NDArray[np.float32] = self._model(torch.tensor([list(tokens)]), **cache).logits[0].numpy()
        return logits


def load_reference(
    checkpoint: Checkpoint, family: Family, hparams: HParams, length: int
) -> TransformersReference:
    """Load a checkpoint in transformers.

    Args:
        checkpoint: The checkpoint.
        family: Its family.
        hparams: What convert makes of it, positions included.
        length: How many tokens will be computed; LongRoPE has other frequency factors for long texts.

    Raises:
        UnsupportedModel: transformers has no class that computes it.
        CheckpointError: transformers does not load it, or would initialize some weights at random.
        DoesNotFit: Its weights need more memory than is free.
    """
    config = _build_config(checkpoint.config, family, hparams, length)
    _check_fits(checkpoint)
    try:
        with _quiet():
            model, loading_info = _model_class(config, hparams).from_pretrained(
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                **_weight_arguments(checkpoint),
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers cannot load {checkpoint.path}: {error}") from error
    for problem in ("missing_keys", "mismatched_keys"):
        for name in sorted(map(str, loading_info[problem])):
            raise CheckpointError(f"{checkpoint.path}: transformers reports {name} among its {problem}")
    return TransformersReference(model.eval())


def _build_config(config: Mapping[str, Any], family: Family, hparams: HParams, length: int) -> Any:
    """Return transformers' config object with the positions of `hparams`."""
    rope = hparams.rope
    if rope.rope_type != "none" and family.model_type in _WITHOUT_SCALING:
        raise UnsupportedModel(
            f"transformers' {hparams.hf_class} scales no positions, and these have {rope.rope_type} scaling",
            _COMPARED_ANYWAY,
        )
    if isinstance(rope, LongRopeScaling) and length > rope.original_context:
        # transformers would switch from the short factors to the long ones in the middle of the text
        hparams = replace(hparams, rope=replace(rope, short_factor=rope.long_factor))
    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with _quiet():
            return AutoConfig.for_model(
                config.get("model_type", family.model_type), **config_with_positions(family, values, hparams)
            )
    except PigError:
        raise
    except Exception as error:  # ValueError, or whatever a validator raises
        raise UnsupportedModel(
            f"transformers has no class for {hparams.hf_class} as described by its config.json: {error}",
            _COMPARED_ANYWAY,
        ) from error


def _model_class(config: Any, hparams: HParams) -> Any:
    """Return transformers' own class for a config; an auto_map in it is ignored."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(
            f"transformers has no {hparams.hf_class} among its causal models", _COMPARED_ANYWAY
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _weight_arguments(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return from_pretrained's arguments for the weights: the directory, or the tensors in float32.

    The tensors are given where transformers would not read them as numbers: Meta's checkpoints, which it does
    not know, and quantized ones (float8), which it would compute in their own type.
    """
    own_config = read_json(checkpoint.path / "config.json", optional=True)
    if own_config and "quantization_config" not in own_config:
        return {"pretrained_model_name_or_path": checkpoint.path}
    tensors = {
        name: torch.from_numpy(tensor.load().astype(np.float32))
        for name, tensor in checkpoint.tensors.items()
    }
    return {"pretrained_model_name_or_path": None, "state_dict": tensors}


def _check_fits(checkpoint: Checkpoint) -> None:
    """Raise DoesNotFit if the weights in float32 need more memory than is free."""
    needed = 4 * sum(tensor.elements for tensor in checkpoint.tensors.values())
    available = available_memory()
    if available is not None and needed > available:
        raise DoesNotFit(
            f"{checkpoint.path} takes {format_memory(needed)} in float32, and "
            f"{format_memory(available)} of memory are free",
            "close other programs, or compare on a computer with more memory",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings; its errors are raised."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
