"""Tokenizers: files of a checkpoint -> Vocab -> GGUF keys, and back; chat templates.

read_vocab understands a checkpoint's tokenizer or refuses it; source_encoder and samples prove that
the GGUF's tokens are the source's; write_tokenizer is the way back.
"""

from pigguf.tokenizer.chat_template import ChatTemplate
from pigguf.tokenizer.known_differences import Limit
from pigguf.tokenizer.reference_tokenizer import source_encoder
from pigguf.tokenizer.roundtrip_texts import SAMPLES, roundtrip_samples
from pigguf.tokenizer.tokenizer_writer import write_tokenizer
from pigguf.tokenizer.vocab import TokenType, Vocab, vocab_from_metadata
from pigguf.tokenizer.vocab_reader import read_vocab

__all__ = [
    "SAMPLES",
    "ChatTemplate",
    "Limit",
    "TokenType",
    "Vocab",
    "read_vocab",
    "roundtrip_samples",
    "source_encoder",
    "vocab_from_metadata",
    "write_tokenizer",
]
