"""Run a GGUF model: the llama.cpp engine, memory planning, prompt cache, PyTorch prefill, tuning, RPC."""
