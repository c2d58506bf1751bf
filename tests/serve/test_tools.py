"""Tool calls through OpenAI's client, with models of every tool call format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from support.running_server import RunningServer, running_server
from support.tool_call_formats import OPENINGS, TOOLS, WEATHER, write_tool_calling_model

QUESTION: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
OPENED = '<tool_call>\n{"name": [TOOL_CALLS][{"name": '  # text that would open a call in an answer
FUNCTIONS: Any = [tool.as_json() for tool in TOOLS.values()]


@pytest.fixture(scope="module", params=OPENINGS)
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    path = write_tool_calling_model(tmp_path_factory.mktemp("calls") / "tiny.gguf", request.param)
    with running_server(path, "--slots", "2", "--no-prompt-cache") as served:
        served.opening = OPENINGS[request.param]  # type: ignore[attr-defined]
        yield served


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    path = write_tool_calling_model(tmp_path_factory.mktemp("calls") / "tiny.gguf", "<tool_call>")
    with running_server(path, "--slots", "2", "--no-prompt-cache") as served:
        yield served.client()


def settings(**more: Any) -> dict[str, Any]:
    given = {"model": "tiny", "messages": QUESTION, "tools": FUNCTIONS, "max_tokens": 1500, "seed": 1}
    return {**given, "temperature": 0, "parallel_tool_calls": False, **more}


def ask(client: openai.OpenAI, **more: Any) -> Any:
    return client.chat.completions.create(**settings(**more))


def check(calls: Any) -> None:
    for call in calls:
        assert call.type == "function"
        assert len(call.id) == 9
        jsonschema.validate(json.loads(call.function.arguments), dict(TOOLS[call.function.name].parameters))


# ---- every format --------------------------------------------------------------------------------


def test_a_model_may_call_a_tool(served: RunningServer) -> None:
    [choice] = ask(served.client()).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == (None if served.opening == '{"name":' else "Ok")  # type: ignore[attr-defined]
    assert len(choice.message.tool_calls) == 1
    check(choice.message.tool_calls)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_stream_has_the_same_calls(served: RunningServer, choice: str) -> None:
    client = served.client()
    whole = ask(client, tool_choice=choice).choices[0]
    with client.chat.completions.stream(**settings(tool_choice=choice)) as stream:
        chunks = [event.chunk for event in stream if event.type == "chunk"]
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert (final.message.content or None) == whole.message.content
    [call], [expected] = final.message.tool_calls or (), whole.message.tool_calls
    assert call.function.name == expected.function.name
    assert call.function.arguments == expected.function.arguments
    deltas = [part for chunk in chunks for part in chunk.choices[0].delta.tool_calls or ()]
    assert all(delta.index == 0 for delta in deltas)
    assert deltas[0].id == call.id
    assert deltas[0].function.name == call.function.name
    assert len(deltas) > 10
    assert not any(delta.id or delta.function.name for delta in deltas[1:])


def test_a_model_that_must_call_a_tool_does(served: RunningServer) -> None:
    client = served.client()
    counts = set()
    for seed in range(4):
        answer = ask(
            client, tool_choice="required", parallel_tool_calls=True, temperature=0.7, n=3, seed=seed
        )
        for choice in answer.choices:
            assert choice.finish_reason == "tool_calls"
            assert choice.message.content is None
            check(choice.message.tool_calls)
            counts.add(len(choice.message.tool_calls))
    assert (len(counts) > 1) == (served.opening != '{"name":')  # type: ignore[attr-defined]
    for name in TOOLS:
        named = {"type": "function", "function": {"name": name}}
        [call] = ask(client, tool_choice=named, parallel_tool_calls=True).choices[0].message.tool_calls
        assert call.function.name == name
        check([call])


def test_results_are_sent_back(served: RunningServer) -> None:
    client = served.client()
    called = ask(client, tool_choice="required").choices[0].message
    [call] = called.tool_calls
    result_message = {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}
    messages = [*QUESTION, called, result_message]
    answer = ask(client, messages=messages, tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    longer = ask(
        client,
        messages=[*QUESTION, called, {**result_message, "content": "Sunny. Warm."}],
        tool_choice="none",
    )
    assert longer.usage.prompt_tokens - answer.usage.prompt_tokens == len(" Warm.")
    other = {**result_message, "tool_call_id": "another"}
    with pytest.raises(openai.BadRequestError, match="the id of a tool call in an earlier message"):
        ask(client, messages=[*QUESTION, called, other])


def test_an_answer_is_a_call_or_follows_the_response_format(served: RunningServer) -> None:
    client = served.client()
    written = {"type": "object", "properties": {"said": {"enum": [OPENED]}}, "required": ["said"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "said", "schema": written}}
    hot: Any = {
        "response_format": wanted,
        "temperature": 50.0,
        "top_p": 1.0,
        "extra_body": {"top_k": 0, "min_p": 0.0},
    }
    if served.opening == '{"name":':  # type: ignore[attr-defined]
        with pytest.raises(openai.BadRequestError, match="cannot be told from an answer in JSON"):
            ask(client, **hot)
        ask(client, tool_choice="required", **hot)
        return
    reasons = set()
    for seed in range(0, 24, 8):
        answer = ask(client, n=8, seed=seed, **hot)
        streamed = list(ask(client, n=8, seed=seed, stream=True, **hot))
        for choice in answer.choices:
            reasons.add(choice.finish_reason)
            deltas = [chunk.choices[0].delta for chunk in streamed if chunk.choices[0].index == choice.index]
            content = "".join(delta.content or "" for delta in deltas)
            if choice.finish_reason == "tool_calls":
                assert (choice.message.content, content) == (None, "")
                check(choice.message.tool_calls)
            else:
                assert choice.message.tool_calls is None
                assert choice.message.content == content
                jsonschema.validate(json.loads(content), written)
    assert reasons == {"stop", "tool_calls"}


# ---- one of them ---------------------------------------------------------------------------------


def test_a_model_that_is_to_call_none_is_told_of_none(one: openai.OpenAI) -> None:
    answer = ask(one, tool_choice="none", max_tokens=12)
    plain = one.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=12, temperature=0)
    assert answer.usage.prompt_tokens == plain.usage.prompt_tokens  # type: ignore[union-attr]
    assert answer.choices[0].message.content == plain.choices[0].message.content
    assert answer.choices[0].message.content.startswith("Ok<tool_call>")
    assert answer.choices[0].finish_reason == "length"
    assert ask(one).usage.prompt_tokens > answer.usage.prompt_tokens


def test_an_answer_that_is_cut_short_says_so(one: openai.OpenAI) -> None:
    [choice] = ask(one, max_tokens=60).choices
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    with pytest.raises(json.JSONDecodeError):
        json.loads(call.function.arguments)
    chunks = list(ask(one, max_tokens=1, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "O"


def test_logprobs_come_with_calls(one: openai.OpenAI) -> None:
    [choice] = ask(one, logprobs=True).choices
    text = "".join(token.token for token in choice.logprobs.content)
    assert text.startswith("Ok<tool_call>")
    streamed = [
        token.token
        for chunk in ask(one, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert "".join(streamed) == text


def tool(**function: Any) -> list[Any]:
    return [{"type": "function", "function": {"name": "f", **function}}]


def conversation_with_call(**call: Any) -> list[Any]:
    """Return a conversation with a tool call."""
    whole = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, **call}
    return [*QUESTION, {"role": "assistant", "tool_calls": [whole]}]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0] is not a function"),
        ({"tools": tool(name="a b")}, "tools[0].function.name must be letters, digits"),
        ({"tools": tool() + tool()}, "functions of different names"),
        ({"tools": tool(parameters={"type": "string"})}, "must be a JSON schema of type object"),
        (
            {"tools": tool(parameters={"type": "object", "properties": {"a": {"format": "uri"}}})},
            "the tool f: the JSON schema, #/properties/a/format",
        ),
        ({"tools": tool(wrong=1)}, "'wrong' is unknown"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice must be none, auto, required"),
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "or a function of tools"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice must be none, auto, required"),
        ({"response_format": {"type": "xml"}}, "response_format must be of type text, json_object"),
        ({"messages": [*QUESTION, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        (
            {"messages": conversation_with_call(function={"name": "f", "arguments": "[]"})},
            "arguments must be a JSON object",
        ),
        (
            {"messages": conversation_with_call(function={"name": "f", "arguments": "{"})},
            "arguments must be a JSON object",
        ),
        ({"messages": conversation_with_call(type="custom")}, "a call of type function"),
        ({"messages": conversation_with_call(id=1)}, "tool_calls[0].id must be a string"),
    ],
)
def test_invalid_requests_are_refused_with_the_parameter(one: openai.OpenAI, wrong: Any, reason: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(one, **wrong)
    assert reason in refused.value.message


def test_a_tool_without_parameters_gets_none(one: openai.OpenAI) -> None:
    [call] = ask(one, tools=tool(), tool_choice="required").choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {}


def test_the_demo_model_calls_a_forced_tool(smollm2_gguf: Path) -> None:
    with running_server(smollm2_gguf, "--ctx", "2048", "--slots", "1", "--no-prompt-cache") as served:
        answer = served.client().chat.completions.create(
            model=smollm2_gguf.stem,
            messages=QUESTION,
            tools=FUNCTIONS,
            tool_choice={"type": "function", "function": {"name": WEATHER.name}},
            temperature=0,
        )
        assert "tools are described in the system message" in "".join(served.stderr_lines)
    [call] = answer.choices[0].message.tool_calls or ()
    check([call])
    assert json.loads(call.function.arguments)["city"] == "Paris"  # type: ignore[union-attr]
