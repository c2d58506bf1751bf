"""Grammars for the engine's sampler: a JSON schema as llama.cpp's GBNF (its grammars/README.md).

    SamplingParams(grammar=json_grammar({"type": "object", "properties": {"name": {"type": "string"}}}))

schema.py reads a schema, pattern.py its regular expressions, which automaton.py makes rules of; gbnf.py is
what all write.
"""

from pigguf.grammar.json_schema_to_gbnf import GrammarBuilder, json_schema_to_grammar, read_json_schema

__all__ = ["GrammarBuilder", "json_schema_to_grammar", "read_json_schema"]
