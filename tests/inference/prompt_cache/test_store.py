"""Sessions kept on disk: the same answers as plain decoding, and never a state of anything else."""

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
from pigguf.inference.prompt_cache.store import WORTH_KEEPING

LLAMA = next(model for model in WIDE_GRAPHS.values() if model.architecture == "llama")
GEMMA3 = next(model for model in GRAPHS.values() if model.architecture == "gemma3")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 64, which a quantized cache takes, and rotates."""
    path = tmp_path_factory.mktemp("model") / "wide.gguf"
    return write_tiny(path, {"llama.context_length": u32(WINDOW)}, model=LLAMA)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "sessions"


def read_document(path: Path, directory: Path, **options: object) -> None:
    """Another process asked a question about the document."""
    with opened(path, PromptCacheStore(directory), **options) as session:
        assert session.set_prompt(DOCUMENT + QUESTION) == 0


def recalled(path: Path, directory: Path, rope: RuntimeRope | None = None, **options: object) -> int:
    """How many tokens of another question about the document are there."""
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
        there, expected, logits = answer(session, DOCUMENT + ANOTHER)
        assert there == len(DOCUMENT)
    with opened(wide, PromptCacheStore(directory), **options) as session:
        there, found, restored = answer(session, DOCUMENT + ANOTHER)
    assert there == len(DOCUMENT)
    assert found == expected
    np.testing.assert_array_equal(restored, logits)


FORMS = (
    {"flash_attention": True},
    {"flash_attention": False},
    {"flash_attention": True, "sequences": 3},
    {"flash_attention": False, "sequences": 2},
    {"handoff": FlashAttentionSwitch(decode=1, prefill=None, prompt=1), "cache_k": "f32", "cache_v": "f32"},
)


@pytest.mark.parametrize("later", FORMS, ids=str)
@pytest.mark.parametrize("before", FORMS, ids=str)
def test_a_state_serves_every_layout_of_the_cache(
    tiny: Path, directory: Path, before: dict[str, object], later: dict[str, object]
) -> None:
    with opened(tiny, None, **later) as session:
        session.prefill(DOCUMENT)
        _, expected, logits = answer(session, DOCUMENT + ANOTHER)
    read_document(tiny, directory, **before)
    with opened(tiny, PromptCacheStore(directory), **later) as session:
        there, found, restored = answer(session, DOCUMENT + ANOTHER)
    assert there == len(DOCUMENT)
    assert found == expected
    np.testing.assert_allclose(restored, logits, atol=1e-2 * logits.std())  # as flash attention rounds


def test_the_same_question_again_is_there_whole(tiny: Path, directory: Path) -> None:
    with opened(tiny, PromptCacheStore(directory)) as session:
        _, expected, _ = answer(session, DOCUMENT + QUESTION)
    with opened(tiny, PromptCacheStore(directory)) as session:
        there, found, _ = answer(session, DOCUMENT + QUESTION)
    assert there == len(DOCUMENT + QUESTION)
    assert found == expected


def test_what_was_read_before_ctrl_c_is_kept(tiny: Path, directory: Path) -> None:
    from pigguf.progress import Silent

    class Impatient(Silent):
        def advance(self, amount: float) -> None:
            self.read = getattr(self, "read", 0) + amount
            if self.read >= 1024:
                raise KeyboardInterrupt

    with opened(tiny, PromptCacheStore(directory)) as session, pytest.raises(KeyboardInterrupt):
        session.set_prompt(DOCUMENT, Impatient())
    assert recalled(tiny, directory) == 1024


def test_the_longest_common_beginning_is_taken(tiny: Path, directory: Path) -> None:
    other = DOCUMENT[:300] + text_tokens(1400, seed=7)
    with opened(tiny, PromptCacheStore(directory)) as session:
        for prompt in (other, DOCUMENT + QUESTION):
            session.truncate(0)
            session.set_prompt(prompt)
    assert recalled(tiny, directory) == len(DOCUMENT)
    with opened(tiny, PromptCacheStore(directory)) as session:
        assert session.set_prompt(other[:1000] + ANOTHER) == 1000


def test_what_the_session_holds_is_not_loaded_again(
    tiny: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_document(tiny, directory)
    loads: list[str] = []
    with opened(tiny, PromptCacheStore(directory)) as session:
        monkeypatch.setattr(session, "load_state", lambda path, tokens: loads.append(path))
        session.prefill(DOCUMENT[:1470])
        assert session.set_prompt(DOCUMENT + ANOTHER) == 1470  # 30 tokens are computed sooner than loaded
        assert loads == []


def test_a_beginning_that_is_sooner_computed_than_loaded_is_computed(tiny: Path, directory: Path) -> None:
    with opened(tiny, PromptCacheStore(directory)) as session:
        session.set_prompt(text_tokens(WINDOW))
        session.truncate(0)
        assert session.set_prompt(text_tokens(WINDOW)[:100] + ANOTHER) == 0
        session.truncate(0)
        assert session.set_prompt(text_tokens(WINDOW)[:200] + ANOTHER) == 200


def test_a_session_longer_than_the_window_is_passed_over(
    tiny: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_document(tiny, directory)
    with opened(tiny, PromptCacheStore(directory), length=1280) as session:
        assert session.set_prompt(DOCUMENT[:1000]) == 0
    assert not caplog.records


# ---- nothing else's state ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rope", "options"),
    [
        (RuntimeRope(factor=2.0), {}),
        (RuntimeRope(base=50000.0), {}),
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
    read_document(tiny, directory)
    assert recalled(tiny, directory, rope, **options) == 0
    assert recalled(tiny, directory) == len(DOCUMENT)
    assert not caplog.records  # the other's state is no candidate, which llama.cpp would have to refuse


def test_an_override_that_says_what_the_file_says_shares_its_states(tiny: Path, directory: Path) -> None:
    read_document(tiny, directory)
    assert recalled(tiny, directory, RuntimeRope(factor=4.0)) == len(DOCUMENT)


@pytest.mark.parametrize("name", ["token_embd.weight", "blk.1.ffn_down.weight"])
def test_a_model_with_one_other_byte_has_states_of_its_own(
    tiny: Path, directory: Path, tmp_path: Path, name: str
) -> None:
    read_document(tiny, directory)
    tensor = read_header(tiny).tensors[name]
    data = bytearray(tiny.read_bytes())
    data[tensor.offset + tensor.nbytes // 2] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    assert recalled(other, directory) == 0
    assert recalled(tiny, directory) == len(DOCUMENT)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_model_that_another_of_its_size_took_the_place_of_is_another(
    directory: Path, tmp_path: Path, in_place: bool
) -> None:
    path = write_model(tmp_path / "model.gguf")
    read_document(path, directory)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    if not in_place:
        path.unlink()
    path.write_bytes(data)
    assert recalled(path, directory) == 0


def test_the_same_model_elsewhere_shares_its_states(tiny: Path, directory: Path, tmp_path: Path) -> None:
    read_document(tiny, directory)
    assert recalled(Path(shutil.copy(tiny, tmp_path / "copy.gguf")), directory) == len(DOCUMENT)


@pytest.mark.parametrize(
    ("name", "value"), [("FORMAT", cache_key.FORMAT + 1), ("version", lambda name: "0.3.37")]
)
def test_another_library_or_format_has_states_of_its_own(
    tiny: Path, directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    read_document(tiny, directory)
    with monkeypatch.context() as changed:
        changed.setattr(cache_key, name, value)
        assert recalled(tiny, directory) == 0
    assert recalled(tiny, directory) == len(DOCUMENT)


def test_keys_that_the_library_does_not_rotate_are_other_keys(
    wide: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_document(wide, directory, cache_k="q8_0")
    with monkeypatch.context() as changed:
        changed.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
        assert recalled(wide, directory, cache_k="q8_0") == 0
    assert recalled(wide, directory, cache_k="q8_0") == len(DOCUMENT)


def test_a_model_that_changes_after_it_was_opened_keeps_nothing(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is computed with the old weights must not be taken for the new file's."""
    path = write_model(tmp_path / "model.gguf")
    with opened(path, PromptCacheStore(directory)) as session:
        replacement = write_tiny(tmp_path / "new.gguf", linear(2.0, WINDOW))
        replacement.replace(path)
        session.set_prompt(DOCUMENT)
        session.set_prompt(DOCUMENT + QUESTION)
    [told] = caplog.records
    assert "was changed after it was opened" in told.message
    assert not directory.exists()


def test_sliding_layers_are_neither_kept_nor_recalled(directory: Path, tmp_path: Path) -> None:
    """llama.cpp saves what their window sees, and a state without the rest cannot be cut back."""
    path = write_tiny(tmp_path / "g.gguf", {"gemma3.context_length": u32(WINDOW)}, model=GEMMA3)
    with opened(path, PromptCacheStore(directory)) as session:
        session.set_prompt(DOCUMENT)
    assert not directory.exists()


# ---- what is kept ------------------------------------------------------------------------------------


def test_only_long_reading_is_kept_and_a_grown_conversation_replaces_itself(
    tiny: Path, directory: Path
) -> None:
    store = PromptCacheStore(directory)
    long = text_tokens(3000)
    with opened(tiny, store) as session:
        session.set_prompt(long[: WORTH_KEEPING - 1])
        assert store.kept() == []
        session.set_prompt(long[:WORTH_KEEPING])
        [first] = store.kept()
        session.set_prompt(long[: 2 * WORTH_KEEPING - 1])
        assert store.kept() == [first]
        session.set_prompt(long[: 2 * WORTH_KEEPING])
        [second] = store.kept()
        assert (first.tokens, second.tokens) == (WORTH_KEEPING, 2 * WORTH_KEEPING)
        session.set_prompt(long[:500] + text_tokens(1600, seed=5))  # which is no continuation
        assert {kept.tokens for kept in store.kept()} == {2 * WORTH_KEEPING, 2100}


def test_another_models_document_is_not_taken_for_kept(tiny: Path, directory: Path, tmp_path: Path) -> None:
    data = bytearray(tiny.read_bytes())
    data[-5] ^= 1
    other = tmp_path / "other.gguf"
    other.write_bytes(data)
    read_document(tiny, directory)
    read_document(other, directory)
    assert recalled(tiny, directory) == recalled(other, directory) == len(DOCUMENT)
    assert len(PromptCacheStore(directory).kept()) == 2


def test_nobody_else_can_read_it_and_no_name_tells_of_it(tiny: Path, directory: Path) -> None:
    before = os.umask(0)
    try:
        read_document(tiny, directory)
    finally:
        os.umask(before)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    [file] = directory.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    read_document(tiny, directory / "again")
    [again] = (directory / "again").iterdir()
    assert again.name.split("-")[0] == file.name.split("-")[0]  # which is of the model and the library
    assert again.name != file.name  # and the rest by chance


def test_what_was_not_used_for_longest_makes_room(tiny: Path, directory: Path) -> None:
    documents = [text_tokens(1500, seed) for seed in (11, 12, 13, 14)]
    store = PromptCacheStore(directory)
    with opened(tiny, store) as session:
        for age, document in enumerate(documents[:3]):
            session.truncate(0)
            session.set_prompt(document)
            os.utime(store.kept()[0].path, (1000 + age, 1000 + age))  # the one just made
        sizes = [kept.bytes for kept in store.kept()]
        small = PromptCacheStore(directory, budget=sum(sizes) + sizes[0] // 2)

        def there(document: list[int]) -> bool:
            session.truncate(0)
            small.restore(session, document)
            return session.n_past > 0

        assert there(documents[0])  # the oldest, which is used now
        session.truncate(0)
        session.prefill(documents[3])
        small.save(session)
        assert [there(document) for document in documents] == [True, False, True, True]
    assert sum(kept.bytes for kept in store.kept()) <= small.budget()


def test_a_state_larger_than_the_budget_costs_the_others_nothing(
    tiny: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_document(tiny, directory)
    [kept] = PromptCacheStore(directory).kept()
    with opened(tiny, PromptCacheStore(directory, budget=kept.bytes + 1000)) as session:
        for seed in (20, 21):
            session.truncate(0)
            session.set_prompt(text_tokens(3000, seed))
    assert PromptCacheStore(directory).kept() == [kept]
    [told] = caplog.records
    assert "kept sessions may take" in told.message
    assert "PIGGUF_SESSIONS_BUDGET" in told.message


def test_the_models_bytes_are_read_once(tiny: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_document(tiny, directory)
    monkeypatch.delattr(cache_key.xxhash, "xxh3_128")  # of states and models; stamps and keys have others
    with opened(tiny, PromptCacheStore(directory)) as session:
        assert PromptCacheStore(directory)._hash(session.context.model)


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


def test_what_is_damaged_at_any_byte_is_never_loaded_and_goes(
    tiny: Path, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    read_document(tiny, directory)
    [kept] = PromptCacheStore(directory).kept()
    data = kept.path.read_bytes()
    prompt = DOCUMENT + ANOTHER
    with opened(tiny, None) as session:
        for what, damage in damages(len(data), kept.state_bytes):
            kept.path.write_bytes(damage(data))
            caplog.clear()
            PromptCacheStore(directory).restore(session, prompt)
            assert session.tokens == [], what
            if what in {f"bit at {at}" for at in range(12, 24)} and not caplog.records:
                continue  # one of the first tokens is another: too little is common to be looked at
            [told] = caplog.records
            assert "is removed" in told.message, what
            assert not kept.path.exists(), what
        kept.path.write_bytes(data)
        PromptCacheStore(directory).restore(session, prompt)
        assert session.tokens == DOCUMENT


def test_a_damaged_session_is_kept_anew(tiny: Path, directory: Path) -> None:
    read_document(tiny, directory)
    [kept] = PromptCacheStore(directory).kept()
    with kept.path.open("r+b") as file:
        file.seek(kept.state_bytes // 2)
        file.write(b"damage")
    assert recalled(tiny, directory) == 0
    assert recalled(tiny, directory) == len(DOCUMENT + ANOTHER)


def test_a_shorter_session_serves_where_the_longest_is_damaged(tiny: Path, directory: Path) -> None:
    read_document(tiny, directory)
    with opened(tiny, PromptCacheStore(directory)) as session:
        session.set_prompt(DOCUMENT[:1400] + text_tokens(1100, seed=4))
    longest, _ = sorted(
        PromptCacheStore(directory).kept(), key=lambda kept: kept.tokens == 1520, reverse=True
    )
    data = bytearray(longest.path.read_bytes())
    data[20000] ^= 1
    longest.path.write_bytes(data)
    assert recalled(tiny, directory) == 1400


def test_what_is_no_plain_file_is_let_be(tiny: Path, directory: Path) -> None:
    read_document(tiny, directory)
    [kept] = PromptCacheStore(directory).kept()
    prefix = kept.path.name.split("-")[0]
    os.mkfifo(directory / f"{prefix}-00000000.kv")
    (directory / f"{prefix}-00000001.kv").mkdir()
    (directory / f"{prefix}-00000002.kv").symlink_to(directory / "nowhere")
    (directory / "notes.txt").write_text("mine")
    assert recalled(tiny, directory) == len(DOCUMENT)
    assert PromptCacheStore(directory).clear() == 1
    assert len(list(directory.iterdir())) == 4


# ---- where nothing can be kept -----------------------------------------------------------------------


def test_where_the_directory_cannot_be_made_the_chat_goes_on_with_one_warning(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with opened(tiny, None) as session:
        _, expected, _ = answer(session, DOCUMENT + QUESTION)
    with opened(tiny, PromptCacheStore(tmp_path / "file" / "sessions")) as session:
        _, found, _ = answer(session, DOCUMENT + QUESTION)
        session.truncate(0)
        answer(session, DOCUMENT + QUESTION)
    assert found == expected
    [told] = caplog.records
    assert told.levelno == logging.WARNING
    assert "is not kept for the next time" in told.message
    assert "Not a directory" in told.message
