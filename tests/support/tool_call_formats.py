"""A chat template for each tool call format, and a tiny model that generates "Ok" and then a call."""

from __future__ import annotations

from pathlib import Path

from support.tiny_chat import TEMPLATE, write_next_token_model

from pigguf.chat.tool_calls import Tool

_TOOLS = "{% if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
_BEGIN = "{% for message in messages %}<{{ message.role }}>"
_END = "\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def _template(calls: str) -> str:
    """Return a template in which `calls` is rendered instead of the text, for a message with tool calls."""
    return (
        f"{_TOOLS}{_BEGIN}{{% if message.tool_calls %}}{calls}{{% else %}}{{{{ message.content }}}}"
        f"{{% endif %}}{_END}"
    )


TEMPLATES = {
    "<tool_call>": _template(
        "{{ message.content }}{% for call in message.tool_calls %}"
        "<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    ),
    "[TOOL_CALLS]": _template(
        "[TOOL_CALLS][{% for call in message.tool_calls %}{% if call.id | length != 9 %}"
        "{{ raise_exception('an id has nine letters') }}{% endif %}"
        '{{ (call.function | tojson)[:-1] }}, "id": "{{ call.id }}"}'
        "{% if not loop.last %}, {% endif %}{% endfor %}]"
    ),
    '{"name":': _template(
        "{% if message.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
        '{% set call = message.tool_calls[0].function %}{"name": "{{ call.name }}", '
        '"parameters": {{ call.arguments | tojson }}}'
    ),
    "as text": TEMPLATE,
}
OPENINGS = {name: "<tool_call>" if name == "as text" else name for name in TEMPLATES}

WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"enum": ["Paris", 'Rome "}]']},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "note": {"type": "string", "maxLength": 5},
        },
        "required": ["city", "days", "note"],
    },
)
TIME = Tool(
    "get-time",
    None,
    {
        "type": "object",
        "properties": {"zone": {"$ref": "#/$defs/zone"}},
        "required": ["zone"],
        "$defs": {"zone": {"enum": ["CET", "UTC"]}},
    },
)
TOOLS = {tool.name: tool for tool in (WEATHER, TIME)}


def write_tool_calling_model(path: Path, name: str) -> Path:
    """Write the model of a format; it generates no "Ok" if the opening counts only at the start."""
    opening = OPENINGS[name]
    steps = {">": opening} if name == '{"name":' else {">": "O", "O": "k", "k": opening}
    control = (opening,) if opening == "[TOOL_CALLS]" else ()
    return write_next_token_model(path, TEMPLATES[name], steps, control)
