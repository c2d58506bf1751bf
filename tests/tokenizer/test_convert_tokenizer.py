"""Tokenizers through `convert`, which checks the written file in llama.cpp."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import support.tiny_checkpoints
from support.vocab_gguf import write_json
from tokenizer.test_legacy_formats import OPT_END, OPT_SPECIAL, write_pairs
from tokenizer.test_sentencepiece import SIZE as PIECES
from tokenizer.test_sentencepiece import train, write_phi3

import pigguf
from pigguf.gguf_io import read_header

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def checkpoint(directory: Path, rows: int) -> Path:
    """Make a tiny Llama without a tokenizer."""
    support.tiny_checkpoints.make_checkpoint(directory, vocab_size=rows, bos_token_id=1, eos_token_id=2)
    for name in TOKENIZER_FILES:
        (directory / name).unlink()
    return directory


@pytest.mark.parametrize(
    ("strips", "name", "written"),
    [(True, "tune", "tune (Phi-3)"), (True, "phi-3-tune", "phi-3-tune"), (False, "phi-3-tune", "phi 3-tune")],
)
def test_white_space_after_special_tokens_is_kept_as_in_the_source(
    strips: bool, name: str, written: str, tmp_path: Path
) -> None:
    source = train(checkpoint(tmp_path / name, PIECES + 64))
    if strips:
        write_phi3(source)
    result = pigguf.convert(source, tmp_path / "out.gguf", type="F32")
    assert result.path is not None
    assert read_header(result.path).metadata["general.name"].value == written
    assert result.plan.vocab.rstrip_special is strips


def test_opts_legacy_files_convert(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "opt", 608)
    made = write_pairs(tmp_path, special=OPT_SPECIAL)
    for name in ("vocab.json", "merges.txt"):
        shutil.move(made / name, source / name)
    names = {"bos_token": OPT_END, "eos_token": OPT_END, "unk_token": OPT_END, "pad_token": "<pad>"}
    config = {**names, "tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}
    write_json(source / "tokenizer_config.json", config)
    result = pigguf.convert(source, tmp_path / "out.gguf", type="F32")
    assert result.plan.vocab.add_bos
    assert result.plan.vocab.special_token("bos") == "</s>"
