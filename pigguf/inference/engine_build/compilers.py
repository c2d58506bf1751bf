"""What the engine's build depends on: the machine, and the compilers that work on it.

Standard library only, because it runs before anything is installed.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_WSL_CUDA = Path("/usr/lib/wsl/lib/libcuda.so.1")  # NVIDIA's driver, as Windows provides it to WSL


@dataclass(frozen=True)
class Machine:
    """What the build depends on and is found at once.

    Attributes:
        system: platform.system(), "Linux" or "Darwin".
        cpu: the CPU's feature names as the kernel lists them; empty if it does not.
        nvcc: the CUDA compiler, or None.
        nvidia_gpu: whether there is an NVIDIA GPU with its driver.
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
        """Whether the CPU has AMX."""
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
        """The compiler's family and version."""
        return f"{self.family} {'.'.join(map(str, self.version))}"

    @property
    def modern_clang(self) -> bool:
        """Whether it is clang 16 or newer, or Apple's clang."""
        return self.family == "apple-clang" or (self.family == "clang" and self.version >= (16,))

    @property
    def sound_with_amx(self) -> bool:
        """Whether it is known to build AMX code that works."""
        if self.family == "gcc":
            return (12, 4) <= self.version < (13,) or self.version >= (13, 3)
        return self.modern_clang

    @property
    def knows_amx(self) -> bool:
        """Whether it accepts the AMX flags; a compiler that does not never generates AMX code either."""
        return self.version >= (11,)


def find_machine(environ: Mapping[str, str]) -> Machine:
    """Return the facts of this machine and of the user's environment, except for the compilers."""
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
    """Return a compiler command with its program's full path, unchanged if there is no such program."""
    words = shlex.split(command or "")
    if not words:
        return None
    return shlex.join([shutil.which(words[0]) or words[0], *words[1:]])


def find_compilers(machine: Machine) -> tuple[Compiler, ...]:
    """Return the compilers that work: those that CC and CXX name, or all on PATH in order of preference."""
    probed = (_probe_compiler(cc, cxx) for cc, cxx in _candidates(machine))
    return tuple(compiler for compiler in probed if compiler)


def _candidates(machine: Machine) -> list[tuple[str, str]]:
    """Return pairs of C and C++ commands to probe."""
    if machine.cc or machine.cxx:
        cc = machine.cc or _other_language(machine.cxx or "", {"clang++": "clang", "g++": "gcc", "c++": "cc"})
        cxx = machine.cxx or _other_language(
            machine.cc or "", {"clang": "clang++", "gcc": "g++", "cc": "c++"}
        )
        return [(cc, cxx)]
    pairs = [(f"clang-{number}", f"clang++-{number}") for number in _versions_on_path("clang")]
    pairs += [("clang", "clang++"), ("gcc", "g++")]
    pairs += [(f"gcc-{number}", f"g++-{number}") for number in _versions_on_path("gcc")]
    pairs += [("cc", "c++")]
    if machine.system == "Darwin":
        pairs = [("cc", "c++")]
    commands = [(shutil.which(cc), shutil.which(cxx)) for cc, cxx in pairs]
    return [(cc, cxx) for cc, cxx in commands if cc and cxx]


def _other_language(command: str, names: Mapping[str, str]) -> str:
    """Return the same compiler's command for the other language: clang-19 -> clang++-19."""
    program, *arguments = shlex.split(command)
    folder, base = os.path.split(program)
    for name, other in names.items():
        if name in base:
            return shlex.join([os.path.join(folder, base.replace(name, other, 1)), *arguments])
    return command


def _versions_on_path(name: str) -> list[int]:
    """Return the N of every program `name`-N on PATH, highest first."""
    numbers = set()
    for folder in os.get_exec_path():
        for path in Path(folder).glob(f"{name}-*"):
            if match := re.fullmatch(re.escape(name) + r"-(\d+)", path.name):
                numbers.add(int(match[1]))
    return sorted(numbers, reverse=True)


_PROBE_SOURCE = """
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


def _probe_compiler(cc: str, cxx: str) -> Compiler | None:
    """Return the compiler of these commands, or None if they do not build a program that runs."""
    identity = _identify(cc)
    if identity is None:
        return None
    with tempfile.TemporaryDirectory(prefix="pigguf-compiler-") as folder:

        def works(*flags: str) -> bool:
            return _builds(cc, "c", flags, Path(folder)) and _builds(cxx, "c++", flags, Path(folder))

        if not works():
            return None
        return Compiler(*identity, cc=cc, cxx=cxx, openmp=works("-fopenmp"))


def _identify(cc: str) -> tuple[str, tuple[int, ...]] | None:
    """Return family and version, from the macros that the compiler defines; its name can be misleading."""
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
    source.write_text(_PROBE_SOURCE)
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
