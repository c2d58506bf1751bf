"""Plan how the engine (llama-cpp-python) is built for this machine.

    machine = find_machine(os.environ)                    compilers.py: facts, found at once
    reason = reason_to_build(read_record(prefix), ...)    build_record.py: why to build again, or None
    plan = plan_build(machine, find_compilers(machine))   compiler, CMake options, flags, notes for the user
    pip_command(python, requirement), plan.environment()  what to run
    write_record(prefix, plan, machine)                   build_record.py: for `pigguf doctor` later

Planning is a pure function of facts. The problems it avoids:

- gcc before 12.4, and 13.x before 13.3, drops the stores of the AMX tile configuration, so that a library
  built by it for a CPU with AMX crashes at its first matrix product (ggml's ggml-cpu/amx/mmq.cpp, ldtilecfg).
  clang does not, so clang 16 or newer comes first; a gcc with the bug gets AMX switched off. ggml compiles
  with -march=native and uses AMX if the compiler defines __AMX_INT8__ (ggml-cpu/CMakeLists.txt,
  amx/amx.cpp); -mno-amx-* undoes that.
- ggml runs its threads with OpenMP, or else with its own, which it starts again for every graph. So a gcc
  that is correct here is better than a clang without libomp; a clang without libomp is better than a gcc
  without AMX.
- pip would use a wheel that another project built with other options: no cache, no binary.

Standard library only, because it runs before anything is installed. Not here: running pip and reporting to
the user (scripts/setup.py), the self-test (self_test.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pigguf.errors import BackendUnavailable
from pigguf.inference.engine_build.compilers import Compiler, Machine

REBUILD = "scripts/build-engine"
CLANG_HINT = "clang 16 or newer with its OpenMP (Debian: apt-get install clang-19 libomp-19-dev)"

AMX_OFF = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")


@dataclass(frozen=True)
class BuildPlan:
    """How the engine is to be built.

    Attributes:
        compiler: the compiler to use.
        cmake: options for CMake, the user's last.
        flags: compiler flags, added to the user's CFLAGS and CXXFLAGS.
        nvcc: the CUDA compiler to use, or None.
        notes: what the user would gain by installing something, one line each.
    """

    compiler: Compiler
    cmake: tuple[str, ...]
    flags: tuple[str, ...] = ()
    nvcc: str | None = None
    notes: tuple[str, ...] = ()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment to run pip in."""
        result = dict(environ)
        # With this variable ggml would build for a generic CPU (its CMakeLists.txt, GGML_NATIVE_DEFAULT).
        result.pop("SOURCE_DATE_EPOCH", None)
        result |= {"CC": self.compiler.cc, "CXX": self.compiler.cxx, "CMAKE_ARGS": shlex.join(self.cmake)}
        for name in ("CFLAGS", "CXXFLAGS") if self.flags else ():
            result[name] = " ".join([*environ.get(name, "").split(), *self.flags])
        if self.nvcc:
            result["CUDACXX"] = self.nvcc
        return result


def cmake_options(machine: Machine) -> tuple[str, ...]:
    """Return the CMake options that every engine on this machine must be built with, the user's last."""
    accelerator = ("-DGGML_CUDA=ON",) if _has_cuda(machine) else ()
    if machine.system == "Darwin":
        accelerator = ("-DGGML_METAL=ON",)
    # Vision models are not used here, and building support for them takes a minute.
    return ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF", *accelerator, *machine.cmake_args)


def _has_cuda(machine: Machine) -> bool:
    return machine.nvcc is not None and machine.nvidia_gpu


def plan_build(machine: Machine, compilers: Iterable[Compiler]) -> BuildPlan:
    """Plan the best build of the engine with what is installed.

    Raises:
        BackendUnavailable: no compiler works.
    """
    compiler = best_compiler(machine, compilers)
    if compiler is None:
        raise _no_compiler_error(machine)
    amx_off = machine.has_amx and not compiler.sound_with_amx
    openmp_off = machine.system != "Darwin" and not compiler.openmp
    notes = []
    if amx_off:
        notes.append(
            f"AMX stays off: {compiler.name} is not known to build it correctly "
            f"(gcc is from 12.4 and 13.3 on). For faster prefill install {CLANG_HINT}, then run {REBUILD}"
        )
    if openmp_off:
        notes.append(
            f"{compiler.name} has no OpenMP here (Debian: libomp-{compiler.version[0]}-dev): "
            f"the engine uses its own threads. Install it, then run {REBUILD}"
        )
    if machine.nvidia_gpu and not machine.nvcc:
        notes.append(
            "there is an NVIDIA GPU but no nvcc: the engine runs on the CPU. "
            f"Install the CUDA toolkit, then run {REBUILD}"
        )
    return BuildPlan(
        compiler=compiler,
        cmake=(*(("-DGGML_OPENMP=OFF",) if openmp_off else ()), *cmake_options(machine)),
        flags=AMX_OFF if amx_off and compiler.knows_amx else (),
        nvcc=machine.nvcc if _has_cuda(machine) else None,
        notes=tuple(notes),
    )


def best_compiler(machine: Machine, compilers: Iterable[Compiler]) -> Compiler | None:
    """Return the best compiler for this machine, the first among equals; None if there is none."""
    return min(compilers, key=lambda compiler: _rank(compiler, machine), default=None)


def _rank(compiler: Compiler, machine: Machine) -> int:
    """Return the compiler's rank; lower is better."""
    sound = compiler.sound_with_amx or not machine.has_amx
    if compiler.modern_clang and (compiler.openmp or machine.system == "Darwin"):
        return 0
    if sound and compiler.openmp:
        return 1
    if compiler.modern_clang:
        return 2
    return 3 if compiler.openmp else 4


def _no_compiler_error(machine: Machine) -> BackendUnavailable:
    if machine.cc or machine.cxx:
        asked = " ".join(
            f"{name}={value}" for name, value in (("CC", machine.cc), ("CXX", machine.cxx)) if value
        )
        return BackendUnavailable(
            f"the compiler of CC or CXX does not build a program that runs: {asked}",
            "set CC and CXX to working compilers, or unset them to let one be chosen",
        )
    if machine.system == "Darwin":
        return BackendUnavailable(
            "no C++ compiler works on this machine", "install Apple's: xcode-select --install"
        )
    return BackendUnavailable(
        "no C++ compiler works on this machine, and the engine is built from source",
        f"install {CLANG_HINT}, or g++ (apt-get install g++)",
    )


def pip_command(python: str, requirement: str) -> list[str]:
    """Return the command that builds and installs the engine alone, from source, without pip's cache."""
    pip_options = ["--no-deps", "--force-reinstall", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
    return [python, "-m", "pip", "install", "-v", *pip_options, requirement]
