"""The registry of model families: which family a config.json or a GGUF belongs to.

A new family is a module with a Family and an entry in FAMILIES; one that equals another except for names is a
dataclasses.replace of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.baichuan import BAICHUAN
from pigguf.architectures.bloom import BLOOM
from pigguf.architectures.command_r import COMMAND_R
from pigguf.architectures.falcon import FALCON
from pigguf.architectures.family import HF_CLASS_KEY, Family
from pigguf.architectures.gemma import GEMMA
from pigguf.architectures.gemma2 import GEMMA2
from pigguf.architectures.gemma3 import GEMMA3, GEMMA3_MULTIMODAL
from pigguf.architectures.gpt2 import GPT2
from pigguf.architectures.gptj import GPTJ
from pigguf.architectures.gptneox import GPTNEOX
from pigguf.architectures.granite import GRANITE
from pigguf.architectures.internlm2 import INTERNLM2
from pigguf.architectures.llama import LLAMA
from pigguf.architectures.mistral import MISTRAL
from pigguf.architectures.mixtral import MIXTRAL
from pigguf.architectures.mpt import MPT
from pigguf.architectures.olmo2 import OLMO2
from pigguf.architectures.opt import OPT
from pigguf.architectures.phi2 import PHI2
from pigguf.architectures.phi3 import PHI3
from pigguf.architectures.qwen2 import QWEN2
from pigguf.architectures.qwen3 import QWEN3
from pigguf.architectures.smollm3 import SMOLLM3
from pigguf.architectures.stablelm import STABLELM
from pigguf.architectures.starcoder import STARCODER
from pigguf.architectures.starcoder2 import STARCODER2
from pigguf.common.json_config import JsonConfig, format_json_value
from pigguf.errors import CheckpointError, UnsupportedModel
from pigguf.gguf_io.metadata import Metadata, get_value, require_value

# Of families with the same GGUF architecture an export writes the first.
FAMILIES: tuple[Family, ...] = (
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GPT2,
    GPTNEOX,
    PHI2,
    GPTJ,
    FALCON,
    BLOOM,
    MPT,
    STARCODER,
    OPT,
    MIXTRAL,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA3_MULTIMODAL,
    PHI3,
    STARCODER2,
    OLMO2,
    GRANITE,
    COMMAND_R,
    SMOLLM3,
    STABLELM,
    INTERNLM2,
    BAICHUAN,
)


def family_from_config(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json: by the first of its `architectures`, else by `model_type`.

    Raises:
        UnsupportedModel: there is no such family, or the two keys name different ones.
        CheckpointError: the config has neither key.
    """
    keys = JsonConfig(config)
    model_type = keys.optional("model_type", str, "")
    if "architectures" not in keys:
        if not model_type:
            raise CheckpointError("config.json lacks architectures", "it should name the model's class")
        matching = [f for f in FAMILIES if model_type in (f.model_type, *f.legacy_model_types)]
        return _first_family(matching, keys, "model_type")
    names = config["architectures"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise keys.invalid_value("architectures", "a list of class names")
    matching = [family for family in FAMILIES if names[0] in family.hf_classes]
    family = _first_family(matching, keys, "architectures")
    if model_type not in ("", family.model_type, *family.legacy_model_types):
        raise UnsupportedModel(
            f"{keys.describe('architectures')} contradicts model_type = {format_json_value(model_type)}",
            f"the model_type of {names[0]} is {family.model_type}",
        )
    return family


def family_from_metadata(metadata: Metadata) -> Family:
    """Return the family of a GGUF.

    Raises:
        UnsupportedModel: pigguf has no such family.
        GGUFError: the file has no general.architecture.
    """
    architecture = require_value(metadata, "general.architecture", str)
    experts = get_value(metadata, f"{architecture}.expert_count", int, 0) or 0
    return family_by_architecture(architecture, get_value(metadata, HF_CLASS_KEY, str), experts)


def family_by_architecture(architecture: str, hf_class: str | None = None, experts: int = 0) -> Family:
    """Return the family with a GGUF architecture.

    Args:
        architecture: general.architecture.
        hf_class: the value of HF_CLASS_KEY, for a family that runs as another architecture.
        experts: the number of experts; some families share an architecture with one that has none.

    Raises:
        UnsupportedModel: there is no such family.
    """
    matching = [
        family
        for family in FAMILIES
        if family.architecture == architecture
        and (not family.runs_as_other_architecture if hf_class is None else hf_class in family.hf_classes)
    ]
    for family in matching:
        if family.has_experts == (experts > 0):
            return family
    if matching:
        return matching[0]
    known = dict.fromkeys(family.architecture for family in FAMILIES)
    raise UnsupportedModel(
        f"general.architecture = {format_json_value(architecture)} is not supported",
        f"supported architectures: {', '.join(known)}",
    )


def _first_family(families: list[Family], keys: JsonConfig, key: str) -> Family:
    if families:
        return families[0]
    raise UnsupportedModel(
        f"{keys.describe(key)} is not supported",
        f"supported classes: {', '.join(family.hf_classes[0] for family in FAMILIES)}",
    )
