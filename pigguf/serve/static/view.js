// What is shown of a conversation: messages, the answer that is being made, documents, the window.

import { $, duration, el, icon, iconButton, number, tokens } from "./dom.js";
import { copyButton, markdown } from "./markdown.js";
import { documentsOf } from "./talk.js";

const NEAR_END = 80; // pixels: who reads further up is left there
const ENDS = {
  length: "Cut at the longest answer that the settings allow.",
  window: "The window is full: the answer ends here.",
  stopped: "Stopped.",
  broken: "The server went away in the middle of this answer.",
};

export function chip({ name, tokens: count }, label, remove) {
  const made = el("li", { className: "chip" }, icon("page"), el("span", { className: "name", title: name }, name));
  made.append(el("span", { className: "count" }, count == null ? "being read…" : tokens(count)));
  if (remove) made.append(iconButton("cross", `${label} ${name}`, remove));
  return made;
}

/** All messages; `act` is {retry, removeDocument}, without which there is nothing to press. */
export function showMessages(conversation, run, act) {
  const { messages } = conversation;
  const last = messages.at(-1);
  const shown = messages.map((message) =>
    message.role === "user"
      ? question(message, run ? null : act.removeDocument)
      : answer(message, message === last && !run ? act.retry : null),
  );
  if (run) shown.push(el("article", { id: "live", "aria-label": "Answer", "aria-busy": "true" }));
  $("messages").replaceChildren(...shown);
  $("empty").hidden = shown.length > 0;
  if (run) showRun(run);
}

function question(message, removeDocument) {
  const documents = message.documents.map((document) =>
    chip(document, "Remove from the conversation:", removeDocument && (() => removeDocument(message, document))),
  );
  return el(
    "article",
    { className: "question", "aria-label": "You" },
    documents.length ? el("ul", { className: "chips", "aria-label": "Documents" }, ...documents) : null,
    message.text ? el("p", {}, message.text) : null,
  );
}

function answer(message, retry) {
  const foot = el("footer", {}, el("span", { className: "numbers" }, numbers(message)));
  if (navigator.clipboard) foot.append(copyButton(() => message.text, "Copy the answer"));
  if (retry) foot.append(iconButton("retry", "Retry: answer again", retry));
  const end = ENDS[message.end];
  return el(
    "article",
    { className: "answer", "aria-label": "Answer" },
    el("div", { className: "prose" }, markdown(message.text)),
    end ? el("p", { className: "end" }, message.said || end) : null,
    foot,
  );
}

function numbers({ counts, seconds }) {
  if (!counts) return "";
  const pace = seconds > 0.2 && counts.completion > 1 ? `, ${((counts.completion - 1) / seconds).toFixed(1)} a second` : "";
  const kept = counts.cached ? `, ${number(counts.cached)} of them still in memory` : "";
  return `${tokens(counts.completion)}${pace} · prompt of ${number(counts.prompt)}${kept}`;
}

/** The answer that is being made, as far as it is. */
export function showRun(run) {
  const live = $("live");
  if (!live) return;
  if (run.phase === "writing") {
    const prose = live.firstElementChild?.className === "prose" ? live.firstElementChild : el("div", { className: "prose" });
    prose.replaceChildren(markdown(run.answer.text));
    if (!prose.parentElement) live.replaceChildren(prose);
  } else if (run.phase === "reading") {
    showReading(live, run.progress);
  } else {
    live.replaceChildren(el("p", { className: "state" }, STATES[run.phase](run)));
  }
}

const STATES = {
  waiting: () => "Waiting for the model…",
  busy: (run) => `The server has as many questions as it takes. Trying again in ${run.retryIn} s.`,
  gone: () => "The server is gone. Your question is sent again when it is back.",
};

function showReading(live, { read, total, left }) {
  let bar = live.querySelector("progress");
  if (!bar) {
    bar = el("progress", { "aria-label": "Reading" });
    live.replaceChildren(el("p", { className: "state" }, el("span", { id: "reading" })), bar);
  }
  bar.max = total;
  bar.value = read;
  const eta = left == null || read >= total ? "" : ` · ${duration(left)} left`;
  $("reading").textContent = `Reading ${number(read)} of ${tokens(total)}${eta}`;
}

/** Keep the end in sight for who was there. */
export function following(act) {
  const frame = $("scroll");
  const wasAtEnd = frame.scrollHeight - frame.scrollTop - frame.clientHeight < NEAR_END;
  act();
  if (wasAtEnd) frame.scrollTop = frame.scrollHeight;
}

export function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

/** How much of the window is taken. */
export function showGauge(conversation, used, window) {
  const ofDocuments = documentsOf(conversation).reduce((sum, { document }) => sum + (document.tokens ?? 0), 0);
  const share = (count) => `${Math.min(100, (100 * count) / window)}%`;
  $("bar-documents").style.width = share(Math.min(ofDocuments, used));
  $("bar-words").style.width = share(Math.max(0, Math.min(used, window) - ofDocuments));
  $("gauge").dataset.state = used > window ? "over" : used > 0.85 * window ? "near" : "";
  $("counts").textContent = `${number(used)} of ${tokens(window)}`;
  $("gauge").setAttribute(
    "aria-label",
    `Window: ${number(used)} of ${tokens(window)} taken, ${number(ofDocuments)} of them by documents. Opens what the file says of positions.`,
  );
}
