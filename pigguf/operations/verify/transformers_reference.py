"""reference: a checkpoint as transformers computes it, in float32 on the CPU, a piece of a text at a time.

    reference = load(checkpoint, family, hparams, length=8192)
    logits = reference.logits(tokens[:256])        (256, vocab_size); the next call goes on behind them

transformers' own classes compute its own reading of the files; positions are those that the checkpoint's
evidence decides (rope/), put into the config in place of what it says: a key of an old fork's that
transformers passes over counts as it does in a conversion. Code that comes with a checkpoint never runs.

Outside of fine-tuning the only module that imports transformers; it needs the extra `pigguf[verify]`, and is
imported where it is used. Left out: GPUs, and adapters.
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

from pigguf.architectures import Family
from pigguf.architectures.hparams import HParams
from pigguf.checkpoint import Checkpoint
from pigguf.checkpoint.json_file import read_json
from pigguf.common.quiet_transformers import quiet_transformers
from pigguf.common.system_memory import available_memory, in_words
from pigguf.errors import CheckpointError, DoesNotFit, PigError, UnsupportedModel

_NOT_COMPUTED = "the header and the tokenizer are compared all the same"
# Classes that take no factor: a table of rotations is made without one (models/gptj/modeling_gptj.py).
_NEVER_SCALED = ("gptj",)


class TransformersReference:
    """A model of transformers' with the tokens it has read.

    Attributes:
        vocab_size: the width of its logits.
    """

    def __init__(self, model: Any) -> None:
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self._model = model
        self._cache = DynamicCache(config=model.config)
        # the keyword is `cache` since transformers 5.24
        names = inspect.signature(model.forward).parameters
        self._keyword = "cache" if "cache" in names else "past_key_values"

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Read on, and give the logits after each of the tokens: (len(tokens), vocab_size)."""
        read = {self._keyword: self._cache, "use_cache": True}
        logits: NDArray[np.float32] = self._model(torch.tensor([list(tokens)]), **read).logits[0].numpy()
        return logits


def load_reference(
    checkpoint: Checkpoint, family: Family, hparams: HParams, length: int
) -> TransformersReference:
    """Load a checkpoint.

    Args:
        family, hparams: what convert makes of it, positions included.
        length: how many tokens it is going to read; LongRoPE has a list for short texts and one for long.

    Raises:
        UnsupportedModel: transformers has no class that computes it.
        CheckpointError: transformers does not load it, or would fill in weights of its own.
        DoesNotFit: its weights need more memory than there is.
    """
    config = _config(checkpoint.config, family, hparams, length)
    _refuse_too_large(checkpoint)
    try:
        with _quiet():
            model, loaded = _class_of(config, hparams).from_pretrained(
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                **_weights(checkpoint),
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"transformers cannot load {checkpoint.path}: {error}") from error
    for what in ("missing_keys", "mismatched_keys"):
        for name in sorted(map(str, loaded[what])):
            raise CheckpointError(f"{checkpoint.path}: transformers loads it with {name} among its {what}")
    return TransformersReference(model.eval())


def _config(config: Mapping[str, Any], family: Family, hparams: HParams, length: int) -> Any:
    """transformers' config object with the positions of `hparams`."""
    rope = hparams.rope
    if rope.rope_type != "none" and family.model_type in _NEVER_SCALED:
        raise UnsupportedModel(
            f"transformers' {hparams.hf_class} scales no positions, and these are scaled: {rope.rope_type}",
            _NOT_COMPUTED,
        )
    if (
        rope.rope_type == "longrope" and length > rope.original_context
    ):  # transformers would change over on the way
        factors = {**rope.parameters, "short_factor": rope.parameters["long_factor"]}
        hparams = replace(hparams, rope=replace(rope, parameters=factors))
    said = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with _quiet():
            return AutoConfig.for_model(
                config.get("model_type", family.model_type), **family.with_positions(said, hparams)
            )
    except PigError:
        raise
    except Exception as error:  # a ValueError of its own, or a validator's
        raise UnsupportedModel(
            f"transformers has no class for {hparams.hf_class} as its config.json says: {error}",
            _NOT_COMPUTED,
        ) from error


def _class_of(config: Any, hparams: HParams) -> Any:
    """transformers' own class for a config; an auto_map in it is passed over."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(
            f"transformers computes no {hparams.hf_class} as a causal model", _NOT_COMPUTED
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """The directory, for transformers to read; or the tensors as numbers where it would read them as stored:
    in Meta's pieces, which it does not know, or in float8, which it computes with."""
    own = read_json(checkpoint.path / "config.json", optional=True)
    if own and "quantization_config" not in own:
        return {"pretrained_model_name_or_path": checkpoint.path}
    tensors = {
        name: torch.from_numpy(tensor.load().astype(np.float32))
        for name, tensor in checkpoint.tensors.items()
    }
    return {"pretrained_model_name_or_path": None, "state_dict": tensors}


def _refuse_too_large(checkpoint: Checkpoint) -> None:
    needed = 4 * sum(tensor.elements for tensor in checkpoint.tensors.values())
    available = available_memory()
    if available is not None and needed > available:
        raise DoesNotFit(
            f"{checkpoint.path} takes {in_words(needed)} in float32, and "
            f"{in_words(available)} of memory are free",
            "close other programs, or compare on a computer with more memory",
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice of the library's on stderr; what it refuses, it raises."""
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
