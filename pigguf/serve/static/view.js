// Shows a conversation: messages, the answer that is being generated, documents, the context window.

import { $, duration, el, icon, iconButton, number, tokens } from "./dom.js";
import { copyButton, markdown } from "./markdown.js";
import { documentsOf } from "./conversation.js";

const NEAR_END = 80; // pixels; further up, the view does not follow the answer
const ENDS = {
  length: "Cut at the longest answer that the settings allow.",
  window: "The context window is full: the answer ends here.",
  stopped: "Stopped.",
  broken: "The server became unavailable during this answer.",
};

export function chip({ name, tokens: count }, label, remove) {
  const element = el("li", { className: "chip" }, icon("page"), el("span", { className: "name", title: name }, name));
  element.append(el("span", { className: "count" }, count == null ? "reading…" : tokens(count)));
  if (remove) element.append(iconButton("cross", `${label} ${name}`, remove));
  return element;
}

/** Show all messages; `actions` is {retry, removeDocument}. */
export function showMessages(conversation, generation, actions) {
  const { messages } = conversation;
  const last = messages.at(-1);
  const shown = messages.map((message) =>
    message.role === "user"
      ? question(message, generation ? null : actions.removeDocument)
      : answer(message, message === last && !generation ? actions.retry : null),
  );
  if (generation) shown.push(el("article", { id: "live", "aria-label": "Answer", "aria-busy": "true" }));
  $("messages").replaceChildren(...shown);
  $("empty").hidden = shown.length > 0;
  if (generation) showGeneration(generation);
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
  const foot = el("footer", {}, el("span", { className: "numbers" }, statistics(message)));
  if (navigator.clipboard) foot.append(copyButton(() => message.text, "Copy the answer"));
  if (retry) foot.append(iconButton("retry", "Retry: answer again", retry));
  const end = ENDS[message.end];
  return el(
    "article",
    { className: "answer", "aria-label": "Answer" },
    el("div", { className: "prose" }, markdown(message.text)),
    end ? el("p", { className: "end" }, message.error || end) : null,
    foot,
  );
}

function statistics({ counts, seconds }) {
  if (!counts) return "";
  const rate = seconds > 0.2 && counts.completion > 1 ? `, ${((counts.completion - 1) / seconds).toFixed(1)} tokens/s` : "";
  const cached = counts.cached ? `, ${number(counts.cached)} cached` : "";
  return `${tokens(counts.completion)}${rate} · prompt of ${number(counts.prompt)}${cached}`;
}

/** Show the answer that is being generated, or what it waits for. */
export function showGeneration(generation) {
  const live = $("live");
  if (!live) return;
  if (generation.phase === "decode") {
    const prose = live.firstElementChild?.className === "prose" ? live.firstElementChild : el("div", { className: "prose" });
    prose.replaceChildren(markdown(generation.answer.text));
    if (!prose.parentElement) live.replaceChildren(prose);
  } else if (generation.phase === "prefill") {
    showProgress(live, generation.progress);
  } else {
    live.replaceChildren(el("p", { className: "state" }, STATES[generation.phase](generation)));
  }
}

const STATES = {
  waiting: () => "Waiting for the model…",
  busy: (generation) => `The server's queue is full. Trying again in ${generation.retryIn} s.`,
  unavailable: () => "The server is unavailable. Your question is sent again when it is back.",
};

function showProgress(live, { processed, total, secondsLeft }) {
  let bar = live.querySelector("progress");
  if (!bar) {
    bar = el("progress", { "aria-label": "Reading" });
    live.replaceChildren(el("p", { className: "state" }, el("span", { id: "reading" })), bar);
  }
  bar.max = total;
  bar.value = processed;
  const eta = secondsLeft == null || processed >= total ? "" : ` · ${duration(secondsLeft)} left`;
  $("reading").textContent = `Reading ${number(processed)} of ${tokens(total)}${eta}`;
}

/** Do something that changes the view, and stay at its end if it was there. */
export function keepAtEnd(change) {
  const frame = $("scroll");
  const wasAtEnd = frame.scrollHeight - frame.scrollTop - frame.clientHeight < NEAR_END;
  change();
  if (wasAtEnd) frame.scrollTop = frame.scrollHeight;
}

export function scrollToEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
}

/** Show how many tokens of the context window are used. */
export function showGauge(conversation, used, window) {
  const documentTokens = documentsOf(conversation).reduce((sum, { document }) => sum + (document.tokens ?? 0), 0);
  const share = (count) => `${Math.min(100, (100 * count) / window)}%`;
  $("bar-documents").style.width = share(Math.min(documentTokens, used));
  $("bar-words").style.width = share(Math.max(0, Math.min(used, window) - documentTokens));
  $("gauge").dataset.state = used > window ? "over" : used > 0.85 * window ? "near" : "";
  $("counts").textContent = `${number(used)} of ${tokens(window)}`;
  $("gauge").setAttribute(
    "aria-label",
    `Context window: ${number(used)} of ${tokens(window)} used, ${number(documentTokens)} of them by documents. Opens the rope scaling of the file.`,
  );
}
