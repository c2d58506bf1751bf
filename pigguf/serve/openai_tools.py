"""The tools of a chat request: their descriptions, `tool_choice` and `parallel_tool_calls`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pigguf.chat.tool_calls import Tool
from pigguf.serve.errors import RequestRefused
from pigguf.serve.openai_fields import RequestFields, check_schema_size, invalid_value
from pigguf.serve.openai_messages import checked_function_name, checked_objects

MAX_TOOLS = 128  # OpenAI's
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class ToolSelection:
    """What a model may and must call.

    Attributes:
        tools: functions that are described to the model, and that it may call.
        forced_tools: the functions of which it must call one; empty if it may answer with text.
        parallel_tool_calls: whether one answer may hold more than one call.
    """

    tools: tuple[Tool, ...] = ()
    forced_tools: tuple[Tool, ...] = ()
    parallel_tool_calls: bool = False


def parse_tools(fields: RequestFields) -> ToolSelection:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`.

    Raises:
        RequestRefused: one of them is malformed, or they do not fit together.
    """
    descriptions = checked_objects(fields.take("tools") or [], "tools")
    check_schema_size(descriptions, "tools")
    choice, parallel = fields.take("tool_choice") or "auto", fields.take("parallel_tool_calls")
    if len(descriptions) > MAX_TOOLS:
        raise invalid_value("tools", f"{MAX_TOOLS} at most")
    if parallel is not None and not isinstance(parallel, bool):
        raise invalid_value("parallel_tool_calls", "true or false")
    by_name = {tool.name: tool for tool in (_parse_tool(item, param) for param, item in descriptions)}
    if len(by_name) < len(descriptions):
        raise invalid_value("tools", "functions of different names")
    tools = tuple(by_name.values())
    if choice == "none" or (choice == "auto" and not tools):
        return ToolSelection()
    if choice == "auto":
        return ToolSelection(tools, (), parallel is not False)
    if choice == "required" and tools:
        return ToolSelection(tools, tools, parallel is not False)
    name = _named_function(choice)
    if name not in by_name:
        raise invalid_value("tool_choice", "none, auto, required, or a function of tools")
    return ToolSelection(tools, (by_name[name],), False)


def _named_function(choice: Any) -> str:
    """Return the function's name of a `tool_choice` object; "" if it has none."""
    is_object = isinstance(choice, dict) and choice.get("type") == "function"
    function = choice.get("function") if is_object else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _parse_tool(value: dict[str, Any], param: str) -> Tool:
    """Return one tool of the list. `param` names it in errors: "tools[0]"."""
    function = value.get("function")
    if value.get("type") != "function" or not isinstance(function, dict):
        raise RequestRefused(400, f"{param} is not a function", param=param, code="unsupported_parameter")
    fields = RequestFields(function)
    name = checked_function_name(fields.take("name"), f"{param}.function.name")
    description, schema = fields.string("description"), fields.take("parameters")
    fields.boolean("strict")  # calls always follow their schema
    fields.refuse_unread()
    if schema is None:
        schema = _NO_PARAMETERS
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise invalid_value(f"{param}.function.parameters", "a JSON schema of type object")
    return Tool(name, description, schema)
