"""glibc's malloc in processes of their own, asked what it holds."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")


def printed(code: str, **environ: str) -> int:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, check=True)
    return int(done.stdout)


ARENAS = """
    import ctypes, tempfile, threading
    from pathlib import Path
    from pigguf.serve import memory

    memory.limit_arenas()
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
        told = Path(folder) / "told.xml"
        file = ctypes.c_void_p(libc.fopen(str(told).encode(), b"w"))
        libc.malloc_info(0, file)
        libc.fclose(file)
        print(told.read_text().count("<heap nr"))
"""


def test_threads_share_two_arenas_unless_the_user_wants_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert printed(ARENAS, MALLOC_ARENA_MAX="6") == 6
    assert printed(ARENAS) == 2


def test_what_was_freed_goes_back() -> None:
    given_back = printed("""
        from pathlib import Path
        from pigguf.serve import memory

        def resident():
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        blocks = [bytes(100_000) for _ in range(500)]
        kept = blocks[::50]  # so that most of what is freed is not above all that is in use
        del blocks
        before = resident()
        memory.give_back()
        print(before - resident())
    """)
    assert given_back > 30_000_000
