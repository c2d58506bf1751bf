"""Build and self-test of the engine (llama-cpp-python) for this machine."""
