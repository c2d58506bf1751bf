"""`pigguf chat` as users run it: on a real terminal and in pipes, with the real model."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from pathlib import Path

import jsonschema
import pexpect
import pytest
from support.command_line import CommandResult

from pigguf.inference.memory_planning import free_memory

TIMEOUT = 180  # seconds; the machine may be busy
READY = re.escape("\x1b[?2004h")  # what prompt_toolkit prints when it waits for a line
CONTROLS = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]|\x08|\r")


# ---- one question ------------------------------------------------------------------------------------


def chat(model: Path, *arguments: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    data = stdin.encode() if isinstance(stdin, str) else stdin
    result = subprocess.run(
        [sys.executable, "-m", "pigguf", "chat", str(model), *arguments],
        input=data,
        capture_output=True,
        timeout=TIMEOUT,
    )
    return subprocess.CompletedProcess(
        result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
    )


GREEDY = ("--temperature", "0", "--max-tokens", "16")
BRIEF = ("--system", "You answer in a few words.", *GREEDY)


def test_one_question_prints_the_answer_alone(smollm2_gguf: Path) -> None:
    result = chat(smollm2_gguf, *BRIEF, "-p", "What is the capital of France?")
    assert result.returncode == 0, result.stderr
    assert "Paris" in result.stdout
    assert result.stdout.endswith("\n")
    assert "\x1b" not in result.stdout + result.stderr
    lines = result.stderr.splitlines()
    assert re.fullmatch(
        r"prefill: \d+ tokens in [\d.]+ s \([\d,]+ tokens/s\), first token after [\d.]+ s; "
        r"generated: \d+ tokens in [\d.]+ s \([\d.]+ tokens/s\)",
        lines[-1],
    )


def test_a_piped_question_is_the_same_question(smollm2_gguf: Path) -> None:
    question = "What is the capital of France?"
    asked = chat(smollm2_gguf, *BRIEF, "-p", question)
    piped = chat(smollm2_gguf, *BRIEF, stdin=f"{question}\n")
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == asked.stdout


def test_with_a_question_stdin_is_a_document(smollm2_gguf: Path, tmp_path: Path) -> None:
    text = "The pig is called Rosalind. She lives in the garden."
    (tmp_path / "stdin").write_text(text)
    piped = chat(smollm2_gguf, *GREEDY, "-p", "What is the pig called?", stdin=text)
    assert "Rosalind" in piped.stdout, piped.stderr
    filed = chat(smollm2_gguf, *GREEDY, "-p", "What is the pig called?", "--file", str(tmp_path / "stdin"))
    assert filed.stdout == piped.stdout


def test_json_is_for_programs(smollm2_gguf: Path) -> None:
    result = chat(smollm2_gguf, "-p", "Write a story.", "--max-tokens", "5", "--json", "--ctx", "1024")
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    assert data["answer"]
    assert data["finish_reason"] == "length"
    assert data["tokens"]["answer"] == 5
    assert data["tokens"]["context_length"] == 1024
    assert data["tokens"]["prompt"] > 20
    assert all(value > 0 for value in data["timings"].values())


def test_a_seed_repeats_an_answer(smollm2_gguf: Path) -> None:
    def answer(seed: str) -> str:
        arguments = ("-p", "Tell me a story.", "--temperature", "1.5", "--max-tokens", "12", "--threads", "1")
        return chat(smollm2_gguf, *arguments, "--seed", seed).stdout

    assert answer("7") == answer("7") != answer("8")


def test_an_open_stdin_gets_a_note(smollm2_gguf: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "pigguf", "chat", str(smollm2_gguf), "-p", "Hi", *GREEDY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    assert b"Waiting for the end of stdin" in child.stderr.readline()
    answer, _ = child.communicate(timeout=TIMEOUT)
    assert answer.strip()
    assert child.returncode == 0


def test_the_engine_is_silent_unless_asked(smollm2_gguf: Path) -> None:
    arguments = ("-p", "Hi", "--max-tokens", "1", "--ctx", "256")
    assert len(chat(smollm2_gguf, *arguments).stderr.splitlines()) <= 2
    assert "llama_model_loader" in chat(smollm2_gguf, *arguments, "-v").stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["-p", " "], "", 2, "the question given with -p is empty"),
        ([], "", 2, "no question given: stdin is not a terminal and is empty"),
        (["-p", "x", "--file", "missing.txt"], "", 2, "'missing.txt' does not exist"),
        (["-p", "x"], b"\xff\xfe\x00", 2, "stdin is not UTF-8 text"),
        (["-p", "x", "--gpu-layers", "some"], "", 2, "'some' is not a number of layers, 'all' or 'auto'"),
        (["-p", "x", "--top-p", "2"], "", 2, "top_p is 2.0"),
        (["-p", "x", "--json-schema", '{"not": true}'], "", 2, "the JSON schema, #/not: a grammar cannot"),
        (["-p", "x", "--json-schema", "missing.json"], "", 2, "missing.json: No such file"),
        (["-p", "x", "--examples", "missing.jsonl"], "", 2, "missing.jsonl: No such file"),
        (["-p", "x", "--overflow", "forget"], "", 2, "'forget' is not one of"),
        (["-p", "x", "--ctx", "9000"], "", 10, "9,000 tokens is longer than the 8,192"),
    ],
)
def test_refusals(
    smollm2_gguf: Path, arguments: list[str], stdin: str | bytes, code: int, message: str
) -> None:
    result = chat(smollm2_gguf, *arguments, stdin=stdin)
    assert result.returncode == code, result.stderr
    first = result.stderr.splitlines()[0]
    assert first.startswith("error: ")
    assert message in first
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_prompt_that_does_not_fit_is_refused_with_counts(smollm2_gguf: Path) -> None:
    result = chat(smollm2_gguf, "--ctx", "256", "-p", "word " * 400)
    assert result.returncode == 10
    assert re.match(
        r"error: the message is 4\d\d tokens, 2\d\d more than fit: the context window is 256", result.stderr
    )
    assert result.stdout == ""


CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 30},
        "millions": {"type": "number", "minimum": 0, "maximum": 50},
    },
    "required": ["city", "millions"],
}


@pytest.mark.parametrize("temperature", ["0", "1.2"])
def test_an_answer_is_valid_for_its_schema(smollm2_gguf: Path, tmp_path: Path, temperature: str) -> None:
    path = tmp_path / "city.json"
    path.write_text(json.dumps(CITY))
    for schema in (str(path), json.dumps({"type": "array", "items": CITY, "minItems": 2, "maxItems": 2})):
        arguments = ("--ctx", "512", "--temperature", temperature, "-p", "Name cities and their size.")
        result = chat(smollm2_gguf, *arguments, "--json-schema", schema)
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        jsonschema.validate(answer if schema != str(path) else [answer, answer], LIST_OF_CITIES)


LIST_OF_CITIES = {"type": "array", "items": CITY, "minItems": 2, "maxItems": 2}


def test_few_shot_examples_change_the_answer(smollm2_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text(
        "".join(json.dumps({"user": f"{n} pigs", "assistant": f"<{n}>"}) + "\n" for n in range(10, 90))
    )
    question = ("--examples", str(path), "-p", "97 pigs", *GREEDY)
    result = chat(smollm2_gguf, "--ctx", "2048", *question)
    assert result.stdout == "<97>\n", result.stderr
    assert "80 examples" in result.stderr
    result = chat(smollm2_gguf, "--ctx", "512", *question)
    assert re.search(r"warning: [12]\d of 80 examples go before the question", result.stderr)


@pytest.mark.parametrize("name", ["cut.gguf", "text.gguf", "missing.gguf"])
def test_a_bad_model_is_refused(smollm2_gguf: Path, tmp_path: Path, name: str) -> None:
    with smollm2_gguf.open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(3_000_000))
    (tmp_path / "text.gguf").write_text("This is not a model, only some text." * 10)
    result = chat(tmp_path / name, "-p", "Hello")
    assert result.returncode == 7, result.stderr
    assert result.stderr.startswith("error: ")
    assert name in result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_rope_override_permits_a_longer_window(smollm2_gguf: Path) -> None:
    arguments = ("-p", "Hi", "--max-tokens", "2", "--json", "--ctx", "9000")
    result = chat(smollm2_gguf, *arguments, "--rope-factor", "2")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["tokens"]["context_length"] == 9000


@pytest.mark.parametrize(
    ("free", "options", "noted"),
    [(16 << 30, (), False), (500 << 20, (), True), (500 << 20, ("--ctx", "1024"), False)],
)
def test_a_context_reduced_by_the_memory_gets_a_note(
    smollm2_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., CommandResult],
    free: int,
    options: tuple[str, ...],
    noted: bool,
) -> None:
    monkeypatch.setattr(free_memory, "available_memory", lambda: free)
    monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO()))
    result = run("chat", smollm2_gguf, "-p", "Hi", "--max-tokens", "2", "--json", *options)
    assert result.returncode == 0, result.stderr
    window = json.loads(result.stdout)["tokens"]["context_length"]
    assert (f"Using a context of {window:,} of the model's 8,192 tokens" in result.stderr) is noted
    assert (window < 8192) is (noted or bool(options))


# ---- a terminal --------------------------------------------------------------------------------------


class Terminal:
    """A chat on a pseudo-terminal, with lines typed into it."""

    def __init__(self, model: Path, home: Path, *arguments: str) -> None:
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "PROMPT_TOOLKIT_NO_CPR": "1",  # no terminal answers queries for the cursor position
            "XDG_STATE_HOME": str(home),
        }
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "pigguf", "chat", str(model), *arguments],
            env=environment,
            encoding="utf-8",
            dimensions=(40, 200),
            timeout=TIMEOUT,
        )
        self.child.expect(READY)
        self.banner = self.plain()

    def plain(self) -> str:
        """Return the output since the last prompt, as text."""
        return CONTROLS.sub("", self.child.before)

    def line(self, text: str) -> str:
        """Type a line, and return the output until the next prompt."""
        self.child.sendline(text)
        self.child.expect(READY)
        return self.plain()

    def leave(self) -> int:
        self.child.sendeof()
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(self.child.exitstatus)


@pytest.fixture
def terminal(smollm2_gguf: Path, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(smollm2_gguf, tmp_path / "state", *BRIEF, "--ctx", "512")
    yield terminal
    terminal.child.close(force=True)


def test_a_conversation(terminal: Terminal, tmp_path: Path) -> None:
    assert "a context window of 512 tokens" in terminal.banner
    assert "/help" in terminal.banner
    assert "Paris" in terminal.line("What is the capital of France?")
    assert terminal.line("And of Italy?")

    window = terminal.line("/ctx")
    total = int(re.search(r"([\d,]+) of 512 tokens", window)[1])  # type: ignore[index]
    shares = [int(n) for n in re.findall(r"^ +(\d+)  \w+", window, re.MULTILINE)]
    assert len(shares) == 6, "system, two questions, two answers, template"
    assert sum(shares) == total

    path = tmp_path / "chat.json"
    assert "Saved" in terminal.line(f"/save {path}")
    saved = json.loads(path.read_text())["messages"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant", "user", "assistant"]
    assert saved[3]["content"] == "And of Italy?"

    assert "was cleared" in terminal.line("/clear")
    assert "user" not in terminal.line("/ctx")
    assert terminal.leave() == 0


def test_commands_that_fail_keep_the_chat(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("precious")
    for line, message in (
        ("/nonsense", "error: there is no command /nonsense"),
        ("/file", "error: /file needs the path"),
        (f"/file {tmp_path}/missing.txt", "No such file or directory"),
        (f"/file {sys.executable}", "error: "),
        (f"/save {tmp_path}/there.json", "already exists"),
        ("/save /nowhere/chat.json", "error: "),
        ("word " * 600, "fit: the context window is 512"),
    ):
        assert message in terminal.line(line), line
    assert (tmp_path / "there.json").read_text() == "precious"
    for name in ("/file", "/ctx", "/clear", "/save", "/help", "/exit"):
        assert f"  {name} " in terminal.line("/help")
    assert "Paris" in terminal.line("What is the capital of France?")


def test_a_document_is_attached_with_completion(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "a garden.txt").write_text("The pig is called Rosalind. She lives in the garden.")
    terminal.child.send("/fi\t")
    terminal.child.expect_exact("le")
    terminal.child.send(f"{tmp_path}/a\t")
    terminal.child.expect_exact("garden.txt")
    terminal.child.sendline("")
    terminal.child.expect(READY)
    assert re.search(r"a garden\.txt: \d+ tokens, attached to your next message", terminal.plain())
    assert "attached to your next message" in terminal.line("/ctx")
    assert "Rosalind" in terminal.line("What is the pig called?")
    assert "attached" not in terminal.line("/ctx")


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(smollm2_gguf: Path, tmp_path: Path) -> None:
    terminal = Terminal(smollm2_gguf, tmp_path, "--temperature", "0", "--ctx", "4096")
    terminal.child.sendline("Write a very long story about a pig and a wolf.")
    terminal.child.expect("Once upon a time.*,")
    terminal.child.sendintr()
    terminal.child.expect_exact("(stopped)")
    terminal.child.expect(READY)
    terminal.line(f"/save {tmp_path}/stopped.json")
    messages = json.loads((tmp_path / "stopped.json").read_text())["messages"]
    assert messages[-1]["role"] == "assistant"
    assert messages[-1]["content"].startswith("Once upon a time")
    assert terminal.line("/ctx")

    terminal.child.send("never sent")
    terminal.child.expect_exact("never sent")
    terminal.child.sendintr()
    terminal.child.expect(READY)
    assert "user" in terminal.line("/ctx")
    terminal.line(f"/save {tmp_path}/stopped.json")
    assert len(json.loads((tmp_path / "stopped.json").read_text())["messages"]) == len(messages)
    assert terminal.leave() == 0


def test_ctrl_c_during_prefill_keeps_document_and_chat(
    smollm2_gguf: Path, tmp_path: Path, novel: str
) -> None:
    (tmp_path / "novel.txt").write_text(novel[:20_000])
    terminal = Terminal(smollm2_gguf, tmp_path, *GREEDY, "--file", str(tmp_path / "novel.txt"))
    assert "novel.txt" in terminal.banner
    terminal.child.sendline("Who is Anne?")
    terminal.child.expect(r"prefill.*[\d,]+ of [\d,]+ tokens, [\d,]+ tokens/s, [\d: s]+ left")
    terminal.child.sendintr()
    terminal.child.expect_exact(
        "(stopped before the answer started: the message is not part of the conversation)"
    )
    terminal.child.expect(READY)
    assert "attached to your next message" in terminal.line("/ctx")
    assert terminal.leave() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_process_restores_the_terminal(
    smollm2_gguf: Path, tmp_path: Path, number: int
) -> None:
    chat = ["chat", str(smollm2_gguf), "--ctx", "2048", "--temperature", "0"]
    inner = shlex.join([sys.executable, "-m", "pigguf", *chat])
    child = pexpect.spawn(
        "sh",
        ["-c", f"stty -a; {inner}; echo status $?; stty -a; echo end"],
        env={**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(tmp_path)},
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    child.expect(READY)
    before = settings_in(child.before)
    child.sendline("Write a very long story about a pig and a wolf.")
    child.expect("Once upon a time.*,")
    assert not child.getecho()
    [pid] = children(child.pid)
    os.kill(pid, number)
    child.expect_exact(f"status {128 + number}")
    child.expect("end\r\n")
    assert settings_in(child.before) == before
    child.close()


def settings_in(screen: str) -> list[str]:
    """Return the flags that stty shows: " echo", "-echo"."""
    flags = re.findall(r"-?\b(?:echo|icanon|isig|icrnl|opost|ixon)\b", screen)
    assert len(flags) == 6
    return flags


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_one_question_in_the_background_leaves_the_terminal_alone(smollm2_gguf: Path) -> None:
    asking = ["chat", str(smollm2_gguf), "-p", "Hi", "--max-tokens", "2", "--ctx", "256"]
    inner = shlex.join([sys.executable, "-m", "pigguf", *asking])
    child = pexpect.spawn(  # with job control, so that it has a process group of its own
        "bash", ["-mc", f"stty tostop; {inner} >/dev/null 2>&1 & wait $!; echo status $?"], encoding="utf-8"
    )
    child.expect(r"status (\d+)", timeout=TIMEOUT)
    assert child.match[1] == "0", "148 and up: stopped"
    child.close()


def test_ctrl_c_ends_one_question_with_130(smollm2_gguf: Path, tmp_path: Path) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "pigguf", "chat", str(smollm2_gguf), "-p", "Write a very long story.", "--ctx", "2048"],
        encoding="utf-8",
        timeout=TIMEOUT,
    )
    child.expect("[a-z]{3,} [a-z]+")  # in the middle of the answer
    child.sendintr()
    child.expect_exact("interrupted")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


def test_pasted_lines_are_one_message(terminal: Terminal, tmp_path: Path) -> None:
    terminal.child.send("\x1b[200~first line\nsecond line\x1b[201~")
    terminal.child.expect_exact("second line")
    terminal.child.sendline("")
    terminal.child.expect(READY)
    terminal.line(f"/save {tmp_path}/pasted.json")
    messages = json.loads((tmp_path / "pasted.json").read_text())["messages"]
    assert messages[1] == {"role": "user", "content": "first line\nsecond line"}


def test_the_history_is_private_and_comes_back(smollm2_gguf: Path, tmp_path: Path) -> None:
    first = Terminal(smollm2_gguf, tmp_path, *BRIEF)
    first.line("/ctx")
    first.leave()
    history = tmp_path / "pigguf" / "chat_history"
    assert "/ctx" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600

    second = Terminal(smollm2_gguf, tmp_path, *BRIEF)
    second.child.send("\x1b[A")  # the arrow up
    second.child.expect_exact("/ctx")
    second.child.close(force=True)


def test_typing_during_an_answer_does_not_land_in_it(terminal: Terminal) -> None:
    terminal.child.sendline("Count to ten.")
    terminal.child.expect("\n.+ ")
    terminal.child.send("zzz")
    terminal.child.expect(READY)
    assert "zzz" not in terminal.plain()
    terminal.child.expect_exact("zzz")


def test_a_full_window_drops_the_oldest_turns_with_a_notice(smollm2_gguf: Path, tmp_path: Path) -> None:
    terminal = Terminal(smollm2_gguf, tmp_path / "state", *BRIEF, "--ctx", "160", "--overflow", "shift")
    screens = [terminal.line(f"What is the capital of {country}?") for country in ("France", "Spain", "Peru")]
    while "was dropped" not in screens[-1] and len(screens) < 8:
        screens.append(terminal.line("And of Italy?"))
    assert re.search(r"The context window is full: the oldest turn was dropped \(\d+ tokens\)", screens[-1])
    terminal.line(f"/save {tmp_path}/chat.json")
    questions = [m["content"] for m in json.loads((tmp_path / "chat.json").read_text())["messages"][1::2]]
    assert len(questions) == len(screens) - 1
    assert "France" not in "".join(questions)
    assert terminal.leave() == 0
