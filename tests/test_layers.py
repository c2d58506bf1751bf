"""Rules on imports: downwards only, one home for each third-party package, no torch, quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pigguf

PACKAGE = Path(pigguf.__file__).parent

# From the top down: a package imports from its own row or from rows below. "inference" has layers of its own.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("cli", "__main__", "plugins"),
    ("serve",),
    ("chat", "evals", "finetuning", "inference.local_model", "inference.async_stream", "inference.benchmark"),
    ("operations", "inference.open_context"),
    ("inference.resolve_run",),
    ("inference.run_config",),
    ("inference.memory_planning", "inference.tuning", "inference.engine_build"),
    (
        *("inference.prompt_cache", "inference.torch_prefill", "inference.rpc", "inference.setting_decision"),
        "inference.detokenizer",
    ),
    ("inference.engine",),
    ("checkpoint", "tokenizer", "quantization"),
    ("architectures",),
    ("rope",),
    ("llama_cpp_internals",),
    ("documents", "grammar", "gguf_io"),
    ("common",),
    ("errors", "progress", "_version"),
)
HEIGHT = {package: len(LAYERS) - row for row, packages in enumerate(LAYERS) for package in packages}

# third-party package -> the only packages of pigguf that may import it
HOMES = {
    "gguf": {"gguf_io"},
    "llama_cpp": {"inference.engine"},
    "torch": {"checkpoint", "finetuning", "inference.torch_prefill", "operations"},
    "transformers": {"common", "finetuning", "operations"},
    "huggingface_hub": {"checkpoint"},
    "peft": {"finetuning"},
    "rouge_score": {"evals"},
    "pypdfium2": {"documents"},
    "bm25s": {"documents"},
    "xxhash": {"inference.prompt_cache"},
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


def layer_of(module: str) -> str:
    """Return the entry of LAYERS that a module ("pigguf.inference.engine.model") belongs to."""
    parts = module.split(".")[1:]
    two = ".".join(parts[:2])
    return two if two in HEIGHT else parts[0]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, except those that it imports for type checking only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            if node.module in ("pigguf", "pigguf.inference"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards_and_third_party_packages_have_one_home(path: Path) -> None:
    here = layer_of(module_name(path))
    if here == "inference":  # the package's docstring alone
        assert not [name for name in imported(path) if name.startswith("pigguf")]
        return
    assert here in HEIGHT, f"{here} is in no layer"
    for name in imported(path):
        top = name.partition(".")[0]
        if top == "pigguf" and name not in ("pigguf", "pigguf.inference", "pigguf.__version__"):
            assert HEIGHT[layer_of(name)] <= HEIGHT[here], f"{path} imports upwards: {name}"
        if top in HOMES:
            assert here in HOMES[top], f"{path} imports {top}, which only {HOMES[top]} may import"


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_pigguf_is_quick_and_does_not_import_torch() -> None:
    code = (
        "import sys, time; t = time.perf_counter(); import pigguf; print(time.perf_counter() - t);"
        "print([name for name in ('torch', 'transformers', 'llama_cpp') if name in sys.modules])"
    )
    seconds, imported_packages = python(code).split("\n")[:2]
    assert float(seconds) < 0.5
    assert imported_packages == "[]"


def test_every_public_name_exists_and_none_imports_torch() -> None:
    code = (
        "import sys, pigguf; found = {name: getattr(pigguf, name) for name in pigguf.__all__};"
        "operations = ('convert', 'quantize', 'export', 'inspect', 'open_model');"
        "print(all(callable(found[name]) for name in operations),"
        " 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert python(code).strip() == "True False False"


def test_an_operation_stays_a_function_after_its_module_was_imported() -> None:
    code = (
        "import pigguf.operations.convert, pigguf.operations.inspect, pigguf;"
        "print(callable(pigguf.convert), callable(pigguf.inspect))"
    )
    assert python(code).strip() == "True True"
