"""RopeScaling: how positions become rotations, as GGUF keys and tensors, and as config.json keys.

The GGUF side follows llama.cpp src/llama-model.cpp (load_hparams), src/llama-context.cpp and src/models/
(graphs.py), the config side transformers' modeling_rope_utils.py. Numbers
beyond the common ones are single-precision, under GGUF's names, so that both sides give them back as they
were. Left out: reading a GGUF (from_gguf.py), and deciding what a checkpoint means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pigguf.common.config import as_json
from pigguf.errors import CheckpointError, UnsupportedModel
from pigguf.gguf_io.metadata import Typed, f32, shortest_f32, string, u32
from pigguf.llama_cpp_internals.rope_keys import UNSCALED_SLIDING, refuse_unread
from pigguf.rope.frequencies import (
    FREQUENCIES,
    LLAMA3_ORIGINAL,
    LONG,
    SHORT,
    Divisors,
    as_divisors,
    llama3_divisors,
    longrope_attention,
    single,
    yarn_attention,
)

# The kinds llama.cpp knows by name; on any other it aborts the process. Llama 3's is told by its tensor.
GGUF_KINDS = ("none", "linear", "yarn", "longrope")

# Parameters of each kind that is written. Those under GGUF's names become keys, the others tensors.
WRITTEN_PARAMETERS = {
    "none": (),
    "linear": (),
    "yarn": ("attn_factor", "yarn_beta_fast", "yarn_beta_slow"),
    "longrope": ("attn_factor", "short_factor", "long_factor"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}
# What a file may say and what llama.cpp would do without it (src/llama-hparams.h).
NEUTRAL = {"attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_log_multiplier": 0.0}

DEFAULT_BASE = 10000.0  # transformers' default_theta, and llama.cpp's where freq_base is absent
ROUNDING = 1e-3  # relative: published factors are rounded (24.41 for 100000 / 4096)
COMMAND_LINE = "command line"


def same(a: float, b: float) -> bool:
    """Equal but for the rounding of published factors."""
    return abs(a - b) <= ROUNDING * max(abs(a), abs(b))


@dataclass(frozen=True)
class Evidence:
    """One thing that was found: where, under which key, which value, and what it was taken to mean."""

    source: str
    key: str
    value: Any
    meaning: str

    def __str__(self) -> str:
        if self.source == COMMAND_LINE:
            return f"{self.key} {self.value}"
        return f"{self.source}: {self.key} = {as_json(self.value)}"


@dataclass(frozen=True)
class RopeScaling:
    """How positions become rotations.

    Attributes:
        kind: "none", "linear", "yarn", "longrope" or "llama3" (rope/unrotated.py has others).
        factor: position m is read as m / factor; 1.0 for "none", and for "longrope", which has lists. In
            "yarn" and "llama3" that holds for the low frequencies only.
        base: theta, the base of the rotation frequencies.
        original_context: tokens of the window the model was trained at.
        context_length: tokens of the window it can be used at, extended where it was extended.
        parameters: what else there is to the scaling: GGUF's keys by their last part, where they say more
            than is the rule ("attn_factor"); the numbers that become tensors by the config's names
            ("long_factor", "low_freq_factor"), or a tensor of unknown make ("rope_freqs").
        evidence: everything that was found, in order.
        decisions: what was concluded, one plain sentence each.
        local_base: the base of layers with a sliding window, where it is another (Gemma 3).
    """

    rope_type: str
    factor: float
    rope_theta: float
    original_context: int
    context_length: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = field(default=(), compare=False)
    decisions: tuple[str, ...] = field(default=(), compare=False)
    local_rope_theta: float | None = None

    @property
    def windows_agree(self) -> bool:
        """Whether factor x original context is the context length (some GGUFs never said so)."""
        return same(self.factor * self.original_context, self.context_length)

    def explain(self) -> str:
        """What the scaling means for positions, in a sentence."""
        told = self._explain_kind()
        if "rope_freqs" in self.parameters:
            told += f"; each frequency is also divided by its own number in {FREQUENCIES}"
        if self.local_rope_theta is not None:
            told += f"; layers with a sliding window read them as they are, with a base of {self.local_rope_theta:g}"
        return told

    def _explain_kind(self) -> str:
        last = self.context_length - 1
        windows = f"from {self.original_context} tokens to {self.context_length}"
        if self.rope_type == "none":
            return f"positions are read as they are, 0 to {last}"
        if self.rope_type == "linear":
            read = f"position {last}, the last, is read as {last / self.factor:.10g}"
            if self.windows_agree:
                return (
                    f"{read}: {self.context_length} positions share the {self.original_context} "
                    f"that the model was trained at"
                )
            return f"{read}: every position is divided by {self.factor:g}"
        if self.rope_type == "yarn":
            return (
                f"positions are divided by {self.factor:g} for low frequencies and as they are for high ones "
                f"(YaRN), {windows}"
            )
        if self.rope_type == "llama3":
            return (
                f"positions are divided by {self.factor:g} for low frequencies and as they are for high ones "
                f"(Llama 3), {windows}"
            )
        if self.rope_type == "longrope":
            return (
                "positions are divided by a number of its own for each frequency (LongRoPE): of one list "
                f"where the context is opened with up to {self.original_context} tokens, of another beyond, "
                f"up to {self.context_length}"
            )
        return f"positions are scaled by {self.rope_type}, factor {self.factor:g}, {windows}"

    def as_data(self) -> dict[str, Any]:
        """The positions as commands and reports tell them in JSON."""
        return {
            "kind": self.rope_type,
            "factor": self.factor,
            "base": self.rope_theta,
            "original_context_length": self.original_context,
            "context_length": self.context_length,
            "parameters": dict(self.parameters),
            **({} if self.local_rope_theta is None else {"local_base": self.local_rope_theta}),
        }

    def to_gguf(self, architecture: str) -> dict[str, Typed]:
        """The GGUF keys that say this.

        Unscaled positions get no scaling.type: absent means linear by 1 to llama.cpp, while "none"
        would also switch off a factor that someone gives at run time (llama-context.cpp).

        Raises:
            UnsupportedModel: a kind, or a parameter of it, that the architecture's graph does not compute.
        """
        self._refuse_unwritable()
        refuse_unread(self, architecture)
        keys = {"context_length": u32(self.context_length), "rope.freq_base": f32(self.rope_theta)}
        if self.rope_type in GGUF_KINDS and self.rope_type != "none":
            keys["rope.scaling.type"] = string(self.rope_type)
        if self.rope_type in ("linear", "yarn") or (self.rope_type == "longrope" and self.factor != 1.0):
            keys["rope.scaling.factor"] = f32(self.factor)
        if self.rope_type != "none":
            keys["rope.scaling.original_context_length"] = u32(self.original_context)
        for name in NEUTRAL:
            if name in self.parameters:
                keys[f"rope.scaling.{name}"] = f32(self.parameters[name])
        if self.local_rope_theta is not None or UNSCALED_SLIDING.get(architecture):
            keys["rope.freq_base_swa"] = f32(
                self.rope_theta if self.local_rope_theta is None else self.local_rope_theta
            )
        return {f"{architecture}.{key}": typed for key, typed in keys.items()}

    def tensors(self, rotary_dimensions: int) -> dict[str, Divisors]:
        """The tensors of a GGUF that say this, by name; `rotary_dimensions` are those rotated of a head.

        Raises:
            CheckpointError: the numbers are not as many as there are rotated pairs.
        """
        if self.rope_type == "llama3":
            made = llama3_divisors(
                self.rope_theta, self.factor, self.original_context, self.parameters, rotary_dimensions
            )
            return {FREQUENCIES: made}
        names = {"rope_freqs": FREQUENCIES, "long_factor": LONG, "short_factor": SHORT}
        tensors = {
            tensor: as_divisors(self.parameters[name])
            for name, tensor in names.items()
            if name in self.parameters
        }
        for name, divisors in tensors.items():
            if 2 * len(divisors) != rotary_dimensions:
                raise CheckpointError(
                    f"{name} would hold {len(divisors)} numbers, and {rotary_dimensions} dimensions of a "
                    f"head are rotated in {rotary_dimensions // 2} pairs",
                    "correct short_factor and long_factor in config.json: one number a pair",
                )
        return tensors

    def to_config(self) -> dict[str, Any]:
        """The config.json keys that say this, for an export.

        Both schemas, as they agree: rope_parameters for transformers 5 and later, rope_theta and rope_scaling
        for 4.31 and later, spelled as the first version spelled it that knew the kind (linear and Phi-3's
        longrope want their keys and no others). max_position_embeddings is the extended window; the original
        one stands where transformers looks for it, which for linear and longrope is the top level.

        Raises:
            UnsupportedModel: a kind, or a parameter of it, that configs do not have.
        """
        self._refuse_unwritable()
        if "rope_freqs" in self.parameters:
            raise UnsupportedModel(
                f"{FREQUENCIES} is not what Llama 3 makes of base {self.rope_theta:g} and {LLAMA3_ORIGINAL} tokens",
                "no other kind of scaling with such a tensor is known, and a config cannot hold it",
            )
        if self.rope_type == "longrope" and self.factor != 1.0:
            raise UnsupportedModel(
                f"rope.scaling.factor = {self.factor:g} beside positions of kind longrope divides them again",
                "no config has such a thing; pigguf repair --remove takes the key away",
            )
        base = shortest_f32(self.rope_theta)
        top: dict[str, Any] = {"max_position_embeddings": self.context_length, "rope_theta": base}
        scaling = self._config_scaling()
        if self.rope_type == "longrope" or (self.rope_type == "linear" and self.windows_agree):
            top["original_max_position_embeddings"] = self.original_context
        parameters = {"rope_type": self.rope_type, **scaling, "rope_theta": base}
        parameters.pop("type", None)
        if self.rope_type == "none":
            parameters["rope_type"] = "default"
        else:
            top["rope_scaling"] = scaling
        if self.rope_type == "longrope":
            parameters["original_max_position_embeddings"] = self.original_context
        if self.local_rope_theta is None:
            return {**top, "rope_parameters": parameters}
        local = shortest_f32(self.local_rope_theta)
        sliding = {"rope_type": "default", "rope_theta": local}
        return {
            **top,
            "rope_local_base_freq": local,
            "rope_parameters": {"full_attention": parameters, "sliding_attention": sliding},
        }

    def _config_scaling(self) -> dict[str, Any]:
        """What rope_scaling holds."""
        factor, said = shortest_f32(self.factor), self.parameters
        if self.rope_type == "linear":
            return {"type": "linear", "factor": factor}
        if self.rope_type == "yarn":
            betas = {
                key: shortest_f32(said[f"yarn_{key}"])
                for key in ("beta_fast", "beta_slow")
                if f"yarn_{key}" in said
            }
            keys = {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": self.original_context,
                **betas,
            }
            if "attn_factor" in said:
                keys["attention_factor"] = said["attn_factor"] * yarn_attention(self.factor)
            return keys
        if self.rope_type == "llama3":
            return {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": self.original_context,
                **said,
            }
        if self.rope_type == "longrope":
            usual = longrope_attention(self.context_length / self.original_context, self.original_context)
            attention = said.get("attn_factor", 1.0)
            return {
                "type": "longrope",
                **{
                    key: [shortest_f32(value) for value in said[key]]
                    for key in ("short_factor", "long_factor")
                },
                **({} if attention == single(usual) else {"attention_factor": shortest_f32(attention)}),
            }
        return {}

    def _refuse_unwritable(self) -> None:
        if self.rope_type not in WRITTEN_PARAMETERS:
            raise UnsupportedModel(f"rope scaling of kind {self.rope_type} is not written")
        for key, value in self.parameters.items():
            if key not in (*WRITTEN_PARAMETERS[self.rope_type], "rope_freqs"):
                raise UnsupportedModel(
                    f"rope.scaling.{key} = {value} beside positions of kind {self.rope_type} is not written",
                    "no config has such a thing, and most of llama.cpp's graphs do not read it",
                )
        for key in ("short_factor", "long_factor") if self.rope_type == "longrope" else ():
            if key not in self.parameters:
                raise UnsupportedModel(
                    f"rope scaling of kind longrope lacks {key}", f"the file should hold {LONG} and {SHORT}"
                )
