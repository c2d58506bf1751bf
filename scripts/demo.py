"""The demo: convert a checkpoint with an adapter to a GGUF of 32768 tokens, and ask about a document.

Run by scripts/demo inside .venv. Files of an earlier run in models/ are reused; a GGUF that is older than the
adapter (after a `git pull`) is converted again.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

MODEL = Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")  # downloaded by scripts/setup.py
CHECKPOINT = Path("models/SmolLM2-135M-Instruct")
ADAPTER = Path("models/SmolLM2-135M-Instruct-PI-32k")  # fine-tuned with Position Interpolation
GGUF = Path("models/smollm2-135m-instruct-32k-Q4_K_M.gguf")
WINDOW = 32768
DOCUMENT = Path("scripts/demo_text/persuasion-chapters-1-3.txt")  # more than the base's 8192 tokens
QUESTION = "What is the name of Sir Walter Elliot's house? Answer in one sentence."

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    try:
        if not (ROOT / CHECKPOINT).exists():
            announce("Export the model's GGUF to a Hugging Face checkpoint, the input of a conversion:")
            pigguf("export", MODEL, CHECKPOINT)
        if is_older(ROOT / GGUF, ROOT / ADAPTER / "adapter_model.safetensors"):
            announce("Convert the checkpoint with the adapter that extends its window, and quantize it:")
            pigguf("convert", CHECKPOINT, "--adapter", ADAPTER, "--type", "Q4_K_M", "-o", GGUF)
        announce("Inspect the file:")
        pigguf("inspect", GGUF)
        announce(f"Ask about the first chapters of Persuasion, in a window of {WINDOW:,} tokens:")
        sampling = ["--temperature", 0, "--repeat-penalty", 1.1, "--max-tokens", 160]
        pigguf("chat", GGUF, "--ctx", WINDOW, "--file", DOCUMENT, "-p", QUESTION, *sampling)
        announce(f"Now talk to it yourself: .venv/bin/pigguf chat {GGUF}")
    except KeyboardInterrupt:
        sys.exit(130)


def is_older(made: Path, source: Path) -> bool:
    """Return whether a file is missing, or older than its source."""
    return not made.exists() or made.stat().st_mtime < source.stat().st_mtime


def announce(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


def pigguf(*arguments: object) -> None:
    """Print a command and run it; exit with its status if it fails."""

    words = [str(argument) for argument in arguments]
    print(f"$ pigguf {shlex.join(words)}", file=sys.stderr, flush=True)
    result = subprocess.run([sys.executable, "-m", "pigguf", *words], cwd=ROOT, stdin=subprocess.DEVNULL)
    if result.returncode:
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
