"""The contract with the installed engine: symbols, layouts, log lines, limits and rules pigguf relies on.

A test that fails here after an upgrade of llama-cpp-python names what changed; its table is in
pigguf/llama_cpp_internals/.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import llama_cpp
import llama_cpp._ggml
import llama_cpp.llama_cpp
import numpy as np
import pytest
from support.tiny_gguf import (
    GRAPHS,
    HEADS,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    WIDTH,
    TinyModel,
    graph,
    text_tokens,
    write_tiny,
)
from support.worker_process import WorkerProcess, started_workers

from pigguf.architectures import FAMILIES
from pigguf.architectures.hparams import UNTIED
from pigguf.architectures.mixtral import MIXTRAL
from pigguf.errors import GGUFError
from pigguf.gguf_io import TensorType
from pigguf.gguf_io.metadata import TypedValue, array, f32, string, u32
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope, devices, library
from pigguf.inference.engine.ggml_library import ggml, ggml_with_tensors
from pigguf.inference.engine.memory_estimate import MemoryEstimator
from pigguf.llama_cpp_internals import kv_state_layout, limits, log_lines, rope_keys, symbols
from pigguf.llama_cpp_internals.ggml_tensor_layout import TENSOR_OVERHEAD, TYPE_F32, GgmlTensor
from pigguf.llama_cpp_internals.graph_inputs import (
    ALIBI_ARCHITECTURES,
    ALIBI_LAYER_COUNTS,
    FREE_HEAD_DIM,
    INTERLEAVED_ROPE,
    LEARNED_POSITION_ARCHITECTURES,
    POSITION_EMBEDDINGS,
)
from pigguf.llama_cpp_internals.rpc_protocol import (
    HELLO_DATA,
    VERSION,
    RpcCommand,
    RpcConnection,
    parse_host_port,
)
from pigguf.llama_cpp_internals.sliding_window import (
    PATTERN_KEY,
    SLIDING_WINDOWS,
    WINDOW_KEY,
    layers_that_slide,
)

FIRST: dict[str, TinyModel] = {model.architecture: model for model in reversed(GRAPHS.values())}
SUPPORTED = tuple(dict.fromkeys(family.architecture for family in FAMILIES))
SLIDING = sorted(set(SLIDING_WINDOWS) & set(SUPPORTED))
EXACT: Any = {"cache_k": "f32", "cache_v": "f32", "flash_attention": False, "threads": 1}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def start() -> Iterator[Any]:
    yield from started_workers()


def logits(
    path: Path, n_tokens: int, rope: RuntimeRope | None = None, **options: Any
) -> np.ndarray[Any, Any]:
    """Return the logits after the last of `n_tokens` tokens, in single precision."""
    settings = ContextOptions(**{"length": n_tokens, **EXACT, **options})
    with Model.open(path, gpu_layers=0, rope=rope) as model, Context(model, settings) as context:
        context.sequence().prefill(text_tokens(n_tokens))
        return context.logits(-1).copy()


def model_with(path: Path, model: TinyModel, keys: Mapping[str, TypedValue | None], **changes: Any) -> Path:
    """Write a tiny model with metadata keys that are given without the architecture's prefix."""
    return write_tiny(
        path, {f"{model.architecture}.{key}": typed for key, typed in keys.items()}, model=model, **changes
    )


# ---- symbols -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", symbols.DEVICE_FUNCTIONS + symbols.TENSOR_FUNCTIONS, ids=lambda function: function.name
)
def test_ggml_exports_the_function(function: symbols.CFunction) -> None:
    assert hasattr(llama_cpp._ggml.libggml, function.name), f"libggml has no {function.name}"


def test_llama_graph_reserve_builds_a_graph_of_the_models_tensors(tiny: Path) -> None:
    function = symbols.GRAPH_RESERVE
    assert hasattr(llama_cpp.llama_cpp._lib, function.name), f"libllama has no {function.name}"
    reserve = getattr(symbols.declare(llama_cpp.llama_cpp._lib, [function]), function.name)
    names = set()
    with Model.open(tiny, gpu_layers=0) as model, Context(model, ContextOptions(length=64)) as context:
        graph_address = reserve(context.handle, 1, 1, 1)
        assert graph_address, f"{function.name} returns no graph"
        for i in range(ggml_with_tensors().ggml_graph_n_nodes(graph_address)):
            node = GgmlTensor.from_address(ggml_with_tensors().ggml_graph_node(graph_address, i))
            names |= {GgmlTensor.from_address(address).text_name for address in node.src if address}
        assert set(model.file.tensors) <= names, "the graph's nodes are not linked to the weights by src"
    assert {f"cache_{kind}_l{layer}" for kind in "kv" for layer in range(LAYERS)} <= {
        name for name in names if log_lines.KV_CACHE_TENSOR.match(name)
    }, "KV cache tensors have other names"


@pytest.mark.parametrize("name", [symbols.RPC_ADD_SERVER, symbols.RPC_START_SERVER], ids=bytes.decode)
def test_the_rpc_backend_has_the_function(name: bytes) -> None:
    if not devices.has_rpc():
        pytest.skip("the engine was built without RPC")
    registry = ggml().ggml_backend_reg_by_name(symbols.RPC_REGISTRY)
    assert registry, f"no backend is named {symbols.RPC_REGISTRY!r}"
    assert ggml().ggml_backend_reg_get_proc_address(registry, name), f"the RPC backend has no {name!r}"


@pytest.mark.parametrize("name", [symbols.MUL_MAT, symbols.MUL_MAT_ID], ids=bytes.decode)
def test_ggml_names_its_products(name: bytes) -> None:
    names = [ggml_with_tensors().ggml_op_name(number) for number in range(symbols.MAX_OP_NUMBER)]
    assert names.count(name) == 1, f"{name!r} is not the name of one of the first operations"


def test_struct_ggml_tensor_has_the_size_and_fields(tiny: Path) -> None:
    assert llama_cpp._ggml.libggml.ggml_tensor_overhead() == TENSOR_OVERHEAD, "sizeof(struct ggml_tensor)"
    with Model.open(tiny, gpu_layers=0) as model, Context(model, ContextOptions(length=64)) as context:
        reserve = getattr(llama_cpp.llama_cpp._lib, symbols.GRAPH_RESERVE.name)
        graph_address = reserve(context.handle, 1, 1, 1)
        node = GgmlTensor.from_address(ggml_with_tensors().ggml_graph_node(graph_address, 0))
        weights = [GgmlTensor.from_address(address) for address in node.src if address]
        weight = next(tensor for tensor in weights if tensor.weight_name in model.file.tensors)
        expected = model.file.tensors[weight.weight_name]
        assert tuple(weight.ne)[: len(expected.shape)] == expected.shape[::-1], "ne"
        assert weight.nb[0] == 4, "nb"
        assert weight.nb[1] == 4 * expected.shape[-1], "nb"
        assert weight.type == TYPE_F32 == TensorType.F32, "type"
        assert ggml_with_tensors().ggml_nbytes(ctypes.byref(weight)) == expected.nbytes, "ggml_nbytes"


# ---- enum values and limits ---------------------------------------------------------------------------


ENUM_VALUES = {
    "LLAMA_FLASH_ATTN_TYPE_AUTO": limits.FLASH_ATTN_TYPES[None],
    "LLAMA_FLASH_ATTN_TYPE_DISABLED": limits.FLASH_ATTN_TYPES[False],
    "LLAMA_FLASH_ATTN_TYPE_ENABLED": limits.FLASH_ATTN_TYPES[True],
    "LLAMA_POOLING_TYPE_NONE": limits.POOLING_NONE,
    **{f"LLAMA_POOLING_TYPE_{name.upper()}": number for number, name in limits.POOLING_TYPES.items()},
    "LLAMA_LOAD_MODE_AUTO": limits.LOAD_MODE_AUTO,
    "LLAMA_LOAD_MODE_NONE": limits.LOAD_MODE_NONE,
    "LLAMA_DEFAULT_SEED": limits.RANDOM_SEED,
    "LLAMA_KV_OVERRIDE_TYPE_INT": limits.KV_OVERRIDE_TAGS["u32"][0],
    "LLAMA_KV_OVERRIDE_TYPE_FLOAT": limits.KV_OVERRIDE_TAGS["f32"][0],
    "LLAMA_KV_OVERRIDE_TYPE_STR": limits.KV_OVERRIDE_TAGS["str"][0],
    "LLAMA_STATE_SEQ_VERSION": kv_state_layout.VERSION,
}


@pytest.mark.parametrize("name", ENUM_VALUES)
def test_the_constant_has_the_value(name: str) -> None:
    assert getattr(llama_cpp, name) == ENUM_VALUES[name], name


def test_the_cpu_is_a_device_of_the_kind_cpu() -> None:
    assert [device.kind for device in devices.list_devices() if device.name == "CPU"] == ["cpu"]


LOAD = """
import sys, llama_cpp
silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(silent, None)
parameters = llama_cpp.llama_model_default_params()
assert not llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), parameters)
"""


def ends_process(path: Path) -> bool:
    """Return whether the library aborts on a file that it cannot load in any case."""
    child = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True)
    assert child.returncode <= 0, child.stderr.decode()[-500:]
    return child.returncode < 0


@pytest.mark.parametrize(
    ("name", "model", "key", "limit"),
    [
        ("LLAMA_MAX_LAYERS", FIRST["llama"], "block_count", limits.MAX_LAYERS),
        ("LLAMA_MAX_EXPERTS", graph(MIXTRAL, LAYERS, frozenset()), "expert_count", limits.MAX_EXPERTS),
    ],
)
def test_the_limit_is_where_loading_aborts(
    name: str, model: TinyModel, key: str, limit: int, tmp_path: Path
) -> None:
    at = model_with(tmp_path / "at.gguf", model, {key: u32(limit)})
    above = model_with(tmp_path / "above.gguf", model, {key: u32(limit + 1)})
    assert [ends_process(at), ends_process(above)] == [False, True], name


@pytest.mark.parametrize("rope_type", [*rope_keys.GGUF_ROPE_TYPES, "su"])
def test_the_rope_scaling_types_are_those_on_which_loading_does_not_abort(
    rope_type: str, tmp_path: Path
) -> None:
    keys: dict[str, Any] = {"rope.scaling.type": string(rope_type)}
    path = model_with(tmp_path / "m.gguf", FIRST["llama"], keys, shapes={"output_norm.weight": None})
    assert ends_process(path) != (rope_type in rope_keys.GGUF_ROPE_TYPES), f"rope.scaling.type {rope_type}"


def raw_context(model: Model, **fields: Any) -> Any:
    """Return a llama_context with these parameters, or None."""
    parameters = llama_cpp.llama_context_default_params()
    for name, value in {"n_ctx": 256, "n_batch": 512, "n_ubatch": 512, "n_threads": 1, **fields}.items():
        setattr(parameters, name, value)
    return llama_cpp.llama_init_from_model(model.handle, parameters)


def test_llama_max_seq_is_the_limit(tiny: Path) -> None:
    n = limits.MAX_SEQUENCES
    with Model.open(tiny, gpu_layers=0) as model:
        context = raw_context(model, n_seq_max=n, n_ctx=limits.KV_CELL_PADDING * n)
        assert context, "LLAMA_MAX_SEQ"
        llama_cpp.llama_free(context)
        assert not raw_context(model, n_seq_max=n + 1, n_ctx=limits.KV_CELL_PADDING * (n + 1)), (
            "LLAMA_MAX_SEQ"
        )


def test_a_window_is_padded_to_the_block_of_cells(tiny: Path) -> None:
    with Model.open(tiny, gpu_layers=0) as model:
        for n_ctx, padded in ((1, 1), (limits.KV_CELL_PADDING, 1), (limits.KV_CELL_PADDING + 1, 2)):
            context = raw_context(model, n_ctx=n_ctx)
            assert llama_cpp.llama_n_ctx(context) == padded * limits.KV_CELL_PADDING, "KV_CELL_PADDING"
            llama_cpp.llama_free(context)


# ---- log lines ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", log_lines.BUFFER_SIZE_LINES)
def test_the_log_states_the_buffer_size(use: str, tiny: Path) -> None:
    with Model.open(tiny, gpu_layers=0) as model, library.capture_log() as lines:
        Context(model, ContextOptions(length=64)).close()
    sizes = [size for size in log_lines.parse_buffer_sizes(lines) if size.use == use]
    assert sizes, f"no line of the log states the size of {use} buffers"
    assert all(size.buffer_type.startswith("CPU") for size in sizes), sizes


def test_system_info_names_cpu_features() -> None:
    line = library.load().llama_print_system_info().decode()
    assert log_lines.parse_cpu_features(line), f"llama_print_system_info: {line}"


def test_the_model_description_ends_with_the_quantization(smollm2_gguf: Path) -> None:
    with Model.open(smollm2_gguf, gpu_layers=0) as model:
        assert model.description.endswith(" Q4_1"), "llama_model_desc"


def test_errors_begin_with_the_name_of_a_function() -> None:
    llama = library.load()
    with library.capture_errors() as errors:
        llama.llama_model_load_from_file(b"nothing.gguf", llama.llama_model_default_params())
    assert errors, "no error is logged for a file that does not exist"
    assert all(not error.startswith("llama_model_load") for error in errors), errors


# ---- KV states ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("flash_attention", [False, True])
def test_a_kv_state_has_the_layout_and_length(tiny: Path, flash_attention: bool) -> None:
    tokens = text_tokens(40)
    options = ContextOptions(length=64, flash_attention=flash_attention)
    with Model.open(tiny, gpu_layers=0) as model, Context(model, options) as context:
        session = context.sequence()
        session.prefill(tokens)
        state = session.export_state()
    layout = kv_state_layout.read_layout(state)
    assert layout.transposed is not flash_attention, "V is transposed without flash attention"
    row = WIDTH * KV_HEADS // HEADS * 2  # bytes of one cell's K or V in F16
    assert len(state) == kv_state_layout.state_bytes(40, iter([(row, row)] * LAYERS)), (
        "llama_state_seq_get_size"
    )


def test_a_saved_state_is_header_tokens_and_the_state_without_its_own_header(
    tiny: Path, tmp_path: Path
) -> None:
    tokens = text_tokens(40)
    with Model.open(tiny, gpu_layers=0) as model, Context(model, ContextOptions(length=64)) as context:
        session = context.sequence()
        session.prefill(tokens)
        session.save_state(str(tmp_path / "state"))
        state = session.export_state()
    data = (tmp_path / "state").read_bytes()
    header = (
        struct.pack("<III", llama_cpp.LLAMA_STATE_SEQ_MAGIC, kv_state_layout.VERSION, len(tokens))
        + np.array(tokens, "<i4").tobytes()
    )
    assert data.startswith(header), "llama_state_seq_save_file: magic, version, tokens"
    assert state.startswith(kv_state_layout.IN_MEMORY_HEADER), "IN_MEMORY_HEADER"
    assert data[len(header) :] == state[len(kv_state_layout.IN_MEMORY_HEADER) :], "the rest of the state"


# ---- sliding windows ----------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", SLIDING)
def test_families_and_the_table_have_the_same_pattern(architecture: str) -> None:
    own = {family.sliding_window_pattern for family in FAMILIES if family.architecture == architecture} - {0}
    assert own <= {SLIDING_WINDOWS[architecture].period}


@pytest.mark.parametrize("architecture", SLIDING)
def test_the_engine_applies_the_sliding_pattern(architecture: str, tmp_path: Path) -> None:
    """Without a pattern in the file the logits are those of the table's pattern, and of no other."""
    window, n_layers = 8, SLIDING_WINDOWS[architecture].period + 2
    family = next(family for family in FAMILIES if family.architecture == architecture)
    model = graph(family, n_layers, frozenset({UNTIED} & family.optional_features.keys()))
    keys: dict[str, TypedValue | None] = {WINDOW_KEY: u32(window), PATTERN_KEY: None}
    applied = logits(model_with(tmp_path / "default.gguf", model, keys), 40)
    slides = layers_that_slide(architecture, n_layers, None)
    for layer in (None, *range(n_layers)):
        pattern = tuple(each != (i == layer) for i, each in enumerate(slides))
        stated = model_with(tmp_path / "stated.gguf", model, {**keys, PATTERN_KEY: array("bool", pattern)})
        assert np.array_equal(logits(stated, 40), applied) == (layer is None), f"layer {layer}: {slides}"
    period = model_with(
        tmp_path / "period.gguf", model, {**keys, PATTERN_KEY: u32(SLIDING_WINDOWS[architecture].period)}
    )
    assert np.array_equal(logits(period, 40), applied), "a period as a number"


@pytest.mark.parametrize("architecture", SLIDING)
def test_the_engine_has_the_default_window(architecture: str, tmp_path: Path) -> None:
    model, default = FIRST[architecture], SLIDING_WINDOWS[architecture].default_window
    keys: dict[str, TypedValue | None] = {"context_length": u32(8192), WINDOW_KEY: None, PATTERN_KEY: None}
    with Model.open(model_with(tmp_path / "m.gguf", model, keys), gpu_layers=0) as opened:
        assert opened.sliding_window == (default or 0), f"{architecture}: n_swa"


# ---- what graphs read ---------------------------------------------------------------------------------

LINEAR = {"rope.scaling.type": string("linear"), "rope.scaling.factor": f32(4.0)}
YARN = {
    "rope.scaling.type": string("yarn"),
    "rope.scaling.factor": f32(4.0),
    "rope.scaling.original_context_length": u32(64),
    "context_length": u32(256),
}
BETAS = {"rope.scaling.yarn_beta_fast": f32(8.0), "rope.scaling.yarn_beta_slow": f32(4.0)}
ROTARY = sorted(
    {
        family.architecture
        for family in FAMILIES
        if family.position_type == "rope" and family.architecture in FIRST
    }
    - {"baichuan"}
)


def is_read(
    tmp_path: Path, model: TinyModel, keys: dict[str, Any], change: dict[str, Any], **shapes: Any
) -> bool:
    """Return whether the graph's logits depend on a change of keys or tensors."""
    before = logits(model_with(tmp_path / "a.gguf", model, keys), 60)
    after = logits(model_with(tmp_path / "b.gguf", model, {**keys, **change}, **shapes), 60)
    return not np.array_equal(before, after)


@pytest.mark.parametrize("architecture", ROTARY)
def test_yarn_betas_are_read_where_the_table_says(architecture: str, tmp_path: Path) -> None:
    expected = architecture in rope_keys.YARN_BETA_ARCHITECTURES
    assert is_read(tmp_path, FIRST[architecture], YARN, BETAS) == expected, f"{architecture}: yarn_beta_*"


@pytest.mark.parametrize("architecture", ROTARY)
def test_rope_freqs_are_read_where_the_table_says(architecture: str, tmp_path: Path) -> None:
    """A graph that does not read the tensor makes the loader reject the file, or ignores it."""
    model = FIRST[architecture]
    rotary_dim = model.metadata[f"{architecture}.rope.dimension_count"].value
    plain = model_with(tmp_path / "a.gguf", model, {})
    with_freqs = model_with(tmp_path / "b.gguf", model, {}, shapes={"rope_freqs.weight": (rotary_dim // 2,)})
    llama = library.load()
    parameters = llama.llama_model_default_params()
    handle = llama.llama_model_load_from_file(str(with_freqs).encode(), parameters)
    reads = False
    if handle:
        llama.llama_model_free(handle)
        reads = not np.array_equal(logits(plain, 60), logits(with_freqs, 60))
    assert reads == (architecture in rope_keys.FREQ_FACTORS_ARCHITECTURES["llama3"]), architecture


@pytest.mark.parametrize("architecture", SLIDING)
def test_sliding_layers_are_scaled_where_the_table_says(architecture: str, tmp_path: Path) -> None:
    model = FIRST[architecture]
    keys = {WINDOW_KEY: u32(32), PATTERN_KEY: array("bool", (True,) * LAYERS), "rope.freq_base": f32(1e6)}
    is_scaled = is_read(tmp_path, model, keys, LINEAR)
    assert is_scaled != (architecture in rope_keys.UNSCALED_SLIDING), f"{architecture}: sliding layers"
    default = rope_keys.UNSCALED_SLIDING.get(architecture) or 1e6
    assert not is_read(tmp_path, model, keys, {"rope.freq_base_swa": f32(default)}), (
        "default local rope theta"
    )


@pytest.mark.parametrize("architecture", sorted(FIRST))
def test_the_positions_of_an_architecture_are_those_of_the_tables(architecture: str, tmp_path: Path) -> None:
    """Only rotary positions depend on rope.freq_base, and only learned ones need the tensor."""
    model = FIRST[architecture]
    n_layers = model.metadata[f"{architecture}.block_count"].value
    is_alibi = architecture in ALIBI_ARCHITECTURES or ALIBI_LAYER_COUNTS.get(architecture) == n_layers
    is_learned = architecture in LEARNED_POSITION_ARCHITECTURES
    is_rotary = is_read(tmp_path, model, {}, {"rope.freq_base": f32(20.0)})
    assert is_rotary == (not is_alibi and not is_learned), f"{architecture}: rope.freq_base"
    without = write_tiny(tmp_path / "m.gguf", shapes={POSITION_EMBEDDINGS: None}, model=model)
    try:
        Model.open(without, gpu_layers=0).close()
    except GGUFError:
        assert is_learned, f"{architecture}: {POSITION_EMBEDDINGS}"
    else:
        assert not is_learned, f"{architecture}: {POSITION_EMBEDDINGS}"


@pytest.mark.parametrize("architecture", FREE_HEAD_DIM)
def test_the_graph_computes_heads_of_another_width(architecture: str, tmp_path: Path) -> None:
    family = next(family for family in FAMILIES if family.architecture == architecture)
    features = frozenset({UNTIED} & family.optional_features.keys())
    model = graph(family, LAYERS, features, head_dim=32, rotary_dim=32)
    assert np.isfinite(logits(write_tiny(tmp_path / "m.gguf", model=model), 40)).all(), architecture


def test_families_agree_with_the_tables_of_graphs() -> None:
    custom = {family.architecture for family in FAMILIES if family.allows_custom_head_dim}
    assert custom <= set(FREE_HEAD_DIM)
    positions = {family.architecture: family.position_type for family in FAMILIES}
    by_type = {
        kind: {name for name, each in positions.items() if each == kind} for kind in positions.values()
    }
    assert by_type["learned"] == set(LEARNED_POSITION_ARCHITECTURES)
    assert by_type["alibi"] == set(ALIBI_ARCHITECTURES)
    assert set(ALIBI_LAYER_COUNTS) <= by_type["rope"]


@pytest.mark.parametrize("architecture", INTERLEAVED_ROPE)
def test_heads_are_rotated_in_the_pairs_of_the_table(architecture: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", model=FIRST[architecture])
    with Model.open(path, gpu_layers=0) as model:
        rope_type = llama_cpp.llama_model_rope_type(model.handle)
    norm, neox = 0, 2  # llama.h, enum llama_rope_type
    assert rope_type == (norm if INTERLEAVED_ROPE[architecture] else neox), "llama_model_rope_type"


# ---- memory estimate and RPC ----------------------------------------------------------------------------


def test_a_model_without_allocation_assigns_each_weight_a_buffer(tiny: Path) -> None:
    with Model.open(tiny, gpu_layers=0) as model:
        nbytes = sum(tensor.nbytes for tensor in model.file.tensors.values())
        with MemoryEstimator(model.file, use_mmap=False) as estimator:
            [host] = estimator.estimate(ContextOptions(length=64))
    assert host.weights >= nbytes, "no_alloc"
    assert host.compute >= 4 * VOCABULARY, "no_alloc"


def test_a_worker_answers_hello_with_the_protocol_version(start: Any) -> None:
    worker: WorkerProcess = start()
    connection = RpcConnection(socket.create_connection(parse_host_port(worker.address), 10))
    try:
        response = connection.request(RpcCommand.HELLO, HELLO_DATA)
    finally:
        connection.close()
    assert tuple(response[:3]) == VERSION, "RPC_PROTO_*_VERSION"
