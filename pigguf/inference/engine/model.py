"""A model: weights and vocabulary of one GGUF file, checked before llama.cpp sees it.

Positions are the file's: no rope value reaches llama.cpp unless a RuntimeRope was given, and then
as a metadata override, in the one place where the library also reads the file's own. What it took is
compared with what we read.

Upstream: llama.cpp include/llama.h, src/llama-model-loader.cpp (kv_overrides).
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pigguf.common.system_memory import available_memory, in_words
from pigguf.errors import (
    BackendUnavailable,
    ContextOverflow,
    DoesNotFit,
    EngineError,
    GGUFError,
    Interrupted,
    UsageError,
)
from pigguf.gguf_io import (
    DEFAULT_ALIGNMENT,
    GGUFFile,
    TensorType,
    read_header,
    row_bytes,
)
from pigguf.gguf_io.metadata import Typed, elements, f32, get, string, u32
from pigguf.inference.engine import devices, library, load_checks
from pigguf.inference.engine.large_stack import run_with_large_stack
from pigguf.inference.engine.sigint import defer_sigint
from pigguf.progress import SILENT, Progress, stage
from pigguf.rope import RopeScaling, rope_from_metadata
from pigguf.rope.unrotated import AlibiPositions, LearnedPositions
from pigguf.tokenizer.vocab import MATCHED_IN_TEXT, TokenType

if TYPE_CHECKING:
    from pigguf.inference.engine.context import Context
    from pigguf.inference.rpc.client import Workers

GpuLayers = int | Literal["all", "auto"]

POSITION_TABLE = "position_embd.weight"  # GPT-2's, StarCoder's, and of some MPT beside its distances
_SOON = 0.1  # seconds within which Ctrl-C is seen while weights go to workers
_GPU_SHARE = 0.8  # of free GPU memory for weights under "auto"; the rest is for cache and buffers
_MOST_SPECIAL = 1 << 15  # special tokens in a text: some seconds
_LOAD_MODE_AUTO, _LOAD_MODE_NONE = -1, 0  # llama.h, enum llama_load_mode: memory mapped, and read
_OVERRIDE_TAGS = {"u32": (0, "val_i64"), "f32": (1, "val_f64"), "str": (3, "val_str")}


@dataclass(frozen=True)
class RuntimeRope:
    """What the user says about positions against the file; None keeps the file's value.

    Attributes:
        factor: scaling factor in the Hugging Face direction (8.0, never 0.125); replaces the file's,
            does not multiply it.
        base: rope frequency base (theta).
        context_length: the window, in tokens, that the model is taken to have.
        kind: how the factor scales positions, in place of whatever the file does: "linear", or "yarn"
            from the file's original window. None is linear too, but never replaces another scaling.

    Raises:
        UsageError: a value that is no such number, or a kind without its factor.
    """

    factor: float | None = None
    base: float | None = None
    context_length: int | None = None
    kind: Literal["linear", "yarn"] | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "base"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"the rope {name} is {value}", "give a number above 0")
        if self.context_length is not None and not 1 <= self.context_length < 2**31:
            raise UsageError(f"the context length is {self.context_length}", "give a number of tokens")
        if self.kind is not None and self.factor is None:
            raise UsageError(f"{self.kind} rope scaling has no factor", "give one")
        if self.kind == "yarn" and self.factor is not None and self.factor < 1:
            raise UsageError(f"the YaRN factor is {self.factor}", "it stretches the window: 1 at least")

    def metadata(self, file: GGUFFile) -> dict[str, Typed]:
        """The keys that say so in place of the file's.

        Raises:
            UsageError: a factor for a file whose own scaling it cannot replace, or whose positions are no
                rotation.
            ContextOverflow: a window longer than the file's table of learned positions.
        """
        own = rope_from_metadata(file.metadata, file.architecture)
        keys: dict[str, Typed] = {}
        if isinstance(own, LearnedPositions | AlibiPositions):
            self._refuse_rotation(file, own)
        elif self.factor is not None:
            keys |= self._scaling(file, own, self.factor)
        if self.base is not None:
            keys[f"{file.architecture}.rope.freq_base"] = f32(self.base)
        if self.context_length is not None:
            keys[f"{file.architecture}.context_length"] = u32(self.context_length)
        return keys

    def _refuse_rotation(self, file: GGUFFile, own: RopeScaling) -> None:
        if self.factor not in (None, 1) or self.base is not None:
            said = f"factor {self.factor:g}" if self.base is None else f"base {self.base:g}"
            raise UsageError(
                f"the rope {said} says nothing to {file.path}: {own.explain()}",
                "leave it out: nothing rotates",
            )
        table = file.tensors.get(POSITION_TABLE)
        if table is None or self.context_length in (None, table.rows):
            return
        what = f"a window of {self.context_length:,} tokens for {file.path}, whose table of learned positions"
        if self.context_length > table.rows:
            raise ContextOverflow(
                f"{what} ends after {table.rows:,}",
                "convert the checkpoint with --context N, which resamples the table, or take a shorter one",
            )
        raise UsageError(f"{what} has {table.rows:,}", "a shorter context needs no override")

    def _scaling(self, file: GGUFFile, own: RopeScaling, factor: float) -> dict[str, Typed]:
        prefix = f"{file.architecture}.rope.scaling"
        if self.kind is None and own.rope_type not in ("none", "linear"):
            raise UsageError(
                f"{file.path} scales its positions by {own.rope_type}; a linear factor cannot replace that",
                "leave the rope factor to the file",
            )
        # these would stay in force under any other type
        rest = [f"{prefix}.{name}" for name in own.parameters]
        if self.kind is not None and (own.rope_type == "longrope" or rest):
            raise UsageError(
                f"{file.path}: its {own.rope_type} scaling ({', '.join(rest) or 'tables of factors'}) "
                f"cannot be replaced by {self.kind}",
                "only linear and plain YaRN scaling can",
            )
        keys = {f"{prefix}.type": string(self.kind or "linear"), f"{prefix}.factor": f32(factor)}
        if self.kind == "yarn":  # absent, it would be taken for the overridden context length
            keys[f"{prefix}.original_context_length"] = u32(own.original_context)
        return keys


class Model:
    """An open model, made by Model.open. A context manager; using it after close raises EngineError.

    Attributes:
        path, file: where it came from, and its header as read.
        architecture: GGUF's name, "llama".
        description: architecture, parameters and llama.cpp's name of the types, "llama 135M Q4_1".
        rope: what is in force for positions: the file's, or the override's.
        context_length: the window in tokens, rope.context_length.
        vocab_size, embedding_length, layers: counts; head_length: dimensions of a head.
        space_prefix: tokenize puts a space before a text's first word, as sentencepiece models want it.
        longest_piece: no token stands for more bytes of text.
        size_bytes, parameters: of the weights.
        gpu_layers: how many layers went to a GPU or to workers, the output counted as one.
        workers: whose devices took them, or None.
        sliding_window: tokens that the sliding layers look back, 0 where there are none.
        bos, eos: token ids or None; bos_text, eos_text: their text or "".
        chat_template: the file's jinja template, or None.
    """

    def __init__(
        self,
        handle: Any,
        file: GGUFFile,
        dimensions: load_checks.Dimensions,
        rope: RopeScaling,
        gpu_layers: int,
        *,
        vocab_only: bool,
        workers: Workers | None = None,
    ) -> None:
        llama = library.load()
        self._llama = llama
        self._handle = handle
        self._vocab = llama.llama_model_get_vocab(handle)
        self._dimensions = dimensions
        self._contexts: list[Context] = []
        self.vocab_only = vocab_only
        self.path = file.path
        self.file = file
        self.architecture = file.architecture
        self.rope = rope
        self.context_length = rope.context_length
        self.vocab_size: int = llama.llama_vocab_n_tokens(self._vocab)
        self.embedding_length = dimensions.embedding_length
        self.layers = dimensions.layers
        self.head_length = dimensions.head_length
        self.size_bytes = sum(tensor.nbytes for tensor in file.tensors.values())
        self.parameters = sum(tensor.elements for tensor in file.tensors.values())
        self.gpu_layers = gpu_layers
        self.workers = workers
        self.sliding_window: int = llama.llama_model_n_swa(handle)
        self.description = f"{self.architecture} {_rounded(self.parameters)} {self._type_name()}"
        self.bos, self.bos_text = self._special(llama.llama_vocab_bos(self._vocab))
        self.eos, self.eos_text = self._special(llama.llama_vocab_eos(self._vocab))
        self.chat_template = get(file.metadata, "tokenizer.chat_template", str)
        texts = elements(file.metadata, "tokenizer.ggml.tokens") or ()
        self.longest_piece = max(len(text.encode()) for text in texts)
        is_sentencepiece = get(file.metadata, "tokenizer.ggml.model", str) == "llama"
        self.space_prefix = bool(
            get(file.metadata, "tokenizer.ggml.add_space_prefix", bool, is_sentencepiece)
        )

    # ---- opening and closing ---------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        gpu_layers: GpuLayers = "auto",
        vocab_only: bool = False,
        rope: RuntimeRope | None = None,
        use_mmap: bool = True,
        workers: Workers | None = None,
        progress: Progress = SILENT,
    ) -> Model:
        """Check the file and load it. Progress is one stage, "loading", in percent; Ctrl-C stops it.

        Args:
            gpu_layers: how many layers go to GPUs; "auto" is as many as fit, "all" is all or an error.
            vocab_only: only tokenize; no weights are read, and no Context can be made.
            use_mmap: map the file into memory rather than read it.
            workers: other machines, whose devices take the layers in place of this one's GPUs; they must stay
                connected for as long as the model is open.

        Raises:
            GGUFError: the file is damaged, or holds what llama.cpp cannot load or would abort on.
            UnsupportedModel: a sort of file or an architecture that is not run.
            DoesNotFit: not enough memory for the weights.
            BackendUnavailable: no engine, or no GPU where layers were asked onto one.
            UsageError: an override the file cannot take.
            ContextOverflow: an override beyond the file's table of learned positions.
            WorkerLost: a worker went away meanwhile.
        """
        file = read_header(path)
        dimensions = load_checks.check(file)
        overrides = rope.metadata(file) if rope else {}
        positions = rope_from_metadata(file.metadata | overrides, file.architecture)
        on_gpu = 0 if vocab_only else _layers_on_gpu(gpu_layers, file, dimensions.layers, workers)
        if not (vocab_only or on_gpu):
            _refuse_too_large(file)
        mapped = use_mmap and file.alignment >= DEFAULT_ALIGNMENT
        handle = load_weights(
            file, overrides, on_gpu, vocab_only=vocab_only, mapped=mapped, workers=workers, progress=progress
        )
        model = cls(handle, file, dimensions, positions, on_gpu, vocab_only=vocab_only, workers=workers)
        try:
            model._check_loaded()
        except BaseException:
            model.close()
            raise
        return model

    def close(self) -> None:
        """Free the weights, and every context of this model first. Twice is fine."""
        for context in list(self._contexts):
            context.close()
        if self._handle is not None:
            self._llama.llama_model_free(self._handle)
            self._handle = self._vocab = None

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def handle(self) -> Any:
        """The library's llama_model pointer, for this package.

        Raises:
            EngineError: the model was closed.
        """
        if self._handle is None:
            raise EngineError(
                f"the model {self.path} was closed", "keep its `with` block open while it is used"
            )
        return self._handle

    def check_workers(self) -> None:
        """After whatever the library did with the weights or a cache, before any of it is used.

        Raises:
            WorkerLost: a worker failed, and what was computed is worthless.
        """
        if self.workers is not None:
            self.workers.check()

    def _check_loaded(self) -> None:
        """Refuse where llama.cpp understood positions otherwise than we did, or cannot add a token."""
        llama = self._llama
        if not self.vocab_only:
            taken = (llama.llama_model_n_ctx_train(self._handle), self._scale_in_library())
            ours = (self.context_length, 1 / self.rope.factor)
            if taken[0] != ours[0] or not math.isclose(taken[1], ours[1], rel_tol=1e-5):
                raise EngineError(
                    f"{self.path}: llama.cpp took (context length, rope scale) as {taken}, not {ours}"
                )
        for name, added, token in (
            ("bos", llama.llama_vocab_get_add_bos(self._vocab), self.bos),
            ("eos", llama.llama_vocab_get_add_eos(self._vocab), self.eos),
        ):
            if added and token is None:
                raise GGUFError(
                    f"{self.path}: tokenizer.ggml.add_{name}_token is set and there is no {name} token",
                    "convert the model again, with its tokenizer",
                )

    def _scale_in_library(self) -> float:
        """The scale in force; where the type is "none" the library ignores the one it read."""
        if self.rope.rope_type == "none":
            return 1.0
        return float(self._llama.llama_model_rope_freq_scale_train(self._handle))

    def _type_name(self) -> str:
        """The last part of llama.cpp's "llama 7B Q4_K - Medium"; its size is a guess by layers."""
        buffer = ctypes.create_string_buffer(256)
        self._llama.llama_model_desc(self._handle, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace").split(" ", 2)[-1].removeprefix("(guessed) ")

    def _special(self, token: int) -> tuple[int | None, str]:
        if token < 0:
            return None, ""
        return token, self._llama.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    # ---- text and tokens -------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Text to token ids.

        Args:
            add_special: put BOS and EOS where the file asks for them.
            parse_special: read special tokens' text ("<|im_start|>") as the tokens.

        Raises:
            UsageError: the text cannot be written as UTF-8, is 2 GiB long, is one endless word, or holds
                special tokens by the ten thousands.
        """
        _ = self.handle
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds half a character at {error.start} (a lone surrogate)"
            ) from error
        if len(data) >= 2**31:
            raise UsageError(f"the text is {in_words(len(data))} long, more than llama.cpp takes at once")
        self._refuse_too_many_special(text, parse_special)
        return run_with_large_stack(text, lambda: self._tokenize(data, add_special, parse_special))

    def _refuse_too_many_special(self, text: str, parse_special: bool) -> None:
        """llama.cpp finds them one by one, and counts those before each (tokenizer_st_partition): its time
        grows with the square of their number."""
        if len(text) <= _MOST_SPECIAL:
            return
        found = 0
        for special, kind in self._matched_in_text:
            if (parse_special or kind == TokenType.USER_DEFINED) and special in text:
                found += text.count(special)
                text = text.replace(special, "\0")
        if found > _MOST_SPECIAL:
            raise UsageError(
                f"the text holds {found:,} special tokens, more than {_MOST_SPECIAL:,}",
                "this is hardly text: tokenize it in parts",
            )

    @cached_property
    def _matched_in_text(self) -> list[tuple[str, int]]:
        """Texts that are tokens wherever they stand, of which kind, in the order llama.cpp looks for them."""
        texts = elements(self.file.metadata, "tokenizer.ggml.tokens") or ()
        kinds = elements(self.file.metadata, "tokenizer.ggml.token_type") or ()
        matched = [pair for pair in zip(texts, kinds, strict=False) if pair[0] and pair[1] in MATCHED_IN_TEXT]
        return sorted(matched, key=lambda pair: -len(pair[0].encode()))

    def _tokenize(self, data: bytes, add_special: bool, parse_special: bool) -> list[int]:
        room = len(data) + 16
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._llama.llama_tokenize(
                self._vocab, data, len(data), tokens, room, add_special, parse_special
            )
            if count >= 0:
                return tokens[:count]
            room = -count

    def piece(self, token: int, *, special: bool = False) -> bytes:
        """The bytes a token stands for, which may cut a UTF-8 character.

        A special token is b"" unless `special`; then it is its text.

        Raises:
            UsageError: the vocabulary has no such token.
        """
        _ = self.handle
        self.refuse_unknown_tokens((token,))
        room = 64
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._llama.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Token ids to text; bytes that are no UTF-8 become U+FFFD.

        The space that tokenize put before the first word is taken off again.

        Raises:
            UsageError: the vocabulary has no such token.
        """
        text = b"".join(self.piece(token, special=special) for token in tokens).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.space_prefix else text

    def is_end(self, token: int) -> bool:
        """Whether the token ends an answer (EOS, end of turn, ...)."""
        _ = self.handle
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def refuse_unknown_tokens(self, tokens: Sequence[int]) -> None:
        """
        Raises:
            UsageError: the vocabulary has no such token; llama.cpp would not survive it.
        """
        if tokens and (min(tokens) < 0 or max(tokens) >= self.vocab_size):
            wrong = next(token for token in tokens if not 0 <= token < self.vocab_size)
            raise UsageError(f"there is no token {wrong} in a vocabulary of {self.vocab_size}")

    # ---- sizes -----------------------------------------------------------------------------------

    def cache_bytes(self, tokens: int, cache_k: str = "f16", cache_v: str = "f16") -> int:
        """Bytes of a KV cache for so many tokens, as llama.cpp allocates it.

        Raises:
            UsageError: a cache type whose blocks do not fit the model's heads.
        """
        return tokens * sum(
            cache_row_bytes(name, self._dimensions.head_length) * heads
            for heads in self._dimensions.kv_heads
            for name in (cache_k, cache_v)
        )

    # ---- for contexts ----------------------------------------------------------------------------

    def attach(self, context: Context) -> None:
        """Close this context before the model."""
        self._contexts.append(context)

    def detach(self, context: Context) -> None:
        """Forget a context that was closed, be it twice."""
        if context in self._contexts:
            self._contexts.remove(context)


def _rounded(count: int) -> str:
    """A number of parameters as model cards write it: 134515008 is "135M"."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def cache_row_bytes(cache_type: str, elements: int) -> int:
    """Bytes of one head of one token in a KV cache.

    Raises:
        UsageError: the type's blocks do not fit heads of so many dimensions.
    """
    try:
        return row_bytes(getattr(TensorType, cache_type.upper()), elements)
    except GGUFError:
        raise UsageError(
            f"a KV cache of type {cache_type} does not fit this model's heads of {elements} dimensions",
            "take f16",
        ) from None


# ---- loading -------------------------------------------------------------------------------------


def load_weights(
    file: GGUFFile,
    overrides: dict[str, Typed],
    gpu_layers: int,
    *,
    vocab_only: bool = False,
    mapped: bool = False,
    dry: bool = False,
    workers: Workers | None = None,
    progress: Progress = SILENT,
) -> Any:
    """A llama_model pointer; of a checked file, and for this package.

    Args:
        workers: whose devices take the layers, in place of this machine's GPUs.
        dry: take no memory for weights and for what is made of the model: only sizes can be asked of it, and
            any computation would end the process.

    Raises:
        GGUFError, DoesNotFit: llama.cpp cannot load it, with its own reason.
        WorkerLost: a worker went away meanwhile.
        Interrupted: Ctrl-C was pressed and its handler did not raise.
        Whatever the progress listener raises, and KeyboardInterrupt.
    """
    llama = library.load()
    parameters = llama.llama_model_default_params()
    if workers is not None:
        named, shares = _c_devices(llama, workers)
        parameters.devices, parameters.tensor_split = ctypes.addressof(named), shares
    parameters.n_gpu_layers = gpu_layers
    parameters.vocab_only = vocab_only
    parameters.no_alloc = dry
    parameters.load_mode = _LOAD_MODE_AUTO if mapped else _LOAD_MODE_NONE
    parameters.kv_overrides = _c_overrides(llama, overrides)
    handle = None
    with library.complaints() as said, stage(progress, "loading", 100, "percent"):
        try:
            with defer_sigint() as held:
                watcher = _LoadWatcher(progress, held)
                parameters.progress_callback = llama.llama_progress_callback(watcher.receive)
                load = partial(llama.llama_model_load_from_file, str(file.path).encode(), parameters)
                handle = load() if workers is None else watcher.run(load, workers)
            if watcher.failure is not None:
                raise watcher.failure
            if workers is not None:
                workers.check()
        except BaseException:
            if handle:
                llama.llama_model_free(handle)
            raise
    if held.seen and not handle:
        raise Interrupted(f"loading {file.path} was interrupted")
    if not handle:
        raise _load_failure(file, said)
    return handle


class _LoadWatcher:
    """Hands on what llama.cpp says of its progress, and stops it for Ctrl-C or a listener's error."""

    def __init__(self, progress: Progress, held: defer_sigint) -> None:
        self.failure: BaseException | None = None
        self._progress = progress
        self._held = held
        self._told = 0.0

    def receive(self, share: float, _: object) -> bool:
        """Called by C with 0 to 1; False stops the loading. No exception can leave from here."""
        try:
            percent = min(100.0, share * 100)
            if percent > self._told:
                self._progress.advance(percent - self._told)
                self._told = percent
        except BaseException as error:
            self.failure = error
        return self.failure is None and not self._held.seen

    def run(self, load: Callable[[], Any], workers: Workers) -> Any:
        """What `load` returns. Between weights it can be stopped, but one may be minutes on its way to a
        worker: it runs in a thread, and where it is to stop the workers are left, which brings it back."""
        loading = _loaders().submit(load)
        try:
            while not wait([loading], _SOON).done:
                if self._held.seen:
                    workers.close()
        except BaseException as error:  # another signal's handler
            self.failure = error
            workers.close()
        try:
            return loading.result()
        finally:
            wait([loading])  # whatever comes: it uses what the caller frees


@cache
def _loaders() -> ThreadPoolExecutor:
    """Threads that load models, one after the other in the same: the C library keeps what a thread has freed,
    some 50 MB of weights on their way, and a new thread would get as much again."""
    return ThreadPoolExecutor(thread_name_prefix="pigguf-load")


def _c_overrides(llama: Any, overrides: dict[str, Typed]) -> Any:
    """An array of llama_model_kv_override that ends with an empty key."""
    array = (llama.llama_model_kv_override * (len(overrides) + 1))()
    for slot, (key, typed) in zip(array, overrides.items(), strict=False):
        slot.tag, field = _OVERRIDE_TAGS[typed.kind]
        slot.key = key.encode()
        setattr(slot.value, field, typed.value.encode() if typed.kind == "str" else typed.value)
    return array


def _c_devices(llama: Any, workers: Workers) -> tuple[Any, Any]:
    """Arrays of the devices, ended by NULL, and of their shares, as many as the library's most; all 0 lets it
    share by free memory. The caller keeps them while the library reads them."""
    named = (ctypes.c_void_p * (len(workers.handles) + 1))(*workers.handles)
    shares = (ctypes.c_float * llama.llama_max_devices())(*(workers.split or ()))
    return named, shares


def _load_failure(file: GGUFFile, said: list[str]) -> EngineError | GGUFError:
    reason = said[0] if said else "it gave no reason"
    if any("alloc" in line or "out of memory" in line for line in said):
        return DoesNotFit(
            f"{file.path}: no memory for its weights of {in_words(file.size)}: {reason}",
            "take a smaller quantization, or fewer layers on the GPU",
        )
    return GGUFError(
        f"{file.path}: llama.cpp cannot load it: {reason}", "the file is damaged or from another converter"
    )


def _layers_on_gpu(wanted: GpuLayers, file: GGUFFile, layers: int, workers: Workers | None) -> int:
    """How many layers to give to GPUs; llama.cpp counts the output as one more.

    "auto" is a guess here, before any context is known of; inference/planning.py knows.

    Raises:
        BackendUnavailable: layers were asked for and there is no GPU.
    """
    if wanted == 0:
        return 0
    gpus = workers.devices if workers else devices.list_gpus()
    if wanted != "auto":
        return layers_on_gpu(wanted, layers + 1, gpus)
    budget = _GPU_SHARE * sum(gpu.memory_free for gpu in gpus)
    return min(layers + 1, int(budget / file.size * (layers + 1)))


def layers_on_gpu(wanted: int | Literal["all"], layers: int, gpus: Sequence[devices.Device]) -> int:
    """How many of all layers, the output among them, go to GPUs if so many are asked for.

    Raises:
        BackendUnavailable: layers were asked for and there is no GPU.
        UsageError: fewer than none.
    """
    if wanted != "all" and wanted < 0:
        raise UsageError(f"gpu layers is {wanted}", "give a number from 0, `all` or `auto`")
    if wanted and not gpus:
        raise BackendUnavailable(
            f"gpu layers is {wanted}, and the engine finds no GPU",
            "run `pigguf doctor` to see why, or leave the layers to auto",
        )
    return layers if wanted == "all" else min(wanted, layers)


def _refuse_too_large(file: GGUFFile) -> None:
    """
    Raises:
        DoesNotFit: the weights are larger than all the memory there is to take.
    """
    available = available_memory()
    if available is not None and file.size > available:
        raise DoesNotFit(
            f"{file.path}: weights of {in_words(file.size)}, and {in_words(available)} of memory are free",
            "take a smaller quantization, or close other programs",
        )
