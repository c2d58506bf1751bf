// The server's API. Two kinds of errors: RequestRefused, an error response of the server; ServerUnavailable, no
// response or an incomplete one, or the server says that it is unavailable for a while.

export class RequestRefused extends Error {
  constructor(status, error, retryAfter = null) {
    super(error?.message || `the server answered ${status}`);
    this.status = status;
    this.code = error?.code ?? null;
    this.counts = error ?? {};
    this.retryAfter = retryAfter;
  }
}

export class ServerUnavailable extends Error {
  constructor(reason = "") {
    super(reason || "the server does not answer");
    this.reason = reason;
  }
}

const UNAVAILABLE_CODES = ["shutting_down", "unavailable"]; // error codes after which the server may be back

export class Api {
  constructor(key) {
    this.key = key; // a function, as the key may change
  }

  health() {
    return this.#json("/health");
  }

  about() {
    return this.#json("/about");
  }

  /** Count the tokens of messages in the model's chat template. */
  async count(messages, signal) {
    const response = await this.#json("/count", JSON.stringify({ messages }), "application/json", signal);
    return response.count;
  }

  /** Extract a file's text: {name, text, tokens, notes}; the text is what goes into a message. */
  document(file) {
    const path = `/documents?name=${encodeURIComponent(file.name)}`;
    return this.#json(path, file.slice(0, file.size, ""), "application/octet-stream");
  }

  /** Yield the chunks of an answer, in OpenAI's form, some with prompt_progress. */
  async *chat(request, signal) {
    const body = { ...request, stream: true, stream_options: { include_usage: true }, return_progress: true };
    const response = await this.#request("/v1/chat/completions", JSON.stringify(body), "application/json", signal);
    for await (const data of serverSentData(response.body)) {
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (UNAVAILABLE_CODES.includes(event.error?.code)) throw new ServerUnavailable(event.error.message);
      if (event.error) throw new RequestRefused(response.status, event.error);
      yield event;
    }
    throw new ServerUnavailable();
  }

  async #json(...request) {
    const response = await this.#request(...request);
    try {
      return await response.json();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerUnavailable();
    }
  }

  async #request(path, body, type, signal) {
    const headers = {};
    if (type) headers["Content-Type"] = type;
    // The browser accepts only Latin-1 characters in a header, one for each byte: those of the key in UTF-8.
    if (this.key()) headers.Authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(this.key()))}`;
    let response;
    try {
      response = await fetch(path, { method: body === undefined ? "GET" : "POST", body, headers, signal });
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerUnavailable();
    }
    if (!response.ok) {
      const errorBody = await response.json().catch(() => null);
      if (response.status === 503) throw new ServerUnavailable(errorBody?.error?.message ?? errorBody?.reason);
      const retryAfter = Number(response.headers.get("Retry-After")) || null;
      throw new RequestRefused(response.status, errorBody?.error, retryAfter);
    }
    return response;
  }
}

/** Yield the data of server-sent events. */
async function* serverSentData(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let incomplete = "";
  while (true) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerUnavailable();
    }
    if (read.done) return;
    const parts = (incomplete + read.value).split(/\r?\n/);
    incomplete = parts.pop();
    for (const line of parts) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
