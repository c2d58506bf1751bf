"""`pigguf serve`: one model for many clients over HTTP, with OpenAI's API (the extra `[serve]`).

From the network inwards:

    http_server         sockets, connection limits, shutdown (the only module that imports uvicorn)
    app                 routes, API key, errors as JSON
    openai_fields       typed fields of a request body
    openai_messages, openai_tools, openai_requests      request bodies -> typed requests
    openai_responses    response bodies and stream chunks
    openapi             the OpenAPI description of all routes
    service             typed requests -> tokens, grammars and GenerationRequests; embeddings
    event_stream        the scheduler's events for asyncio
    scheduler           the thread that computes batches (continuous batching)
    generation_request, request_queue, slots, batch_planner, running_request, events, scheduler_stats
                        its parts
    model_host          keeps the model loaded; loads it again after a failure
    web_ui, static/     the chat page in a browser, and its routes
    document_subprocess extracts a document's text in a subprocess
    errors, limits, metrics, malloc_arenas

A request is answered as it asks or refused: no parameter is silently ignored that could change the answer.
Text of prompts and answers is never logged, and no request names a file on the server.
"""
