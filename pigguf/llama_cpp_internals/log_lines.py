"""Lines of llama.cpp's log and names in its graphs that are parsed: no function returns what they state."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

# src/llama-context.cpp: "%s: %10s compute buffer size = %8.2f MiB", "%s: %10s  output buffer size = ..."
BUFFER_SIZE_LINES = {
    "compute": re.compile(r"\s*(\S+) compute buffer size =\s*([\d.]+) MiB"),
    "output": re.compile(r"\s*(\S+)\s+output buffer size =\s*([\d.]+) MiB"),
}
# src/llama-kv-cache.cpp: ggml_format_name(k, "cache_%sk_l%d", name_tag, il)
KV_CACHE_TENSOR = re.compile(r"cache_\w*([kv])_l\d+$")
LAYER_WEIGHT = re.compile(r"blk\.(\d+)\.|output")  # src/llama-arch.cpp: names of weights
# Buffer types whose weights lie as in the file; CPU_REPACK, CPU_AMX and others reorder them.
PLAIN_HOST_BUFFER = re.compile(r"CPU$|.*_Host$")
# llama_print_system_info: "CPU : AVX512 = 1 | AMX_INT8 = 1 | ... |"
_CPU_FEATURES = re.compile(r"\bCPU : ([^:]*)(?:\||$)")


class LoggedBufferSize(NamedTuple):
    """The size of a buffer that the log states.

    Attributes:
        use: a key of BUFFER_SIZE_LINES.
        buffer_type: ggml's name of the buffer type, "CPU" or "CUDA0".
        nbytes: its size in bytes, of which the log gives 0.01 MiB.
    """

    use: str
    buffer_type: str
    nbytes: int


def parse_buffer_sizes(lines: Iterable[str]) -> list[LoggedBufferSize]:
    """Return the buffer sizes in lines of the log, without the name of the C function in front of each."""
    return [
        LoggedBufferSize(use, match[1], round(float(match[2]) * 2**20))
        for line in lines
        for use, pattern in BUFFER_SIZE_LINES.items()
        if (match := pattern.match(line))
    ]


def parse_cpu_features(system_info: str) -> tuple[str, ...]:
    """Return the features that llama_print_system_info names for the CPU backend: "AVX512", "AMX_INT8"."""
    cpu = _CPU_FEATURES.search(system_info)
    return tuple(re.findall(r"(\w+) = 1\b", cpu[1])) if cpu else ()


def parse_weight_name(name: str) -> str:
    """Return a tensor's name without what a backend adds to copies: "CUDA0#blk.0.attn_k.weight#0"."""
    return name.split("#")[1] if "#" in name else name


def strip_function_name(line: str) -> str:
    """Return a line of the log without the name of the C function before the first colon."""
    function, colon, rest = line.partition(": ")
    return rest if colon and " " not in function else line


def parse_type_name(description: str) -> str:
    """Return the quantization in llama_model_desc: "llama 7B Q4_K - Medium" -> "Q4_K - Medium"."""
    return description.split(" ", 2)[-1].removeprefix("(guessed) ")
