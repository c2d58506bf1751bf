"""Hybrid prefill: long prompts read in PyTorch, in bfloat16 and layer by layer, into llama.cpp's KV cache.

On CPUs with bfloat16 arithmetic PyTorch's matrix products are several times faster than llama.cpp's over a
long prompt. The weights are the GGUF's own, dequantized a layer at a time; K, turned to its positions by the
file's rope, and V are written where they lie in the state of a sequence, which the session then adopts.
Decoding stays llama.cpp's, and so does everything that is not known to come out the same.

    graph     which files are known, and their sizes
    rotation  positions to turns of a head's pairs, as ggml computes them
    weights   a layer's weights in bfloat16
    cache     K and V as tensors over the bytes of a state
    attention softmax(Q K) V over a long cache, by blocks
    forward   a part of a prompt through all layers
    reader    TorchPrefiller, the engine's Prefiller

Everything but reader and graph imports torch (extra `pigguf[torch]`), and is imported when a prompt is read.
Left out: GPUs, where llama.cpp's own prefill is fast; quantized K and V, which llama.cpp keeps rotated
(attn_rot); sliding layers; experts.
"""

from pigguf.inference.torch_prefill.backend import TorchPrefiller

__all__ = ["TorchPrefiller"]
