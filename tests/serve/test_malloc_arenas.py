"""glibc malloc settings, in subprocesses."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
from support.running_server import running_server
from support.tiny_chat import write_chat_model

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")


HEAP = 64 << 20  # bytes of addresses that an arena reserves on a machine of 64 bits


def run_and_parse_int(code: str, **environ: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=True)
    return int(done.stdout)


ARENAS = """
    import ctypes, tempfile, threading
    from pathlib import Path
    from pigguf.serve import malloc_arenas

    malloc_arenas.limit_arenas()
    all_there = threading.Barrier(6)

    def allocate():
        block = bytes(3000)
        all_there.wait()

    threads = [threading.Thread(target=allocate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        file = ctypes.c_void_p(libc.fopen(str(report).encode(), b"w"))
        libc.malloc_info(0, file)
        libc.fclose(file)
        print(report.read_text().count("<heap nr"))
"""


def test_threads_share_two_arenas_unless_the_user_sets_another_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert run_and_parse_int(ARENAS, MALLOC_ARENA_MAX="6") == 6
    assert run_and_parse_int(ARENAS) == 2


def test_a_server_has_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_chat_model(tmp_path / "tiny.gguf", 512)

    def arenas() -> int:
        """Return the number of arenas besides the main one, which is no 64 MiB mapping (malloc/arena.c)."""
        with running_server(model, "--no-prompt-cache") as served:
            served.client().completions.create(model="tiny", prompt="Once", max_tokens=4)
            maps = Path(f"/proc/{served.process.pid}/maps").read_text().splitlines()
        ends = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
        pairs = pairwise(zip(ends, maps, strict=True))
        return sum(
            first[0] % HEAP == 0 and rest[1] - first[0] == HEAP and "---p" in line
            for (first, _), (rest, line) in pairs
        )

    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert arenas() == 1
    monkeypatch.setenv("MALLOC_ARENA_MAX", "16")
    assert arenas() > 1


def test_freed_memory_goes_back_to_the_system() -> None:
    given_back = run_and_parse_int("""
        from pathlib import Path
        from pigguf.serve import malloc_arenas

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        blocks = [bytes(100_000) for _ in range(500)]
        still_used = blocks[::50]  # so that most of the free memory is below memory in use
        del blocks
        before = resident()
        malloc_arenas.release_free_memory()
        print(before - resident())
    """)
    assert given_back > 30_000_000
