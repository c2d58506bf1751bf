"""Test whether the engine computes correctly on this machine, in a child process because it may crash.

    report = examine_engine()                          what the child reported, and how it ended
    python -m pigguf.inference.engine_build.self_test  the same as one line of text, and an exit status

The child loads the library, lists its devices, and decodes tokens with a tiny random Llama. The model's
matrices are of all quantized types that ggml has AMX kernels for (ggml-cpu/amx/common.h,
qtype_has_amx_kernels), in shapes that those kernels support. The tokens are decoded as one batch, then one by
one: both must give the same logits, up to the rounding of activations to 8 bits.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np

from pigguf.common.lazy_tensor import Array
from pigguf.errors import BackendUnavailable, EngineError, PigError
from pigguf.gguf_io import PlannedTensor, TensorType, write_gguf
from pigguf.gguf_io.metadata import TypedValue, array, f32, string, u32
from pigguf.inference.engine import devices
from pigguf.inference.engine.context import Context
from pigguf.inference.engine.context_options import ContextOptions
from pigguf.inference.engine.devices import Device
from pigguf.inference.engine.model import Model
from pigguf.inference.engine_build import build_plan, build_record
from pigguf.quantization.ggml_kernels import encode

TIMEOUT = 300  # seconds; the first use of a GPU may compile kernels
TOKENS = 64
TOLERANCE = 0.1  # relative difference of the logits; rounding makes about 0.01, a wrong product 1


@dataclass(frozen=True)
class EngineReport:
    """What the child process reported before it ended.

    Attributes:
        version: the version of llama-cpp-python; None if it is not installed.
        devices: everything ggml can compute on; empty if the library could not be loaded.
        cpu_features: the CPU features that the CPU backend was compiled with and uses.
        rpc: whether it can use workers on other machines; None if the library could not be loaded.
        decoded: how many tokens were decoded, each in a batch and again alone.
        failure, hint: what failed and what to do about it; None if nothing did.
    """

    version: str | None
    devices: tuple[Device, ...] = ()
    cpu_features: tuple[str, ...] = ()
    rpc: bool | None = None
    decoded: int = 0
    failure: str | None = None
    hint: str | None = None


def examine_engine() -> EngineReport:
    """Load the engine and decode with it in a child process, and return the result."""
    try:
        version = packages.version("llama-cpp-python")
    except packages.PackageNotFoundError:
        return EngineReport(
            None, failure="the engine llama-cpp-python is not installed", hint=f"run {build_plan.REBUILD}"
        )
    command = [sys.executable, "-m", "pigguf.inference.engine_build.self_test", "--child"]
    environment = os.environ | {"GGML_NO_BACKTRACE": "1"}
    try:
        child = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=environment)
        output, status, errors = child.stdout, child.returncode, child.stderr
    except subprocess.TimeoutExpired as expired:
        output, status, errors = expired.stdout or b"", None, expired.stderr or b""
    result: dict[str, Any] = {}
    for line in output.decode(errors="replace").splitlines():
        result |= json.loads(line)
    result["devices"] = tuple(Device(**device) for device in result.get("devices", ()))
    result["cpu_features"] = tuple(result.get("cpu_features", ()))
    doing = result.pop("doing", "starting")
    if status != 0 and "failure" not in result:
        result["failure"], result["hint"] = _explain(status, doing, errors.decode(errors="replace"))
    return EngineReport(version, **result)


def _explain(status: int | None, doing: str, errors: str) -> tuple[str, str]:
    """Return message and hint for a child that ended without reporting a failure."""
    if status is None:
        return (
            f"the engine hung while {doing}: it did not end within {TIMEOUT} s",
            f"run {build_plan.REBUILD}",
        )
    if status > 0:
        last = errors.strip().rpartition("\n")[2]
        return (
            f"the engine failed while {doing}: {last}",
            f"for its whole output run {sys.executable} -m pigguf.inference.engine_build.self_test --child",
        )
    name = signal.Signals(-status).name
    return f"the engine crashed with {name} while {doing}", _crash_hint(
        -status, build_record.read_record(Path(sys.prefix))
    )


def _crash_hint(number: int, record: build_record.BuildRecord | None) -> str:
    if record is None:
        return (
            "there is no record of how this engine was built: build it for this machine with "
            f"{build_plan.REBUILD}"
        )
    if number == signal.SIGILL:
        return f"it was built for a CPU with other features: build it for this one with {build_plan.REBUILD}"
    if "amx_int8" not in record.cpu or record.flags:
        return f"build it with another compiler: CC=... CXX=... {build_plan.REBUILD}"
    if not record.compiler.modern_clang:
        return (
            f"it was built with {record.compiler.name}: install {build_plan.CLANG_HINT}, then run "
            f"{build_plan.REBUILD}"
        )
    off = " ".join(build_plan.AMX_OFF)
    return f"build it without AMX: CFLAGS='{off}' CXXFLAGS='{off}' {build_plan.REBUILD}"


# ---- in the child --------------------------------------------------------------------------------


def _test_steps() -> Iterator[dict[str, Any]]:
    """Run the steps, and yield before and after each, so that a crash shows how far it came."""
    yield {"doing": "loading its library"}
    yield {"rpc": devices.has_rpc(), "cpu_features": devices.cpu_features()}
    yield {"doing": "looking for devices"}
    yield {"devices": [asdict(device) for device in devices.list_devices()]}
    yield {"doing": "decoding"}
    yield {"decoded": compare_batch_with_single()}


def compare_batch_with_single() -> int:
    """Decode the same tokens as one batch and one by one, and return how many.

    Raises:
        EngineError: the logits are not finite, or differ between the two.
    """
    with tempfile.TemporaryDirectory(prefix="pigguf-self-test-") as folder:
        path = Path(folder) / "tiny.gguf"
        write_tiny_model(path)
        tokens = [int(token) for token in np.random.default_rng(1).integers(3, VOCABULARY, TOKENS)]
        options = ContextOptions(length=2 * TOKENS)
        with Model.open(path) as model, Context(model, options) as context, context.sequence() as session:
            [(_, batch_logits)] = session.evaluate(tokens, [TOKENS - 1])
            session.truncate(0)
            for token in tokens:
                [(_, single_logits)] = session.evaluate([token], [0])
    if not (np.isfinite(batch_logits).all() and np.isfinite(single_logits).all()):
        raise EngineError("the engine computes logits that are NaN or infinite", f"run {build_plan.REBUILD}")
    difference = float(np.linalg.norm(batch_logits - single_logits) / np.linalg.norm(single_logits))
    if difference > TOLERANCE:
        raise EngineError(
            f"the engine computes other logits for a batch than for its tokens one by one: "
            f"their relative difference is {difference:.2f}",
            f"run {build_plan.REBUILD}",
        )
    return TOKENS


# ---- the tiny model ------------------------------------------------------------------------------

VOCABULARY, WIDTH, FEED_FORWARD, HEADS, KV_HEADS, LAYERS = 288, 256, 512, 4, 2, 2
_KV_WIDTH = WIDTH * KV_HEADS // HEADS

# name -> rows, columns, type: all quantized types with an AMX kernel; rows in 32s, columns in 256s
_LAYER_MATRICES = {
    "attn_q": (WIDTH, WIDTH, TensorType.Q4_0),
    "attn_k": (_KV_WIDTH, WIDTH, TensorType.Q8_0),
    "attn_v": (_KV_WIDTH, WIDTH, TensorType.Q5_K),
    "attn_output": (WIDTH, WIDTH, TensorType.Q4_1),
    "ffn_gate": (FEED_FORWARD, WIDTH, TensorType.Q4_K),
    "ffn_up": (FEED_FORWARD, WIDTH, TensorType.IQ4_XS),
    "ffn_down": (WIDTH, FEED_FORWARD, TensorType.Q6_K),
}


def write_tiny_model(path: Path) -> None:
    """Write a Llama of 1.3M random weights, always the same, with a vocabulary of bytes; about 1 MB."""
    random = np.random.default_rng(0)
    tensors = [
        _matrix(random, "token_embd", VOCABULARY, WIDTH, TensorType.Q8_0),
        _vector("output_norm"),
        _matrix(random, "output", VOCABULARY, WIDTH, TensorType.Q6_K),
    ]
    for layer in range(LAYERS):
        tensors += [_vector(f"blk.{layer}.attn_norm"), _vector(f"blk.{layer}.ffn_norm")]
        tensors += [_matrix(random, f"blk.{layer}.{name}", *rest) for name, rest in _LAYER_MATRICES.items()]
    write_gguf(path, _metadata(), tensors)


def _matrix(
    random: np.random.Generator, name: str, rows: int, columns: int, kind: TensorType
) -> PlannedTensor:
    values = (random.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
    return PlannedTensor(
        f"{name}.weight",
        (rows, columns),
        kind,
        [(0, rows)],
        lambda start, stop: encode(values[start:stop], kind),
    )


def _vector(name: str) -> PlannedTensor:
    ones: Array = np.ones(WIDTH, np.float32)
    return PlannedTensor(
        f"{name}.weight", (WIDTH,), TensorType.F32, [(0, WIDTH)], lambda start, stop: ones[start:stop]
    )


def _metadata() -> dict[str, TypedValue]:
    special = ("<unk>", "<s>", "</s>")
    raw = tuple(f"<0x{byte:02X}>" for byte in range(256))
    unused = tuple(f"<unused{i}>" for i in range(VOCABULARY - len(special) - len(raw)))
    # llama.h, enum llama_token_type: unknown 2, control 3, unused 5, byte 6
    types = (2, 3, 3) + (6,) * len(raw) + (5,) * len(unused)
    return {
        "general.architecture": string("llama"),
        "general.name": string("pigguf self-test"),
        "llama.context_length": u32(4 * TOKENS),
        "llama.embedding_length": u32(WIDTH),
        "llama.feed_forward_length": u32(FEED_FORWARD),
        "llama.block_count": u32(LAYERS),
        "llama.attention.head_count": u32(HEADS),
        "llama.attention.head_count_kv": u32(KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": f32(1e-5),
        "llama.rope.dimension_count": u32(WIDTH // HEADS),
        "llama.vocab_size": u32(VOCABULARY),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array("str", (*special, *raw, *unused)),
        "tokenizer.ggml.scores": array("f32", (0.0,) * VOCABULARY),
        "tokenizer.ggml.token_type": array("i32", types),
        "tokenizer.ggml.unknown_token_id": u32(0),
        "tokenizer.ggml.bos_token_id": u32(1),
        "tokenizer.ggml.eos_token_id": u32(2),
    }


# ---- the command ---------------------------------------------------------------------------------


def _run_child() -> int:
    try:
        for step in _test_steps():
            sys.stdout.write(json.dumps(step) + "\n")
            sys.stdout.flush()
    except PigError as error:
        # library.load() refers to `pigguf doctor`, which shows this hint.
        hint = f"run {build_plan.REBUILD}" if isinstance(error, BackendUnavailable) else error.hint
        sys.stdout.write(json.dumps({"failure": error.message, "hint": hint}) + "\n")
        return 1
    return 0


def _main(arguments: Sequence[str]) -> int:
    if arguments == ["--child"]:
        return _run_child()
    report = examine_engine()
    if report.failure:
        sys.stderr.write(f"error: {report.failure}\n")
        if report.hint:
            sys.stderr.write(f"hint: {report.hint}\n")
        return 1
    names = ", ".join(device.name for device in report.devices)
    sys.stderr.write(
        f"the engine works: {report.decoded} tokens decoded with llama-cpp-python {report.version}"
    )
    sys.stderr.write(f" on {names}\n")
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
