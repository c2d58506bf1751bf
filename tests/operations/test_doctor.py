"""doctor: findings over a table of facts, engines that really crash or are missing, and the command."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pigguf.inference.engine.devices import Device
from pigguf.inference.engine_build.build_plan import AMX_OFF, REBUILD
from pigguf.inference.engine_build.build_record import BuildRecord
from pigguf.inference.engine_build.compilers import Compiler, Machine
from pigguf.inference.engine_build.self_test import TOKENS, EngineReport, examine_engine
from pigguf.operations.doctor import Diagnosis, PackageVersion, SystemFacts, diagnose, find_problems

CPU = Device("CPU", "AMD EPYC", "cpu", "CPU", 16 << 30, 32 << 30)
GPU = Device("CUDA0", "NVIDIA H200", "gpu", "CUDA", 100 << 30, 139 << 30)
ENGINE = EngineReport("0.3.36", (CPU,), ("AVX2", "AVX512", "OPENMP"), rpc=True, decoded=TOKENS)
RECORD = BuildRecord(
    "0.3.36", "f", Compiler("clang", (19, 1, 7), "clang", "clang++", True), (), (), ("avx2",)
)
AMX = Machine("Linux", frozenset({"avx2", "amx_int8"}))
WELL = SystemFacts(
    pigguf="0.1.0",
    python="3.11.7",
    system="Linux x86_64",
    packages=(PackageVersion("llama-cpp-python", "0.3.36", "0.3.36"), PackageVersion("click", "8.1.0", None)),
    machine=Machine("Linux", frozenset({"avx2"})),
    rebuilt_with="clang 19.1.7",
    rebuilt_with_amx=True,
    record=RECORD,
    outdated=None,
    engine=ENGINE,
    memory=16 << 30,
    disk=100 << 30,
    folder=Path("/"),
)

# what is different -> (is it a failure, part of the message, part of the hint)
FINDINGS = {
    "AMX, a compiler for it at hand": (
        replace(WELL, machine=AMX),
        (False, "AMX", f"run {REBUILD}"),
    ),
    "AMX, and only a gcc with the bug": (
        replace(WELL, machine=AMX, rebuilt_with="gcc 12.2.0", rebuilt_with_amx=False),
        (False, "AMX", f"apt-get install clang-19 libomp-19-dev), then run {REBUILD}"),
    ),
    "no OpenMP": (
        replace(WELL, engine=replace(ENGINE, cpu_features=("AVX2",))),
        (False, "OpenMP", "libomp"),
    ),
    "a GPU and nvcc": (
        replace(WELL, machine=Machine("Linux", nvcc="/usr/bin/nvcc", nvidia_gpu=True)),
        (False, "NVIDIA GPU", f"run {REBUILD}"),
    ),
    "a GPU and no nvcc": (
        replace(WELL, machine=Machine("Linux", nvidia_gpu=True)),
        (False, "NVIDIA GPU", "install the CUDA toolkit"),
    ),
    "no RPC": (replace(WELL, engine=replace(ENGINE, rpc=False)), (False, "RPC", REBUILD)),
    "an engine without a build record": (
        replace(WELL, record=None, outdated="there is no record of how the installed engine was built"),
        (False, "no record", REBUILD),
    ),
    "little memory": (replace(WELL, memory=200 << 20), (False, "200 MiB of memory", "close")),
    "little disk": (replace(WELL, disk=300 << 20), (False, "300 MiB", "free some space")),
    "a crash": (
        replace(WELL, engine=EngineReport("0.3.36", failure="it crashed with SIGSEGV", hint="do this")),
        (True, "SIGSEGV", "do this"),
    ),
    "a package missing": (
        replace(WELL, packages=(PackageVersion("tokenizers", None, None),)),
        (True, "tokenizers is missing", "scripts/setup.py"),
    ),
    "a package of another version": (
        replace(WELL, packages=(PackageVersion("gguf", "0.18.0", "0.19.0"),)),
        (True, "gguf is version 0.18.0", "scripts/setup.py"),
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_problem_is_found_and_nothing_else(name: str) -> None:
    facts, (failure, message, hint) = FINDINGS[name]
    [finding] = find_problems(facts)
    assert finding.failure == failure
    assert message in finding.message
    assert hint in finding.hint
    assert Diagnosis(facts, (finding,)).healthy == (not failure)


def test_nothing_is_found_on_a_healthy_machine() -> None:
    assert find_problems(WELL) == ()
    assert (
        find_problems(replace(WELL, engine=replace(ENGINE, cpu_features=("AMX_INT8", "OPENMP")), machine=AMX))
        == ()
    )
    with_gpu = replace(
        WELL, engine=replace(ENGINE, devices=(GPU, CPU)), machine=Machine("Linux", nvidia_gpu=True)
    )
    assert find_problems(with_gpu) == ()


def test_failures_come_first() -> None:
    facts = replace(WELL, disk=0, packages=(PackageVersion("gguf", None, "0.19.0"),))
    assert [finding.failure for finding in find_problems(facts)] == [True, False]


def test_the_backend_is_the_gpu_where_the_engine_has_one() -> None:
    assert WELL.backend == "CPU"
    assert replace(WELL, engine=replace(ENGINE, devices=(CPU, GPU))).backend == "CUDA0"
    assert replace(WELL, engine=EngineReport(None, failure="none")).backend is None


# ---- the engine here -----------------------------------------------------------------------------


def test_the_engine_here_decodes() -> None:
    report = examine_engine()
    assert (report.failure, report.hint) == (None, None)
    assert report.decoded == TOKENS
    assert "CPU" in [device.name for device in report.devices]
    assert report.rpc is True
    assert report.cpu_features


def test_the_diagnosis_here() -> None:
    facts = diagnose().facts
    versions = {package.name: (package.installed, package.pinned) for package in facts.packages}
    assert versions["llama-cpp-python"] == ("0.3.36", "0.3.36")
    assert versions["numpy"][0] == importlib.import_module("numpy").__version__
    assert "torch" not in versions
    assert facts.memory is not None
    assert facts.disk > 0


# ---- engines that fail, in real child processes --------------------------------------------------

# A llama_cpp that shadows the real one, and what is reported: message, hint.
BROKEN = {
    "not importable": (
        "raise OSError('libllama.so: cannot open shared object file')",
        "the engine llama-cpp-python cannot be loaded: libllama.so: cannot open shared object file",
        REBUILD,
    ),
    "built for another CPU": (
        "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
        "the engine crashed with SIGILL while loading its library",
        REBUILD,
    ),
    "miscompiled": (
        "import faulthandler; faulthandler._sigsegv()",
        "the engine crashed with SIGSEGV while loading its library",
        REBUILD,
    ),
    "another package of that name": (
        "",
        "the engine failed while loading its library: ",
        "self_test --child",
    ),
}


def broken_engine(folder: Path, program: str) -> dict[str, str]:
    (folder / "llama_cpp.py").write_text(program)
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program, message, hint = BROKEN[name]
    monkeypatch.setenv("PYTHONPATH", broken_engine(tmp_path, program)["PYTHONPATH"])
    report = examine_engine()
    assert report.failure is not None
    assert report.failure.startswith(message)
    assert hint in (report.hint or "")
    assert report.decoded == 0


def test_a_crash_in_the_middle_keeps_the_report_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real library, and a crash when the first batch is decoded, as with the AMX bug."""
    (tmp_path / "sitecustomize.py").write_text(
        "import faulthandler, sys\n"
        "def trap(event, arguments):\n"
        "    if event == 'tempfile.mkdtemp' and 'pigguf-self-test-' in arguments[0]:\n"
        "        faulthandler._sigsegv()\n"
        "sys.addaudithook(trap)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    report = examine_engine()
    assert report.failure == "the engine crashed with SIGSEGV while decoding"
    assert report.devices
    assert report.cpu_features


def test_what_to_do_about_a_crash_depends_on_how_the_engine_was_built() -> None:
    from signal import SIGILL, SIGSEGV

    from pigguf.inference.engine_build.self_test import _crash_hint

    clang = replace(RECORD, cpu=("amx_int8", "avx2"))
    gcc = replace(clang, compiler=Compiler("gcc", (12, 2, 0), "gcc", "g++", True))
    assert "built with gcc 12.2.0: install clang" in _crash_hint(SIGSEGV, gcc)
    assert " ".join(AMX_OFF) in _crash_hint(SIGSEGV, clang)
    assert "another compiler" in _crash_hint(SIGSEGV, replace(gcc, flags=AMX_OFF))
    assert "another compiler" in _crash_hint(SIGSEGV, RECORD)
    assert "CPU with other features" in _crash_hint(SIGILL, gcc)
    assert "there is no record of how" in _crash_hint(SIGSEGV, None)


# ---- the commands --------------------------------------------------------------------------------


def doctor(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pigguf", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_doctor_shows_a_healthy_machine() -> None:
    result = doctor()
    assert result.returncode == 0, result.stderr
    for words in (
        "llama-cpp-python  0.3.36",
        "CPU features in use",
        "RPC",
        "runs on",
        "tokens decoded",
        "memory",
    ):
        assert words in result.stdout
    assert "error:" not in result.stderr


def test_doctor_for_a_program() -> None:
    result = doctor("--json")
    data = json.loads(result.stdout)
    assert data["healthy"] is True
    assert data["backend"] == "CPU" or data["engine"]["devices"][0]["kind"] != "cpu"
    assert data["engine"]["decoded"] == TOKENS
    assert isinstance(data["findings"], list)


def test_doctor_works_where_the_engine_does_not(tmp_path: Path) -> None:
    broken = broken_engine(tmp_path, "raise ImportError('no such library')")
    result = doctor(env=broken)
    assert result.returncode == 8
    assert "Versions" in result.stdout
    assert "runs on" in result.stdout
    assert "error: the engine llama-cpp-python cannot be loaded: no such library" in result.stderr
    assert f"hint: run {REBUILD}" in result.stderr
    assert "Traceback" not in result.stderr

    data = json.loads(doctor("--json", env=broken).stdout)
    assert (data["healthy"], data["backend"]) == (False, None)
    assert data["findings"][0]["failure"] is True


@pytest.mark.parametrize(("program", "status"), [(None, 0), ("import os; os.abort()", 1)])
def test_the_self_test_as_the_set_up_runs_it(tmp_path: Path, program: str | None, status: int) -> None:
    env = broken_engine(tmp_path, program) if program else None
    command = [sys.executable, "-m", "pigguf.inference.engine_build.self_test"]
    result = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (result.returncode, result.stdout) == (status, "")
    if status:
        error, hint = result.stderr.splitlines()
        assert error == "error: the engine crashed with SIGABRT while loading its library"
        assert hint.startswith("hint: ")
    else:
        assert "the engine works: 64 tokens decoded with llama-cpp-python 0.3.36 on " in result.stderr
