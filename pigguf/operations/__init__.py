"""What pigguf does, one verb a module, each to be read from top to bottom."""
