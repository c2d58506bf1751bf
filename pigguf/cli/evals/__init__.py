"""The commands of `pigguf eval`, one short file each; the table of them is cli/eval.py."""
