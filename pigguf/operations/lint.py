"""lint: what a GGUF says of its positions that cannot be so, each with the evidence and what would mend it.

A file's keys become claims like those of a checkpoint (rope/evidence.py) and are decided alike
(rope/decision.py); what comes out is held against what the file says. What a runtime makes of a key is
llama.cpp's src/llama-model.cpp (load_hparams), src/llama-model-loader.cpp (a key of another type is
refused) and src/llama-context.cpp (type none switches a factor off). A new fault is a row in _RULES.

Advice is options of `pigguf repair`. It stands alone where the file itself proves it; where only a name
speaks for it, or two readings are left, it says on which condition it is right.
Left out: changing anything (repair.py), and the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pigguf.common.config import MAX_COUNT, Config
from pigguf.errors import CheckpointError, RopeConflict
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import Kind, Typed, elements, shortest_f32
from pigguf.rope import Evidence, RopeOverrides, RopeScaling
from pigguf.rope.decision import BASE_WINDOWS, decide
from pigguf.rope.evidence import NO_OVERRIDES, Claim, gather
from pigguf.rope.known_models import KNOWN
from pigguf.rope.scaling import DEFAULT_BASE, GGUF_KINDS, same

Number = TypeVar("Number", int, float)

# Every key of positions that llama.cpp reads, behind the architecture's name, and the one type it takes.
POSITION_KEYS: dict[str, Kind] = {
    "context_length": "u32",
    "rope.dimension_count": "u32",
    "rope.dimension_count_swa": "u32",
    "rope.freq_base": "f32",
    "rope.freq_base_swa": "f32",
    "rope.scale_linear": "f32",
    "rope.scaling.type": "str",
    "rope.scaling.factor": "f32",
    "rope.scaling.original_context_length": "u32",
    "rope.scaling.finetuned": "bool",
    "rope.scaling.alpha": "f32",
    "rope.scaling.attn_factor": "f32",
    "rope.scaling.yarn_log_multiplier": "f32",
    "rope.scaling.yarn_ext_factor": "f32",
    "rope.scaling.yarn_attn_factor": "f32",
    "rope.scaling.yarn_beta_fast": "f32",
    "rope.scaling.yarn_beta_slow": "f32",
}
CONTEXT, BASE = "context_length", "rope.freq_base"
TYPE, FACTOR, LEGACY = "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"
ORIGINAL, ROTATED = "rope.scaling.original_context_length", "rope.dimension_count"

SCALING_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Architectures whose loader wants all of a head rotated (llama-model.cpp, "invalid n_rot").
_WHOLE_HEADS = ("llama", "deci", "falcon", "llama-embed")
_CLAMPED = "llama.cpp's server and Ollama clamp to it"

# Where a file says what it is called, or was made of.
_NAME_KEYS = re.compile(
    r"general\.(name|basename|finetune|source\.(url|repo_url|huggingface\.repository)"
    r"|base_model\.\d+\.(name|repo_url))$"
)
# A window in a name, "vicuna-13b-v1.5-16k": the sizes people extend to, not those of data sets.
_WINDOW_IN_NAME = re.compile(r"(?<![a-z0-9.])(8|16|32|64|128|256|512)k(?![a-z0-9])", re.IGNORECASE)


# A name's pattern -> what the models of that name were trained at or with, by their own config.json. It says
# their scaling too, which is why rope/known_models.json leaves them out: here that was lost on the way.
_TRAINED_AT: dict[str, int] = {
    r"longchat-\d+b-16k": 2048,
    r"(longchat|vicuna)-\d+b-v1\.5|llama-2-7b-32k|llongma-2|giraffe-v2": 4096,
}
_TRAINED_WITH: dict[str, float] = {
    r"code-?llama(?!.*70b)": 1e6,  # the 70B was trained at 4096 tokens with 10000
    r"deepseek-coder-(1\.3|5\.7|6\.7|33)b": 1e5,
    r"llama-?3(?!\d)": 5e5,
    r"qwen2(\.5)?-|mixtral": 1e6,
}


@dataclass(frozen=True)
class Advice:
    """Options of `pigguf repair` that would mend a fault, and what must be so for them to be right."""

    options: tuple[str, ...]
    condition: str = ""  # none: the file proves it


@dataclass(frozen=True)
class LintFinding:
    """A fault.

    Attributes:
        problem: its name, for programs: "window-not-multiplied".
        message: what is wrong and what comes of it, in a sentence.
        evidence: the keys it was seen in.
        advice: what would mend it; several where somebody must choose, none where nothing is known.
    """

    problem: str
    message: str
    evidence: tuple[Evidence, ...]
    fixes: tuple[Advice, ...] = ()


def lint(file: GGUFFile) -> tuple[LintFinding, ...]:
    """Everything that is wrong with a file's positions; () where they are sound.

    Raises:
        GGUFError: the file does not say its architecture.
    """
    positions = Positions(file)
    if not any(positions.has(key) for key in POSITION_KEYS):
        return ()  # an adapter, a projector: it has no positions
    return tuple(finding for rule in _RULES for finding in rule(positions))


def mending(findings: tuple[LintFinding, ...]) -> tuple[str, ...]:
    """The options that mend at once all that can be mended without a choice."""
    proven = (f.fixes[0].options for f in findings if len(f.fixes) == 1 and not f.fixes[0].condition)
    pairs = dict.fromkeys(
        pair for options in proven for pair in zip(options[::2], options[1::2], strict=True)
    )
    if any(flag in ("--rope-factor", "--context", "--original-context") for flag, _ in pairs):
        # numbers write these keys anew, in their right types
        written = tuple(f".{key}=" for key in (CONTEXT, BASE, TYPE, FACTOR, ORIGINAL))
        pairs = {
            pair: None for pair in pairs if pair[0] != "--set" or not any(key in pair[1] for key in written)
        }
    return tuple(word for pair in pairs for word in pair)


class Positions:
    """A file's position keys by their short names, whatever type they are kept in."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.architecture

    def full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def typed(self, key: str) -> Typed | None:
        return self.file.metadata.get(self.full(key))

    def has(self, key: str) -> bool:
        return self.typed(key) is not None

    def number(self, key: str) -> float | None:
        """A number, even one kept as another type or as text; None where there is none."""
        typed = self.typed(key)
        return None if typed is None or typed.is_array or typed.kind == "bool" else _number(typed.value)

    def positive(self, key: str) -> float | None:
        """A number above 0, shortest as its single precision has it; llama.cpp reads 0 as absence."""
        number = self.number(key)
        usable = number is not None and math.isfinite(number) and number > 0
        return shortest_f32(number) if usable and number is not None else None

    def whole(self, key: str) -> int | None:
        """A count, or None."""
        number = self.number(key)
        counts = number is not None and math.isfinite(number) and 1 <= number <= MAX_COUNT
        return int(number) if counts and number is not None and number == int(number) else None

    @property
    def kind(self) -> str | None:
        """scaling.type; None where it is absent, which llama.cpp reads as linear."""
        typed = self.typed(TYPE)
        return None if typed is None else str(typed.value)

    @property
    def factor(self) -> float | None:
        """The factor as llama.cpp reads it: the legacy key counts where the other one is absent."""
        return self.positive(FACTOR if self.has(FACTOR) else LEGACY)

    @property
    def by_tensor(self) -> bool:
        """Whether tensors scale the frequencies one by one: llama3, longrope."""
        return any(name in self.file.tensors for name in SCALING_TENSORS)

    @property
    def by_yarn(self) -> bool:
        return any(self.has(key) for key in POSITION_KEYS if ".yarn_" in key)

    @property
    def names(self) -> list[Evidence]:
        """What the model is called, by its keys and by its file."""
        said = [
            Evidence("GGUF", key, typed.value, "a name")
            for key, typed in self.file.metadata.items()
            if typed.kind == "str" and not typed.is_array and _NAME_KEYS.match(key)
        ]
        return [*said, Evidence("file", "name", self.file.path.name, "a name")]

    def says(self, *keys: str) -> tuple[Evidence, ...]:
        """Those of the keys that are there, as evidence."""
        found = ((key, self.typed(key)) for key in keys)
        return tuple(self.evidence(key, "as it stands") for key, typed in found if typed is not None)

    def evidence(self, key: str, meaning: str) -> Evidence:
        typed = self.typed(key)
        assert typed is not None
        single = typed.kind == "f32" and not typed.is_array
        value = shortest_f32(typed.value) if single else typed.value
        return Evidence("GGUF", self.full(key), value, meaning)


def position_claims(
    file: GGUFFile, overrides: RopeOverrides = NO_OVERRIDES, base: float | None = None
) -> list[Claim]:
    """What a file says of linear or unscaled positions, the user's word last.

    Raises:
        RopeConflict: an override is no such number.
    """
    positions = Positions(file)
    kind, bases = positions.kind, positions.positive(BASE)
    claims: list[Claim] = []
    if kind in ("none", "linear"):
        claims.append(Claim("kinds", kind, positions.evidence(TYPE, "the kind of scaling")))
    for key in (FACTOR, LEGACY):
        factor = positions.positive(key)
        if factor is not None:
            idle = kind == "none" and factor != 1.0
            quantity = "idle_factors" if idle else "factors"
            claims.append(Claim(quantity, factor, positions.evidence(key, "the factor")))
    if base is None and bases is not None:
        claims.append(Claim("bases", bases, positions.evidence(BASE, "the base of the frequencies")))
    for quantity, key, meaning in (
        ("originals", ORIGINAL, "the original window"),
        ("windows", CONTEXT, "a window, original or extended"),
    ):
        length = positions.whole(key)
        if length is not None:
            claims.append(Claim(quantity, length, positions.evidence(key, meaning)))
    claims += [Claim("limits", window, name) for name, window in _named_windows(positions)]
    claims += gather(Config({}), Config({}), overrides)
    if base is not None:
        claims.append(Claim("bases", base, Evidence("command line", "--rope-base", base, "the user's word")))
    return claims


# ---- rules: a fault each ---------------------------------------------------------------------------


def _wrong_types(p: Positions) -> Iterator[LintFinding]:
    for key, kind in POSITION_KEYS.items():
        typed = p.typed(key)
        if typed is None or (typed.kind == kind and not typed.is_array):
            continue
        kept = f"{typed.kind}[]" if typed.is_array else typed.kind
        text = _as_kind(p, key, kind)
        yield LintFinding(
            "wrong-type",
            f"{p.full(key)} is {kept}, and llama.cpp takes it as {kind} alone: the file does not load",
            p.says(key),
            () if text is None else (Advice(("--set", f"{p.full(key)}={kind}:{text}")),),
        )


def _as_kind(p: Positions, key: str, kind: Kind) -> str | None:
    """A value as text of another type, or None where it would not be the same value."""
    typed, number = p.typed(key), p.number(key)
    if typed is None or typed.is_array:
        return None
    if kind == "bool":
        return {"0": "false", "1": "true", "false": "false", "true": "true"}.get(str(typed.value).lower())
    if kind == "u32":
        whole = p.whole(key)
        return None if whole is None else str(whole)
    if kind == "f32":
        return None if number is None or not math.isfinite(number) else _spelled(number)
    return None


def _no_window(p: Positions) -> Iterator[LintFinding]:
    if p.whole(CONTEXT) is not None or (p.has(CONTEXT) and p.number(CONTEXT) is None):
        return
    original, factor = p.whole(ORIGINAL), p.factor or 1.0
    said = f"is {p.number(CONTEXT):g}" if p.has(CONTEXT) else "is missing"
    yield LintFinding(
        "no-window",
        f"{p.full(CONTEXT)} {said}: llama.cpp needs a window to load the file",
        p.says(CONTEXT, ORIGINAL, FACTOR),
        () if original is None else (Advice(("--context", str(round(original * factor)))),),
    )


def _unknown_type(p: Positions) -> Iterator[LintFinding]:
    kind = p.kind
    if kind is None or kind in GGUF_KINDS:
        return
    yield LintFinding(
        "unknown-type",
        f"{p.full(TYPE)} is {kind!r}: llama.cpp aborts on any but {', '.join(GGUF_KINDS)}",
        p.says(TYPE),
        _instead_of(p, kind.strip().lower()),
    )


def _instead_of(p: Positions, kind: str) -> tuple[Advice, ...]:
    """What a name of a scaling that llama.cpp does not know should be."""
    if kind in GGUF_KINDS:
        return (Advice(("--set", f"{p.full(TYPE)}={kind}")),)
    if kind == "su" and p.by_tensor:
        return (Advice(("--set", f"{p.full(TYPE)}=longrope")),)
    unscaled = _valid(p, Advice(("--rope-factor", "1"), "if positions need no scaling inside the window"))
    if kind in ("default", "dynamic", "llama3", "ntk"):  # each leaves positions as they are, or to tensors
        return unscaled
    scaled = () if p.factor is None or p.factor <= 1 else _linear_advice(p, p.factor)
    return (*(Advice(a.options, a.condition or "if it is linear scaling") for a in scaled), *unscaled)


def _bad_factor(p: Positions) -> Iterator[LintFinding]:
    """A factor that is none, or upside down."""
    for key in (FACTOR, LEGACY):
        number = p.number(key)
        if number is None:
            continue
        if not math.isfinite(number) or number < 0:
            yield LintFinding(
                "bad-factor", f"{p.full(key)} is {number:g}, which is no factor", p.says(key), _unscaled(p)
            )
        elif 0 < number < 1:
            factor = _whole_if_near(1 / number)
            yield LintFinding(
                "factor-inverted",
                f"{p.full(key)} is {_spelled(number)}, but a factor is the extended window divided by the "
                f"original one: llama.cpp spreads positions apart, where {_spelled(factor)} was meant",
                p.says(key, ORIGINAL, CONTEXT),
                _linear_advice(p, factor) if _linear(p) else (Advice(("--rope-factor", _spelled(factor))),),
            )


def _two_factors(p: Positions) -> Iterator[LintFinding]:
    factor, legacy = p.positive(FACTOR), p.positive(LEGACY)
    if factor is None or legacy is None or same(factor, legacy):
        return
    original, context = p.whole(ORIGINAL), p.whole(CONTEXT)
    fitting = [f for f in (factor, legacy) if original and context and same(original * f, context)]
    choices = [
        Advice(options=a.options, condition=a.condition or condition)
        for f, condition in ((factor, "if llama.cpp reads it right"), (legacy, "if the legacy key is right"))
        for a in _linear_advice(p, _whole_if_near(1 / f) if f < 1 else f)
    ]
    yield LintFinding(
        "contradiction",
        f"{p.full(FACTOR)} is {_spelled(factor)} and {p.full(LEGACY)} is {_spelled(legacy)}: llama.cpp reads "
        "the first, older programs the second",
        p.says(FACTOR, LEGACY, ORIGINAL, CONTEXT),
        _linear_advice(p, fitting[0]) if len(fitting) == 1 else tuple(choices),
    )


def _type_none(p: Positions) -> Iterator[LintFinding]:
    factor = p.factor
    if p.kind != "none" or factor is None or factor == 1.0:
        return
    original, context = p.whole(ORIGINAL), p.whole(CONTEXT)
    extended = original is not None and context is not None and original < context
    scaled = _linear_advice(p, factor) if factor > 1 else ()
    if not extended:
        scaled = tuple(Advice(a.options, a.condition or "if positions are interpolated") for a in scaled)
        scaled += _valid(p, Advice(("--rope-factor", "1"), "if they are not, as llama.cpp reads it now"))
    yield LintFinding(
        "type-none",
        f"{p.full(TYPE)} is none, which switches the factor {_spelled(factor)} off: positions are not scaled",
        p.says(TYPE, FACTOR, LEGACY, ORIGINAL, CONTEXT),
        scaled,
    )


def _no_type(p: Positions) -> Iterator[LintFinding]:
    factor = p.positive(FACTOR)
    if p.kind is not None or factor is None or factor == 1.0:
        return
    advice = _linear_advice(p, factor) if factor > 1 else ()
    if p.by_yarn or p.by_tensor:
        other = "yarn" if p.by_yarn else "longrope"
        advice = tuple(Advice(a.options, a.condition or "if it is linear scaling") for a in advice)
        advice += (Advice(("--set", f"{p.full(TYPE)}=str:{other}"), f"if it is {other}"),)
    yield LintFinding(
        "no-type",
        f"{p.full(TYPE)} is missing beside a factor of {_spelled(factor)}: llama.cpp takes it for linear, "
        "others may not scale at all",
        p.says(FACTOR, ORIGINAL, CONTEXT),
        advice,
    )


def _no_factor(p: Positions) -> Iterator[LintFinding]:
    """An extended model whose factor was lost."""
    original, context = p.whole(ORIGINAL), p.whole(CONTEXT)
    if context is None or p.has(FACTOR) or p.has(LEGACY) or p.by_tensor or p.kind in ("yarn", "longrope"):
        return
    if not _linear(p):
        return
    if original is not None and original < context:
        ratio = context / original
        advice = _linear_advice(p, ratio)
        if p.kind == "none" or p.by_yarn:
            advice = tuple(Advice(a.options, a.condition or "if positions are interpolated") for a in advice)
        yield LintFinding(
            "factor-missing",
            f"the window was extended from {original} to {context} tokens, and no key gives the factor: "
            "llama.cpp does not scale positions",
            p.says(ORIGINAL, CONTEXT, TYPE),
            advice,
        )
        return
    lost = _factor_by_name(p, context)
    if lost is not None:
        name, factor = lost
        yield LintFinding(
            "factor-missing",
            f"{name} speaks of a longer window than the model was trained at, and no key gives a factor",
            (name, *p.says(CONTEXT, TYPE)),
            tuple(
                Advice(a.options, a.condition or "if it is the interpolated model that its name says")
                for a in _linear_advice(p, factor)
            ),
        )
    elif p.kind == "linear":
        yield LintFinding(
            "factor-missing",
            f"{p.full(TYPE)} is linear, and no key gives the factor: llama.cpp does not scale positions",
            p.says(TYPE, CONTEXT),
            _unscaled(p),
        )


def _factor_by_name(p: Positions, context: int) -> tuple[Evidence, float] | None:
    """A name that tells of an extension, and the factor that it implies."""
    config = {"max_position_embeddings": context, "rope_theta": p.positive(BASE)}
    for name in p.names:
        for family in KNOWN:
            if family.rope_scaling.get("rope_type") == "linear" and family.fits(str(name.value), config):
                return name, float(family.rope_scaling["factor"])
    trained = _by_name(p, _TRAINED_AT)
    for name, window in _named_windows(p):
        if trained is not None and context in (trained[1], window) and window > trained[1]:
            return name, window / trained[1]
        if window / context >= 1.5:
            return name, window / context
    return None


def _linear_windows(p: Positions) -> Iterator[LintFinding]:
    """A factor, and a window that it did not lengthen."""
    context, factor = p.whole(CONTEXT), p.factor
    legacy = p.positive(LEGACY)
    if not _linear(p) or p.kind == "none" or context is None or factor is None or factor == 1.0:
        return
    if legacy is not None and not same(factor, legacy):
        return  # two factors are a finding already
    factor = _whole_if_near(1 / factor) if factor < 1 else factor
    try:
        scaling = _decided(p, factor)
    except (RopeConflict, CheckpointError) as error:
        yield LintFinding(
            "windows-contradict", error.args[0], p.says(CONTEXT, ORIGINAL, FACTOR), _linear_advice(p, factor)
        )
        return
    if scaling.context_length != context:
        yield LintFinding(
            "window-not-multiplied",
            f"{p.full(CONTEXT)} is {context}, the original window, while a factor of {_spelled(factor)} "
            f"stretches it to {scaling.context_length}: {_CLAMPED}",
            p.says(CONTEXT, ORIGINAL, FACTOR, LEGACY),
            _linear_advice(p, factor),
        )


def _other_windows(p: Positions) -> Iterator[LintFinding]:
    """YaRN and LongRoPE, whose rotation itself depends on the original window."""
    context, original, factor = p.whole(CONTEXT), p.whole(ORIGINAL), p.factor or 1.0
    if p.kind not in ("yarn", "longrope") or context is None:
        return
    if p.kind == "yarn" and factor == 1.0:
        ratio = context / original if original else 1.0
        yield LintFinding(
            "factor-missing",
            f"{p.full(TYPE)} is yarn and the factor is missing or 1: llama.cpp does not scale positions",
            p.says(TYPE, FACTOR, ORIGINAL, CONTEXT),
            (Advice(("--rope-factor", _spelled(ratio))),) if ratio > 1 else (),
        )
        return
    factor = _whole_if_near(1 / factor) if factor < 1 else factor
    if original is None:
        yield LintFinding(
            "original-window-missing",
            f"{p.full(ORIGINAL)} is missing, and llama.cpp takes the window of {context} for it: "
            f"{p.kind} then scales the wrong dimensions",
            p.says(TYPE, FACTOR, CONTEXT),
            _original_advice(p, context, factor),
        )
    elif original >= context and factor > 1:
        yield LintFinding(
            "window-not-multiplied",
            f"{p.full(CONTEXT)} is {context}, the original window, while {p.kind} stretches it by "
            f"{_spelled(factor)}: {_CLAMPED}",
            p.says(CONTEXT, ORIGINAL, FACTOR),
            (Advice(("--context", str(round(original * factor)))),),
        )


def _original_advice(p: Positions, context: int, factor: float) -> tuple[Advice, ...]:
    original = round(context / factor)
    extended = Advice(("--original-context", str(original)))
    trained = Advice(
        ("--original-context", str(context), "--context", str(round(context * factor))),
        f"if the model was trained at {context} tokens",
    )
    if factor <= 1:
        return ()
    if original in BASE_WINDOWS and context not in BASE_WINDOWS:
        return (extended,)
    return (Advice(extended.options, f"if the window was extended to {context}"), trained)


def _base(p: Positions) -> Iterator[LintFinding]:
    number = p.number(BASE)
    if number is not None and not (math.isfinite(number) and number > 0):
        yield LintFinding("bad-base", f"{p.full(BASE)} is {number:g}, which is no base", p.says(BASE))
    elif number is None or number == DEFAULT_BASE:
        known = _known_base(p)
        if known is not None:
            name, base = known
            said = "is missing, which means 10000" if number is None else "is 10000"
            yield LintFinding(
                "base-missing",
                f"{p.full(BASE)} {said}, and {name} speaks of a model trained with {base:g}",
                (name, *p.says(BASE)),
                (Advice(("--rope-base", _spelled(base)), "if it is the model that this says"),),
            )


def _known_base(p: Positions) -> tuple[Evidence, float] | None:
    tokens = elements(p.file.metadata, "tokenizer.ggml.tokens")
    if p.architecture == "llama" and tokens is not None and len(tokens) == 128256:
        return Evidence("GGUF", "tokenizer.ggml.tokens", len(tokens), "Llama 3's own vocabulary"), 5e5
    return _by_name(p, _TRAINED_WITH)


def _dimensions(p: Positions) -> Iterator[LintFinding]:
    rotated, head = p.whole(ROTATED), _head_length(p)
    if rotated is None or head is None:
        return
    whole = p.architecture in _WHOLE_HEADS
    if rotated > head or (whole and rotated != head):
        wanted = f"all {head} of a head" if whole else f"at most the {head} of a head"
        said = f"{rotated} dimensions, and {p.architecture} rotates {wanted}"
    elif rotated % 2:
        said = f"{rotated} dimensions, and they are rotated in pairs"
    else:
        return
    known = whole or rotated > head
    yield LintFinding(
        "dimension-count",
        f"{p.full(ROTATED)} says {said}",
        p.says(ROTATED, "attention.key_length", "embedding_length", "attention.head_count"),
        (Advice(("--set", f"{p.full(ROTATED)}=u32:{head}")),) if known else (),
    )


def _head_length(p: Positions) -> int | None:
    given = p.whole("attention.key_length")
    if given is not None:
        return given
    width, heads = p.whole("embedding_length"), p.whole("attention.head_count")
    return None if width is None or heads is None else width // heads


_RULES: tuple[Callable[[Positions], Iterator[LintFinding]], ...] = (
    _wrong_types,
    _no_window,
    _unknown_type,
    _bad_factor,
    _two_factors,
    _type_none,
    _no_type,
    _no_factor,
    _linear_windows,
    _other_windows,
    _base,
    _dimensions,
)


# ---- advice and names ------------------------------------------------------------------------------


def _linear(p: Positions) -> bool:
    return p.kind in (None, "none", "linear")


def _decided(p: Positions, factor: float) -> RopeScaling:
    return decide(position_claims(p.file, RopeOverrides(factor=factor)))


def _linear_advice(p: Positions, factor: float) -> tuple[Advice, ...]:
    """How to say that positions are scaled by this factor: the factor alone, or with a window to choose."""
    alone = _valid(p, Advice(("--rope-factor", _spelled(factor))))
    if alone:
        return alone
    context, original = p.whole(CONTEXT), p.whole(ORIGINAL)
    choices: list[Advice] = []
    for window in dict.fromkeys(w for w in (original, context) if w is not None):
        choices.append(
            _with(factor, "--original-context", window, f"if the model was trained at {window} tokens")
        )
    if context is not None:
        choices.append(_with(factor, "--context", context, f"if the window was extended to {context}"))
        if original is not None and context > original:
            ratio = Advice(("--rope-factor", _spelled(context / original)), "if both windows are right")
            choices.append(ratio)
    return tuple(advice for choice in choices for advice in _valid(p, choice))


def _with(factor: float, flag: str, window: int, condition: str) -> Advice:
    return Advice(("--rope-factor", _spelled(factor), flag, str(window)), condition)


def _unscaled(p: Positions) -> tuple[Advice, ...]:
    return _valid(p, Advice(("--rope-factor", "1"), "if positions are not scaled"))


def _valid(p: Positions, advice: Advice) -> tuple[Advice, ...]:
    """The advice, where the flags settle all; nothing where they would be refused."""
    given = dict(zip(advice.options[::2], advice.options[1::2], strict=True))
    overrides = RopeOverrides(
        factor=float(given["--rope-factor"]),
        original_context=_count(given.get("--original-context")),
        context=_count(given.get("--context")),
    )
    try:
        decide(position_claims(p.file, overrides))
    except (RopeConflict, CheckpointError):
        return ()
    return (advice,)


def _count(text: str | None) -> int | None:
    return None if text is None else int(text)


def _named_windows(p: Positions) -> Iterator[tuple[Evidence, int]]:
    for name in p.names:
        for found in _WINDOW_IN_NAME.finditer(str(name.value)):
            yield name, int(found[1]) * 1024


def _by_name(p: Positions, table: Mapping[str, Number]) -> tuple[Evidence, Number] | None:
    """The first name that is in the table, and what the table says of it."""
    for name in p.names:
        for pattern, number in table.items():
            if re.search(pattern, str(name.value), re.IGNORECASE):
                return name, number
    return None


def _whole_if_near(number: float) -> float:
    nearest = float(round(number))
    return nearest if same(nearest, number) else number


def _spelled(number: float) -> str:
    return f"{number:.10g}"


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
