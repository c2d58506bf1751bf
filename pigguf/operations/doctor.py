"""Doctor: whether everything that pigguf needs is installed and the engine works, and what to do if not.

    diagnosis = diagnose()         facts about this machine, and the findings that find_problems() derives
    diagnosis.healthy              whether a model can be run

The engine is tested in a child process, so that a crash of it is a finding. Not here: whether a given model
fits in memory (inference/memory_planning).
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
MIN_FREE_MEMORY = 1 << 30
MIN_FREE_DISK = 2 << 30


@dataclass(frozen=True)
class PackageVersion:
    """A package that pigguf needs.

    Attributes:
        name: The package.
        installed: Its version, or None if it is missing.
        pinned: The only version that is accepted, or None for any.
    """

    name: str
    installed: str | None
    pinned: str | None


@dataclass(frozen=True)
class SystemFacts:
    """What was found on this machine.

    Attributes:
        pigguf, python, system: Versions.
        packages: What pigguf needs, without extras.
        machine: What a build of the engine depends on.
        rebuilt_with: The compiler that a build would use now, "clang 19.1.7", or None if none works.
        rebuilt_with_amx: Whether it compiles AMX code correctly.
        record: How the installed engine was built; None if that is not known.
        outdated: Why the setup script would rebuild the engine, or None.
        engine: The report of the engine's self-test in a child process.
        memory: Free memory in bytes; None if the system does not report it.
        disk: Free disk space in bytes.
        folder: The folder whose disk was checked.
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
        """What a model runs on by default: the first GPU, else the CPU; None if the engine does not work."""
        if self.engine.failure:
            return None
        gpus = [device for device in self.engine.devices if device.kind in ("gpu", "integrated gpu")]
        return gpus[0].name if gpus else "CPU"


@dataclass(frozen=True)
class DoctorFinding:
    """A failure to fix, or a possible improvement.

    Attributes:
        message: What was found, in one line.
        hint: The command or the step that fixes it.
        failure: Whether no model can be run until it is fixed.
    """

    message: str
    hint: str
    failure: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """Facts about a machine, and the findings that follow from them, failures first."""

    facts: SystemFacts
    findings: tuple[DoctorFinding, ...]

    @property
    def healthy(self) -> bool:
        """Whether a model can be run."""
        return not any(finding.failure for finding in self.findings)


def diagnose(folder: Path | None = None) -> Diagnosis:
    """Examine this machine, which takes a few seconds.

    Args:
        folder: The folder whose disk is checked; by default the current one.
    """
    facts = _collect_facts(folder or Path.cwd())
    return Diagnosis(facts, find_problems(facts))


def _collect_facts(folder: Path) -> SystemFacts:
    machine = compilers.find_machine(os.environ)
    prefix = Path(sys.prefix)
    record, installed = build_record.read_record(prefix), build_record.find_installed(prefix)
    compiler = build_plan.best_compiler(machine, compilers.find_compilers(machine))
    is_of_installed = (
        record is not None and installed is not None and record.fingerprint == installed.fingerprint
    )
    pinned_versions = _pinned_versions()
    return SystemFacts(
        pigguf=packages.version("pigguf"),
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        packages=tuple(
            PackageVersion(name, _installed_version(name), pinned) for name, pinned in pinned_versions.items()
        ),
        machine=machine,
        rebuilt_with=compiler.name if compiler else None,
        rebuilt_with_amx=compiler is not None and compiler.sound_with_amx,
        record=record if is_of_installed else None,
        outdated=build_record.reason_to_build(
            record, installed, pinned_versions["llama-cpp-python"] or "", machine
        ),
        engine=examine_engine(),
        memory=available_memory(),
        disk=shutil.disk_usage(folder).free,
        folder=folder,
    )


def _pinned_versions() -> Mapping[str, str | None]:
    """Return the packages that pigguf's metadata requires, each with the pinned version or None."""
    requirements = (text for text in packages.requires("pigguf") or () if "extra ==" not in text)
    matches = (re.match(r"([\w.-]+)(?:==([\w.+]+))?", text) for text in requirements)
    return {match[1]: match[2] for match in matches if match}


def _installed_version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


# ---- findings -----------------------------------------------------------------------------------


def find_problems(facts: SystemFacts) -> tuple[DoctorFinding, ...]:
    """Return the findings that follow from facts, failures first."""
    findings = [
        *_package_findings(facts),
        *_engine_findings(facts),
        *_unused_hardware(facts),
        *_low_resources(facts),
    ]
    return tuple(sorted(findings, key=lambda finding: not finding.failure))


def _package_findings(facts: SystemFacts) -> list[DoctorFinding]:
    findings = []
    for package in facts.packages:
        if package.name == "llama-cpp-python" and package.installed is None:
            continue  # _engine_findings reports it
        if package.installed is None:
            findings.append(
                DoctorFinding(f"the package {package.name} is missing", f"run {INSTALL}", failure=True)
            )
        elif package.pinned not in (None, package.installed):
            expected = f"pigguf needs {package.pinned}"
            findings.append(
                DoctorFinding(
                    f"{package.name} is version {package.installed}, but {expected}",
                    f"run {INSTALL}",
                    failure=True,
                )
            )
    return findings


def _engine_findings(facts: SystemFacts) -> list[DoctorFinding]:
    if facts.engine.failure:
        return [
            DoctorFinding(
                facts.engine.failure, facts.engine.hint or f"run {build_plan.REBUILD}", failure=True
            )
        ]
    if facts.outdated:
        return [DoctorFinding(facts.outdated, f"run {build_plan.REBUILD}")]
    return []


def _unused_hardware(facts: SystemFacts) -> list[DoctorFinding]:
    """Return what the machine has and a working engine does not use."""
    engine, machine = facts.engine, facts.machine
    if engine.failure:
        return []
    findings = []
    if machine.has_amx and "AMX_INT8" not in engine.cpu_features:
        clang = "" if facts.rebuilt_with_amx else f"install {build_plan.CLANG_HINT}, then "
        findings.append(
            DoctorFinding(
                "this CPU has AMX, which speeds up prefill, but the engine does not use it",
                f"{clang}run {build_plan.REBUILD}",
            )
        )
    if machine.system == "Linux" and "OPENMP" not in engine.cpu_features:
        findings.append(
            DoctorFinding(
                "the engine was built without OpenMP and starts new threads for every token",
                f"install {build_plan.CLANG_HINT}, then run {build_plan.REBUILD}",
            )
        )
    if machine.nvidia_gpu and facts.backend == "CPU":
        toolkit = "" if machine.nvcc else "install the CUDA toolkit (nvcc), then "
        findings.append(
            DoctorFinding(
                "there is an NVIDIA GPU, but the engine cannot use it", f"{toolkit}run {build_plan.REBUILD}"
            )
        )
    if engine.rpc is False:
        findings.append(
            DoctorFinding(
                "the engine cannot run layers on other machines (no RPC)", f"run {build_plan.REBUILD}"
            )
        )
    return findings


def _low_resources(facts: SystemFacts) -> list[DoctorFinding]:
    findings = []
    if facts.memory is not None and facts.memory < MIN_FREE_MEMORY:
        findings.append(
            DoctorFinding(f"only {facts.memory >> 20} MiB of memory are free", "close other programs")
        )
    if facts.disk < MIN_FREE_DISK:
        findings.append(
            DoctorFinding(
                f"only {facts.disk >> 20} MiB are free on the disk of {facts.folder}",
                "free some space before converting a model",
            )
        )
    return findings
