"""Chat messages as OpenAI's clients send them -> messages as chat templates take them.

Text content only; image and audio parts are refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pigguf.chat.prompt_format import Message
from pigguf.serve.errors import RequestRefused
from pigguf.serve.openai_fields import invalid_value

_ROLES = {role: role for role in ("system", "user", "assistant", "tool")} | {"developer": "system"}
_FUNCTION_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")


def parse_messages(value: Any) -> tuple[Message, ...]:
    """Return the messages of a chat request; tool results get the name of the function that was called.

    Raises:
        RequestRefused: the messages are malformed, or use something that is not supported.
    """
    if not isinstance(value, list) or not value:
        raise invalid_value("messages", "a list of messages")
    messages = [_parse_message(message, f"messages[{index}]") for index, message in enumerate(value)]
    called: dict[str, str] = {}  # tool call id -> function name
    for index, message in enumerate(messages):
        called |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool":
            name = called.get(message["tool_call_id"])
            if name is None:
                raise invalid_value(
                    f"messages[{index}].tool_call_id", "the id of a tool call in an earlier message"
                )
            message["name"] = name
    return tuple(messages)


def _parse_message(value: Any, param: str) -> dict[str, Any]:
    """Return one message. `param` names it in errors: "messages[0]"."""
    if not isinstance(value, dict):
        raise invalid_value(param, "an object")
    fields = {key: item for key, item in value.items() if item is not None and item != []}
    role = _ROLES.get(fields.pop("role", "")) if isinstance(value.get("role"), str) else None
    if role is None:
        raise invalid_value(f"{param}.role", f"one of {', '.join(_ROLES)}")
    message: dict[str, Any] = {"role": role}
    if role == "assistant" and "tool_calls" in fields:
        message["tool_calls"] = _parse_tool_calls(fields.pop("tool_calls"), f"{param}.tool_calls")
        fields.setdefault("content", "")
    if role == "tool":
        message["tool_call_id"] = _checked_string(fields.pop("tool_call_id", None), f"{param}.tool_call_id")
    message["content"] = _parse_content(fields.pop("content", None), f"{param}.content")
    if "name" in fields:
        message["name"] = checked_function_name(fields.pop("name"), f"{param}.name")
    for key in fields:
        raise RequestRefused(400, f"{param}.{key[:80]} is not supported", param=f"{param}.{key[:80]}")
    return message


def _parse_tool_calls(value: Any, param: str) -> list[dict[str, Any]]:
    """Return an assistant's earlier tool calls, with their arguments as an object, as templates expect."""
    calls = []
    for call_param, call in checked_objects(value, param):
        function = call.get("function")
        if call.get("type", "function") != "function" or not isinstance(function, dict):
            raise invalid_value(call_param, "a call of type function")
        try:
            arguments = json.loads(
                _checked_string(function.get("arguments"), f"{call_param}.function.arguments")
            )
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise invalid_value(f"{call_param}.function.arguments", "a JSON object as a string")
        name = checked_function_name(function.get("name"), f"{call_param}.function.name")
        call_id = _checked_string(call.get("id"), f"{call_param}.id")
        calls.append({"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}})
    return calls


def _parse_content(value: Any, param: str) -> str:
    """Return a message's text: a string, or text parts joined."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise invalid_value(param, "a string, or a list of parts")
    for index, part in enumerate(value):
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise invalid_value(f"{param}[{index}]", "a part of type text")
    return "".join(part["text"] for part in value)


def checked_objects(value: Any, param: str) -> list[tuple[str, dict[str, Any]]]:
    """Return each object of a list, with its name for errors ("tools[0]").

    Raises:
        RequestRefused: the value is not a list of objects.
    """
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise invalid_value(param, "a list of objects")
    return [(f"{param}[{index}]", item) for index, item in enumerate(value)]


def checked_function_name(value: Any, param: str) -> str:
    """Return a function's name.

    Raises:
        RequestRefused: it has other characters than OpenAI allows.
    """
    if not (isinstance(value, str) and _FUNCTION_NAME.fullmatch(value)):
        raise invalid_value(param, "letters, digits, _ and -, 64 at most")
    return value


def _checked_string(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise invalid_value(param, "a string")
    return value
