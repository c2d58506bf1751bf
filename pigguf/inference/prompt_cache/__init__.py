"""Prompt cache: KV states of prompts on disk, so that the next process does not prefill them again.

    location_and_budget  where the states are, and how many bytes they may take
    cache_key            what a state depends on: the model's bytes, RoPE, KV cache types, the library
    state_file           one cached prompt: a file that is written atomically and verified before use
    store                PromptCacheStore: restore the longest common prefix, save long prompts

    store = open_prompt_cache()         None if it is disabled
    with Model.open(path) as model, Context(model, prompt_cache=store) as context:
        context.sequence().set_prompt(tokens)

A state that is damaged, of another model or of another library is not used: the prompt is prefilled again.
Prompts are stored as tokens, not as text. Not here: when states are saved and restored
(inference/engine/session.py).
"""

from pigguf.inference.prompt_cache.location_and_budget import prompt_cache_directory
from pigguf.inference.prompt_cache.state_file import CachedPrompt
from pigguf.inference.prompt_cache.store import PromptCacheStore, open_prompt_cache

__all__ = ["CachedPrompt", "PromptCacheStore", "open_prompt_cache", "prompt_cache_directory"]
