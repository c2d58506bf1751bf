"""The README and the pages of docs/: their code runs, and what they repeat is current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.doc_examples import blocks, run_block

from pigguf.architectures import FAMILIES
from pigguf.cli import COMMANDS
from pigguf.quantization import RECIPES

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_code_of_the_readme_runs_in_order(smollm2_gguf: Path, tmp_path: Path) -> None:
    """Run every block that uses pigguf; installation is tested by scripts/test itself."""
    found = blocks(ROOT / "README.md")
    runnable = [(kind, code) for kind, code in found if "pigguf " in code and "git clone" not in code]
    assert len(runnable) >= 5
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").symlink_to(smollm2_gguf.resolve())
    adapter = "models/SmolLM2-135M-Instruct-PI-32k"
    (tmp_path / adapter).symlink_to(ROOT / adapter)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    for kind, code in runnable:
        assert run_block(kind, code, tmp_path).strip()


def test_the_readme_names_every_command_and_convert_s_page_every_type() -> None:
    for command in COMMANDS:
        assert f"pigguf {command}" in README
    page = (ROOT / "docs" / "commands" / "convert.md").read_text(encoding="utf-8")
    for name in RECIPES:
        assert f"{name} " in page


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]), ids=lambda path: path.name
)
def test_links_are_not_broken(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_command_pages_equal_help() -> None:
    finished = subprocess.run(
        [sys.executable, ROOT / "scripts" / "docs.py", "--check"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr


def test_the_family_page_names_every_class() -> None:
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        assert f"`{family.hf_classes[0]}`" in page


def test_the_architecture_page_names_real_functions_and_files() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "pigguf").rglob("*.py")}
    names = {name.rpartition(".")[2] for name in re.findall(r"`([A-Za-z_.]+)`", page)} - {"gguf"}
    for name in names:
        assert any(
            re.search(rf"^\s*(def|class) {name}\b|^{name}\b", text, re.M) for text in sources.values()
        ) or (name in COMMANDS or (ROOT / "pigguf" / name).is_dir() or name in ("llama_cpp", "llm")), name
    for file in set(re.findall(r"[a-z_]+/[a-z_/]+\.py", page)):
        assert any((ROOT / base / file).is_file() for base in ("", "pigguf", "pigguf/inference")), file
