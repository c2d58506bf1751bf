"""Make tiny seeded checkpoints with transformers, and a byte-level BPE trained on a few sentences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from support.tiny_families import MODEL_VARIANTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 320
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TEXT = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "It is a truth universally acknowledged, that a single man in possession of a good fortune",
    "def answer(question): return 42  # 1234567890",
] * 8

FAMILIES: dict[str, type[transformers.PreTrainedModel]] = {
    "llama": transformers.LlamaForCausalLM,
    "mistral": transformers.MistralForCausalLM,
    "qwen2": transformers.Qwen2ForCausalLM,
}


def make_checkpoint(
    path: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    seed: int = 0,
    **config: Any,
) -> Path:
    """Save a tiny model with random weights and a byte-level BPE tokenizer; return the directory.

    Its original context is 64 tokens. `family` is one of FAMILIES, or a kind of tiny_families.KINDS.
    `config` overrides the config's keys before the model is made;
    keys that transformers would normalise are better edited in config.json afterwards (edit_config).
    """
    torch.manual_seed(seed)
    cls = FAMILIES.get(family) or getattr(transformers, MODEL_VARIANTS[family].hf_class)
    model = cls(cls.config_class(**{**_config(family), **config})).to(dtype)
    with torch.no_grad():  # transformers initialises norms to 1 and biases to 0, which would hide errors
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                tied = getattr(model.config, "tie_word_embeddings", False)
                parameter.mul_(4.0 if tied or "embed" not in name else 1.0)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    save_tokenizer(path)
    return path


def edit_config(path: Path, **changes: Any) -> None:
    """Set keys of a checkpoint's config.json; a value of ... removes the key."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        config.pop(key, None)
        if value is not ...:
            config[key] = value
    file.write_text(json.dumps(config))


def save_tokenizer(path: Path, vocab_size: int = VOCAB_SIZE) -> None:
    """Train a byte-level BPE of exactly `vocab_size` tokens and save it as transformers does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_TEXT, trainer)
    assert tokenizer.get_vocab_size() == vocab_size
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


def _config(family: str) -> dict[str, Any]:
    if family not in FAMILIES:
        special = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
        return {**MODEL_VARIANTS[family].config, **special}
    config: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if family == "mistral":
        config |= {"sliding_window": None}
    return config
