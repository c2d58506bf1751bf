"""The version of pigguf."""

__version__ = "0.1.0"
