"""What tuning finds out and what a load goes by, as plain values that go to JSON and back.

Left out: how they are measured (run.py), chosen (choice.py) and kept (store.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pigguf.errors import UsageError
from pigguf.inference.engine import CacheType, ContextOptions, FlashAttentionSwitch


@dataclass(frozen=True)
class Speed:
    """Tokens a second after so many tokens in the cache.

    Attributes:
        depth: tokens that the cache holds before.
        prefill: of a prompt; decode: of single tokens; None where it was not measured.
    """

    depth: int
    prefill: float | None
    decode: float | None


@dataclass(frozen=True)
class Tuning:
    """The settings by which a model runs fastest on this machine, as far as they change no answer.

    Attributes:
        threads, prefill_threads: CPU threads; None is the engine's own default.
        batch: most tokens computed at once.
        flash_attention: None lets llama.cpp choose.
        handoff: prefill with flash attention, decode without; None is no change.
        torch_from: prompts of so many tokens are read by torch (pigguf/hybrid); None is never.
        speeds: what these settings reach, by depth; empty where nothing was measured.
        source: whether it was measured here, or is the built-in rule.
    """

    threads: int | None = None
    prefill_threads: int | None = None
    batch: int = ContextOptions.batch
    flash_attention: bool | None = None
    handoff: FlashAttentionSwitch | None = None
    torch_from: int | None = None
    speeds: tuple[Speed, ...] = ()
    source: Literal["measured", "rule"] = "rule"

    def as_data(self) -> dict[str, Any]:
        """The tuning as JSON has it."""
        return asdict(self)

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Tuning:
        """A tuning of what as_data made.

        Raises:
            ValueError: it is none.
        """
        try:
            given = dict(data)
            given["handoff"] = given["handoff"] and FlashAttentionSwitch(**given["handoff"])
            given["speeds"] = tuple(Speed(**speed) for speed in given["speeds"])
            tuning = cls(**given)
            tuning._check()
        except (TypeError, KeyError, AttributeError, UsageError) as error:
            raise ValueError(f"it is no tuning: {error}") from error
        return tuning

    def _check(self) -> None:
        """
        Raises:
            TypeError, UsageError: values that no context could be made of.
        """
        handoff = self.handoff or FlashAttentionSwitch(decode=1)
        counts = (self.threads, self.prefill_threads, self.batch, self.torch_from)
        depths = (handoff.decode, handoff.prefill, handoff.prompt)
        if not all(value is None or (type(value) is int and value > 0) for value in (*counts, *depths)):
            raise TypeError("a count that is no whole number above 0")
        if self.flash_attention not in (None, True, False) or self.source not in ("measured", "rule"):
            raise TypeError("a word that is unknown")
        for speed in self.speeds:
            rates = [rate for rate in (speed.prefill, speed.decode) if rate is not None]
            if type(speed.depth) is not int or not all(type(rate) is float and rate > 0 for rate in rates):
                raise TypeError("a speed that is none")
        ContextOptions(
            threads=self.threads,
            prefill_threads=self.prefill_threads,
            batch=self.batch,
            flash_attention=self.flash_attention,
            handoff=self.handoff,
        )


@dataclass(frozen=True)
class Setting:
    """One way to run a model, as far as tuning varies it. See ContextOptions; torch is its own road."""

    threads: int | None = None
    prefill_threads: int | None = None
    batch: int = ContextOptions.batch
    cache_k: CacheType = ContextOptions.cache_k
    cache_v: CacheType = ContextOptions.cache_v
    flash_attention: bool | None = None

    def options(self, length: int, handoff: FlashAttentionSwitch | None = None) -> ContextOptions:
        """A context of one sequence that runs so."""
        return ContextOptions(length=length, handoff=handoff, **asdict(self))


@dataclass(frozen=True)
class Measurement:
    """The median of what was measured of one setting at one depth.

    Attributes:
        group: what was compared: "threads", "batch", "flash attention", "cache types", "prefill backend".
        setting: which of them this is, in words: "4 threads", "off", "q8_0/f16".
        speed: tokens a second.
        samples: how many times it was measured.
        cache_bytes: of the KV cache at the model's full window; None where the group does not change it.
    """

    group: str
    setting: str
    speed: Speed
    samples: int
    cache_bytes: int | None = None
