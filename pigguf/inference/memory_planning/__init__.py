"""Memory planning: what a model with a context needs on each device, and what of it fits, before a load.

    plan("model.gguf", ContextOptions(length=32768))    a MemoryPlan: memory by device, longest contexts
    fit_to_memory("model.gguf", options).params         parameters that fit, or DoesNotFit

    free_memory       how much memory each device has to give
    memory_plan       the result: MemoryPlan, DeviceMemory, LongestContext
    gpu_layer_search  the search for layers and context length that fit
    fit_to_memory     the two entry points above

The numbers of bytes are llama.cpp's own, estimated in inference/engine/memory_estimate.py. Speed is not
estimated: it is measured by inference/tuning.
"""

from pigguf.inference.memory_planning.fit_to_memory import fit_to_memory, plan
from pigguf.inference.memory_planning.free_memory import FreeMemory, measure_free_memory
from pigguf.inference.memory_planning.gpu_layer_search import MemoryPlanner
from pigguf.inference.memory_planning.memory_plan import (
    DeviceMemory,
    LoadParams,
    LongestContext,
    MeasuredSpeed,
    MemoryPlan,
)

__all__ = [
    "DeviceMemory",
    "FreeMemory",
    "LoadParams",
    "LongestContext",
    "MeasuredSpeed",
    "MemoryPlan",
    "MemoryPlanner",
    "fit_to_memory",
    "measure_free_memory",
    "plan",
]
