"""The demo's main job: checkpoint and adapter in, a GGUF of 32768 tokens out, a document asked about.

Run by scripts/demo, inside .venv. What an earlier run made in models/ is taken as it is; only a GGUF that is
older than the adapter, as after a `git pull`, is made anew.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

# What the demo is about, all in one place.
MODEL = Path("models/SmolLM2-135M-Instruct.Q4_1.gguf")  # brought by scripts/setup.py
CHECKPOINT = Path("models/SmolLM2-135M-Instruct")
ADAPTER = Path("models/SmolLM2-135M-Instruct-PI-32k")  # shipped: what fine-tuning at divided positions made
GGUF = Path("models/smollm2-135m-instruct-32k-Q4_K_M.gguf")
WINDOW = 32768
DOCUMENT = Path("scripts/demo_text/persuasion-chapters-1-3.txt")  # more than the base's 8192 tokens
QUESTION = "What is the name of Sir Walter Elliot's house? Answer in one sentence."

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    try:
        if not (ROOT / CHECKPOINT).exists():
            say("A Hugging Face checkpoint, as a converter meets it, made of the model's GGUF:")
            pigguf("export", MODEL, CHECKPOINT)
        if is_older(ROOT / GGUF, ROOT / ADAPTER / "adapter_model.safetensors"):
            say("The checkpoint and the adapter that extends it to a GGUF, quantized in the same pass:")
            pigguf("convert", CHECKPOINT, "--adapter", ADAPTER, "--type", "Q4_K_M", "-o", GGUF)
        say("What is in it:")
        pigguf("inspect", GGUF)
        say(f"A question about the first chapters of Persuasion, in a window of {WINDOW:,} tokens:")
        drawing = ["--temperature", 0, "--repeat-penalty", 1.1, "--max-tokens", 160]
        pigguf("chat", GGUF, "--ctx", WINDOW, "--file", DOCUMENT, "-p", QUESTION, *drawing)
        say(f"Now talk to it yourself: .venv/bin/pigguf chat {GGUF}")
    except KeyboardInterrupt:
        sys.exit(130)


def is_older(made: Path, source: Path) -> bool:
    """Whether a file is missing, or older than what it was made of."""
    return not made.exists() or made.stat().st_mtime < source.stat().st_mtime


def say(text: str) -> None:
    print(f"\n{text}", file=sys.stderr, flush=True)


def pigguf(*arguments: object) -> None:
    """Show a command and run it; the demo ends where it fails, for it has said why."""
    words = [str(argument) for argument in arguments]
    print(f"$ pigguf {shlex.join(words)}", file=sys.stderr, flush=True)
    result = subprocess.run([sys.executable, "-m", "pigguf", *words], cwd=ROOT, stdin=subprocess.DEVNULL)
    if result.returncode:
        sys.exit(result.returncode)


if __name__ == "__main__":
    main()
