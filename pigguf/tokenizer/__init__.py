"""Tokenizers: files of a checkpoint -> Vocab -> GGUF keys, and back; chat templates.

read_vocab understands a checkpoint's tokenizer or refuses it; source_encoder and samples prove that
the GGUF's tokens are the source's; write_tokenizer is the way back.
"""

from pigguf.tokenizer.chat_template import ChatTemplate
from pigguf.tokenizer.limits import Limit
from pigguf.tokenizer.read import read_vocab
from pigguf.tokenizer.samples import SAMPLES, samples
from pigguf.tokenizer.source import source_encoder
from pigguf.tokenizer.vocab import TokenType, Vocab, vocab_from_metadata
from pigguf.tokenizer.write import write_tokenizer

__all__ = [
    "SAMPLES",
    "ChatTemplate",
    "Limit",
    "TokenType",
    "Vocab",
    "read_vocab",
    "samples",
    "source_encoder",
    "vocab_from_metadata",
    "write_tokenizer",
]
