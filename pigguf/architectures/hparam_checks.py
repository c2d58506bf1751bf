"""Checks of hyperparameters that do not fit each other, on which llama.cpp would abort the process."""

from __future__ import annotations

from pigguf.architectures.family import NOT_COMPUTED_HINT, Family, position_type
from pigguf.architectures.hparams import HParams
from pigguf.errors import CheckpointError, GGUFError, UnsupportedModel
from pigguf.gguf_io.metadata import FOREIGN_FILE_HINT
from pigguf.llama_cpp_internals.limits import MAX_EXPERTS, MAX_LAYERS
from pigguf.rope import RopeScaling


def check_hparams(
    family: Family, hparams: HParams, source: str, error: type[CheckpointError | GGUFError]
) -> None:
    """Check that hyperparameters fit each other and llama.cpp's graph.

    Args:
        family: the model's family.
        hparams: what was read.
        source: the beginning of messages: where the values were read.
        error: the error to raise.

    Raises:
        CheckpointError | GGUFError: values that do not fit each other.
        UnsupportedModel: values that the graph does not support.
    """
    hint = FOREIGN_FILE_HINT if error is GGUFError else "correct config.json, or download it again"
    for problem in (
        _layer_problem(hparams),
        _head_problem(family, hparams),
        _expert_problem(family, hparams),
        _epsilon_problem(family, hparams),
    ):
        if problem is not None:
            raise error(f"{source}{problem}", hint)
    if hparams.head_dim * hparams.heads != hparams.embedding_length and not family.allows_custom_head_dim:
        raise UnsupportedModel(
            f"{source}{hparams.heads} heads of width {hparams.head_dim} are not the embedding length "
            f"{hparams.embedding_length}, as llama.cpp's {family.architecture} graph requires",
            NOT_COMPUTED_HINT,
        )
    local_rope_theta = hparams.rope.local_rope_theta if isinstance(hparams.rope, RopeScaling) else None
    if local_rope_theta is not None and not family.has_local_rope_theta:
        raise UnsupportedModel(
            f"{source}sliding layers have a rope_theta of their own, {local_rope_theta:g}", NOT_COMPUTED_HINT
        )


def _layer_problem(hparams: HParams) -> str | None:
    if hparams.layers > MAX_LAYERS:
        return f"{hparams.layers} layers are more than the {MAX_LAYERS} that llama.cpp supports"
    return None


def _head_problem(family: Family, hparams: HParams) -> str | None:
    if hparams.heads % hparams.kv_heads:
        return f"{hparams.heads} heads cannot share {hparams.kv_heads} key-value heads evenly"
    is_rope = position_type(family, hparams.layers) == "rope"
    if is_rope and (hparams.rotary_dim % 2 or not 0 < hparams.rotary_dim <= hparams.head_dim):
        return f"{hparams.rotary_dim} of a head's {hparams.head_dim} dimensions cannot be rotated in pairs"
    return None


def _expert_problem(family: Family, hparams: HParams) -> str | None:
    used = hparams.extra_keys.get("expert_used_count")
    if not family.has_experts or (used is not None and 0 < used.value <= hparams.experts <= MAX_EXPERTS):
        return None
    return (
        f"{'none' if used is None else used.value} of {hparams.experts} experts are used for a token, and "
        f"llama.cpp supports at most {MAX_EXPERTS} experts"
    )


def _epsilon_problem(family: Family, hparams: HParams) -> str | None:
    if hparams.norm_epsilon < 0:
        return f"{family.norm_epsilon_key} is {hparams.norm_epsilon}, not a small positive number"
    return None
