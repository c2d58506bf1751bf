"""Documents that stay read: KV states of sequences on disk, for the next process that is asked about them.

    place        where they are kept, and how much room they may take
    identity     what a state depends on: the model's bytes, positions, cache types, the library
    kept_file    one kept session: a file, whole or not at all, that proves what it holds
    store        PromptCacheStore: the longest kept beginning is recalled, long prompts are kept

    store = open_store()                                       None where there is no place to keep
    with Model.open(path) as model, Context(model, store=store) as context, context.sequence() as session:
        session.set_prompt(tokens)

A kept session is lost rather than trusted: what is damaged, of another model or of another library is
computed again. Left out: when it happens (inference/engine/session.py), and the prompts' text, which is never stored
(their tokens are).
"""

from pigguf.inference.prompt_cache.cache_directory import sessions_directory
from pigguf.inference.prompt_cache.state_file import Kept
from pigguf.inference.prompt_cache.store import PromptCacheStore, open_store

__all__ = ["Kept", "PromptCacheStore", "open_store", "sessions_directory"]
