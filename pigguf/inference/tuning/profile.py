"""What tuning finds out and what a load uses: plain values that go to JSON and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pigguf.errors import UsageError
from pigguf.inference.engine import ContextOptions, FlashAttentionSwitch

# field -> its key in JSON, where that is another
_JSON_KEYS = {"flash_attention_switch": "handoff", "torch_min_prompt": "torch_from"}


@dataclass(frozen=True)
class SpeedAtDepth:
    """Tokens per second with `depth` tokens in the KV cache.

    Attributes:
        depth: tokens in the KV cache before.
        prefill: tokens per second of a prompt; None if it was not measured.
        decode: tokens per second of single tokens; None if it was not measured.
    """

    depth: int
    prefill: float | None
    decode: float | None


@dataclass(frozen=True)
class TuningProfile:
    """The settings a model runs fastest with on this machine, of those that change no answer.

    Attributes:
        threads, prefill_threads: CPU threads for decode and for prefill; None is the engine's own default.
        batch: the most tokens that are computed at once.
        flash_attention: on or off; None lets llama.cpp choose.
        flash_attention_switch: prefill with flash attention and decode without it; None does not switch.
        torch_min_prompt: prompts of at least this many tokens are prefilled with PyTorch; None is never.
        speeds: the speeds of these settings by depth; empty if nothing was measured.
        source: whether it was measured here, or is the built-in default ("rule").
    """

    threads: int | None = None
    prefill_threads: int | None = None
    batch: int = ContextOptions.batch
    flash_attention: bool | None = None
    flash_attention_switch: FlashAttentionSwitch | None = None
    torch_min_prompt: int | None = None
    speeds: tuple[SpeedAtDepth, ...] = ()
    source: Literal["measured", "rule"] = "rule"

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON values."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TuningProfile:
        """Return the profile that `to_json` has converted.

        Raises:
            ValueError: it is not a tuning profile.
        """
        names = {key: name for name, key in _JSON_KEYS.items()}
        try:
            fields = {names.get(key, key): value for key, value in dict(data).items()}
            switch = fields["flash_attention_switch"]
            fields["flash_attention_switch"] = switch and FlashAttentionSwitch(**switch)
            fields["speeds"] = tuple(SpeedAtDepth(**speed) for speed in fields["speeds"])
            profile = cls(**fields)
            profile._check()
        except (TypeError, KeyError, AttributeError, UsageError) as error:
            raise ValueError(f"not a tuning profile: {error}") from error
        return profile

    def _check(self) -> None:
        """Raise if no context can be made with these values.

        Raises:
            TypeError, UsageError: it cannot.
        """
        switch = self.flash_attention_switch or FlashAttentionSwitch(decode=1)
        counts = (self.threads, self.prefill_threads, self.batch, self.torch_min_prompt)
        depths = (switch.decode, switch.prefill, switch.prompt)
        if not all(value is None or (type(value) is int and value > 0) for value in (*counts, *depths)):
            raise TypeError("a count is not an integer above 0")
        if self.flash_attention not in (None, True, False) or self.source not in ("measured", "rule"):
            raise TypeError("unknown value of flash_attention or source")
        for speed in self.speeds:
            rates = [rate for rate in (speed.prefill, speed.decode) if rate is not None]
            if type(speed.depth) is not int or not all(type(rate) is float and rate > 0 for rate in rates):
                raise TypeError("a speed is not a number above 0")
        ContextOptions(
            threads=self.threads,
            prefill_threads=self.prefill_threads,
            batch=self.batch,
            flash_attention=self.flash_attention,
            flash_attention_switch=self.flash_attention_switch,
        )


@dataclass(frozen=True)
class Measurement:
    """The median speed of one setting at one depth.

    Attributes:
        group: what was compared: "threads", "batch", "flash attention", "cache types", "prefill backend".
        setting: which of them this is, in words: "4 threads", "off", "q8_0/f16".
        speed: the speed in tokens per second.
        samples: how many times it was measured.
        cache_bytes: of the KV cache at the model's full context length; None if the group does not change it.
    """

    group: str
    setting: str
    speed: SpeedAtDepth
    samples: int
    cache_bytes: int | None = None
