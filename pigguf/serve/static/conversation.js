// Conversations, and the generation of answers. No DOM here: view.js shows the result.
//
// conversation: {id, title, renamed, created, updated, messages, draft: {text, documents}}
// message:      {role: "user", text, documents: [{name, text, tokens}]}
//               {role: "assistant", text, end, counts: {prompt, cached, completion}, seconds}
// end:          stop, length, window, stopped (by the user), broken (the server became unavailable)
//
// A question that fails or is stopped before the first text of its answer goes back to the draft, and leaves the
// conversation as it was.

import { RequestRefused, ServerUnavailable } from "./api.js";

const MAX_TITLE = 60; // characters
const SAVE_INTERVAL = 2000; // milliseconds between saves while an answer is generated
const RATE_WINDOW = 4000; // milliseconds of prefill that its rate is measured over: it falls with depth

export function newConversation() {
  const now = Date.now();
  const draft = { text: "", documents: [] };
  // Not randomUUID: browsers have it only on secure origins, not over plain HTTP from another machine.
  const id = `${now}-${Math.random().toString(36).slice(2)}`;
  return { id, title: "", created: now, updated: now, messages: [], draft };
}

export const isBlank = ({ messages, draft }) => !messages.length && !draft.text && !draft.documents.length;

const messageContent = ({ documents = [], text }) => documents.map((document) => document.text).join("") + text;

/** Return the messages for the server, with the draft at the end if wanted and not empty. */
export function toApiMessages(conversation, system, withDraft = false) {
  const { messages, draft } = conversation;
  const all = withDraft && (draft.text || draft.documents.length) ? [...messages, { role: "user", ...draft }] : messages;
  if (!all.length) return [];
  const sent = all.map((message) => ({ role: message.role, content: messageContent(message) }));
  return system.trim() ? [{ role: "system", content: system }, ...sent] : sent;
}

/** Return every document of a conversation and its draft, with the message or draft that holds it. */
export function documentsOf({ messages, draft }) {
  return [...messages, draft].flatMap((holder) => (holder.documents ?? []).map((document) => ({ document, holder })));
}

/** Move a question without an answer back into the draft. */
export function returnToDraft(conversation) {
  if (conversation.messages.at(-1)?.role !== "user") return;
  const { text, documents } = conversation.messages.pop();
  const { draft } = conversation;
  draft.text = [text, draft.text].filter(Boolean).join("\n");
  draft.documents = [...documents, ...draft.documents];
}

/** The generation of one answer: `phase` is waiting, prefill, decode, busy or unavailable. */
export class Generation {
  /**
   * @param on.change called when there is something new to show
   * @param on.save called when the conversation should be saved
   * @param on.unavailable returns a promise that resolves when the server is available again
   */
  constructor(conversation, api, settings, on) {
    Object.assign(this, { conversation, api, settings, on });
    this.phase = "waiting";
    this.answer = { role: "assistant", text: "" };
    this.progress = null; // {processed, total, secondsLeft: number or null}
    this.generated = 0; // chunks with text
    this.retryIn = 0; // seconds, while busy
    this._stop = new AbortController();
  }

  stop() {
    this._stop.abort();
  }

  /**
   * Request the answer until it is complete or refused.
   * Returns null, or the error because of which the question went back to the draft.
   */
  async run({ previous = null } = {}) {
    const { conversation } = this;
    const failed = await this._requestWithRetries();
    if (this.answer.text || (!failed && !this._stop.signal.aborted)) {
      conversation.messages.push(this.answer);
    } else if (previous) {
      conversation.messages.push(previous);
    } else {
      returnToDraft(conversation);
    }
    return failed;
  }

  async _requestWithRetries() {
    while (true) {
      try {
        await this._request();
        return null;
      } catch (error) {
        if (this._stop.signal.aborted) {
          this.answer.end = "stopped";
          return null;
        }
        const isUnavailable = error instanceof ServerUnavailable;
        if (this.answer.text) {
          this.answer.end = "broken";
          this.answer.error = isUnavailable ? "" : error.message;
          return null;
        }
        if (isUnavailable) await this._waitIn("unavailable", this.on.unavailable(error.reason));
        else if (error.status === 429) await this._waitToRetry(error.retryAfter ?? 5);
        else return error instanceof RequestRefused ? error : new RequestRefused(0, { message: String(error.message ?? error) });
        if (this._stop.signal.aborted) return null;
      }
    }
  }

  async _request() {
    const { system, temperature, maxTokens } = this.settings();
    const request = { messages: toApiMessages(this.conversation, system), temperature };
    if (maxTokens) request.max_tokens = maxTokens;
    this._setPhase("waiting");
    const started = performance.now();
    let firstTextAt = 0;
    let savedAt = started;
    for await (const event of this.api.chat(request, this._stop.signal)) {
      const now = performance.now();
      const [choice] = event.choices;
      if (event.prompt_progress) this._updateProgress(event.prompt_progress);
      if (choice?.delta?.content) {
        firstTextAt ||= now;
        this.generated += 1;
        this.answer.text += choice.delta.content;
        this._setPhase("decode");
      }
      if (choice?.finish_reason) this.answer.end = choice.finish_reason;
      if (event.usage) this._recordUsage(event.usage, (now - (firstTextAt || now)) / 1000);
      if (this.answer.text && now - savedAt > SAVE_INTERVAL) {
        savedAt = now;
        this.on.save();
      }
    }
  }

  _updateProgress({ total, cache, processed, time_ms }) {
    this._measurements = [...(this.progress ? this._measurements : []), { processed, time_ms }];
    while (this._measurements.length > 2 && time_ms - this._measurements[1].time_ms > RATE_WINDOW) this._measurements.shift();
    const [from] = this._measurements;
    const before = from === this._measurements.at(-1) ? { processed: cache, time_ms: 0 } : from;
    const rate = (processed - before.processed) / (time_ms - before.time_ms);
    this.progress = { processed, total, secondsLeft: rate > 0 ? (total - processed) / rate / 1000 : null };
    this._setPhase("prefill");
  }

  _recordUsage(usage, seconds) {
    const counts = {
      prompt: usage.prompt_tokens,
      completion: usage.completion_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    };
    if (this.answer.end === "length" && counts.completion !== this.settings().maxTokens) this.answer.end = "window";
    Object.assign(this.answer, { counts, seconds });
  }

  async _waitToRetry(seconds) {
    for (this.retryIn = seconds; this.retryIn > 0 && !this._stop.signal.aborted; this.retryIn -= 1) {
      await this._waitIn("busy", new Promise((resolve) => setTimeout(resolve, 1000)));
    }
  }

  _waitIn(phase, promise) {
    this._setPhase(phase);
    const stopped = new Promise((resolve) => this._stop.signal.addEventListener("abort", resolve, { once: true }));
    return Promise.race([promise, stopped]);
  }

  _setPhase(phase) {
    this.phase = phase;
    this.on.change();
  }
}

export function titleFrom(text) {
  const line = text.trim().split("\n")[0];
  return line.length > MAX_TITLE ? `${line.slice(0, MAX_TITLE).replace(/\s+\S*$/, "")}…` : line;
}

/** Return a conversation as Markdown. */
export function toMarkdown(conversation) {
  const parts = conversation.messages.map((message) => {
    const documents = (message.documents ?? []).map(({ name, tokens }) => `*Document: ${name}, ${tokens} tokens*\n\n`);
    return `## ${message.role === "user" ? "Question" : "Answer"}\n\n${documents.join("")}${message.text}\n`;
  });
  return [`# ${conversation.title}\n`, ...parts].join("\n");
}
