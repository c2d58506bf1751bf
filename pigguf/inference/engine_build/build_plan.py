"""How the engine (llama-cpp-python) is built for this machine: facts, then a plan, then a record.

    machine = find_machine(os.environ)                    what is cheap to know
    reason = reason_to_build(read_record(prefix), ...)    why the engine that is there will not do, or None
    plan = plan_build(machine, find_compilers(machine))   compiler, CMake options, flags, notes for the user
    pip_command(python, requirement), plan.environment()  what to run
    write_record(prefix, plan, machine)                   so that `pigguf doctor` can tell later

Planning is a pure function of facts. The traps it steers around:

- gcc before 12.4, and 13.x before 13.3, drops the stores of the AMX tile configuration, so that a
  library built by it for a CPU with AMX crashes at its first matrix product (ggml's
  ggml-cpu/amx/mmq.cpp, ldtilecfg). clang does not, so clang 16 or newer comes first; a gcc with
  the bug gets AMX switched off. ggml compiles with -march=native and takes AMX where the compiler
  defines __AMX_INT8__ (ggml-cpu/CMakeLists.txt, amx/amx.cpp); -mno-amx-* undoes that.
- ggml runs its threads by OpenMP, else by its own, which it starts anew for every graph. So a gcc
  that is sound here beats a clang without libomp; a clang without libomp beats a gcc without AMX.
- pip would take a wheel that some other project built with other options: no cache, no binary.

Standard library only, for it runs before anything is installed. Left out: running pip and
talking to the user (scripts/setup.py), the self-test (self_test.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pigguf.errors import BackendUnavailable

RECORD_NAME = "pigguf-engine.json"
REBUILD = "scripts/build-engine"
CLANG_HINT = "clang 16 or newer with its OpenMP (Debian: apt-get install clang-19 libomp-19-dev)"

AMX_OFF = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")

# The CPU features that -march=native compiles in: an engine crashes where one of them is missing.
_COMPILED_IN = re.compile(
    r"s?sse|avx|amx|fma|f16c|bmi|abm|popcnt|movbe|adx|sha_|v?aes|v?pclmul|gfni"  # x86
    r"|asimd|sve|sme|i8mm|bf16|fphp"  # ARM
)

_WSL_CUDA = Path("/usr/lib/wsl/lib/libcuda.so.1")  # NVIDIA's driver, as Windows lends it to its Linux


# ---- facts ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What the build depends on and costs nothing to find.

    Attributes:
        system: platform.system(), "Linux" or "Darwin".
        cpu: the CPU's feature names as the kernel lists them; empty where it does not.
        nvcc: the CUDA compiler, or None.
        nvidia_gpu: an NVIDIA GPU and its driver are there.
        cc, cxx: the user's CC and CXX, their programs resolved to paths, or None.
        cmake_args: the user's CMAKE_ARGS, split.
    """

    system: str
    cpu: frozenset[str] = frozenset()
    nvcc: str | None = None
    nvidia_gpu: bool = False
    cc: str | None = None
    cxx: str | None = None
    cmake_args: tuple[str, ...] = ()

    @property
    def has_amx(self) -> bool:
        return "amx_int8" in self.cpu


@dataclass(frozen=True)
class Compiler:
    """A C and C++ compiler that has built and run a small program here.

    Attributes:
        family: "clang", "apple-clang" or "gcc".
        version: major, minor, patch.
        cc, cxx: the commands.
        openmp: a program with OpenMP was built and ran too.
    """

    family: str
    version: tuple[int, ...]
    cc: str
    cxx: str
    openmp: bool

    @property
    def name(self) -> str:
        return f"{self.family} {'.'.join(map(str, self.version))}"

    @property
    def modern_clang(self) -> bool:
        return self.family == "apple-clang" or (self.family == "clang" and self.version >= (16,))

    @property
    def sound_with_amx(self) -> bool:
        """Known to build AMX code that works."""
        if self.family == "gcc":
            return (12, 4) <= self.version < (13,) or self.version >= (13, 3)
        return self.modern_clang

    @property
    def knows_amx(self) -> bool:
        """Accepts the AMX flags; a compiler that does not never makes AMX code either."""
        return self.version >= (11,)


def find_machine(environ: Mapping[str, str]) -> Machine:
    """The cheap facts of this machine and of the user's environment."""
    return Machine(
        system=platform.system(),
        cpu=_cpu_features(Path("/proc/cpuinfo")),
        nvcc=_find_nvcc(environ),
        nvidia_gpu=any(Path("/dev").glob("nvidia[0-9]*")) or _WSL_CUDA.exists(),
        cc=_resolved(environ.get("CC")),
        cxx=_resolved(environ.get("CXX")),
        cmake_args=tuple(shlex.split(environ.get("CMAKE_ARGS", ""))),
    )


def _cpu_features(cpuinfo: Path) -> frozenset[str]:
    try:
        text = cpuinfo.read_text()
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(line[1].split()) if line else frozenset()


def _find_nvcc(environ: Mapping[str, str]) -> str | None:
    roots = [environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if environ.get(name)]
    folders = [os.path.join(root, "bin") for root in (*roots, "/usr/local/cuda")]
    search = os.pathsep.join([environ.get("PATH", os.defpath), *folders])
    return shutil.which("nvcc", path=search)


def _resolved(command: str | None) -> str | None:
    """A compiler command with its program's full path; unchanged where there is no such program."""
    words = shlex.split(command or "")
    if not words:
        return None
    return shlex.join([shutil.which(words[0]) or words[0], *words[1:]])


def find_compilers(machine: Machine) -> tuple[Compiler, ...]:
    """The compilers that work here, in the order they were looked for: the user's alone, or all on PATH."""
    found = (_examine(cc, cxx) for cc, cxx in _candidates(machine))
    return tuple(compiler for compiler in found if compiler)


def _candidates(machine: Machine) -> list[tuple[str, str]]:
    """Pairs of C and C++ commands worth a look."""
    if machine.cc or machine.cxx:
        cc = machine.cc or _sibling(machine.cxx or "", {"clang++": "clang", "g++": "gcc", "c++": "cc"})
        cxx = machine.cxx or _sibling(machine.cc or "", {"clang": "clang++", "gcc": "g++", "cc": "c++"})
        return [(cc, cxx)]
    pairs = [(f"clang-{number}", f"clang++-{number}") for number in _versions_on_path("clang")]
    pairs += [("clang", "clang++"), ("gcc", "g++")]
    pairs += [(f"gcc-{number}", f"g++-{number}") for number in _versions_on_path("gcc")]
    pairs += [("cc", "c++")]
    if machine.system == "Darwin":
        pairs = [("cc", "c++")]
    commands = [(shutil.which(cc), shutil.which(cxx)) for cc, cxx in pairs]
    return [(cc, cxx) for cc, cxx in commands if cc and cxx]


def _sibling(command: str, names: Mapping[str, str]) -> str:
    """The other language's compiler of the same make: clang-19 -> clang++-19."""
    program, *arguments = shlex.split(command)
    folder, base = os.path.split(program)
    for name, other in names.items():
        if name in base:
            return shlex.join([os.path.join(folder, base.replace(name, other, 1)), *arguments])
    return command


def _versions_on_path(name: str) -> list[int]:
    """N of every program `name`-N on PATH, highest first."""
    numbers = set()
    for folder in os.get_exec_path():
        for path in Path(folder).glob(f"{name}-*"):
            if match := re.fullmatch(re.escape(name) + r"-(\d+)", path.name):
                numbers.add(int(match[1]))
    return sorted(numbers, reverse=True)


_PROBE = """
#ifdef __cplusplus
#include <vector>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif
int main(void) {
    int sum = 0;
    #pragma omp parallel for reduction(+:sum)
    for (int i = 0; i < 4; i++) sum += i;
    return sum != 6;
}
"""


def _examine(cc: str, cxx: str) -> Compiler | None:
    """The compiler behind these commands, or None where they do not build a program that runs."""
    made_by = _identify(cc)
    if made_by is None:
        return None
    with tempfile.TemporaryDirectory(prefix="pigguf-compiler-") as folder:

        def works(*flags: str) -> bool:
            return _builds(cc, "c", flags, Path(folder)) and _builds(cxx, "c++", flags, Path(folder))

        if not works():
            return None
        return Compiler(*made_by, cc=cc, cxx=cxx, openmp=works("-fopenmp"))


def _identify(cc: str) -> tuple[str, tuple[int, ...]] | None:
    """Family and version by the macros the compiler defines, which no name or banner can hide."""
    text = _output([*shlex.split(cc), "-dM", "-E", "-x", "c", os.devnull])
    macros = dict(re.findall(r"^#define (\w+) (\d+)$", text, re.MULTILINE))
    if "__clang__" in macros:
        family = "apple-clang" if "__apple_build_version__" in macros else "clang"
        parts = ("__clang_major__", "__clang_minor__", "__clang_patchlevel__")
    elif "__GNUC__" in macros:
        family, parts = "gcc", ("__GNUC__", "__GNUC_MINOR__", "__GNUC_PATCHLEVEL__")
    else:
        return None
    return family, tuple(int(macros[part]) for part in parts)


def _builds(command: str, language: str, flags: Sequence[str], folder: Path) -> bool:
    source, program = folder / "probe.txt", folder / "probe"
    source.write_text(_PROBE)
    compiling = [*shlex.split(command), *flags, "-x", language, str(source), "-o", str(program)]
    return _succeeds(compiling) and _succeeds([str(program)])


def _succeeds(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def _output(command: Sequence[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, timeout=120, text=True, errors="replace").stdout
    except (OSError, subprocess.SubprocessError):
        return ""


# ---- the plan ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BuildPlan:
    """One way to build the engine.

    Attributes:
        cmake: options for CMake, the user's last.
        flags: compiler flags, added to the user's CFLAGS and CXXFLAGS.
        nvcc: the CUDA compiler to use, or None.
        notes: what the user gains by installing something, a line each.
    """

    compiler: Compiler
    cmake: tuple[str, ...]
    flags: tuple[str, ...] = ()
    nvcc: str | None = None
    notes: tuple[str, ...] = ()

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment to run pip in."""
        result = dict(environ)
        # With it ggml would build for a generic CPU (its CMakeLists.txt, GGML_NATIVE_DEFAULT).
        result.pop("SOURCE_DATE_EPOCH", None)
        result |= {"CC": self.compiler.cc, "CXX": self.compiler.cxx, "CMAKE_ARGS": shlex.join(self.cmake)}
        for name in ("CFLAGS", "CXXFLAGS") if self.flags else ():
            result[name] = " ".join([*environ.get(name, "").split(), *self.flags])
        if self.nvcc:
            result["CUDACXX"] = self.nvcc
        return result


def options(machine: Machine) -> tuple[str, ...]:
    """The CMake options that every engine on this machine must be built with, the user's last."""
    accelerator = ("-DGGML_CUDA=ON",) if _cuda(machine) else ()
    if machine.system == "Darwin":
        accelerator = ("-DGGML_METAL=ON",)
    # No vision here, and it would cost a minute.
    return ("-DGGML_RPC=ON", "-DLLAVA_BUILD=OFF", *accelerator, *machine.cmake_args)


def _cuda(machine: Machine) -> bool:
    return machine.nvcc is not None and machine.nvidia_gpu


def plan_build(machine: Machine, compilers: Iterable[Compiler]) -> BuildPlan:
    """The best way to build the engine with what is there.

    Raises:
        BackendUnavailable: there is no compiler that works.
    """
    compiler = best_compiler(machine, compilers)
    if compiler is None:
        raise _no_compiler(machine)
    amx_off = machine.has_amx and not compiler.sound_with_amx
    openmp_off = machine.system != "Darwin" and not compiler.openmp
    notes = []
    if amx_off:
        notes.append(
            f"AMX stays off: {compiler.name} is not known to build it right (gcc is from 12.4 and 13.3 on). "
            f"For faster prompts install {CLANG_HINT}, then run {REBUILD}"
        )
    if openmp_off:
        notes.append(
            f"{compiler.name} has no OpenMP here (Debian: libomp-{compiler.version[0]}-dev): "
            f"the engine uses threads of its own. With it installed, run {REBUILD}"
        )
    if machine.nvidia_gpu and not machine.nvcc:
        notes.append(
            "an NVIDIA GPU is here but no nvcc: the engine runs on the CPU. "
            f"Install the CUDA toolkit, then run {REBUILD}"
        )
    return BuildPlan(
        compiler=compiler,
        cmake=(*(("-DGGML_OPENMP=OFF",) if openmp_off else ()), *options(machine)),
        flags=AMX_OFF if amx_off and compiler.knows_amx else (),
        nvcc=machine.nvcc if _cuda(machine) else None,
        notes=tuple(notes),
    )


def best_compiler(machine: Machine, compilers: Iterable[Compiler]) -> Compiler | None:
    """The compiler to take on this machine, or None where there is none; the first found among equals."""
    return min(compilers, key=lambda compiler: _rank(compiler, machine), default=None)


def _rank(compiler: Compiler, machine: Machine) -> int:
    """Lower is better."""
    sound = compiler.sound_with_amx or not machine.has_amx
    if compiler.modern_clang and (compiler.openmp or machine.system == "Darwin"):
        return 0
    if sound and compiler.openmp:
        return 1
    if compiler.modern_clang:
        return 2
    return 3 if compiler.openmp else 4


def _no_compiler(machine: Machine) -> BackendUnavailable:
    if machine.cc or machine.cxx:
        asked = " ".join(
            f"{name}={value}" for name, value in (("CC", machine.cc), ("CXX", machine.cxx)) if value
        )
        return BackendUnavailable(
            f"the compiler asked for does not build a program that runs: {asked}",
            "name a working C and C++ compiler, or unset CC and CXX to let one be chosen",
        )
    if machine.system == "Darwin":
        return BackendUnavailable("no C++ compiler works here", "install Apple's: xcode-select --install")
    return BackendUnavailable(
        "no C++ compiler works here, and the engine is built from source",
        f"install {CLANG_HINT}, or g++ (apt-get install g++)",
    )


def pip_command(python: str, requirement: str) -> list[str]:
    """Build and install the engine alone, from its source package, whatever is installed or cached."""
    options = ["--no-deps", "--force-reinstall", "--no-cache-dir", "--no-binary", "llama-cpp-python"]
    return [python, "-m", "pip", "install", "-v", *options, requirement]


# ---- the record ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class BuildRecord:
    """How the engine in an environment was built.

    Attributes:
        version: of llama-cpp-python.
        fingerprint: of the installed files, so that an engine put there by other means is noticed.
        compiler, cmake, flags, notes: as in the BuildPlan.
        cpu: features of the CPU it was built for.
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
    """An installed llama-cpp-python: its version, and a hash over pip's list of its files' hashes."""

    version: str
    fingerprint: str


def find_installed(prefix: Path) -> InstalledEngine | None:
    """The llama-cpp-python installed under an environment's prefix, or None."""
    for record in sorted(prefix.glob("lib/python3*/site-packages/llama_cpp_python-*.dist-info/RECORD")):
        version = record.parent.name.removesuffix(".dist-info").rpartition("-")[2]
        return InstalledEngine(version, hashlib.sha256(record.read_bytes()).hexdigest())
    return None


def read_record(prefix: Path) -> BuildRecord | None:
    """What write_record left under this prefix, or None where there is nothing readable."""
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
    """Write down how the engine under this prefix was built.

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
        cpu=_compiled_in(machine),
        notes=plan.notes,
    )
    (prefix / RECORD_NAME).write_text(json.dumps(asdict(record), indent=2) + "\n")
    return record


def reason_to_build(
    record: BuildRecord | None, installed: InstalledEngine | None, version: str, machine: Machine
) -> str | None:
    """Why the installed engine will not do here, in words for the user, or None where it will.

    A better compiler installed since is no reason: that takes REBUILD.
    """
    if installed is None:
        return "there is no engine yet"
    if installed.version != version:
        return f"the engine is version {installed.version}, not {version}"
    if record is None:
        return "nothing tells how the engine that is there was built"
    if record.fingerprint != installed.fingerprint:
        return "the engine that is there was not built by these scripts"
    if missing := [option for option in options(machine) if option not in record.cmake]:
        return f"the engine was built without {' '.join(missing)}"
    if lacking := sorted(set(record.cpu) - set(_compiled_in(machine))):
        return f"the engine was built for another CPU, with {' '.join(lacking)}"
    for name, asked, used in (
        ("CC", machine.cc, record.compiler.cc),
        ("CXX", machine.cxx, record.compiler.cxx),
    ):
        if asked and asked != used:
            return f"the engine was built with {used}, and {name} asks for {asked}"
    return None


def _compiled_in(machine: Machine) -> tuple[str, ...]:
    return tuple(sorted(feature for feature in machine.cpu if _COMPILED_IN.match(feature)))
