"""The OpenAPI document: compared with the fields that are read, and with a real server (schemathesis)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from support.running_server import RunningServer, get, post, running_server
from support.tiny_chat import write_chat_model

from pigguf.inference.run_config import RunConfig
from pigguf.serve import openai_fields, openai_requests
from pigguf.serve.app import create_app
from pigguf.serve.limits import ServerLimits
from pigguf.serve.model_host import ModelHost
from pigguf.serve.openapi import openapi_document
from pigguf.serve.service import ModelService

KEY = "s3cret"
SCHEMAS = openapi_document(with_key=True)["components"]["schemas"]
PARSERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "ChatRequest": (openai_requests.parse_chat_request, {"messages": [{"role": "user", "content": "x"}]}),
    "CompletionRequest": (openai_requests.parse_completion_request, {"prompt": "x"}),
    "EmbeddingRequest": (openai_requests.parse_embedding_request, {"input": "x"}),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = write_chat_model(tmp_path_factory.mktemp("serve") / "tiny.gguf", 256)
    with running_server(path, "--slots", "4", "--no-prompt-cache", "--api-key", KEY) as served:
        yield served


@pytest.mark.parametrize("name", PARSERS)
def test_it_has_the_fields_that_are_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly these parameters."""
    parse, body = PARSERS[name]
    taken: set[str] = set()
    original_take = openai_fields.RequestFields.take

    def recording_take(fields: openai_fields.RequestFields, parameter: str) -> Any:
        taken.add(parameter)
        return original_take(fields, parameter)

    monkeypatch.setattr(openai_fields.RequestFields, "take", recording_take)
    parse(body)
    assert (
        set(SCHEMAS[name]["properties"])
        == taken | set(openai_fields.UNSUPPORTED_PARAMETERS) | openai_fields.IGNORED_PARAMETERS
    )
    assert set(SCHEMAS[name]["required"]) == set(body)


def test_it_has_every_route_except_the_page_s(tmp_path: Path) -> None:
    path = write_chat_model(tmp_path / "tiny.gguf", 256)
    with ModelHost(path, RunConfig(prompt_cache=False)) as host:
        routes = [
            route
            for route in create_app(ModelService(host, ServerLimits())).routes
            if isinstance(route, Route)
        ]
    page = ("/static/", "/about", "/count", "/documents")
    found = {
        route.path: {method.lower() for method in (route.methods or ())} - {"head"}
        for route in routes
        if route.path != "/" and not route.path.startswith(page)
    }
    assert found == {name: set(methods) for name, methods in openapi_document(with_key=True)["paths"].items()}


def test_it_is_public(tiny: RunningServer) -> None:
    assert json.loads(get(f"{tiny.url}/openapi.json")) == openapi_document(with_key=True)
    assert post(f"{tiny.url}/tokenize", {"content": "x"})[0] == 401


def schemathesis(served: RunningServer, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run schemathesis: it generates valid and invalid requests, and checks the responses."""
    program = Path(sys.executable).with_name("st")
    command = [str(program), "run", f"{served.url}/openapi.json", "--seed", "1", "--no-color"]
    key = ["--header", f"Authorization: Bearer {KEY}"]
    checks = [
        "--request-timeout",
        "60",
        "--checks",
        "all",
        "--exclude-checks",
        "positive_data_acceptance",
        "--warnings",
        "off",
    ]
    return subprocess.run(
        [*command, *key, *checks, *options], capture_output=True, text=True, cwd=folder, timeout=580
    )


def test_generated_requests(tiny: RunningServer, tmp_path: Path) -> None:
    done = schemathesis(tiny, tmp_path, "--phases", "examples,fuzzing", "--max-examples", "8")
    assert done.returncode == 0, done.stdout
    assert "8 passed" in done.stdout  # all except the document itself


@pytest.mark.slow
def test_many_generated_requests(tiny: RunningServer, tmp_path: Path) -> None:
    done = schemathesis(tiny, tmp_path, "--max-time", "240", "--max-examples", "500")
    assert done.returncode == 0, done.stdout
    assert json.loads(get(f"{tiny.url}/health"))["running"] == 0
