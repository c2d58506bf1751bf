"""RopeScaling: what all types of rotary positions have in common.

The types are UnscaledRope, LinearScaling, YarnScaling, LongRopeScaling and Llama3Scaling, each in a module of
its own. The GGUF side follows llama.cpp src/llama-model.cpp (load_hparams), src/llama-context.cpp and
src/models/; the config side transformers' modeling_rope_utils.py. Numbers other than rope_theta and the
context lengths are rounded to single precision, so that a GGUF and a config give back the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pigguf.errors import CheckpointError, UnsupportedModel
from pigguf.gguf_io.metadata import TypedValue, f32, round_to_shortest_f32, u32
from pigguf.llama_cpp_internals.rope_keys import UNSCALED_SLIDING, check_rope_supported
from pigguf.rope.evidence import Evidence

DEFAULT_ROPE_THETA = 10000.0  # transformers' default_theta, and llama.cpp's where rope.freq_base is absent
ROPE_FREQS = "rope_freqs.weight"  # llama.cpp divides frequency i by element i (ggml_rope_cache_init)
RELATIVE_TOLERANCE = 1e-3  # published factors are rounded: 24.41 for 100000 / 4096

FreqFactors = NDArray[np.float32]


def approx_equal(a: float, b: float) -> bool:
    """Return whether two numbers are equal except for the rounding of published factors."""
    return abs(a - b) <= RELATIVE_TOLERANCE * max(abs(a), abs(b))


def single(value: float) -> float:
    """Return a number rounded to single precision, as a GGUF stores it."""
    return float(np.float32(value))


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary positions and their scaling; the base class of the rope types.

    Attributes:
        rope_type: "none", "linear", "yarn", "longrope" or "llama3".
        rope_theta: the base of the rotation frequencies.
        original_context: the context length that the model was trained at, in tokens.
        context_length: the context length that it can be used at, in tokens.
        factor: the scaling factor; 1.0 for types that have none.
        attn_factor: what queries and keys are multiplied by in addition to what the type does itself
            (GGUF's rope.scaling.attn_factor).
        local_rope_theta: rope_theta of layers with sliding window attention, where it differs (Gemma 3).
        freq_factors: the values of a GGUF's rope_freqs.weight that are not Llama 3's; (n_pairs,) or empty.
        other_parameters: rope.scaling keys of a GGUF that the type does not use, by their last part.
        evidence: everything that was found, in order.
        decisions: what was concluded, a sentence each.
    """

    rope_type: ClassVar[str]
    supports_attn_factor: ClassVar[bool] = False

    rope_theta: float
    original_context: int
    context_length: int
    factor: float = 1.0
    attn_factor: float = 1.0
    local_rope_theta: float | None = None
    freq_factors: tuple[float, ...] = ()
    other_parameters: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = field(default=(), compare=False)
    decisions: tuple[str, ...] = field(default=(), compare=False)

    @property
    def context_matches_factor(self) -> bool:
        """Whether factor x original context is the context length; some GGUFs omit the original context."""
        return approx_equal(self.factor * self.original_context, self.context_length)

    @property
    def parameters(self) -> dict[str, Any]:
        """The numbers of the type besides the common ones, by GGUF's names or else the config's."""
        return {
            **self.other_parameters,
            **self._type_parameters(),
            **({} if self.attn_factor == 1.0 else {"attn_factor": self.attn_factor}),
            **({"rope_freqs": self.freq_factors} if self.freq_factors else {}),
        }

    def explain(self) -> str:
        """Return what the scaling does to positions, in a sentence."""
        sentence = self._explain_scaling()
        if self.freq_factors:
            sentence += f"; each frequency is also divided by its own number in {ROPE_FREQS}"
        if self.local_rope_theta is not None:
            theta = f"{self.local_rope_theta:g}"
            sentence += f"; layers with a sliding window are not scaled, with a rope_theta of {theta}"
        return sentence

    def as_data(self) -> dict[str, Any]:
        """Return the positions as JSON output has them."""
        return {
            "kind": self.rope_type,
            "factor": self.factor,
            "base": self.rope_theta,
            "original_context_length": self.original_context,
            "context_length": self.context_length,
            "parameters": self.parameters,
            **({} if self.local_rope_theta is None else {"local_base": self.local_rope_theta}),
        }

    def to_gguf(self, architecture: str) -> dict[str, TypedValue]:
        """Return the GGUF keys of these positions.

        Raises:
            UnsupportedModel: the architecture's graph does not compute the type, or one of its parameters.
        """
        self._check_parameters()
        check_rope_supported(self, architecture)
        keys = {
            "context_length": u32(self.context_length),
            "rope.freq_base": f32(self.rope_theta),
            **self._scaling_keys(),
        }
        if self.local_rope_theta is not None or UNSCALED_SLIDING.get(architecture):
            theta = self.rope_theta if self.local_rope_theta is None else self.local_rope_theta
            keys["rope.freq_base_swa"] = f32(theta)
        return {f"{architecture}.{key}": typed for key, typed in keys.items()}

    def tensors(self, rotary_dim: int) -> dict[str, FreqFactors]:
        """Return the GGUF tensors of these positions: name -> (rotary_dim / 2,), float32.

        Args:
            rotary_dim: the rotated dimensions of a head.

        Raises:
            CheckpointError: the type has another number of factors.
        """
        return freq_factor_tensors({ROPE_FREQS: self.freq_factors} if self.freq_factors else {}, rotary_dim)

    def to_config(self) -> dict[str, Any]:
        """Return the config.json keys of these positions, for an export.

        They include both schemas: rope_parameters for transformers 5 and later, rope_theta and rope_scaling
        for 4.31 and later, spelled as in the first version that had the type (linear and Phi-3's longrope
        require their keys and no others). max_position_embeddings is the extended context; the original one
        is where transformers looks for it, which for linear and longrope is the top level.

        Raises:
            UnsupportedModel: configs do not have the type, or one of its parameters.
        """
        self._check_parameters()
        self._check_exportable()
        theta = round_to_shortest_f32(self.rope_theta)
        rope_scaling = self._config_scaling()
        config: dict[str, Any] = {"max_position_embeddings": self.context_length, "rope_theta": theta}
        config |= self._config_top_level()
        if rope_scaling:
            config["rope_scaling"] = rope_scaling
        parameters = self._config_rope_parameters(rope_scaling, theta)
        if self.local_rope_theta is None:
            return {**config, "rope_parameters": parameters}
        local_theta = round_to_shortest_f32(self.local_rope_theta)
        sliding = {"rope_type": "default", "rope_theta": local_theta}
        return {
            **config,
            "rope_local_base_freq": local_theta,
            "rope_parameters": {"full_attention": parameters, "sliding_attention": sliding},
        }

    def _check_parameters(self) -> None:
        """Raise if there are parameters that the type does not have."""
        attn_factor = (
            {} if self.supports_attn_factor or self.attn_factor == 1.0 else {"attn_factor": self.attn_factor}
        )
        for key, value in {**self.other_parameters, **attn_factor}.items():
            raise UnsupportedModel(
                f"rope.scaling.{key} = {value} with rope type {self.rope_type} cannot be written",
                "configs have no such key, and most of llama.cpp's graphs do not read it",
            )

    def _check_exportable(self) -> None:
        """Raise if a config cannot express the scaling."""
        if self.freq_factors:
            raise UnsupportedModel(
                f"{ROPE_FREQS} does not match Llama 3's scaling with rope_theta = {self.rope_theta:g} "
                "from 8192 tokens",
                "no other scaling with such a tensor is known, and a config cannot express it",
            )

    # What the types define

    def _type_parameters(self) -> dict[str, Any]:
        """Return the type's parameters that differ from their defaults."""
        return {}

    def _explain_scaling(self) -> str:
        """Return what the type does to positions, in a sentence."""
        raise NotImplementedError

    def _scaling_keys(self) -> dict[str, TypedValue]:
        """Return the rope.scaling keys of a GGUF, in the order of the file."""
        return {}

    def _config_scaling(self) -> dict[str, Any]:
        """Return the object rope_scaling of a config; {} for none."""
        return {}

    def _config_top_level(self) -> dict[str, Any]:
        """Return the type's config keys besides rope_scaling."""
        return {}

    def _config_rope_parameters(self, rope_scaling: Mapping[str, Any], theta: float) -> dict[str, Any]:
        """Return the object rope_parameters of a config."""
        parameters = {"rope_type": self.rope_type, **rope_scaling, "rope_theta": theta}
        parameters.pop("type", None)
        return parameters


def freq_factor_tensors(
    freq_factors: Mapping[str, Sequence[float]], rotary_dim: int
) -> dict[str, FreqFactors]:
    """Return freq_factors as arrays of float32.

    Raises:
        CheckpointError: there is not one number for each rotated pair of dimensions.
    """
    for name, values in freq_factors.items():
        if 2 * len(values) != rotary_dim:
            raise CheckpointError(
                f"{name} would have {len(values)} numbers, and {rotary_dim} dimensions of a head are rotated "
                f"in {rotary_dim // 2} pairs",
                "correct short_factor and long_factor in config.json: one number for each pair",
            )
    return {name: np.array(values, dtype=np.float32) for name, values in freq_factors.items()}
