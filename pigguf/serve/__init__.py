"""A model for many at once, over HTTP, as OpenAI's clients expect it (the extra `[serve]`).

    scheduler    one thread that owns a context, and computes one batch a step for all who wait
    openai       requests and answers as they look on the wire, as frozen values
    openapi      what the server takes and answers, described for programs
    errors       what is refused, and every PigError as OpenAI's error JSON
    host         the context and its scheduler, watched, and opened again after a failure
    memory       what was freed, back to the system
    service      from a request to its answers: tokens, the window, the queue
    app          routes, keys and limits
    page         the page, and what it asks for beside OpenAI's routes; static/ is its files
    reader       a document's text, read by a process of its own
    metrics      what Prometheus reads: the only importer of prometheus_client
    server       sockets, and how it ends: the only importer of uvicorn

Contract: what a request asks for is done or refused, never left out in silence; nothing of a prompt or an
answer is logged; no request names a file.
"""
