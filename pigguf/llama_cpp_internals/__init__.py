"""Everything that pigguf relies on inside llama.cpp and that an engine upgrade can break."""
