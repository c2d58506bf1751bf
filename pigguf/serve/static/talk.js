// A conversation and its answers. No elements here: view.js shows what this changes.
//
// conversation: {id, title, renamed, created, updated, messages, draft: {text, documents}}
// message:      {role: "user", text, documents: [{name, text, tokens}]}
//               {role: "assistant", text, end, counts: {prompt, cached, completion}, seconds}
// end:          stop, length, window, stopped (by the reader), broken (the server went)
//
// A question that failed or was stopped before the first word goes back to the draft, and leaves the
// conversation as it was.

import { Gone, Refused } from "./api.js";

const TITLE = 60;
const KEEP_EVERY = 2000; // milliseconds between saves while an answer is written
const ETA_OVER = 4000; // milliseconds of reading that the pace is taken from: it falls as a prompt grows

export function newConversation() {
  const now = Date.now();
  const draft = { text: "", documents: [] };
  // No randomUUID: over plain HTTP from another machine a browser has none.
  const id = `${now}-${Math.random().toString(36).slice(2)}`;
  return { id, title: "", created: now, updated: now, messages: [], draft };
}

export const isBlank = ({ messages, draft }) => !messages.length && !draft.text && !draft.documents.length;

const content = ({ documents = [], text }) => documents.map((document) => document.text).join("") + text;

/** The conversation as the server takes it, with the draft at its end if it has anything. */
export function wire(conversation, system, withDraft = false) {
  const { messages, draft } = conversation;
  const all = withDraft && (draft.text || draft.documents.length) ? [...messages, { role: "user", ...draft }] : messages;
  if (!all.length) return [];
  const sent = all.map((message) => ({ role: message.role, content: content(message) }));
  return system.trim() ? [{ role: "system", content: system }, ...sent] : sent;
}

/** Every document of a conversation and its draft, with the list that holds it. */
export function documentsOf({ messages, draft }) {
  return [...messages, draft].flatMap((holder) => (holder.documents ?? []).map((document) => ({ document, holder })));
}

/** Take a question that nobody answered back into the draft. */
export function takeBack(conversation) {
  if (conversation.messages.at(-1)?.role !== "user") return;
  const { text, documents } = conversation.messages.pop();
  const { draft } = conversation;
  draft.text = [text, draft.text].filter(Boolean).join("\n");
  draft.documents = [...documents, ...draft.documents];
}

/** One answer being made: `phase` is waiting, reading, writing, busy or gone. */
export class Run {
  /**
   * @param on.change called when there is something new to show
   * @param on.keep called when the conversation should be kept
   * @param on.back a function to a promise: the server answers again
   */
  constructor(conversation, api, settings, on) {
    Object.assign(this, { conversation, api, settings, on });
    this.phase = "waiting";
    this.answer = { role: "assistant", text: "" };
    this.progress = null; // {read, total, left: seconds or null}
    this.drawn = 0;
    this.retryIn = 0; // seconds, while busy
    this._stop = new AbortController();
  }

  stop() {
    this._stop.abort();
  }

  /**
   * Ask until there is an answer, or none is to be had.
   * Returns null, or the Error for which the question went back to the draft.
   */
  async go({ instead = null } = {}) {
    const { conversation } = this;
    const failed = await this._until();
    if (this.answer.text || (!failed && !this._stop.signal.aborted)) {
      conversation.messages.push(this.answer);
    } else if (instead) {
      conversation.messages.push(instead);
    } else {
      takeBack(conversation);
    }
    return failed;
  }

  async _until() {
    while (true) {
      try {
        await this._ask();
        return null;
      } catch (error) {
        if (this._stop.signal.aborted) {
          this.answer.end = "stopped";
          return null;
        }
        const isGone = error instanceof Gone;
        if (this.answer.text) {
          this.answer.end = "broken";
          this.answer.said = isGone ? "" : error.message;
          return null;
        }
        if (isGone) await this._wait("gone", this.on.back(error.reason));
        else if (error.status === 429) await this._busy(error.retryAfter ?? 5);
        else return error instanceof Refused ? error : new Refused(0, { message: String(error.message ?? error) });
        if (this._stop.signal.aborted) return null;
      }
    }
  }

  async _ask() {
    const { system, temperature, maxTokens } = this.settings();
    const request = { messages: wire(this.conversation, system), temperature };
    if (maxTokens) request.max_tokens = maxTokens;
    this._to("waiting");
    const begun = performance.now();
    let first = 0;
    let kept = begun;
    for await (const event of this.api.chat(request, this._stop.signal)) {
      const now = performance.now();
      const [choice] = event.choices;
      if (event.prompt_progress) this._read(event.prompt_progress);
      if (choice?.delta?.content) {
        first ||= now;
        this.drawn += 1;
        this.answer.text += choice.delta.content;
        this._to("writing");
      }
      if (choice?.finish_reason) this.answer.end = choice.finish_reason;
      if (event.usage) this._count(event.usage, (now - (first || now)) / 1000);
      if (this.answer.text && now - kept > KEEP_EVERY) {
        kept = now;
        this.on.keep();
      }
    }
  }

  _read({ total, cache, processed, time_ms }) {
    this._reads = [...(this.progress ? this._reads : []), { processed, time_ms }];
    while (this._reads.length > 2 && time_ms - this._reads[1].time_ms > ETA_OVER) this._reads.shift();
    const [from] = this._reads;
    const before = from === this._reads.at(-1) ? { processed: cache, time_ms: 0 } : from;
    const pace = (processed - before.processed) / (time_ms - before.time_ms);
    this.progress = { read: processed, total, left: pace > 0 ? (total - processed) / pace / 1000 : null };
    this._to("reading");
  }

  _count(usage, seconds) {
    const counts = {
      prompt: usage.prompt_tokens,
      completion: usage.completion_tokens,
      cached: usage.prompt_tokens_details?.cached_tokens ?? 0,
    };
    if (this.answer.end === "length" && counts.completion !== this.settings().maxTokens) this.answer.end = "window";
    Object.assign(this.answer, { counts, seconds });
  }

  async _busy(seconds) {
    for (this.retryIn = seconds; this.retryIn > 0 && !this._stop.signal.aborted; this.retryIn -= 1) {
      await this._wait("busy", new Promise((resolve) => setTimeout(resolve, 1000)));
    }
  }

  _wait(phase, promise) {
    this._to(phase);
    const stopped = new Promise((resolve) => this._stop.signal.addEventListener("abort", resolve, { once: true }));
    return Promise.race([promise, stopped]);
  }

  _to(phase) {
    this.phase = phase;
    this.on.change();
  }
}

export function titled(text) {
  const line = text.trim().split("\n")[0];
  return line.length > TITLE ? `${line.slice(0, TITLE).replace(/\s+\S*$/, "")}…` : line;
}

/** A conversation as a Markdown file. */
export function exported(conversation) {
  const parts = conversation.messages.map((message) => {
    const documents = (message.documents ?? []).map(({ name, tokens }) => `*Document: ${name}, ${tokens} tokens*\n\n`);
    return `## ${message.role === "user" ? "Question" : "Answer"}\n\n${documents.join("")}${message.text}\n`;
  });
  return [`# ${conversation.title}\n`, ...parts].join("\n");
}
