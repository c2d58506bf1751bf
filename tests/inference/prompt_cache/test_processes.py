"""One prompt cache and real processes: concurrent, killed while saving, on a full disk, without a home."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.prompt_cache_helpers import DOCUMENT, QUESTION, answer, opened, write_model

from pigguf.inference.prompt_cache import PromptCacheStore
from pigguf.inference.prompt_cache.state_file import verified

TESTS = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
AS_ROOT = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting and other users need root (Linux)"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def program(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


PREAMBLE = """
import logging, os, signal, sys
logging.basicConfig(format="%(message)s")
from pathlib import Path
from support.tiny_gguf import text_tokens
from support.prompt_cache_helpers import ANOTHER, DOCUMENT, QUESTION, answer, opened
import pigguf.inference.prompt_cache.store
from pigguf.inference.prompt_cache import PromptCacheStore, open_prompt_cache
"""

CROWD = f"""{PREAMBLE}
store = PromptCacheStore(Path(sys.argv[2]), int(sys.argv[3]))
documents = [text_tokens(1200, seed) for seed in range(4)]
restored = 0
for number in map(int, sys.argv[4]):
    with opened(Path(sys.argv[1]), store, threads=1) as session:
        cached, tokens, _ = answer(session, documents[number] + QUESTION, 4)
        restored += cached > 0
        print(*tokens)
print(restored)
"""


def test_concurrent_processes_evict_each_others_prompts_and_answer_as_if_alone(
    tiny: Path, tmp_path: Path
) -> None:
    from support.tiny_gguf import text_tokens

    directory = tmp_path / "prompt-cache"
    with opened(tiny, PromptCacheStore(directory)) as session:
        session.set_prompt(DOCUMENT)
    [entry] = PromptCacheStore(directory).entries()
    budget = 3 * entry.bytes  # of four documents, so that there is always one to evict
    orders = ["012301132032103321002311", "321003210213230011302213", "130220311032210033120123"]
    crowd = [
        subprocess.Popen(
            program(CROWD, tiny, directory, budget, order),
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in orders
    ]
    outputs = [process.communicate(timeout=300) for process in crowd]
    assert [process.returncode for process in crowd] == [0, 0, 0], outputs
    assert [errors for _, errors in outputs] == ["", "", ""]
    expected = []
    for document in (text_tokens(1200, seed) for seed in range(4)):
        with opened(tiny, None, threads=1) as session:
            session.prefill(document)
            expected.append(answer(session, document + QUESTION, 4)[1])
    for order, (output, _) in zip(orders, outputs, strict=True):
        *answers, restored = output.splitlines()
        assert int(restored) > 0
        assert [list(map(int, line.split())) for line in answers] == [expected[int(n)] for n in order]
    assert all(path.suffix == ".kv" for path in directory.iterdir())
    for entry in PromptCacheStore(directory).entries():
        with verified(entry):
            pass


def test_a_prompt_evicted_while_it_is_loaded_is_loaded_to_its_end(tiny: Path, tmp_path: Path) -> None:
    store = PromptCacheStore(tmp_path)
    with opened(tiny, store) as session:
        session.set_prompt(DOCUMENT)
        [entry] = store.entries()
        with verified(entry) as path:
            PromptCacheStore(tmp_path).remove([entry])
            session.load_state(str(path), DOCUMENT)
        assert session.tokens == DOCUMENT
        session.truncate(0)
        store.restore(session, DOCUMENT)
        assert session.tokens == []


KILLED = f"""{PREAMBLE}
store = PromptCacheStore(Path(sys.argv[2]))
with opened(Path(sys.argv[1]), None) as session:
    session.set_prompt(text_tokens(4000))
    print("saving", flush=True)
    while True:
        store.save(session)
        store.clear()
"""


def test_sigkill_at_any_moment_leaves_no_state_that_is_loaded_partially(tiny: Path, tmp_path: Path) -> None:
    partial = 0
    for moment in range(8):
        process = subprocess.Popen(
            program(KILLED, tiny, tmp_path), env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "saving\n"
        time.sleep(0.05 + 0.013 * moment)
        process.kill()
        process.communicate()
        partial += any(path.suffix == ".partial" for path in tmp_path.iterdir())
        for entry in PromptCacheStore(tmp_path).entries():
            with verified(entry):
                pass
    assert partial
    with opened(tiny, PromptCacheStore(tmp_path)) as session:
        session.set_prompt(DOCUMENT)
    assert all(path.suffix == ".kv" for path in tmp_path.iterdir())  # the next one cleans up


def test_the_partial_file_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(
    tiny: Path, tmp_path: Path
) -> None:
    code = (
        f"{PREAMBLE}\n"
        "pigguf.inference.prompt_cache.store.finalize = (\n"
        "    lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))\n"
        "with opened(Path(sys.argv[1]), PromptCacheStore(Path(sys.argv[2]))) as session:\n"
        "    session.set_prompt(DOCUMENT)\n"
    )
    died = subprocess.run(program(code, tiny, tmp_path), env=ENVIRONMENT, check=False)
    assert died.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.suffix == ".partial"
    assert left.stat().st_size > 500_000
    with (
        PromptCacheStore(tmp_path)._partial_file() as living,
        opened(tiny, PromptCacheStore(tmp_path)) as session,
    ):
        session.set_prompt(DOCUMENT)
        assert living.exists()
        assert not left.exists()
    assert [path.suffix for path in tmp_path.iterdir()] == [".kv"]


FULL = f"""{PREAMBLE}
disk = Path(sys.argv[2])
before = sorted(os.listdir(disk))
with opened(Path(sys.argv[1]), PromptCacheStore(disk / "prompt-cache", 10**9)) as session:
    tokens = answer(session, DOCUMENT + QUESTION)[1]
print(*tokens)
print(sorted(path.name for path in disk.rglob("*")))
(disk / "ballast").unlink()
with opened(Path(sys.argv[1]), PromptCacheStore(disk / "prompt-cache", 10**9)) as session:
    session.set_prompt(DOCUMENT + QUESTION)
with opened(Path(sys.argv[1]), PromptCacheStore(disk / "prompt-cache", 10**9)) as session:
    print(session.set_prompt(DOCUMENT + ANOTHER))
"""


@AS_ROOT
@pytest.mark.parametrize("free", [0, 4096, 500_000, "all but the end"])
def test_a_full_disk_is_a_warning_and_leaves_no_file(tiny: Path, tmp_path: Path, free: int | str) -> None:
    with opened(tiny, PromptCacheStore(tmp_path / "measured")) as session:
        _, expected, _ = answer(session, DOCUMENT + QUESTION)
    [entry] = PromptCacheStore(tmp_path / "measured").entries()
    if isinstance(free, str):
        free = entry.state_bytes // 4096 * 4096
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 3 * (1 << 20)
    steps = (
        f'mount -t tmpfs -o size={size} none "$2" && head -c {size - free} /dev/zero > "$2/ballast"; '
        'exec "$0" -c "$1" "$3" "$2"'
    )
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", steps, sys.executable, FULL, str(disk), str(tiny)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    tokens, left, cached = ran.stdout.splitlines()
    assert list(map(int, tokens.split())) == expected
    assert left in ("['ballast', 'prompt-cache']", "['ballast']")
    assert "the prompt is not cached" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert int(cached) == len(DOCUMENT)


READ_ONLY = f"""{PREAMBLE}
with opened(Path(sys.argv[1]), PromptCacheStore(Path(sys.argv[2]))) as session:
    print(session.set_prompt(DOCUMENT + ANOTHER))
    session.truncate(0)
    print(session.set_prompt(text_tokens(1500, 8)))
"""


@AS_ROOT
def test_a_read_only_prompt_cache_is_used(tiny: Path, tmp_path: Path) -> None:
    with opened(tiny, PromptCacheStore(tmp_path)) as session:
        session.set_prompt(DOCUMENT + QUESTION)
    steps = 'mount --bind -o ro "$2" "$2" && mount -o remount,bind,ro "$2"; exec "$0" -c "$1" "$3" "$2"'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", steps, sys.executable, READ_ONLY, str(tmp_path), str(tiny)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == [str(len(DOCUMENT)), "0"]
    assert "Read-only file system" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@AS_ROOT
def test_without_a_home_there_is_a_warning_and_no_prompt_cache() -> None:
    # Everything is imported before the user changes, because the new one may not be able to read the files
    code = f"{PREAMBLE}\nos.setuid(54321)\nprint(open_prompt_cache())"
    environment = {
        name: value for name, value in ENVIRONMENT.items() if name not in ("HOME", "XDG_CACHE_HOME")
    }
    ran = subprocess.run(
        program(code),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "None\n"
    assert "prompts are not cached" in ran.stderr
    assert "XDG_CACHE_HOME" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_real_model_answers_from_a_cached_document_as_after_prefill(
    smollm2_gguf: Path, novel: str, tmp_path: Path
) -> None:
    options = {"length": 8192, "cache_k": "f16", "cache_v": "f16"}
    with opened(smollm2_gguf, PromptCacheStore(tmp_path), **options) as session:
        model = session.context.model
        document = model.tokenize(novel)[:6000]
        questions = [model.tokenize(text, add_special=False) for text in ("\n\nWho is it?", "\n\nWhere?")]
        start = time.monotonic()
        session.set_prompt(document + questions[0])
        cold = time.monotonic() - start
        _, expected, _ = answer(session, document + questions[1], 32)
    with opened(smollm2_gguf, PromptCacheStore(tmp_path), **options) as session:
        start = time.monotonic()
        cached, found, _ = answer(session, document + questions[1], 1)
        warm = time.monotonic() - start
        assert cached >= len(document)
        session.set_prompt(document + questions[1])
        assert list(answer(session, document + questions[1], 32)[1]) == expected
        assert found == expected[:1]
    assert warm < cold / 10
