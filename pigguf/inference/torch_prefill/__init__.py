"""Prefill in PyTorch: long prompts in bfloat16, layer by layer, written into llama.cpp's KV cache.

On CPUs with bfloat16 instructions PyTorch's matrix products are several times faster than llama.cpp's over a
long prompt. The weights are the GGUF file's own, dequantized one layer at a time. K (with RoPE applied) and V
are written into the state of a sequence, which the session then imports. Decode stays with llama.cpp, and so
does every model that is not known to give the same results.

    supported_models  which files are supported, and their dimensions
    rotary            RoPE as ggml computes it
    layer_weights     one layer's weights in bfloat16
    kv_cache          K and V as tensors over the bytes of a state
    attention         softmax(Q K^T) V over a long KV cache, in blocks
    forward           one chunk of a prompt through all layers
    prefill           a whole prompt, chunk by chunk, into a session
    backend           TorchPrefiller, the engine's Prefiller

All modules but backend and supported_models import torch (extra `pigguf[torch]`); they are imported when a
prompt is prefilled. Not supported: GPUs, where llama.cpp's own prefill is fast; quantized KV caches, whose
values llama.cpp rotates (attn_rot); sliding-window layers; mixture of experts.
"""

from pigguf.inference.torch_prefill.backend import TorchPrefiller

__all__ = ["TorchPrefiller"]
