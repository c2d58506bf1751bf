"""The scripts where something is missing: one line and a hint, no traceback, nothing half made.

Each runs the real script in a copy of the files it needs, with a crafted PATH or environment.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from pigguf.inference.engine_build.compilers import Machine

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("demo", "test", "check", "build-engine")
REAL_PYTHON = getattr(sys, "_base_executable", sys.executable)

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler here")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy the files of a clone that the setup needs before anything is installed."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    for name in (
        "pyproject.toml",
        "pigguf/__init__.py",
        "pigguf/errors.py",
        "pigguf/_version.py",
        "pigguf/inference/__init__.py",
        "pigguf/inference/engine_build/__init__.py",
        "pigguf/inference/engine_build/build_plan.py",
        "pigguf/inference/engine_build/build_record.py",
        "pigguf/inference/engine_build/compilers.py",
    ):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    return clone


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """Return a PATH with the tools that the shell scripts use, without Python or a compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "dirname").symlink_to(shutil.which("dirname") or "")
    return folder


def python_in(folder: Path, before: str = "") -> None:
    """Put a python3 into a folder that is this Python, with a program run first."""
    program = folder / "python3"
    first = f'-c "{before}; exec(sys.argv[2])"' if before else ""
    program.write_text(f'#!/bin/sh\nexec {REAL_PYTHON} {first} "$@"\n')
    program.chmod(0o755)


def run(clone: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [f"scripts/{script}"], cwd=clone, env=clean(environment), capture_output=True, text=True, timeout=120
    )


def clean(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without build variables, and with an unreachable package index."""
    steering = ("CC", "CXX", "CMAKE_ARGS", "PYTHON", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in steering and "PIP_" not in name}
    no_index = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return kept | no_index | dict(environment)


def refusal(result: subprocess.CompletedProcess[str], code: int = 1) -> tuple[str, str]:
    """Return the error and the hint that a failed script ends with; assert that there is no traceback."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    return error, hint


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_old_python(clone: Path, bin_folder: Path, script: str) -> None:
    python_in(bin_folder, before="import sys; sys.version_info = (3, 9, 18)")
    result = run(clone, script, PATH=str(bin_folder))
    error, hint = refusal(result)
    assert error == "error: python3 is Python 3.9, but pigguf needs Python 3.10 or newer"
    assert f"PYTHON=python3.12 scripts/{script}" in hint
    assert len(result.stderr.splitlines()) == 2


def test_no_python(clone: Path, bin_folder: Path) -> None:
    error, hint = refusal(run(clone, "test", PATH=str(bin_folder)))
    assert error == "error: python3 is no Python, but pigguf needs Python 3.10 or newer"
    assert "apt-get install python3" in hint


def test_the_python_asked_for_is_not_replaced_by_another(clone: Path, bin_folder: Path) -> None:
    python_in(bin_folder)
    error, _ = refusal(run(clone, "test", PATH=str(bin_folder), PYTHON="/no/such/python"))
    assert "/no/such/python is no Python" in error


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_compiler(clone: Path, bin_folder: Path, script: str) -> None:
    python_in(bin_folder)
    result = run(clone, script, PATH=str(bin_folder))
    error, hint = refusal(result)
    assert error.startswith("error: no C++ compiler works on this machine")
    assert "install" in hint
    assert len(result.stderr.splitlines()) == 2
    assert not (clone / ".venv").exists()


@needs_compiler
def test_a_python_without_ensurepip(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "ensurepip.py").write_text("raise ImportError('as on a Debian without python3-venv')")
    error, hint = refusal(run(clone, "test", PYTHONPATH=str(tmp_path)))
    assert "cannot make a virtual environment" in error
    assert "-venv" in hint


@needs_compiler
def test_no_network_and_a_venv_whose_python_is_gone(clone: Path) -> None:
    (clone / ".venv" / "stamps").mkdir(parents=True)
    (clone / ".venv" / "pigguf-engine.json").write_text("{}")
    result = run(clone, "test")
    assert result.stderr.startswith("the existing .venv does not work")
    error, hint = refusal(result)
    assert error == "error: building llama-cpp-python failed: the package index cannot be reached"
    assert "network" in hint
    # Nothing that a second run would take for an engine.
    assert not (clone / ".venv" / "pigguf-engine.json").exists()
    assert not (clone / ".venv" / "stamps").exists()


@needs_compiler
@pytest.mark.parametrize("full", ["clone", "TMPDIR"])
def test_no_room_on_the_disk(clone: Path, tmp_path: Path, full: str) -> None:
    """On a real file system of 8 MiB, in a mount namespace of our own."""
    small = tmp_path / "small"
    small.mkdir()
    if full == "clone":
        steps = f"cp -r {clone} {small} && cd {small}/clone && TMPDIR={tmp_path} scripts/test"
    else:
        steps = f"cd {clone} && TMPDIR={small} scripts/test"
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    program = f"mount -t tmpfs -o size=8m tmpfs {small} && {steps}"
    result = subprocess.run([*mount, program], env=clean({}), capture_output=True, text=True, timeout=120)
    error, hint = refusal(result)
    assert f"on the disk of {small}" in error
    assert "free some space" in hint


@needs_compiler
def test_ctrl_c_ends_it_and_its_children(clone: Path) -> None:
    """While pip waits for an index that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        index = f"http://127.0.0.1:{server.getsockname()[1]}/simple"
        process = subprocess.Popen(
            [sys.executable, "scripts/setup.py"],
            cwd=clone,
            env=clean({"PIP_INDEX_URL": index}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        server.settimeout(60)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)  # pip is asking
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=30)
            # The rest of the request, then the end: pip is gone.
            connection.settimeout(30)
            while connection.recv(1 << 16):
                pass
    error, hint = refusal(subprocess.CompletedProcess([], process.returncode, output, errors), code=130)
    assert error == "error: interrupted"
    assert "run it again" in hint


# ---- the set-up's own parts ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pigguf_setup_script", ROOT / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# machine -> pip's arguments, in order
TORCH = {
    "a CPU alone": (
        Machine("Linux"),
        [["torch==2.13.0+cpu"], ["torch==2.13.0+cpu", "--index-url", "https://download.pytorch.org/whl/cpu"]],
    ),
    "a GPU": (Machine("Linux", nvidia_gpu=True), [["torch==2.13.0"]]),
    "macOS": (Machine("Darwin"), [["torch==2.13.0"]]),
}


@pytest.mark.parametrize("name", TORCH)
def test_gigabytes_of_cuda_come_only_where_a_gpu_is(setup_script: ModuleType, name: str) -> None:
    machine, expected = TORCH[name]
    assert setup_script.torch_sources("torch==2.13.0", machine) == expected


LOGS = {
    "OSError: [Errno 28] No space left on device": "the disk is full",
    "connection broken by 'NewConnectionError(...: Failed to establish a new connection: [Errno -2] Name or "
    "service not known)'\nERROR: No matching distribution found for x": "index cannot be reached",
    "ERROR: No matching distribution found for torch==2.13.0+cpu": "does not have a required package",
    "g++: fatal error: Killed signal terminated program cc1plus": "out of memory",
    "#error -- unsupported GNU version! gcc versions later than 13 are not supported!": "nvcc does not",
}


@pytest.mark.parametrize("log", LOGS)
def test_the_log_gives_the_cause_away(setup_script: ModuleType, log: str) -> None:
    error = setup_script._explain("installing it", f"Collecting x\n{log}\nmore\n")
    assert error.message.startswith("installing it failed: ")
    assert LOGS[log] in error.message
    assert error.hint


def test_a_cause_nobody_thought_of_names_the_log(setup_script: ModuleType) -> None:
    error = setup_script._explain("installing it", "gremlins")
    assert error.message == "installing it failed"
    assert "setup.log" in error.hint


def test_the_steps_of_a_build_are_shown(setup_script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    counter = setup_script.StepCounter("compiling")
    for done in range(101):
        counter.update(f"  [{done}/100] Building CXX object ggml.cpp.o\n")
        counter.update("  warning: something [1] else\n")
    counter.close()
    shown = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == [f"compiling {done} of 100" for done in (25, 50, 75, 100)]


def test_versions_are_pinned_in_one_place(setup_script: ModuleType) -> None:
    assert setup_script._pin("llama-cpp-python") == "0.3.36"
    assert setup_script._pin("torch") == "2.13.0"
    assert setup_script._extra("test-apart") == ["llama-index-llms-openai-like>=0.8,<0.9"]
    for folder in ("scripts", "pigguf", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".sh", "") and path.is_file():
                assert "llama-cpp-python==0" not in path.read_text(errors="replace"), path


def test_a_second_run_has_nothing_to_do(setup_script: ModuleType) -> None:
    fingerprint = setup_script._package_fingerprint()
    if Path(sys.prefix) != ROOT / ".venv" or not setup_script._is_done("test", fingerprint):
        pytest.skip("not in a .venv that scripts/test has brought up to date")
    begun = time.monotonic()
    command = [REAL_PYTHON, "scripts/setup.py", "--extras", "test,lint"]
    environment = {
        name: value for name, value in os.environ.items() if name not in ("CC", "CXX", "CMAKE_ARGS")
    }
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert time.monotonic() - begun < 5


def test_the_scripts_can_be_run() -> None:
    for script in SCRIPTS:
        assert os.access(ROOT / "scripts" / script, os.X_OK)
    if platform.system() == "Linux":
        for script in (*SCRIPTS, "lib.sh"):
            subprocess.run(["sh", "-n", ROOT / "scripts" / script], check=True)
