"""Prompts cached on disk: the same answers as plain decoding, and never a state of anything else."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.prompt_cache_helpers import (
    ANOTHER,
    DOCUMENT,
    QUESTION,
    WINDOW,
    answer,
    opened,
    write_model,
)
from support.tiny_gguf import GRAPHS, WIDE_GRAPHS, linear, text_tokens, write_tiny

from pigguf.gguf_io import read_header
from pigguf.gguf_io.metadata import u32
from pigguf.inference.engine import FlashAttentionSwitch, RuntimeRope
from pigguf.inference.prompt_cache import PromptCacheStore, cache_key
from pigguf.inference.prompt_cache.store import MIN_NEW_TOKENS

LLAMA = next(model for model in WIDE_GRAPHS.values() if model.architecture == "llama")
GEMMA3 = next(model for model in GRAPHS.values() if model.architecture == "gemma3")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model with heads of 64 dimensions, which a quantized cache supports and rotates."""
    path = tmp_path_factory.mktemp("model") / "wide.gguf"
    return write_tiny(path, {"llama.context_length": u32(WINDOW)}, model=LLAMA)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "prompt-cache"


def cache_document(path: Path, directory: Path, **options: object) -> None:
    """Cache the document, as another process that was asked about it would."""
    with opened(path, PromptCacheStore(directory), **options) as session:
        assert session.set_prompt(DOCUMENT + QUESTION) == 0


def cached_tokens(path: Path, directory: Path, rope: RuntimeRope | None = None, **options: object) -> int:
    """Return how many tokens of another question about the document are cached."""
    with opened(path, PromptCacheStore(directory), rope, **options) as session:
        return session.set_prompt(DOCUMENT + ANOTHER)


# ---- the same answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache_k", "cache_v"), [("f32", "f32"), ("f16", "f16"), ("q8_0", "q8_0"), ("q8_0", "bf16")]
)
def test_a_restored_session_computes_what_one_that_was_never_closed_does(
    wide: Path, directory: Path, cache_k: str, cache_v: str
) -> None:
    options = {"cache_k": cache_k, "cache_v": cache_v}
    with opened(wide, PromptCacheStore(directory), **options) as session:
        session.set_prompt(DOCUMENT + QUESTION)
        cached, expected, logits = answer(session, DOCUMENT + ANOTHER)
        assert cached == len(DOCUMENT)
    with opened(wide, PromptCacheStore(directory), **options) as session:
        cached, found, restored = answer(session, DOCUMENT + ANOTHER)
    assert cached == len(DOCUMENT)
    assert found == expected
    np.testing.assert_array_equal(restored, logits)


CONTEXTS = (
    {"flash_attention": True},
    {"flash_attention": False},
    {"flash_attention": True, "sequences": 3},
    {"flash_attention": False, "sequences": 2},
    {
        "flash_attention_switch": FlashAttentionSwitch(decode=1, prefill=None, prompt=1),
        "cache_k": "f32",
        "cache_v": "f32",
    },
)


@pytest.mark.parametrize("later", CONTEXTS, ids=str)
@pytest.mark.parametrize("before", CONTEXTS, ids=str)
def test_a_state_serves_every_layout_of_the_cache(
    tiny: Path, directory: Path, before: dict[str, object], later: dict[str, object]
) -> None:
    with opened(tiny, None, **later) as session:
        session.prefill(DOCUMENT)
        _, expected, logits = answer(session, DOCUMENT + ANOTHER)
    cache_document(tiny, directory, **before)
    with opened(tiny, PromptCacheStore(directory), **later) as session:
        cached, found, restored = answer(session, DOCUMENT + ANOTHER)
    assert cached == len(DOCUMENT)
    assert found == expected
    np.testing.assert_allclose(restored, logits, atol=1e-2 * logits.std())  # as flash attention rounds


def test_the_same_question_again_is_completely_cached(tiny: Path, directory: Path) -> None:
    with opened(tiny, PromptCacheStore(directory)) as session:
        _, expected, _ = answer(session, DOCUMENT + QUESTION)
    with opened(tiny, PromptCacheStore(directory)) as session:
        cached, found, _ = answer(session, DOCUMENT + QUESTION)
    assert cached == len(DOCUMENT + QUESTION)
    assert found == expected


def test_tokens_prefilled_before_ctrl_c_are_cached(tiny: Path, directory: Path) -> None:
    from pigguf.progress import SilentProgress

    class Impatient(SilentProgress):
        def advance(self, amount: float) -> None:
            self.read = getattr(self, "read", 0) + amount
            if self.read >= 1024:
                raise KeyboardInterrupt

    with opened(tiny, PromptCacheStore(directory)) as session, pytest.raises(KeyboardInterrupt):
        session.set_prompt(DOCUMENT, Impatient())
    assert cached_tokens(tiny, directory) == 1024


def test_the_longest_common_prefix_is_restored(tiny: Path, directory: Path) -> None:
    other = DOCUMENT[:300] + text_tokens(1400, seed=7)
    with opened(tiny, PromptCacheStore(directory)) as session:
        for prompt in (other, DOCUMENT + QUESTION):
            session.truncate(0)
            session.set_prompt(prompt)
    assert cached_tokens(tiny, directory) == len(DOCUMENT)
    with opened(tiny, PromptCacheStore(directory)) as session:
        assert session.set_prompt(other[:1000] + ANOTHER) == 1000


def test_tokens_that_the_session_has_are_not_loaded_again(
    tiny: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_document(tiny, directory)
    loads: list[str] = []
    with opened(tiny, PromptCacheStore(directory)) as session:
        monkeypatch.setattr(session, "load_state", lambda path, tokens: loads.append(path))
        session.prefill(DOCUMENT[:1470])
        assert session.set_prompt(DOCUMENT + ANOTHER) == 1470  # 30 tokens are computed faster than loaded
        assert loads == []


def test_a_prefix_that_is_computed_faster_than_loaded_is_computed(tiny: Path, directory: Path) -> None:
    with opened(tiny, PromptCacheStore(directory)) as session:
        session.set_prompt(text_tokens(WINDOW))
        session.truncate(0)
        assert session.set_prompt(text_tokens(WINDOW)[:100] + ANOTHER) == 0
        session.truncate(0)
        assert session.set_prompt(text_tokens(WINDOW)[:200] + ANOTHER) == 200


def test_a_prompt_longer_than_the_context_is_ignored(
    tiny: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_document(tiny, directory)
    with opened(tiny, PromptCacheStore(directory), length=1280) as session:
        assert session.set_prompt(DOCUMENT[:1000]) == 0
    assert not caplog.records


# ---- nothing else's state ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "options"),
    [
        (RuntimeRope(factor=2.0), {}),
        (RuntimeRope(theta=50000.0), {}),
        (None, {"cache_k": "f16"}),
        (None, {"cache_v": "f16"}),
    ],
    ids=str,
)
def test_other_positions_and_cache_types_have_states_of_their_own(
    tiny: Path,
    directory: Path,
    rope: RuntimeRope | None,
    options: dict[str, object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    cache_document(tiny, directory)
    assert cached_tokens(tiny, directory, rope, **options) == 0
    assert cached_tokens(tiny, directory) == len(DOCUMENT)
    assert not caplog.records  # the other's state is not tried: llama.cpp would have to reject it


def test_an_override_with_the_files_own_value_shares_its_states(tiny: Path, directory: Path) -> None:
    cache_document(tiny, directory)
    assert cached_tokens(tiny, directory, RuntimeRope(factor=4.0)) == len(DOCUMENT)


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_down.weight"])
def test_a_model_with_one_other_byte_has_states_of_its_own(
    tiny: Path, directory: Path, tmp_path: Path, name: str
) -> None:
    cache_document(tiny, directory)
    tensor = read_header(tiny).tensors[name]
    data = bytearray(tiny.read_bytes())
    data[tensor.offset + tensor.nbytes // 2] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    assert cached_tokens(other, directory) == 0
    assert cached_tokens(tiny, directory) == len(DOCUMENT)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_model_replaced_by_another_of_its_size_is_another(
    directory: Path, tmp_path: Path, in_place: bool
) -> None:
    path = write_model(tmp_path / "model.gguf")
    cache_document(path, directory)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    if not in_place:
        path.unlink()
    path.write_bytes(data)
    assert cached_tokens(path, directory) == 0


def test_the_same_model_elsewhere_shares_its_states(tiny: Path, directory: Path, tmp_path: Path) -> None:
    cache_document(tiny, directory)
    assert cached_tokens(Path(shutil.copy(tiny, tmp_path / "copy.gguf")), directory) == len(DOCUMENT)


@pytest.mark.parametrize(
    ("name", "value"), [("FORMAT", cache_key.FORMAT + 1), ("version", lambda name: "0.3.37")]
)
def test_another_library_or_format_has_states_of_its_own(
    tiny: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    cache_document(tiny, directory)
    with monkeypatch.context() as changed:
        changed.setattr(cache_key, name, value)
        assert cached_tokens(tiny, directory) == 0
    assert cached_tokens(tiny, directory) == len(DOCUMENT)


def test_keys_that_the_library_does_not_rotate_are_other_keys(
    wide: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_document(wide, directory, cache_k="q8_0")
    with monkeypatch.context() as changed:
        changed.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
        assert cached_tokens(wide, directory, cache_k="q8_0") == 0
    assert cached_tokens(wide, directory, cache_k="q8_0") == len(DOCUMENT)


def test_a_model_that_changes_after_it_was_opened_caches_nothing(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A state computed with the old weights must not be used with the new file."""
    path = write_model(tmp_path / "model.gguf")
    with opened(path, PromptCacheStore(directory)) as session:
        replacement = write_tiny(tmp_path / "new.gguf", linear(2.0, WINDOW))
        replacement.replace(path)
        session.set_prompt(DOCUMENT)
        session.set_prompt(DOCUMENT + QUESTION)
    [record] = caplog.records
    assert "was changed after it was opened" in record.message
    assert not directory.exists()


def test_models_with_sliding_layers_are_neither_saved_nor_restored(directory: Path, tmp_path: Path) -> None:
    """llama.cpp saves what their window sees, and a state without the rest cannot be cut back."""
    path = write_tiny(tmp_path / "g.gguf", {"gemma3.context_length": u32(WINDOW)}, model=GEMMA3)
    with opened(path, PromptCacheStore(directory)) as session:
        session.set_prompt(DOCUMENT)
    assert not directory.exists()


# ---- what is cached ----------------------------------------------------------------------------------


def test_only_long_prompts_are_cached_and_a_longer_conversation_replaces_its_prefix(
    tiny: Path, directory: Path
) -> None:
    store = PromptCacheStore(directory)
    long = text_tokens(3000)
    with opened(tiny, store) as session:
        session.set_prompt(long[: MIN_NEW_TOKENS - 1])
        assert store.entries() == []
        session.set_prompt(long[:MIN_NEW_TOKENS])
        [first] = store.entries()
        session.set_prompt(long[: 2 * MIN_NEW_TOKENS - 1])
        assert store.entries() == [first]
        session.set_prompt(long[: 2 * MIN_NEW_TOKENS])
        [second] = store.entries()
        assert (first.tokens, second.tokens) == (MIN_NEW_TOKENS, 2 * MIN_NEW_TOKENS)
        session.set_prompt(long[:500] + text_tokens(1600, seed=5))  # which is not a continuation
        assert {entry.tokens for entry in store.entries()} == {2 * MIN_NEW_TOKENS, 2100}


def test_another_models_document_does_not_count_as_cached(
    tiny: Path, directory: Path, tmp_path: Path
) -> None:
    data = bytearray(tiny.read_bytes())
    data[-5] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    cache_document(tiny, directory)
    cache_document(other, directory)
    assert cached_tokens(tiny, directory) == cached_tokens(other, directory) == len(DOCUMENT)
    assert len(PromptCacheStore(directory).entries()) == 2


def test_only_the_user_can_read_it_and_names_are_random(tiny: Path, directory: Path) -> None:
    before = os.umask(0)
    try:
        cache_document(tiny, directory)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    [file] = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    cache_document(tiny, directory / "again")
    [again] = (directory / "again").iterdir()
    assert again.name.split("-")[0] == file.name.split("-")[0]  # the key of the model and the library
    assert again.name != file.name  # the rest is random


def test_the_least_recently_used_is_evicted(tiny: Path, directory: Path) -> None:
    documents = [text_tokens(1500, seed) for seed in (11, 12, 13, 14)]
    store = PromptCacheStore(directory)
    with opened(tiny, store) as session:
        for age, document in enumerate(documents[:3]):
            session.truncate(0)
            session.set_prompt(document)
            os.utime(store.entries()[0].path, (1000 + age, 1000 + age))  # the one just made
        sizes = [entry.bytes for entry in store.entries()]
        small = PromptCacheStore(directory, budget=sum(sizes) + sizes[0] // 2)

        def is_cached(document: list[int]) -> bool:
            session.truncate(0)
            small.restore(session, document)
            return session.n_past > 0

        assert is_cached(documents[0])  # the oldest, which is used now
        session.truncate(0)
        session.prefill(documents[3])
        small.save(session)
        assert [is_cached(document) for document in documents] == [True, False, True, True]
    assert sum(entry.bytes for entry in store.entries()) <= small.budget()


def test_a_state_larger_than_the_budget_evicts_nothing(
    tiny: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_document(tiny, directory)
    [entry] = PromptCacheStore(directory).entries()
    with opened(tiny, PromptCacheStore(directory, budget=entry.bytes + 1000)) as session:
        for seed in (20, 21):
            session.truncate(0)
            session.set_prompt(text_tokens(3000, seed))
    assert PromptCacheStore(directory).entries() == [entry]
    [record] = caplog.records
    assert "the prompt cache has a budget of" in record.message
    assert "PIGGUF_PROMPT_CACHE_BUDGET" in record.message


def test_the_models_bytes_are_read_once(tiny: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_document(tiny, directory)
    monkeypatch.delattr(cache_key.xxhash, "xxh3_128")  # of states and models; stamps and keys have others
    with opened(tiny, PromptCacheStore(directory)) as session:
        assert PromptCacheStore(directory)._model_hash(session.context.model)


# ---- damage ------------------------------------------------------------------------------------------


def damages(size: int, state_bytes: int) -> list[tuple[str, Callable[[bytes], bytes]]]:
    random = np.random.default_rng(0)
    flips = [*range(24), *range(state_bytes - 8, size), *map(int, random.integers(24, state_bytes, 60))]
    lengths = [0, 1, 11, 20, state_bytes, size - 1, *map(int, random.integers(0, size, 20))]

    def flipped(at: int) -> Callable[[bytes], bytes]:
        bit = 1 << int(random.integers(8))
        return lambda data: data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]

    return [
        *((f"bit at {at}", flipped(at)) for at in flips),
        *((f"cut at {length}", lambda data, length=length: data[:length]) for length in lengths),
        ("longer", lambda data: data + b"\0"),
        ("longer in the middle", lambda data: data[:state_bytes] + b" " + data[state_bytes:]),
        ("a hole", lambda data: data[:9000] + bytes(4096) + data[9000 + 4096 :]),
        ("something else", lambda data: b"hello\n" * 1000),
    ]


def test_a_file_damaged_at_any_byte_is_never_loaded_and_is_removed(
    tiny: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache_document(tiny, directory)
    [entry] = PromptCacheStore(directory).entries()
    data = entry.path.read_bytes()
    prompt = DOCUMENT + ANOTHER
    with opened(tiny, None) as session:
        for what, damage in damages(len(data), entry.state_bytes):
            entry.path.write_bytes(damage(data))
            caplog.clear()
            PromptCacheStore(directory).restore(session, prompt)
            assert session.tokens == [], what
            if what in {f"bit at {at}" for at in range(12, 24)} and not caplog.records:
                continue  # one of the first tokens is another: the common prefix is too short
            [record] = caplog.records
            assert "is removed" in record.message, what
            assert not entry.path.exists(), what
        entry.path.write_bytes(data)
        PromptCacheStore(directory).restore(session, prompt)
        assert session.tokens == DOCUMENT


def test_a_damaged_prompt_is_cached_again(tiny: Path, directory: Path) -> None:
    cache_document(tiny, directory)
    [entry] = PromptCacheStore(directory).entries()
    with entry.path.open("r+b") as file:
        file.seek(entry.state_bytes // 2)
        file.write(b"damage")
    assert cached_tokens(tiny, directory) == 0
    assert cached_tokens(tiny, directory) == len(DOCUMENT + ANOTHER)


def test_a_shorter_prompt_is_restored_if_the_longest_is_damaged(tiny: Path, directory: Path) -> None:
    cache_document(tiny, directory)
    with opened(tiny, PromptCacheStore(directory)) as session:
        session.set_prompt(DOCUMENT[:1400] + text_tokens(1100, seed=4))
    longest, _ = sorted(
        PromptCacheStore(directory).entries(), key=lambda entry: entry.tokens == 1520, reverse=True
    )
    data = bytearray(longest.path.read_bytes())
    data[20000] ^= 1
    longest.path.write_bytes(data)
    assert cached_tokens(tiny, directory) == 1400


def test_paths_that_are_not_regular_files_are_ignored(tiny: Path, directory: Path) -> None:
    cache_document(tiny, directory)
    [entry] = PromptCacheStore(directory).entries()
    prefix = entry.path.name.split("-")[0]
    os.mkfifo(directory / f"{prefix}-00000000.kv")
    (directory / f"{prefix}-00000001.kv").mkdir()
    (directory / f"{prefix}-00000002.kv").symlink_to(directory / "nowhere")
    (directory / "notes.txt").write_text("mine")
    assert cached_tokens(tiny, directory) == len(DOCUMENT)
    assert PromptCacheStore(directory).clear() == 1
    assert len(list(directory.iterdir())) == 4


# ---- where nothing can be cached ---------------------------------------------------------------------


def test_if_the_directory_cannot_be_created_the_chat_goes_on_with_one_warning(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with opened(tiny, None) as session:
        _, expected, _ = answer(session, DOCUMENT + QUESTION)
    with opened(tiny, PromptCacheStore(tmp_path / "file" / "prompt-cache")) as session:
        _, found, _ = answer(session, DOCUMENT + QUESTION)
        session.truncate(0)
        answer(session, DOCUMENT + QUESTION)
    assert found == expected
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "the prompt is not cached" in record.message
    assert "Not a directory" in record.message
