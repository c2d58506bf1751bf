"""Available memory, of the system and of a container, from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pigguf.common import system_memory

GIB = 1 << 30


@pytest.mark.parametrize(
    ("limit", "statistics", "free"),
    [
        (8 * GIB, f"anon {2 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\n", 5 * GIB),  # version 2
        (  # version 1: its own page cache, and that of all groups inside
            8 * GIB,
            f"inactive_file {GIB}\nactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file {2 * GIB}\n",
            6 * GIB,
        ),
        (GIB, f"inactive_file 0\nactive_file {GIB}\n", 0),
        ("max", f"inactive_file {GIB}\n", None),
    ],
)
def test_a_containers_memory_is_its_limit_less_what_cannot_be_reclaimed(
    limit: int | str, statistics: str, free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("limit", str(limit)), ("usage", str(5 * GIB)), ("statistics", statistics)):
        (tmp_path / name).write_text(f"{text}\n")
    files = tuple(str(tmp_path / name) for name in ("limit", "usage", "statistics"))
    monkeypatch.setattr(system_memory, "_CGROUP_FILES", (files,))
    monkeypatch.setattr(system_memory, "_system_memory", lambda: None)
    assert system_memory.available_memory() == free


def test_this_system_reports_its_available_memory() -> None:
    free = system_memory.available_memory()
    assert free is not None
    assert 0 < free < 1 << 50
