"""The pages on client programs: their code runs with the real clients and a real server.

A block marked sh or python is run, in the page's order; a block that begins with `# NAME.py` is written to
that file. The output must contain the text after `# prints`. Blocks without a language are not run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.doc_examples import blocks, run_block
from support.running_server import RunningServer, running_server

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "server.md", *sorted((ROOT / "docs" / "apps").glob("*.md"))]
SERVER = "http://127.0.0.1:8080"  # on the pages
KEY = "secret"


@pytest.fixture(scope="module")
def folder(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide the model and the text that the pages refer to."""
    folder = tmp_path_factory.mktemp("apps")
    (folder / "smollm2.gguf").symlink_to(smollm2_gguf.resolve())
    (folder / "README.md").write_text((ROOT / "README.md").read_text("utf-8")[:600], "utf-8")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[RunningServer]:
    with running_server(
        folder / "smollm2.gguf", "--ctx", "4096", "--slots", "2", "--no-prompt-cache"
    ) as served:
        yield served


@pytest.fixture(scope="module")
def guarded(folder: Path) -> Iterator[RunningServer]:
    model = folder / "smollm2.gguf"
    with running_server(
        model, "--ctx", "512", "--slots", "1", "--no-prompt-cache", "--api-key", KEY
    ) as served:
        yield served


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_the_expected_output(
    page: Path, folder: Path, request: pytest.FixtureRequest
) -> None:
    needs = "guarded" if f"Bearer {KEY}" in page.read_text("utf-8") else "server"
    url = request.getfixturevalue(needs).url if SERVER in page.read_text("utf-8") else SERVER
    for kind, code in blocks(page):
        if name := re.match(r"# (\w+\.py)\n", code):
            (folder / name[1]).write_text(code, encoding="utf-8")
            continue
        environment = {"LLM_USER_PATH": str(folder / "llm")}
        if page.stem == "llamaindex":
            packages = Path(sys.prefix) / "apart"
            assert packages.is_dir(), "run scripts/test, which installs it"
            environment["PYTHONPATH"] = str(packages)
        printed = run_block(kind, code.replace(SERVER, url), folder, environment, timeout=120)
        for expected in re.findall(r"# prints (.+)", code):
            assert expected in printed, f"{code}\n{printed}"
