"""The house's rules on imports: downwards only, one third-party world a module, no torch, quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pigguf

PACKAGE = Path(pigguf.__file__).parent

# From the top down: a package imports from its own row or from rows below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__", "plugins"),
    ("serve",),
    ("chat", "evals", "finetuning"),
    ("operations", "inference"),
    ("checkpoint", "tokenizer", "quantization"),
    ("architectures",),
    ("rope",),
    ("llama_cpp_internals",),
    ("documents", "grammar", "gguf_io"),
    ("common",),
    ("errors", "progress"),
)
HEIGHT = {package: len(LAYERS) - row for row, packages in enumerate(LAYERS) for package in packages}

# third-party package -> the only packages of pigguf that may import it
HOMES = {
    "gguf": {"gguf_io"},
    "llama_cpp": {"inference"},
    "torch": {"checkpoint", "finetuning", "inference", "operations"},
    "transformers": {"common", "finetuning", "operations"},
    "huggingface_hub": {"checkpoint"},
    "peft": {"finetuning"},
    "rouge_score": {"evals"},
    "pypdfium2": {"documents"},
    "bm25s": {"documents"},
    "xxhash": {"inference"},
    "anyio": {"serve"},
    "prometheus_client": {"serve"},
    "sse_starlette": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "prompt_toolkit": {"cli"},
    "rich": {"cli"},
    "click": {"cli", "plugins"},
    "llm": {"plugins"},
    "pydantic": {"plugins"},
    "sentencepiece": {"tokenizer"},
    "tokenizers": {"tokenizer"},
    "jinja2": {"tokenizer"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            if node.module == "pigguf":
                yield from (f"pigguf.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_downwards_and_from_its_own_world(path: Path) -> None:
    here = package_of(path)
    assert here in HEIGHT, f"{here} is in no layer"
    for name in imported(path):
        top, _, rest = name.partition(".")
        if top == "pigguf" and rest and rest != "__version__":
            other = rest.partition(".")[0]
            assert HEIGHT[other] <= HEIGHT[here], f"{path} imports upwards: {name}"
        if top in HOMES:
            assert here in HOMES[top], f"{path} imports {top}, whose home is {HOMES[top] or 'nowhere'}"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_pigguf_is_quick_and_brings_no_torch() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import pigguf; print(time.perf_counter() - t);"
        "print([name for name in ('torch', 'transformers', 'llama_cpp') if name in sys.modules])"
    )
    seconds, brought = python(code).split("\n")[:2]
    assert float(seconds) < 0.5
    assert brought == "[]"


def test_every_public_name_exists_and_none_of_them_brings_torch() -> None:
    code = (
        "import sys, pigguf; found = {name: getattr(pigguf, name) for name in pigguf.__all__};"
        "verbs = ('convert', 'quantize', 'export', 'inspect', 'open_model');"
        "print(all(callable(found[name]) for name in verbs),"
        " 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert python(code).strip() == "True False False"


def test_a_verb_stays_a_function_after_its_module_was_imported() -> None:
    code = (
        "import pigguf.operations.convert, pigguf.operations.inspect, pigguf;"
        "print(callable(pigguf.convert), callable(pigguf.inspect))"
    )
    assert python(code).strip() == "True True"
