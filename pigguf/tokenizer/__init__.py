"""Tokenizers: from a checkpoint's files to a Vocab and GGUF keys, and back; chat templates.

read_vocab reads a checkpoint's tokenizer, or refuses what llama.cpp cannot do. load_reference_encoder and
select_roundtrip_texts serve to check that the GGUF tokenizes as the source does. write_tokenizer writes
the files back.
"""

from pigguf.tokenizer.chat_template import ChatTemplate
from pigguf.tokenizer.known_differences import TokenizerDifference
from pigguf.tokenizer.reference_tokenizer import load_reference_encoder
from pigguf.tokenizer.roundtrip_texts import ROUNDTRIP_TEXTS, select_roundtrip_texts
from pigguf.tokenizer.tokenizer_writer import write_tokenizer
from pigguf.tokenizer.vocab import TokenType, Vocab, vocab_from_metadata
from pigguf.tokenizer.vocab_reader import read_vocab

__all__ = [
    "ROUNDTRIP_TEXTS",
    "ChatTemplate",
    "TokenType",
    "TokenizerDifference",
    "Vocab",
    "load_reference_encoder",
    "read_vocab",
    "select_roundtrip_texts",
    "vocab_from_metadata",
    "write_tokenizer",
]
