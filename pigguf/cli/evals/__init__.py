"""The subcommands of `pigguf eval`, one module each; cli/eval.py lists them."""
