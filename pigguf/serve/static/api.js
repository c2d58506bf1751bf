// The server: what it is asked, and the two ways in which it does not answer.
// Refused: it said no, in words. Gone: nothing came, or not all of it, or it is away for a while and says why.

export class Refused extends Error {
  constructor(status, error, retryAfter = null) {
    super(error?.message || `the server answered ${status}`);
    this.status = status;
    this.code = error?.code ?? null;
    this.counts = error ?? {};
    this.retryAfter = retryAfter;
  }
}

export class Gone extends Error {
  constructor(reason = "") {
    super(reason || "the server does not answer");
    this.reason = reason;
  }
}

const AWAY = ["shutting_down", "unavailable"]; // codes of a server that may be back

export class Api {
  constructor(key) {
    this.key = key; // a function: the key may change
  }

  health() {
    return this.#json("/health");
  }

  about() {
    return this.#json("/about");
  }

  /** How many tokens messages are, as the model's template writes them. */
  async count(messages, signal) {
    const counted = await this.#json("/count", JSON.stringify({ messages }), "application/json", signal);
    return counted.count;
  }

  /** A file as {name, text, tokens}; the text is what goes into a message. */
  document(file) {
    const path = `/documents?name=${encodeURIComponent(file.name)}`;
    return this.#json(path, file.slice(0, file.size, ""), "application/octet-stream");
  }

  /** The events of an answer, as the server's JSON: chunks of OpenAI's form, some with prompt_progress. */
  async *chat(request, signal) {
    const body = { ...request, stream: true, stream_options: { include_usage: true }, return_progress: true };
    const response = await this.#ask("/v1/chat/completions", JSON.stringify(body), "application/json", signal);
    for await (const data of lines(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (AWAY.includes(event.error?.code)) throw new Gone(event.error.message);
      if (event.error) throw new Refused(response.status, event.error);
      yield event;
    }
    throw new Gone();
  }

  async #json(...asked) {
    const response = await this.#ask(...asked);
    try {
      return await response.json();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Gone();
    }
  }

  async #ask(path, body, type, signal) {
    const headers = {};
    if (type) headers["Content-Type"] = type;
    // A header holds bytes, of which the browser takes none but Latin-1 characters: the key's own, in UTF-8.
    if (this.key()) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(this.key()))}`;
    let response;
    try {
      response = await fetch(path, { method: body === undefined ? "GET" : "POST", body, headers, signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Gone();
    }
    if (!response.ok) {
      const told = await response.json().catch(() => null);
      if (response.status === 503) throw new Gone(told?.error?.message ?? told?.reason);
      const after = Number(response.headers.get("Retry-After")) || null;
      throw new Refused(response.status, told?.error, after);
    }
    return response;
  }
}

/** The data of server-sent events. */
async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  while (true) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Gone();
    }
    if (read.done) return;
    const parts = (rest + read.value).split(/\r?\n/);
    rest = parts.pop();
    for (const line of parts) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
