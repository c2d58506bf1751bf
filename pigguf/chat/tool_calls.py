"""Tool calls: how a model writes them, the grammar that constrains them, and a parser for an answer.

A model's chat template is rendered with an example call, and the format in TOOL_CALL_FORMATS that recognizes
it is the model's. If none does, because the template has no tools or writes another format, tools and their
results are described in text within the messages (`tools_as_text`), and calls have the PROMPTED_FORMAT.
A call names one of the tools, and its arguments are JSON that follows the tool's schema, unless the answer
ends before the call is complete. An answer ends after its calls.
Not here: running a tool, which is the caller's; text after a call; a distinction of calls inside of
reasoning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pigguf.errors import TokenizerError, UsageError
from pigguf.grammar import GrammarBuilder, gbnf
from pigguf.inference.detokenizer import partial_match_length
from pigguf.inference.engine import Model
from pigguf.inference.engine.sampling_params import GrammarTrigger
from pigguf.tokenizer.chat_template import ChatTemplate


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        name: letters, digits, _ and -.
        description: what it does; None leaves it out.
        parameters: a JSON schema of type object.
    """

    name: str
    description: str | None
    parameters: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the tool as OpenAI's API and chat templates write it."""
        description = {} if self.description is None else {"description": self.description}
        function = {"name": self.name, **description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCallFormat:
    """How a model writes tool calls.

    Attributes:
        opening: the text before the calls, or the name of the control token that stands there.
        first_call: GBNF of what follows the opening: the first call. The rule `call` is a call from the
            function's name on.
        next_call: GBNF of each further call; None if an answer has only one.
        end: GBNF of what follows the last call.
        arguments_key: the JSON key of the arguments.
        template_pattern: regular expression that finds a call of `probe` in a rendered template.
        call_end: GBNF of what follows the arguments.
        only_at_start: whether the opening counts only at the start of an answer, as it may well be other text
            elsewhere.
    """

    opening: str
    first_call: str
    next_call: str | None
    end: str
    arguments_key: str
    template_pattern: str
    call_end: str = '"}"'
    only_at_start: bool = False


# Mistral's models may give a call an id of their own; it is ignored, as the server makes the ids.
_OPTIONAL_ID = r'(", \"id\": \"" [a-zA-Z0-9]{9} "\"")? "}"'
_HERMES = ToolCallFormat(
    "<tool_call>",
    r'"\n{\"name\": " call "\n</tool_call>"',
    r'"\n<tool_call>\n{\"name\": " call "\n</tool_call>"',
    "",
    "arguments",
    r'<tool_call>\s*\{"name": "probe", "arguments": \{',
)
TOOL_CALL_FORMATS: Final = (
    _HERMES,  # Hermes, Qwen 2.5 and 3
    ToolCallFormat(  # Mistral, up to version 7 of its tokenizer
        "[TOOL_CALLS]",
        r'" "? "[{\"name\": " call',
        r'", {\"name\": " call',
        '"]"',
        "arguments",
        r'\[TOOL_CALLS\] ?\[\{"name": "probe", "arguments": \{',
        call_end=_OPTIONAL_ID,
    ),
    ToolCallFormat(  # Llama 3.1 to 3.3
        '{"name":',
        '" " call',
        None,
        "",
        "parameters",
        r'\{"name": "probe", "parameters": \{',
        only_at_start=True,
    ),
)
PROMPTED_FORMAT: Final = _HERMES
"""The format that tools_as_text asks for."""


def detect_tool_call_format(template: ChatTemplate) -> ToolCallFormat | None:
    """Return the format in which a template writes tool calls; None if it has none, or an unknown one."""
    description = "probe description"
    probe = Tool("probe", description, {"type": "object", "properties": {}})
    call = {"id": "123456789", "type": "function", "function": {"name": "probe", "arguments": {"a": "b"}}}
    question = {"role": "user", "content": "?"}
    call_message = {"role": "assistant", "content": "", "tool_calls": [call]}
    result_message = {"role": "tool", "content": "!", "name": "probe", "tool_call_id": "123456789"}
    try:
        with_tool = template.render([question], tools=[probe.as_json()])
        with_call = template.render([question, call_message, result_message], tools=[probe.as_json()])
    except TokenizerError:
        return None
    if description not in with_tool:
        return None
    return next((known for known in TOOL_CALL_FORMATS if re.search(known.template_pattern, with_call)), None)


# ---- grammars ------------------------------------------------------------------------------------


def tool_call_grammar(call_format: ToolCallFormat, tools: Sequence[Tool], *, parallel: bool) -> str:
    """Return the GBNF of what follows a format's opening: a call of any of the tools.

    Args:
        parallel: whether further calls may follow.

    Raises:
        UsageError: a tool's schema cannot be made a grammar.
    """
    grammar = GrammarBuilder()
    return grammar.to_gbnf(_calls_rule(call_format, parallel), call=_call_rule(call_format, tools, grammar))


def tool_call_or_json_grammar(
    call_format: ToolCallFormat, tools: Sequence[Tool], schema: Any, *, parallel: bool
) -> str:
    """Return the GBNF of a whole answer: tool calls with the format's opening, or JSON that follows a schema.

    They are told apart by how they begin, so not for a format that is `only_at_start`.

    Args:
        parallel: whether more than one call may be made.

    Raises:
        UsageError: a schema cannot be made a grammar.
    """
    grammar = GrammarBuilder()
    opening = gbnf.literal(call_format.opening)
    root = f"{grammar.add_schema(schema)} | {opening} {_calls_rule(call_format, parallel)}"
    return grammar.to_gbnf(root, call=_call_rule(call_format, tools, grammar))


def _calls_rule(call_format: ToolCallFormat, parallel: bool) -> str:
    more = f"({call_format.next_call})*" if parallel and call_format.next_call else ""
    return f"{call_format.first_call} {more} {call_format.end}"


def _call_rule(call_format: ToolCallFormat, tools: Sequence[Tool], grammar: GrammarBuilder) -> str:
    calls = " | ".join(_tool_rule(call_format, tool, grammar) for tool in tools)
    return f"({calls}) {call_format.call_end}"


def _tool_rule(call_format: ToolCallFormat, tool: Tool, grammar: GrammarBuilder) -> str:
    try:
        arguments = grammar.add_schema(tool.parameters)
    except UsageError as error:
        raise UsageError(f"the tool {tool.name}: {error.message}", error.hint) from error
    return rf'"\"{tool.name}\", \"{call_format.arguments_key}\": " {arguments}'


def grammar_trigger(call_format: ToolCallFormat) -> GrammarTrigger:
    """Return the trigger of a lazy grammar: the opening of a call, which may follow other text."""
    return GrammarTrigger(call_format.opening, call_format.only_at_start)


def trigger_token(call_format: ToolCallFormat, model: Model) -> int | None:
    """Return the control token that is a format's opening (SamplingParams.visible_control_token).

    Returns:
        None if the opening is plain text to this model.
    """
    tokens = model.tokenize(call_format.opening, add_special=False, parse_special=True)
    is_control = len(tokens) == 1 and not model.token_to_piece(tokens[0])
    return tokens[0] if is_control else None


# ---- templates without tools ---------------------------------------------------------------------

_TOOL_PROMPT = """\
You can call functions. These are there, each with a JSON schema of its parameters:
<tools>
{tools}
</tools>
To call one, write nothing but a JSON object with its name and its arguments, between tags:
<tool_call>
{{"name": "function name", "arguments": {{"parameter": "value"}}}}
</tool_call>
What it gives comes in the next message, between <tool_response> tags."""


def tools_as_text(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    tool_prompt_role: Literal["system", "user"] = "system",
) -> list[dict[str, Any]]:
    """Return a conversation with tools as one without: for chat templates that have no tools.

    The first message describes the tools, calls become the assistant's text, results the user's.

    Args:
        tool_prompt_role: the role of the message that describes the tools.
    """
    converted: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            if converted and converted[-1]["role"] == "user":  # results of parallel calls
                converted[-1]["content"] += "\n" + content
            else:
                converted.append({"role": "user", "content": content})
        else:
            calls = [
                f"<tool_call>\n{_to_json(call['function'])}\n</tool_call>"
                for call in message.get("tool_calls", ())
            ]
            others = {key: value for key, value in message.items() if key != "tool_calls"}
            content = "\n".join(filter(None, [message["content"], *calls]))
            converted.append({**others, "content": content})
    if tools:
        _add_tool_prompt(converted, tools, tool_prompt_role)
    return converted


def _add_tool_prompt(messages: list[dict[str, Any]], tools: Sequence[Tool], role: str) -> None:
    """Describe tools in the first message: after a system prompt, or before the user's text."""
    prompt = _TOOL_PROMPT.format(tools="\n".join(_to_json(tool.as_json()) for tool in tools))
    if messages[0]["role"] != role:
        messages.insert(0, {"role": role, "content": prompt})
    else:
        both = [messages[0]["content"], prompt]
        messages[0]["content"] = "\n\n".join(both if role == "system" else reversed(both))


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- parsing an answer ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TextDelta:
    """New text of an answer that is not part of a call."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A new call, or more of a call's arguments.

    Attributes:
        index: the number of the call in the answer, from 0.
        name: the function's name in the first delta of a call, None in the others.
        arguments: JSON as the model wrote it.
    """

    index: int
    name: str | None
    arguments: str


class ToolCallParser:
    """Parses an answer while it is generated under tool_call_grammar or tool_call_or_json_grammar.

    Args:
        call_format: the model's format.
        is_open: whether the prompt ended in the opening, so that the answer begins inside of a call.
        only_at_start: whether the opening counts only at the start of the answer, whatever the format says:
            with a JSON schema, what follows later is JSON.

    Attributes:
        call_count: how many calls have begun.
    """

    def __init__(
        self, call_format: ToolCallFormat, *, is_open: bool = False, only_at_start: bool = False
    ) -> None:
        self.call_count = 0
        self._format = call_format
        self._is_open = is_open
        self._only_at_start = only_at_start or call_format.only_at_start
        self._has_text = False
        self._buffer = ""
        self._call_start = re.compile(rf'"([\w-]+)", "{call_format.arguments_key}": ')
        self._arguments: _JsonObjectScanner | None = None

    def feed(self, text: str) -> Iterator[TextDelta | ToolCallDelta]:
        """Yield what is certain after more text of the answer."""
        self._buffer += text
        if not self._is_open:
            yield from self._parse_text()
        if self._is_open:
            yield from self._parse_calls()

    def finish(self) -> Iterator[TextDelta]:
        """Yield the text that was held back, once the answer has ended."""
        if self._buffer and not self._is_open:
            yield TextDelta(self._buffer)
        self._buffer = ""

    def _parse_text(self) -> Iterator[TextDelta]:
        before, opening, rest = self._buffer.partition(self._format.opening)
        if opening and not self._is_past_start(before):
            self._is_open, self._buffer = True, rest
        else:
            size = len(self._buffer) - partial_match_length(self._buffer, self._format.opening)
            size = len(self._buffer) if self._is_past_start(self._buffer[:size]) else size
            before, self._buffer = self._buffer[:size], self._buffer[size:]
        if before:
            self._has_text = self._has_text or not before.isspace()
            yield TextDelta(before)

    def _is_past_start(self, before: str) -> bool:
        """Return whether an opening after this text does not count, as it is not at the start."""
        return self._only_at_start and (self._has_text or bool(before.strip()))

    def _parse_calls(self) -> Iterator[ToolCallDelta]:
        while True:
            if self._arguments is None:
                start = self._call_start.search(self._buffer)
                if start is None:
                    return
                self._arguments, self._buffer = _JsonObjectScanner(), self._buffer[start.end() :]
                self.call_count += 1
                yield ToolCallDelta(self.call_count - 1, start[1], "")
            size = self._arguments.scan(self._buffer)
            if size:
                yield ToolCallDelta(self.call_count - 1, None, self._buffer[:size])
            self._buffer = self._buffer[size:]
            if not self._arguments.is_complete:
                return
            self._arguments = None


class _JsonObjectScanner:
    """Finds the end of a JSON object that arrives in pieces."""

    def __init__(self) -> None:
        self.is_complete = False
        self._depth = 0
        self._in_string = self._is_escaped = False

    def scan(self, text: str) -> int:
        """Return how many characters of the text belong to the object."""
        for index, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if self._depth == 0:
                    self.is_complete = True
                    return index + 1
        return len(text)
