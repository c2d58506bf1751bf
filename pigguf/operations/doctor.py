"""doctor: is everything here that pigguf stands on, does the engine compute, and what would mend it.

    diagnosis = diagnose()         facts, and findings drawn from them; judge() is the pure part
    diagnosis.healthy              nothing is in the way of running a model

The engine is examined in a child process, so that a crash is a finding, not the end.
Left out: whether a given model fits.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata as packages
from pathlib import Path

from pigguf.common.system_memory import available_memory
from pigguf.inference.engine_build import build_plan, build_record, compilers
from pigguf.inference.engine_build.build_record import BuildRecord
from pigguf.inference.engine_build.compilers import Machine
from pigguf.inference.engine_build.self_test import EngineReport, examine_engine

INSTALL = "python3 scripts/setup.py"
LITTLE_MEMORY = 1 << 30
LITTLE_DISK = 2 << 30


@dataclass(frozen=True)
class PackageVersion:
    """A package pigguf needs: the installed version (None: missing), and the one version pinned, if any."""

    name: str
    installed: str | None
    pinned: str | None


@dataclass(frozen=True)
class SystemFacts:
    """What was found on this machine.

    Attributes:
        pigguf, python, system: versions.
        packages: what pigguf needs, apart from extras.
        machine: what a build of the engine depends on.
        rebuilt_with: the compiler a build would take now, "clang 19.1.7", or None where none works;
            rebuilt_with_amx: it builds AMX code that works.
        record: how the engine here was built; None where that is not known.
        outdated: why a set-up would build the engine anew, or None.
        engine: what the engine's child process told.
        memory, disk: bytes free to take; memory is None where the system does not tell.
        folder: whose disk was asked.
    """

    pigguf: str
    python: str
    system: str
    packages: tuple[PackageVersion, ...]
    machine: Machine
    rebuilt_with: str | None
    rebuilt_with_amx: bool
    record: BuildRecord | None
    outdated: str | None
    engine: EngineReport
    memory: int | None
    disk: int
    folder: Path

    @property
    def backend(self) -> str | None:
        """What a model runs on unless asked otherwise: the first GPU, else the CPU; None: nothing works."""
        if self.engine.failure:
            return None
        gpus = [device for device in self.engine.devices if device.kind in ("gpu", "integrated gpu")]
        return gpus[0].name if gpus else "CPU"


@dataclass(frozen=True)
class DoctorFinding:
    """Something to be mended, or (where it is no failure) something to be gained.

    Attributes:
        message: one line; hint: the command or the step that mends it.
        failure: no model runs until it is mended.
    """

    message: str
    hint: str
    failure: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Facts and what follows from them, failures first."""

    facts: SystemFacts
    findings: tuple[DoctorFinding, ...]

    @property
    def healthy(self) -> bool:
        return not any(finding.failure for finding in self.findings)


def diagnose(folder: Path | None = None) -> Diagnosis:
    """Examine this machine; takes a few seconds. `folder`: whose disk to ask, by default the current one."""
    facts = _find_facts(folder or Path.cwd())
    return Diagnosis(facts, find_problems(facts))


def _find_facts(folder: Path) -> SystemFacts:
    machine = compilers.find_machine(os.environ)
    record, installed = (
        build_record.read_record(Path(sys.prefix)),
        build_record.find_installed(Path(sys.prefix)),
    )
    compiler = build_plan.best_compiler(machine, compilers.find_compilers(machine))
    known = record is not None and installed is not None and record.fingerprint == installed.fingerprint
    pins = _requirements()
    return SystemFacts(
        pigguf=packages.version("pigguf"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=tuple(PackageVersion(name, _version(name), pinned) for name, pinned in pins.items()),
        machine=machine,
        rebuilt_with=compiler.name if compiler else None,
        rebuilt_with_amx=compiler is not None and compiler.sound_with_amx,
        record=record if known else None,
        outdated=build_record.reason_to_build(record, installed, pins["llama-cpp-python"] or "", machine),
        engine=examine_engine(),
        memory=available_memory(),
        disk=shutil.disk_usage(folder).free,
        folder=folder,
    )


def _requirements() -> Mapping[str, str | None]:
    """What pigguf's own metadata says it needs: name -> the one version it may be, or None."""
    needed = (text for text in packages.requires("pigguf") or () if "extra ==" not in text)
    matches = (re.match(r"([\w.-]+)(?:==([\w.+]+))?", text) for text in needed)
    return {match[1]: match[2] for match in matches if match}


def _version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


# ---- what follows --------------------------------------------------------------------------------


def find_problems(facts: SystemFacts) -> tuple[DoctorFinding, ...]:
    """What the facts mean, failures first."""
    found = [*_packages(facts), *_engine(facts), *_gains(facts), *_room(facts)]
    return tuple(sorted(found, key=lambda finding: not finding.failure))


def _packages(facts: SystemFacts) -> list[DoctorFinding]:
    found = []
    for package in facts.packages:
        if package.name == "llama-cpp-python" and package.installed is None:
            continue  # the engine's own finding
        if package.installed is None:
            found.append(
                DoctorFinding(f"the package {package.name} is missing", f"run {INSTALL}", failure=True)
            )
        elif package.pinned not in (None, package.installed):
            wanted = f"pigguf is made for {package.pinned}"
            found.append(
                DoctorFinding(
                    f"{package.name} is version {package.installed}, and {wanted}",
                    f"run {INSTALL}",
                    failure=True,
                )
            )
    return found


def _engine(facts: SystemFacts) -> list[DoctorFinding]:
    if facts.engine.failure:
        return [
            DoctorFinding(
                facts.engine.failure, facts.engine.hint or f"run {build_plan.REBUILD}", failure=True
            )
        ]
    if facts.outdated:
        return [DoctorFinding(facts.outdated, f"run {build_plan.REBUILD}")]
    return []


def _gains(facts: SystemFacts) -> list[DoctorFinding]:
    """What the machine has and a working engine does not use."""
    engine, machine = facts.engine, facts.machine
    if engine.failure:
        return []
    found = []
    if machine.has_amx and "AMX_INT8" not in engine.cpu_features:
        clang = "" if facts.rebuilt_with_amx else f"install {build_plan.CLANG_HINT}, then "
        found.append(
            DoctorFinding(
                "this CPU has AMX, which makes long prompts faster, and the engine does not use it",
                f"{clang}run {build_plan.REBUILD}",
            )
        )
    if machine.system == "Linux" and "OPENMP" not in engine.cpu_features:
        found.append(
            DoctorFinding(
                "the engine was built without OpenMP and starts its threads anew for every token",
                f"install {build_plan.CLANG_HINT}, then run {build_plan.REBUILD}",
            )
        )
    if machine.nvidia_gpu and facts.backend == "CPU":
        toolkit = "" if machine.nvcc else "install the CUDA toolkit (nvcc), then "
        found.append(
            DoctorFinding(
                "an NVIDIA GPU is here, and the engine cannot use it", f"{toolkit}run {build_plan.REBUILD}"
            )
        )
    if engine.rpc is False:
        found.append(
            DoctorFinding(
                "the engine cannot give layers to other machines (no RPC)", f"run {build_plan.REBUILD}"
            )
        )
    return found


def _room(facts: SystemFacts) -> list[DoctorFinding]:
    found = []
    if facts.memory is not None and facts.memory < LITTLE_MEMORY:
        found.append(
            DoctorFinding(f"only {facts.memory >> 20} MiB of memory are free", "close other programs")
        )
    if facts.disk < LITTLE_DISK:
        found.append(
            DoctorFinding(
                f"only {facts.disk >> 20} MiB are free on the disk of {facts.folder}",
                "free some room before converting a model",
            )
        )
    return found
