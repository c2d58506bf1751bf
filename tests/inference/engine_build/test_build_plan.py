"""The build plan over a table of facts, the compilers of this machine, and the build record."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pigguf.errors import BackendUnavailable
from pigguf.inference.engine_build import build_plan, build_record, compilers
from pigguf.inference.engine_build.build_plan import AMX_OFF
from pigguf.inference.engine_build.compilers import Compiler, Machine


def clang(version: str, openmp: bool = True) -> Compiler:
    return _compiler("clang", version, openmp)


def gcc(version: str, openmp: bool = True) -> Compiler:
    return _compiler("gcc", version, openmp)


def _compiler(family: str, version: str, openmp: bool) -> Compiler:
    return Compiler(
        family, tuple(map(int, version.split("."))), f"/usr/bin/{family}", f"/usr/bin/{family}++", openmp
    )


AMX = frozenset({"avx2", "avx512f", "amx_tile", "amx_int8", "amx_bf16"})
PLAIN = frozenset({"avx2", "avx512f"})

# CPU, compilers found, the one to use, is AMX switched off by flags, what the notes mention
CHOICES = {
    "clang before the Debian 12 gcc": (AMX, [clang("19.1.7"), gcc("12.2.0")], "clang 19.1.7", False, []),
    "clang before a sound gcc": (AMX, [gcc("14.2.0"), clang("16.0.6")], "clang 16.0.6", False, []),
    "clang without AMX too": (PLAIN, [gcc("12.2.0"), clang("19.1.7")], "clang 19.1.7", False, []),
    "highest clang first, as found": (PLAIN, [clang("19.1.7"), clang("16.0.6")], "clang 19.1.7", False, []),
    "Debian 12 with AMX": (AMX, [gcc("12.2.0")], "gcc 12.2.0", True, ["AMX", "clang"]),
    "Debian 12 without AMX": (PLAIN, [gcc("12.2.0")], "gcc 12.2.0", False, []),
    "old clang is no better": (AMX, [gcc("12.2.0"), clang("14.0.6")], "gcc 12.2.0", True, ["AMX"]),
    "old clang alone": (AMX, [clang("14.0.6")], "clang 14.0.6", True, ["AMX"]),
    "gcc 11": (AMX, [gcc("11.4.0")], "gcc 11.4.0", True, ["AMX"]),
    "gcc 12.3": (AMX, [gcc("12.3.0")], "gcc 12.3.0", True, ["AMX"]),
    "gcc 12.4": (AMX, [gcc("12.4.0")], "gcc 12.4.0", False, []),
    "gcc 13.2": (AMX, [gcc("13.2.0")], "gcc 13.2.0", True, ["AMX"]),
    "gcc 13.3": (AMX, [gcc("13.3.0")], "gcc 13.3.0", False, []),
    "gcc 14.1": (AMX, [gcc("14.1.0")], "gcc 14.1.0", False, []),
    "a sound gcc beside the default": (AMX, [gcc("12.2.0"), gcc("13.3.0")], "gcc 13.3.0", False, []),
    "gcc 10 knows no AMX, nor its flags": (AMX, [gcc("10.2.1")], "gcc 10.2.1", False, ["AMX"]),
    "sound gcc before clang without libomp": (
        AMX, [clang("19.1.7", False), gcc("13.3.0")], "gcc 13.3.0", False, [],
    ),
    "clang without libomp before a gcc with the bug": (
        AMX, [clang("19.1.7", False), gcc("12.2.0")], "clang 19.1.7", False, ["libomp-19-dev"],
    ),
    "any gcc is sound without AMX": (PLAIN, [clang("19.1.7", False), gcc("12.2.0")], "gcc 12.2.0", False, []),
}  # fmt: skip


@pytest.mark.parametrize("name", CHOICES)
def test_the_compiler_avoids_the_amx_bug(name: str) -> None:
    cpu, compilers, expected, amx_off, noted = CHOICES[name]
    plan = build_plan.plan_build(Machine("Linux", cpu), compilers)
    assert plan.compiler.name == expected
    assert plan.flags == (AMX_OFF if amx_off else ())
    assert ("-DGGML_OPENMP=OFF" in plan.cmake) == (not plan.compiler.openmp)
    assert len(plan.notes) == (1 if noted else 0)
    for word in noted:
        assert word in plan.notes[0]


# machine -> options an engine there must have
OPTIONS = {
    "plain": (Machine("Linux"), ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF")),
    "cuda": (
        Machine("Linux", nvcc="/usr/local/cuda/bin/nvcc", nvidia_gpu=True),
        ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF", "-DGGML_CUDA=ON"),
    ),
    "nvcc without a GPU": (Machine("Linux", nvcc="/usr/bin/nvcc"), ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF")),
    "macOS": (Machine("Darwin"), ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF", "-DGGML_METAL=ON")),
    "the user's last": (
        Machine("Linux", cmake_args=("-DGGML_RPC=OFF",)),
        ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF", "-DGGML_RPC=OFF"),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_follow_the_machine(name: str) -> None:
    machine, expected = OPTIONS[name]
    assert build_plan.cmake_options(machine) == expected
    plan = build_plan.plan_build(machine, [gcc("13.3.0")])
    assert plan.cmake == expected
    assert plan.nvcc == (machine.nvcc if machine.nvidia_gpu else None)


def test_a_gpu_without_nvcc_is_noted() -> None:
    plan = build_plan.plan_build(Machine("Linux", nvidia_gpu=True), [gcc("13.3.0")])
    assert "nvcc" in plan.notes[0]


def test_apple_clang_needs_no_openmp_and_no_note() -> None:
    apple = replace(clang("15.0.0", openmp=False), family="apple-clang")
    plan = build_plan.plan_build(Machine("Darwin"), [apple])
    assert "-DGGML_OPENMP=OFF" not in plan.cmake
    assert plan.notes == ()


@pytest.mark.parametrize(
    ("machine", "message", "hint"),
    [
        (Machine("Linux"), "no C++ compiler", "apt-get install"),
        (Machine("Darwin"), "no C++ compiler", "xcode-select --install"),
        (Machine("Linux", cc="/opt/tcc"), "CC=/opt/tcc", "unset"),
    ],
)
def test_no_compiler_is_an_error_with_a_hint(machine: Machine, message: str, hint: str) -> None:
    with pytest.raises(BackendUnavailable, match=message.replace("+", r"\+")) as caught:
        build_plan.plan_build(machine, [])
    assert hint in (caught.value.hint or "")


def test_the_environment_adds_to_the_users_flags_and_builds_for_this_cpu() -> None:
    plan = build_plan.plan_build(Machine("Linux", AMX), [gcc("12.2.0")])
    environment = plan.environment({"CFLAGS": "-O3", "SOURCE_DATE_EPOCH": "0", "HOME": "/root"})
    assert environment == {
        "HOME": "/root",
        "CC": "/usr/bin/gcc",
        "CXX": "/usr/bin/gcc++",
        "CMAKE_ARGS": "-DGGML_RPC=ON -DLLAVA_BUILD=OFF",
        "CFLAGS": "-O3 -mno-amx-tile -mno-amx-int8 -mno-amx-bf16",
        "CXXFLAGS": "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16",
    }


# ---- the compilers of this machine ---------------------------------------------------------------


def test_the_compilers_of_this_machine_are_found_and_identified() -> None:
    found = compilers.find_compilers(compilers.find_machine(os.environ))
    if shutil.which("gcc") and not os.environ.get("CC"):
        banner = subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
        assert platform.system() == "Darwin" or f"gcc {banner}" in [compiler.name for compiler in found]
    for compiler in found:
        banner = subprocess.run([compiler.cc, "--version"], capture_output=True, text=True).stdout
        assert ("clang" in banner) == (compiler.family != "gcc")
        assert ".".join(map(str, compiler.version)) in banner or compiler.family == "apple-clang"


def test_a_compiler_that_cannot_build_is_not_used(tmp_path: Path) -> None:
    """A compiler may define its macros and yet link nothing, as a clang without the C++ headers does."""
    real = shutil.which("cc")
    if real is None:
        pytest.skip("no compiler here")
    broken = tmp_path / "clang-99"
    broken.write_text(f'#!/bin/sh\ncase "$*" in *-dM*) exec {real} "$@";; esac\nexit 1\n')
    broken.chmod(0o755)
    machine = compilers.find_machine({"CC": str(broken), "CXX": real})
    assert compilers.find_compilers(machine) == ()


def test_the_users_compiler_is_the_only_candidate() -> None:
    real = shutil.which("g++")
    if real is None or platform.system() == "Darwin":
        pytest.skip("no g++ here")
    [compiler] = compilers.find_compilers(compilers.find_machine({"CXX": "g++"}))
    assert (compiler.family, compiler.cc, compiler.cxx) == ("gcc", real.replace("g++", "gcc"), real)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is x86's")
def test_the_flags_switch_amx_off_in_every_compiler() -> None:
    """Ggml uses AMX if __AMX_INT8__ is defined; CMake puts our flags in front of -march=native."""

    def has_amx(cc: str, *flags: str) -> bool:
        command = [cc, *flags, "-march=sapphirerapids", "-dM", "-E", "-x", "c", os.devnull]
        macros = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return "__AMX_INT8__" in macros or "__AMX_TILE__" in macros

    with_amx = [
        c
        for c in compilers.find_compilers(compilers.find_machine({"PATH": os.environ["PATH"]}))
        if c.knows_amx
    ]
    if not with_amx:
        pytest.skip("no compiler here knows AMX")
    for compiler in with_amx:
        assert has_amx(compiler.cc)
        assert not has_amx(compiler.cc, *AMX_OFF)


def test_the_modules_need_the_standard_library_only() -> None:
    """scripts/setup.py imports them before anything is installed, in a Python without site-packages."""
    root = Path(build_plan.__file__).parents[3]
    program = f"""
import sys
sys.path.insert(0, {str(root)!r})
from pigguf.inference.engine_build import build_plan, build_record, compilers
print(build_plan.cmake_options(compilers.Machine("Linux")))
"""
    result = subprocess.run([sys.executable, "-S", "-I", "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "('-DGGML_RPC=ON', '-DLLAVA_BUILD=OFF')", result.stderr


# ---- the record ----------------------------------------------------------------------------------

MACHINE = Machine("Linux", PLAIN)


def installed_engine(prefix: Path, files: str = "llama_cpp/lib/libllama.so,sha256=abc,1\n") -> None:
    folder = prefix / "lib" / "python3.11" / "site-packages" / "llama_cpp_python-0.3.36.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "RECORD").write_text(files)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    installed_engine(tmp_path)
    build_record.write_record(tmp_path, build_plan.plan_build(MACHINE, [gcc("12.2.0")]), MACHINE)
    return tmp_path


def reason(prefix: Path, version: str = "0.3.36", machine: Machine = MACHINE) -> str | None:
    return build_record.reason_to_build(
        build_record.read_record(prefix), build_record.find_installed(prefix), version, machine
    )


def test_a_recorded_engine_is_kept(prefix: Path) -> None:
    assert reason(prefix) is None


def test_the_record_reads_back_as_written(prefix: Path) -> None:
    machine = Machine("Linux", AMX)
    record = build_record.write_record(prefix, build_plan.plan_build(machine, [gcc("12.2.0")]), machine)
    assert build_record.read_record(prefix) == record
    assert record.notes
    assert set(record.cpu) == AMX


def test_no_engine_no_record(tmp_path: Path) -> None:
    assert reason(tmp_path) == "there is no engine yet"
    with pytest.raises(BackendUnavailable, match="no llama-cpp-python"):
        build_record.write_record(tmp_path, build_plan.plan_build(MACHINE, [gcc("12.2.0")]), MACHINE)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": "0.3.36"}'])
def test_an_engine_without_a_readable_record_is_not_adopted(prefix: Path, damage: str) -> None:
    (prefix / build_record.RECORD_NAME).write_text(damage)
    assert reason(prefix) == "there is no record of how the installed engine was built"
    (prefix / build_record.RECORD_NAME).unlink()
    assert reason(prefix) == "there is no record of how the installed engine was built"


def test_an_engine_installed_by_other_means_is_noticed(prefix: Path) -> None:
    installed_engine(prefix, "llama_cpp/lib/libllama.so,sha256=def,1\n")
    assert reason(prefix) == "the installed engine was not built by these scripts"


# machine -> part of the reason, or None
CHANGES = {
    "another GPU toolkit": (
        replace(MACHINE, nvcc="/usr/bin/nvcc", nvidia_gpu=True),
        "without -DGGML_CUDA=ON",
    ),
    "a CPU that lacks a feature": (replace(MACHINE, cpu=frozenset({"avx2"})), "another CPU, with avx512f"),
    "a CPU that has more": (replace(MACHINE, cpu=AMX), None),
    "a feature no compiler uses is gone": (replace(MACHINE, cpu=PLAIN | {"nopl"}), None),
    "the user's option": (replace(MACHINE, cmake_args=("-DGGML_BLAS=ON",)), "without -DGGML_BLAS=ON"),
    "the user's compiler": (replace(MACHINE, cc="/usr/bin/clang"), "CC asks for /usr/bin/clang"),
    "the same compiler, asked for": (replace(MACHINE, cc="/usr/bin/gcc", cxx="/usr/bin/gcc++"), None),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_machine_is_a_reason_to_build(prefix: Path, name: str) -> None:
    machine, expected = CHANGES[name]
    found = reason(prefix, machine=machine)
    assert found is None if expected is None else expected in (found or "")


def test_another_version_is_a_reason_to_build(prefix: Path) -> None:
    assert reason(prefix, version="0.3.37") == "the engine is version 0.3.36, not 0.3.37"


def test_the_record_is_plain_json(prefix: Path) -> None:
    fields = json.loads((prefix / build_record.RECORD_NAME).read_text())
    assert fields["compiler"]["version"] == [12, 2, 0]
    assert fields["cmake"] == ["-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF"]
