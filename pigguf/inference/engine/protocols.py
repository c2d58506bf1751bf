"""What the engine's modules need of objects that are made above them, as small protocols.

A Model closes contexts and a LlamaContext closes sessions without importing either, and weights go to devices
of other machines without an import of pigguf/inference/rpc/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pigguf.inference.engine.devices import Device


class Closable(Protocol):
    """What is closed together with the model or context it belongs to."""

    def close(self) -> None:
        """Free it; a second call does nothing."""


class BatchObserver(Protocol):
    """What reads tensors of a graph while llama.cpp computes it (activation_stats.ActivationCollector)."""

    @property
    def callback(self) -> Any:
        """The C callback for llama_context_params.cb_eval."""

    def end_batch(self, computed: bool) -> None:
        """Finish a batch, which was computed to its end or given up.

        Raises:
            EngineError: what was read is not usable.
        """


class RemoteDevices(Protocol):
    """Devices of other machines that take a model's layers (rpc.client.Workers)."""

    @property
    def devices(self) -> Sequence[Device]:
        """The devices of all workers."""

    @property
    def handles(self) -> Sequence[int]:
        """The pointers of ggml to the devices."""

    @property
    def split(self) -> Sequence[float] | None:
        """Each device's share of the layers, or None for shares in proportion to free memory."""

    def buffer_devices(self) -> Mapping[str, str]:
        """Return the name of the device by the name of its buffer type."""

    def check(self) -> None:
        """Raise if a worker failed.

        Raises:
            WorkerLost: a worker failed, and what was computed since is worthless.
        """

    def close(self) -> None:
        """Disconnect from the workers."""
