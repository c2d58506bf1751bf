"""The record of how an installed engine was built, and whether it must be built again.

Standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pigguf.errors import BackendUnavailable
from pigguf.inference.engine_build.build_plan import REBUILD, BuildPlan, cmake_options
from pigguf.inference.engine_build.compilers import Compiler, Machine

RECORD_NAME = "pigguf-engine.json"

# The CPU features that -march=native compiles in: an engine crashes on a CPU without one of them.
_COMPILED_IN = re.compile(
    r"s?sse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|adx|sha_|v?aes|v?pclmul|gfni"  # x86
    r"|asimd|sve|sme|i8mm|bf16|fphp"  # ARM
)


@dataclass(frozen=True)
class BuildRecord:
    """How the engine in an environment was built.

    Attributes:
        version: the version of llama-cpp-python.
        fingerprint: a hash of the installed files, so that an engine installed by other means is noticed.
        compiler, cmake, flags, notes: as in the BuildPlan.
        cpu: the features of the CPU that it was built for.
    """

    version: str
    fingerprint: str
    compiler: Compiler
    cmake: tuple[str, ...]
    flags: tuple[str, ...]
    cpu: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class InstalledEngine:
    """An installed llama-cpp-python: its version, and a hash of pip's list of its files."""

    version: str
    fingerprint: str


def find_installed(prefix: Path) -> InstalledEngine | None:
    """Return the llama-cpp-python installed under an environment's prefix, or None."""
    for record in sorted(prefix.glob("lib/python3*/site-packages/llama_cpp_python-*.dist-info/RECORD")):
        version = record.parent.name.removesuffix(".dist-info").rpartition("-")[2]
        return InstalledEngine(version, hashlib.sha256(record.read_bytes()).hexdigest())
    return None


def read_record(prefix: Path) -> BuildRecord | None:
    """Return the build record under this prefix, or None if there is no readable one."""
    try:
        fields: dict[str, Any] = json.loads((prefix / RECORD_NAME).read_text())
        compiler = fields.pop("compiler")
        compiler["version"] = tuple(compiler["version"])
        for name in ("cmake", "flags", "cpu", "notes"):
            fields[name] = tuple(fields[name])
        return BuildRecord(**fields, compiler=Compiler(**compiler))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(prefix: Path, plan: BuildPlan, machine: Machine) -> BuildRecord:
    """Write the build record of the engine under this prefix, and return it.

    Raises:
        BackendUnavailable: no engine is installed there.
    """
    installed = find_installed(prefix)
    if installed is None:
        raise BackendUnavailable(f"no llama-cpp-python is installed under {prefix}", f"run {REBUILD}")
    record = BuildRecord(
        version=installed.version,
        fingerprint=installed.fingerprint,
        compiler=plan.compiler,
        cmake=plan.cmake,
        flags=plan.flags,
        cpu=_compiled_in_features(machine),
        notes=plan.notes,
    )
    (prefix / RECORD_NAME).write_text(json.dumps(asdict(record), indent=2) + "\n")
    return record


def reason_to_build(
    record: BuildRecord | None, installed: InstalledEngine | None, version: str, machine: Machine
) -> str | None:
    """Return why the installed engine must be built again, in words; None if it need not be.

    A better compiler that was installed later is not a reason; the user can run REBUILD for that.
    """
    if installed is None:
        return "there is no engine yet"
    if installed.version != version:
        return f"the engine is version {installed.version}, not {version}"
    if record is None:
        return "there is no record of how the installed engine was built"
    if record.fingerprint != installed.fingerprint:
        return "the installed engine was not built by these scripts"
    if missing := [option for option in cmake_options(machine) if option not in record.cmake]:
        return f"the engine was built without {' '.join(missing)}"
    if lacking := sorted(set(record.cpu) - set(_compiled_in_features(machine))):
        return f"the engine was built for another CPU, with {' '.join(lacking)}"
    for name, asked, used in (
        ("CC", machine.cc, record.compiler.cc),
        ("CXX", machine.cxx, record.compiler.cxx),
    ):
        if asked and asked != used:
            return f"the engine was built with {used}, and {name} asks for {asked}"
    return None


def _compiled_in_features(machine: Machine) -> tuple[str, ...]:
    return tuple(sorted(feature for feature in machine.cpu if _COMPILED_IN.match(feature)))
