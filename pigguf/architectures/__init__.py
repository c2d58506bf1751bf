"""Model families: config.json and tensor names of transformers <-> keys and names of GGUF.

    table.py      what a family's table of tensors is written in: rules, sizes, orders of rows
    keys.py       the same for config keys: flags, numbers, how much of a head is rotated
    family.py     Family: the table, and what is refused; HParams <-> config and metadata
    rename.py     to_gguf and to_hf: the table applied, in either direction
    llama.py ...  one family each, as data

A new family is a file and an entry in FAMILIES; one that equals another but for names is a
`replace` of it. Left out: positions (rope/), tokenizers, and the tensors' bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pigguf.architectures.baichuan import BAICHUAN
from pigguf.architectures.bloom import BLOOM
from pigguf.architectures.command_r import COMMAND_R
from pigguf.architectures.falcon import FALCON
from pigguf.architectures.family import CLASS_KEY, Family
from pigguf.architectures.gemma import GEMMA
from pigguf.architectures.gemma2 import GEMMA2
from pigguf.architectures.gemma3 import GEMMA3, GEMMA3_THAT_SEES
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
from pigguf.architectures.tensor_mapping import to_gguf, to_hf
from pigguf.common.config import Config, as_json
from pigguf.errors import CheckpointError, UnsupportedModel
from pigguf.gguf_io.metadata import Metadata, get, need

__all__ = ["CLASS_KEY", "FAMILIES", "Family", "family_in", "family_of", "find_family", "to_gguf", "to_hf"]

# Of families with one GGUF architecture the first is what an export makes.
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
    GEMMA3_THAT_SEES,
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


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json: by the first of its `architectures`, or else by `model_type`.

    Raises:
        UnsupportedModel: no family of that name, or the two keys name different ones.
        CheckpointError: neither key is there.
    """
    keys = Config(config)
    model_type = keys.optional("model_type", str, "")
    if "architectures" not in keys:
        if not model_type:
            raise CheckpointError("config.json lacks architectures", "it should name the model's class")
        named = [f for f in FAMILIES if model_type in (f.model_type, *f.old_model_types)]
        return _known(named, keys, "model_type")
    names = config["architectures"]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise keys.invalid("architectures", "a list of class names")
    family = _known([family for family in FAMILIES if names[0] in family.classes], keys, "architectures")
    if model_type not in ("", family.model_type, *family.old_model_types):
        raise UnsupportedModel(
            f"config.json: architectures = {as_json(names)} contradicts model_type = {as_json(model_type)}",
            f"the model_type of {names[0]} is {family.model_type}",
        )
    return family


def family_in(metadata: Metadata) -> Family:
    """The family of a GGUF.

    Raises:
        UnsupportedModel: none that pigguf knows.
        GGUFError: the file does not say.
    """
    architecture = need(metadata, "general.architecture", str)
    experts = get(metadata, f"{architecture}.expert_count", int, 0) or 0
    return family_of(architecture, get(metadata, CLASS_KEY, str), experts)


def family_of(architecture: str, hf_class: str | None = None, experts: int = 0) -> Family:
    """The family of a GGUF, by what it says of itself.

    Args:
        architecture: general.architecture.
        hf_class: what CLASS_KEY says, which a file has whose family runs on another's graph.
        experts: how many; some families share a graph with one that has none.

    Raises:
        UnsupportedModel: there is none.
    """
    found = [
        family
        for family in FAMILIES
        if family.architecture == architecture
        and (not family.folded if hf_class is None else hf_class in family.classes)
    ]
    for family in found:
        if family.mixture == (experts > 0):
            return family
    if found:
        return found[0]
    known = dict.fromkeys(family.architecture for family in FAMILIES)
    raise UnsupportedModel(
        f"general.architecture = {as_json(architecture)} is not a family pigguf knows",
        f"it knows {', '.join(known)}",
    )


def _known(families: list[Family], keys: Config, key: str) -> Family:
    if families:
        return families[0]
    raise UnsupportedModel(
        f"{keys.says(key)} is not a family pigguf knows",
        f"it knows {', '.join(family.classes[0] for family in FAMILIES)}",
    )
