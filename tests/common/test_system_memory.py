"""How much memory there is: the system's word and a container's, of real files in their forms."""

from __future__ import annotations

from pathlib import Path

import pytest

from pigguf.common import system_memory

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "parts", "free"),
    [
        (8 * GIB, f"anon {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\n", 5 * GIB),  # version 2
        (  # version 1: its own pages, and those of all groups inside
            8 * GIB,
            f"inactive_file {GIB}\nactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file {2 * GIB}\n",
            6 * GIB,
        ),
        (GIB, f"inactive_file 0\nactive_file {GIB}\n", 0),
        ("max", f"inactive_file {GIB}\n", None),
    ],
)
def test_a_containers_memory_is_its_limit_less_what_it_cannot_give_back(
    limit: int | str, parts: str, free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("limit", str(limit)), ("usage", str(5 * GIB)), ("parts", parts)):
        (tmp_path / name).write_text(f"{text}\n")
    files = tuple(str(tmp_path / name) for name in ("limit", "usage", "parts"))
    monkeypatch.setattr(system_memory, "_GROUP_FILES", (files,))
    monkeypatch.setattr(system_memory, "_of_system", lambda: None)
    assert system_memory.available_memory() == free


def test_this_system_says_what_is_free() -> None:
    free = system_memory.available_memory()
    assert free is not None
    assert 0 < free < 1 << 50
