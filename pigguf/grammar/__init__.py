"""Grammars for constrained sampling: a JSON schema as llama.cpp's GBNF (its grammars/README.md).

SamplingParams(grammar=json_schema_to_grammar({"type": "object", "properties": {...}}))

json_schema_to_gbnf.py  json_schema_to_grammar, GrammarBuilder: schemas
regex_to_gbnf.py        the regular expressions of schemas ("pattern")
finite_automaton.py     a regular expression as NFA and DFA, and the DFA as rules
number_ranges.py        numbers within bounds
gbnf.py                 GBNF's notation: literals, character classes, repetitions
"""

from pigguf.grammar.json_schema_to_gbnf import GrammarBuilder, json_schema_to_grammar, read_json_schema

__all__ = ["GrammarBuilder", "json_schema_to_grammar", "read_json_schema"]
