"""What pigguf relies on inside llama.cpp: everything that an engine upgrade can break, as data and parsers.

    limits.py             compile-time limits, enum values and sizes
    sliding_window.py     which layers of which architecture attend within a sliding window
    graph_inputs.py       which architecture's graph reads, ignores or cannot compute which key or tensor
    rope_keys.py          which graph reads which rope key, and the check of a RopeScaling against it
    kv_state_layout.py    the bytes of llama_state_seq_get_data
    ggml_tensor_layout.py struct ggml_tensor in memory
    symbols.py            C functions that are called through ctypes besides llama-cpp-python's own bindings
    log_lines.py          lines of the engine's log that are parsed
    rpc_protocol.py       the protocol between `--rpc` clients and workers

Every table names the upstream file it was read from, as of the llama.cpp that llama-cpp-python 0.3.36
bundles. tests/llama_cpp_internals/test_contract.py compares all of it with the installed engine. Nothing here
loads the engine: that is pigguf/inference/engine, which is above this package.
"""

ENGINE_VERSION_HINT = (
    "`pigguf doctor` shows which llama-cpp-python is installed, and which one pigguf is made for"
)
