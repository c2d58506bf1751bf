"""Extract code blocks from Markdown pages, and run them as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the page's sh and python blocks as (language, code)."""
    return re.findall(r"^```(sh|python)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def run_block(
    kind: str,
    code: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> str:
    """Run a block in a process of its own, because its packages emit warnings, and return its output."""

    command = ["bash", "-euo", "pipefail", "-c", code] if kind == "sh" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    finished = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert finished.returncode == 0, f"{code}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout
